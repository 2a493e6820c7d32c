"""Groups of atoms with thermostats of their own: their statistics, accounts of heat, and the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.core.exact_sum import total
from dphpc.core.state import RESTARTED
from dphpc.core.units import BOLTZMANN_EV_PER_K, KINETIC
from dphpc.md import restart
from dphpc.md.engine import Engine
from dphpc.md.groups import Groups
from dphpc.md.integrators import Thermostat
from dphpc.md.ledger import Ledger
from dphpc.md.run import run_md
from dphpc.md.thermostats import Bussi, Langevin, NoseHoover, Thermostatted
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones
from tests.md.test_deterministic import THERMOSTATS, atoms_of, compared  # noqa: F401
from tests.md.test_integrators import run

Make = Callable[..., dict[str, Any]]
EngineOf = Callable[..., Engine]

NVE: dict[str, Any] = {"ensemble": "nve", "steps": 24}
ENDS: dict[str, Any] = {"below_A": {"x": 5.0}, "above_A": {"x": 43.0}}
SLABS: dict[str, Any] = {"hot": {"between_A": {"x": [10.0, 20.0]}}, "cold": ENDS}
"""Of argon, in a box of 9 cells along x; at the bounds atoms go to and fro."""
HOT = {"thermostat": "langevin", "temperature_K": [100, 200]}
COLD = {"thermostat": "nose-hoover", "temperature_K": 40, "chain_length": 2}
BOTH: dict[str, Any] = {"ensemble": "nvt", "steps": 24, "groups": {"hot": HOT, "cold": COLD}}
STAGES = {
    "langevin and nose-hoover": [BOTH],
    "two of bussi": [
        BOTH | {"groups": {name: {"thermostat": "bussi", "temperature_K": 160} for name in ("cold", "hot")}}
    ],
    "after other stages": [
        BOTH | {"steps": 6},
        THERMOSTATS["bussi"] | {"steps": 4},
        BOTH | {"groups": {"cold": HOT}, "steps": 14},
    ],
}


@pytest.fixture
def slabs(config: Make) -> Make:
    """As `config`, of a long crystal with groups, and a restart file."""
    folder = Path(config()["structure"]).parent

    def make(**changes: Any) -> dict[str, Any]:
        own = {"replicate": [9, 2, 2], "velocities": {"temperature_K": 160}, "groups": SLABS, "stages": [BOTH]}
        return config(**own | {"restart": {"every": 1000, "file": str(folder / "r.h5")}} | changes)

    return make


def members(path: str) -> dict[int, list[int]]:
    """The ids of each group's atoms in a restart file."""
    atoms = atoms_of(path)
    return {k: atoms["atoms/ids"][atoms["atoms/group"] == k].tolist() for k in (1, 2)}


@pytest.mark.mpi
@pytest.mark.parametrize("name", STAGES)
def test_ranks_and_restarts_give_the_same_bits(
    name: str,
    argon: LennardJones,
    slabs: Make,
    compared: Callable[..., None],  # noqa: F811
) -> None:
    """Atoms stay in their groups, wherever they go."""
    compared({k: v for k, v in slabs(stages=STAGES[name]).items() if k != "restart"}, argon)


@pytest.mark.mpi
def test_members_are_those_of_the_beginning(comm: Communicator, argon: LennardJones, slabs: Make) -> None:
    settings = slabs(stages=[{**NVE, "steps": 0}])
    run_md(settings, comm=comm, potential=argon)
    begun = atoms_of(settings["restart"]["file"])
    found = members(settings["restart"]["file"])
    x, ids = begun["atoms/positions"][:, 0], begun["atoms/ids"]
    assert found[1] == ids[(x > 10.0) & (x < 20.0)].tolist()
    assert found[2] == ids[(x < 5.0) | (x > 43.0)].tolist()
    assert len(found[1]) > 20 < len(found[2])


def test_only_members_feel_the_thermostat(argon: LennardJones, slabs: Make) -> None:
    """In the first step the others move as without."""
    ends = []
    for stage in ([NVE], STAGES["two of bussi"]):
        settings = slabs(stages=[stage[0] | {"steps": 1}])
        run_md(settings, potential=argon)
        ends.append(atoms_of(settings["restart"]["file"]))
    group, factors = ends[1]["atoms/group"], ends[1]["atoms/velocities"] / ends[0]["atoms/velocities"]
    assert (factors[group == 0] == 1.0).all()
    of_hot, of_cold = factors[group == 1], factors[group == 2]
    for of_group in (of_hot, of_cold):
        np.testing.assert_allclose(of_group, of_group[0, 0], rtol=1e-12)
    assert abs(of_hot[0, 0] - 1.0) > 1e-4 < abs(of_cold[0, 0] - 1.0)


def test_groups_have_random_numbers_and_targets_of_their_own(engine_of: EngineOf) -> None:
    engine, asked = engine_of(n=2), list[int]()
    groups = in_groups(engine, 10, 10)
    first, second = (engine.state.group[:32] == k for k in (1, 2))
    engine.state.velocities[:32][second] = engine.state.velocities[:32][first]
    before = engine.state.velocities[:32].copy()
    for bath in thermostats(groups, ("bussi", "bussi")):
        bath.after(engine, 60.0)
    factors = engine.state.velocities[:32] / before
    assert abs(factors[first][0, 0] - factors[second][0, 0]) > 1e-3
    assert (factors[~first & ~second] == 1.0).all()

    def targets(step: int) -> list[float]:
        asked.append(step)
        return [60.0 + step, 90.0]

    engine.step = 10
    chains = thermostats(groups, ("nose-hoover", "nose-hoover"))
    run(engine, Thermostatted(chains, targets, begun=8), 2)
    assert asked == [3, 4]
    assert [bath.scalars[0] for bath in chains] == [64.0, 90.0]


def in_groups(engine: Engine, *sizes: int) -> Groups:
    """Give an engine's atoms, in the order of their ids, to groups of these sizes; the last ones are in none."""
    ends = np.cumsum(sizes)
    ids, n = engine.state.ids, engine.state.n_local
    engine.state.group[:n] = np.where(ids[:n] > ends[-1], 0, 1 + np.searchsorted(ends, ids[:n]))
    return Groups.of([f"g{k}" for k in range(len(sizes))], engine.state, engine.comm)


def thermostats(groups: Groups, names: Sequence[str], temperature: float = 60.0) -> list[Thermostat]:
    """One of each name for a group."""
    made: list[Thermostat] = []
    for k, (name, dof) in enumerate(zip(names, groups.dof, strict=True), 1):
        match name:
            case "nose-hoover":
                made.append(NoseHoover(dof, temperature, 0.1, group=k))
            case "bussi":
                made.append(Bussi(dof, 0.1, 5, group=k))
            case _:
                made.append(Langevin(0.1, 5, group=k))
    return made


@pytest.mark.parametrize("names", [("langevin", "nose-hoover"), ("bussi", "langevin"), ("nose-hoover", "bussi")])
def test_what_they_take_is_conserved(engine_of: EngineOf, names: tuple[str, str]) -> None:
    spread = []
    for dt in (4e-3, 2e-3):
        engine = engine_of(n=3, timestep=dt)
        groups = in_groups(engine, 30, 40)
        integrator, ledger = Thermostatted(thermostats(groups, names), lambda _: (90.0, 40.0)), Ledger.empty(2)
        rows, heats = [], []
        for _ in range(round(1.6 / dt)):
            rows += run(engine, integrator, 1)
            heats.append(groups.values(engine, integrator, ledger)[1::2])
        conserved, total = (np.array([getattr(r, f"{name}_eV") for r in rows]) for name in ("conserved", "total"))
        given = np.array(heats)
        np.testing.assert_allclose(total - given.sum(axis=1), conserved, rtol=0, atol=1e-9)
        assert np.ptp(conserved) < 0.02 * np.abs(given).max()
        assert (given[-1] > 0.05).tolist() == [True, False]
        spread.append(conserved.std())
    assert spread[1] < 0.5 * spread[0], "it is conserved to the order of the integrator"


def test_at_one_temperature_all_parts_have_it(engine_of: EngineOf) -> None:
    """The atoms without a thermostat, too; kinetic energies are distributed as χ²."""
    engine = engine_of(n=2, timestep=8e-3)
    groups = in_groups(engine, 8, 10)
    integrator, found = Thermostatted(thermostats(groups, ("langevin", "nose-hoover")), lambda _: (60.0, 60.0)), []
    for k in range(5000):
        integrator.step(engine, 0.0)
        engine.step += 1
        if k > 400 and k % 5 == 0:
            found.append([float(total(engine.host.kinetic_energy(group))) for group in (1, 2, 0)])
    kinetic = np.array(found) @ [[1, 0, -1], [0, 1, -1], [0, 0, 1]]  # of the groups, and of the others
    dof, kT = np.array([*groups.dof, 42]), BOLTZMANN_EV_PER_K * 60.0
    np.testing.assert_allclose(2.0 * kinetic.mean(axis=0) / dof, kT, rtol=0.08)  # blocks differ by 1, 1 and 3 %
    np.testing.assert_allclose(kinetic.var(axis=0), 0.5 * dof * kT**2, rtol=0.25)


@pytest.mark.slow
def test_heat_flows_from_hot_to_cold(argon: LennardJones, slabs: Make) -> None:
    """In the steady state what one thermostat gives the other takes, and between them it is warmer near the hot one."""
    middle = {"near": {"between_A": {"x": [20.6, 25.5]}}, "far": {"between_A": {"x": [37.0, 42.0]}}}
    bath = {"thermostat": "langevin", "damping_fs": 200}
    stage = {"ensemble": "nvt", "steps": 3000, "groups": {"hot": bath | {"temperature_K": 90}}}
    stage["groups"]["cold"] = bath | {"temperature_K": 20}
    settings = slabs(groups=SLABS | middle, stages=[stage], timestep_fs=8.0, velocities={"temperature_K": 55})
    found = run_md(settings, potential=argon).thermo
    hot, cold = found["heat_hot_eV"], found["heat_cold_eV"]
    np.testing.assert_allclose(np.diff(found["total_eV"]), np.diff(hot + cold), rtol=0, atol=2e-3)
    half = len(hot) // 2
    given, taken = hot[-1] - hot[half], cold[half] - cold[-1]
    assert given > 0.5
    assert taken == pytest.approx(given, rel=0.15)
    means = [found[f"temperature_{name}_K"][half:].mean() for name in ("hot", "near", "far", "cold")]
    assert means == sorted(means, reverse=True)
    assert means[0] > 70.0
    assert means[3] < 35.0


def test_columns_are_those_of_the_atoms(argon: LennardJones, slabs: Make) -> None:
    settings = slabs(stages=[BOTH | {"steps": 20}])
    found = run_md(settings, potential=argon).thermo
    table = np.genfromtxt(settings["thermo"]["file"], delimiter=",", names=True)
    assert list(table.dtype.names)[-4:] == ["temperature_hot_K", "heat_hot_eV", "temperature_cold_K", "heat_cold_eV"]
    for name in table.dtype.names:
        assert np.array_equal(table[name], found[name])
    atoms = atoms_of(settings["restart"]["file"])
    for k, name in ((1, "hot"), (2, "cold")):
        v = atoms["atoms/velocities"][atoms["atoms/group"] == k]
        expected = 39.948 * KINETIC * (v**2).sum() / (BOLTZMANN_EV_PER_K * v.size)
        assert found[f"temperature_{name}_K"][-1] == pytest.approx(expected, rel=1e-3)  # the mass of argon
    assert found["temperature_K"][-1] == pytest.approx(
        2 * found["kinetic_eV"][-1] / (BOLTZMANN_EV_PER_K * 3 * 144), rel=1e-12
    )


def test_directions_in_which_members_are_fixed_do_not_count(argon: LennardJones, slabs: Make) -> None:
    settings = slabs(fixed=[{"below_A": {"x": 2.0}}, {"below_A": {"x": 5.0}, "directions": "z"}], stages=[BOTH])
    found = run_md(settings, potential=argon).thermo
    atoms = atoms_of(settings["restart"]["file"])
    cold, fixed = atoms["atoms/group"] == 2, atoms["atoms/fixed"]
    dof = 3 * cold.sum() - 3 * (fixed == 7).sum() - (fixed == 4).sum()
    assert dof < 3 * cold.sum() - 20
    kinetic = 0.5 * 39.948 * KINETIC * (atoms["atoms/velocities"][cold] ** 2).sum()
    assert found["temperature_cold_K"][-1] == pytest.approx(2 * kinetic / (BOLTZMANN_EV_PER_K * dof), rel=1e-3)


def test_restarts_keep_groups_or_take_others(argon: LennardJones, slabs: Make, tmp_path: Path) -> None:
    begun = run_md(slabs(), potential=argon).thermo
    file, again = tmp_path / "r.h5", {"structure": str(tmp_path / "begun.h5"), "replicate": None}
    first = members(str(file))
    with pytest.raises(InputError, match=r"(?s)with other groups.*key 'groups'.*expected: groups: \{'hot'"):
        run_md(
            slabs(groups={**SLABS, "hot": {"ids": [4]}}, stages=[BOTH | {"steps": 30}]), potential=argon, resume=True
        )
    with pytest.raises(InputError, match="with other groups"):  # their numbers are others
        run_md(slabs(groups=dict(reversed(SLABS.items()))), potential=argon, resume=True)
    longer = BOTH | {"groups": {"hot": HOT | {"temperature_K": 200}, "cold": COLD}}
    file.rename(again["structure"])
    thermo = {"every": 4, "file": str(tmp_path / "new.csv")}
    found = run_md(slabs(**again, stages=[longer], thermo=thermo), potential=argon).thermo
    assert members(str(file)) == first, "as they were, whatever moved since"
    assert found["step"][0] == 24
    for name in ("heat_hot_eV", "heat_cold_eV", "conserved_eV"):
        assert found[name][0] == begun[name][-1], "new stages go on with the accounts"
    found = run_md(slabs(**again, groups={"one": {"ids": [5]}}, stages=[NVE], thermo=thermo), potential=argon).thermo
    assert members(str(file)) == {1: [5], 2: []}
    assert found["heat_one_eV"].tolist() == [0.0] * len(found["step"])
    assert found["conserved_eV"][0] == begun["conserved_eV"][-1]
    run_md(slabs(**again, groups=None, stages=[NVE], thermo=thermo), potential=argon)
    assert members(str(file)) == {1: [], 2: []}


def test_an_older_restart_has_none(
    argon: LennardJones, slabs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older_meta(checkpoint: restart.Checkpoint) -> dict[str, Any]:
        meta = asdict(checkpoint)
        stages = [{k: v for k, v in stage.items() if k != "groups"} for stage in meta["stages"]]
        return {k: v for k, v in meta.items() if k not in ("heats", "heat_account", "groups")} | {"stages": stages}

    with monkeypatch.context() as patch:
        patch.setattr(restart, "RESTARTED", tuple(f for f in RESTARTED if f.name != "group"))
        patch.setattr(restart, "VERSION", 4)
        patch.setattr(restart, "asdict", older_meta)
        run_md(slabs(groups=None, stages=[THERMOSTATS["bussi"]]), potential=argon)
    older = tmp_path / "older.h5"
    (tmp_path / "r.h5").rename(older)
    assert "atoms/group" not in atoms_of(str(older))
    again = {"structure": str(older), "replicate": None}
    longer = slabs(**again, groups=None, stages=[THERMOSTATS["bussi"] | {"steps": 26}])
    assert run_md(longer, potential=argon).steps == 2, "it goes on"
    found = run_md(slabs(**again, thermo={"every": 4, "file": None}), potential=argon).thermo
    assert found["heat_hot_eV"][0] == 0.0 < found["heat_hot_eV"][-1]


@pytest.mark.mpi
def test_mistakes(comm: Communicator, argon: LennardJones, slabs: Make) -> None:
    def stage(**changes: Any) -> dict[str, Any]:
        return {"stages": [BOTH | changes]}

    folder = Path(slabs()["structure"]).parent
    before = sorted(folder.iterdir())
    npt = {"ensemble": "npt", "pressure_bar": 1, "thermostat": "bussi", "temperature_K": 60}
    for changes, message in [
        (
            stage(groups={"warm": HOT}),
            r"(?s)thermostat for 'warm', which is not one of 'groups'.*cold, hot",
        ),
        (stage() | {"groups": {}}, "'hot', which is not one of 'groups': the run file has no 'groups'"),
        (stage(groups={}), "'groups' names none"),
        (stage(groups={"hot": {"temperature_K": 3}}), "a group needs 'thermostat'"),
        (stage(groups={"hot": {"thermostat": "bussi"}}), "a group needs 'temperature_K'"),
        (stage(groups={"hot": HOT | {"chain_length": 3}}), "'chain_length' has no meaning for langevin"),
        (stage(groups={"hot": HOT | {"damping_fs": 0.1}}), "'damping_fs' of stage 1 is 0.1, less than a timestep"),
        (stage(temperature_K=60), "'temperature_K' is given beside 'groups'"),
        (stage(deform_per_ps={"x": 0.1}, steps=30), "'deform_per_ps' is given beside 'groups'"),
        (stage(**npt), "'groups' has no meaning in an npt stage: remove it or write ensemble: nvt"),
        (stage(ensemble="nve"), "'groups' has no meaning in an nve stage"),
        (stage(ensemble="minimize"), "'groups' has no meaning in a minimize stage"),
        ({"groups": {"a b": ENDS}}, "'a b' is no name of a group"),
        ({"groups": SLABS | {"hot": {}}}, "no atoms are named: add species, ids, below_A, above_A or between_A"),
        ({"groups": SLABS | {"hot": {"between_A": {"x": [3, 3]}}}}, r"nothing is between 3 and 3: write x: \[lower"),
        ({"groups": SLABS | {"hot": {"species": ["Xe"]}}}, "group 'hot' names 'Xe', which the model does not know"),
        ({"groups": SLABS | {"hot": {"ids": [999]}}}, "group 'hot' names id 999, and there are no such atoms"),
        ({"groups": SLABS | {"hot": {"above_A": {"x": 40}}}}, "groups 'hot' and 'cold' share 16 atoms"),
        ({"fixed": ENDS}, r"(?s)group 'cold' has a thermostat, and all its 32 atoms are fixed.*stage 1"),
        ({"groups": {"hot": {"species": ["Ar"]}}, **stage(groups={"hot": HOT})}, "group 'hot' has all 144 atoms"),
    ]:
        with pytest.raises(InputError, match=message):
            run_md(slabs(**changes), comm=comm, potential=argon)
    comm.barrier()
    assert sorted(folder.iterdir()) == before
