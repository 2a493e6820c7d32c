"""Data-parallel training: each rank evaluates a part of a step's batch, and all ranks make the same step.

The batch is the same as on one rank.  Its atoms, frame after frame, are cut into as many equal parts as there are ranks
(frames of one system have the same atoms, so that parts cost the same even with fewer frames than ranks).  Predictions
are summed before the loss, which every rank computes; gradients are summed network by network while the backward pass
goes on.  So N ranks have the gradient of one, up to the order of summation.

With a batch of its own for each rank (DeePMD-kit's meaning) a rank evaluates all of it, and gradients are averaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import RunError
from dphpc.parallel.comm import Communicator, agree
from dphpc.parallel.flight import Flight
from dphpc.parallel.gradients import GradientSum
from dphpc.train.data import Batch
from dphpc.train.optimizers.protocol import Engine
from dphpc.train.parameters import Parameters
from dphpc.train.step import LossGradient, Prediction


class DividedStep:
    """An engine whose batches are divided among ranks; used like the engine, by all ranks together.

    Parameters
    ----------
    in_flight
        (2,) array to which seconds are added: how long gradients were under way, and the part after the backward pass.
    """

    def __init__(
        self, engine: Engine, parameters: Parameters, comm: Communicator, gradients: GradientSum, in_flight: Doubles
    ) -> None:
        self._engine, self._parameters, self._comm, self._gradients = engine, parameters, comm, gradients
        self._in_flight = in_flight

    def forward(self, batch: Batch) -> Prediction:
        """The whole batch's energies, forces and virials, from each rank's `Batch.own` atoms.

        Raises
        ------
        RunError
            On all ranks, if the engine of any rank raises it.
        """
        error = None
        try:
            part = self._engine.forward(batch)
        except RunError as caught:
            part, error = Prediction.nothing(batch), caught
        arrays = (part.atom_energy, part.energy, part.forces, part.virial)
        total = self._comm.allreduce(np.concatenate([*(a.ravel() for a in arrays), [float(error is not None)]]))
        if total[-1]:
            agree(self._comm, error)
        ends = np.cumsum([a.size for a in arrays])
        return Prediction(*(x.reshape(a.shape) for x, a in zip(np.split(total, ends)[:-1], arrays, strict=True)))

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """Set the gradients, summed over ranks, for the batch of the last `forward`.

        Each network's gradient is under way while the next one is computed.
        """
        flights: list[Flight] = []

        def poll() -> None:
            for flight in flights:
                flight.poll()

        def start(part: str) -> None:
            poll()
            flights.extend(Flight(self._gradients.start(g)) for g in self._parameters.gradient_parts(part))

        self._engine.backward(loss, start)
        poll()
        end = time.perf_counter()
        for flight in flights:
            flight.land()
            self._in_flight += flight.seconds, max(0.0, flight.started + flight.seconds - end)

    def weights_changed(self) -> None:
        """See `Engine.weights_changed`."""
        self._engine.weights_changed()


class AveragedStep(DividedStep):
    """An engine on a batch of each rank's own, with gradients averaged over ranks."""

    def forward(self, batch: Batch) -> Prediction:
        """This rank's own prediction."""
        return self._engine.forward(batch)

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """Set the gradients, averaged over ranks, for the batches of the last `forward`."""
        super().backward(loss)
        self._parameters.scale_gradients(1.0 / self._comm.size)


def mean_errors(errors: dict[str, float], comm: Communicator) -> dict[str, float]:
    """Errors averaged over all ranks' batches; NaN if any rank has NaN.  Collective."""
    names = sorted(errors)
    values: NDArray[np.float64] = comm.allreduce(np.array([errors[n] for n in names])) / comm.size
    return dict(zip(names, values.tolist(), strict=True))
