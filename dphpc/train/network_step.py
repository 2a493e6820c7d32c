"""The same physics as `step`, by the plain networks in torch with double backward.

For embedding networks with kinks, for batches too small to pay for a table, and for checking the tangent pass
(`dphpc: {embedding: network}` in the training input).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dphpc.model.dp_model import DPModel
from dphpc.ops.se_a.autograd import network_moments
from dphpc.ops.se_a.contract import Environment, SeAParameters
from dphpc.train.data import Batch
from dphpc.train.parameters import Parameters
from dphpc.train.step import LossGradient, Prediction, parameter_columns


class _Kept(NamedTuple):
    batch: Batch
    energy: Tensor
    forces: Tensor
    virial: Tensor


class NetworkStep:
    """Energies and loss gradients of batches through the networks themselves; used like `step.TableStep`."""

    def __init__(self, model: DPModel, parameters: Parameters) -> None:
        self.model, self.parameters = model, parameters
        self._kept: _Kept | None = None
        self.se_a = SeAParameters.of(model)

    def forward(self, batch: Batch) -> Prediction:
        """Energies, forces and virials; the graph is kept for `backward`."""
        positions = torch.from_numpy(batch.positions[: batch.n_local]).clone().requires_grad_(True)
        strain = torch.zeros((batch.n_frames, 3, 3), dtype=torch.float64, requires_grad=True)
        images = torch.from_numpy(batch.positions[batch.n_local :] - batch.positions[batch.owners])
        everywhere = torch.cat((positions, positions[torch.from_numpy(batch.owners).long()] + images))
        energy = self._atom_energy(batch, everywhere, strain)
        if not energy.requires_grad:  # no atom to evaluate
            self._kept = None
            return Prediction.nothing(batch)
        slope = torch.autograd.grad(energy.sum(), (positions, strain), create_graph=True, materialize_grads=True)
        frame = torch.from_numpy(batch.frame).long()
        total = energy.new_zeros(batch.n_frames).index_add(0, frame, energy)
        self._kept = _Kept(batch, energy, -slope[0], -slope[1])
        return Prediction(*(t.detach().numpy() for t in (energy, total, -slope[0], -slope[1])))

    def _atom_energy(self, batch: Batch, positions: Tensor, strain: Tensor) -> Tensor:
        centers = batch.centers.without(self.model.atom_exclude_types)
        env = Environment(batch.positions, batch.types, batch.neighbors, centers.atoms)
        strain = strain[torch.from_numpy(batch.frame[centers.atoms]).long()]
        moments = network_moments(env, self.se_a, self.parameters.descriptor_networks, positions, strain)
        axis = self.model.descriptor.axis_neuron
        features = torch.einsum("nam,nak->nmk", moments, moments[:, :, :axis]).flatten(1)  # also of no atoms
        columns = parameter_columns(self.model, batch)
        result = torch.zeros(batch.n_local, dtype=torch.float64)
        for t, rows in centers.blocks:
            atoms = centers.atoms[rows]
            net = self.parameters.fitting_networks[t]
            inputs = features[rows].to(net.layers[0].w.dtype)
            if columns is not None:
                inputs = torch.cat((inputs, torch.from_numpy(columns[atoms]).to(inputs.dtype)), 1)
            energy = net(inputs, torch)[:, 0]
            if self.model.fitting.subtracts_vacuum(t):
                bare = inputs.detach().clone()
                bare[:, : features.shape[1]] = 0.0
                energy = energy - net(bare, torch)[:, 0]
            energy = energy.to(torch.float64) + float(self.model.energy_bias[t])
            result = result.index_add(0, torch.from_numpy(atoms).long(), energy)
        return result

    def backward(self, loss: LossGradient, done: Callable[[str], None] = lambda _: None) -> None:
        """See `step.TableStep.backward`."""
        self.parameters.zero_gradients()
        if (k := self._kept) is not None:
            outputs, seeds = [k.energy], [loss.atom_seeds(k.batch)]
            if loss.forces is not None:
                outputs, seeds = [*outputs, k.forces], [*seeds, loss.forces]
            if loss.virial is not None:
                outputs, seeds = [*outputs, k.virial], [*seeds, loss.virial]
            torch.autograd.backward(outputs, [torch.from_numpy(np.ascontiguousarray(seed)) for seed in seeds])
        for t in range(len(self.parameters.fitting_networks)):
            done(f"fitting.networks.{t}")
        if self.model.descriptor.trainable:
            done("descriptor")

    def weights_changed(self) -> None:
        """Nothing to do: nothing is computed ahead from the weights."""
