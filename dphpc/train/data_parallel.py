"""One step's batch on several ranks: each evaluates a part of its atoms, and all make the same step.

The batch is that of one rank alone.  Its atoms, frame after frame, are cut into as many equal parts as there are ranks
(frames of one system have the same atoms, so that parts cost the same, also where there are fewer frames than
ranks).  Predictions are added up before the loss, which every rank forms by itself; gradients are added up while the
backward pass goes on, network by network.  N ranks so have the gradient of one, up to the order of sums.

With a batch of its own for each rank (DeePMD-kit's meaning) a rank evaluates all of it, and gradients are averaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import RunError
from dphpc.parallel.comm import Communicator, agree
from dphpc.parallel.flight import Flight
from dphpc.parallel.gradients import GradientSum
from dphpc.train.data import Batch
from dphpc.train.optimizers.protocol import Engine
from dphpc.train.parameters import Parameters
from dphpc.train.step import Doubles, LossGradient, Prediction


class SharedStep:
    """An engine whose batches are divided among ranks; used like the engine itself, by all ranks at a time.

    Parameters
    ----------
    in_flight
        (2,) to which seconds are added: those that gradients were under way, and of which after the backward pass.
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
            The engine of some rank did; on all.
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

        Each network's gradient is on its way while the next one's is made.
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


class AveragedStep(SharedStep):
    """An engine on a batch of each rank's own, with gradients averaged over ranks."""

    def forward(self, batch: Batch) -> Prediction:
        """This rank's own prediction."""
        return self._engine.forward(batch)

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """Set the gradients, averaged over ranks, for the batches of the last `forward`."""
        super().backward(loss)
        self._parameters.scale_gradients(1.0 / self._comm.size)


def mean_errors(errors: dict[str, float], comm: Communicator) -> dict[str, float]:
    """Errors of all ranks' batches, averaged; what one rank lacks (NaN) is lacking."""
    names = sorted(errors)
    values: NDArray[np.float64] = comm.allreduce(np.array([errors[n] for n in names])) / comm.size
    return dict(zip(names, values.tolist(), strict=True))
