"""The native passes of the descriptor one by one, as the reference has them: each on a tape that has read the pairs."""

from __future__ import annotations

from dphpc.core.arrays import Doubles, Floats
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.se_a.native import SeATape, features, moments

__all__ = ["features", "forces_into", "moments", "tangent", "tangent_adjoint"]


def tape_of(env: Environment, p: SeAParameters, e: Embedding) -> SeATape:
    tape = SeATape(e.table.coefficients.dtype)
    tape.moments(env, p, e)
    return tape


def forces_into(
    env: Environment, p: SeAParameters, e: Embedding, moments_adjoint: Floats, forces: Doubles, center_virial: Doubles
) -> None:
    tape_of(env, p, e).forces_into(moments_adjoint, forces, center_virial)


def tangent(env: Environment, p: SeAParameters, e: Embedding, direction: Doubles, strain: Doubles) -> Floats:
    return tape_of(env, p, e).tangent(direction, strain)


def tangent_adjoint(
    env: Environment,
    p: SeAParameters,
    e: Embedding,
    direction: Doubles,
    strain: Doubles,
    moments_adjoint: Floats,
    tangent_adjoint: Floats,
) -> tuple[Doubles, Doubles]:
    tape = tape_of(env, p, e)
    tape.tangent(direction, strain)
    return tape.tangent_adjoint(moments_adjoint, tangent_adjoint)
