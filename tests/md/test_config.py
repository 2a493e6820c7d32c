from pathlib import Path
from typing import Any

import pytest

from dphpc.core.config import load_config, parse_config
from dphpc.core.errors import InputError
from dphpc.md.config import MdConfig

ISSUE = """
structure: water.lmp            # LAMMPS data | extxyz | POSCAR | CIF | restart .h5
type_map: [O, H]                # species of the file's types, where the file does not name them
replicate: [2, 2, 2]
model: compressed.dp
precision: float64              # float64 | mixed | float32
timestep_fs: 0.5
velocities: {temperature_K: 330, seed: 1}
stages:
  - {ensemble: nvt, thermostat: nose-hoover, temperature_K: 330, damping_fs: 100, steps: 200}
  - {ensemble: nve, steps: 200}
thermo: {every: 10, file: thermo.csv}
trajectory: {every: 100, file: traj.extxyz}
restart: {every: 1000, file: restart.h5}
"""

BASE: dict[str, Any] = {"structure": "a.lmp", "model": "m.dp", "stages": [{"ensemble": "nve", "steps": 1}]}

NVT: dict[str, Any] = {"ensemble": "nvt", "thermostat": "nose-hoover", "temperature_K": 300, "steps": 5}

MINIMIZE: dict[str, Any] = {"ensemble": "minimize", "steps": 5}
NPT: dict[str, Any] = NVT | {"ensemble": "npt", "pressure_bar": 1, "steps": 20}


def test_the_documented_input(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(ISSUE)
    config = load_config(MdConfig, tmp_path / "run.yaml")
    assert config.replicate == [2, 2, 2]
    assert config.stages[0].thermostat == "nose-hoover"
    assert config.stages[0].temperatures == (330, 330)
    assert config.restart is not None
    assert config.restart.every == 1000


@pytest.mark.parametrize("name", ["csvr", "CSVR", "Bussi", "v-rescale"])
def test_thermostats_have_their_usual_names(name: str) -> None:
    stage = {"ensemble": "NVT", "thermostat": name, "temperature_K": [100, 300], "steps": 10}
    config = parse_config(MdConfig, {**BASE, "stages": [stage]})
    assert config.stages[0].thermostat == "bussi"
    assert [config.stages[0].temperature(k) for k in (0, 5, 10)] == [100, 200, 300]


def test_a_pressure_may_be_a_ramp_and_may_be_below_zero() -> None:
    stage = NPT | {"pressure_bar": [-1000, 1000], "barostat": "C-rescale", "steps": 10}
    (made,) = parse_config(MdConfig, {**BASE, "stages": [stage]}).stages
    assert [made.pressure(k) for k in (0, 5, 10)] == [[p] * 3 for p in (-1000, 0, 1000)]
    assert [made.steps_to_box(k) for k in (0, 7, 10)] == [10, 3, 10]
    assert made.title == (
        "npt (nose-hoover, 300 K, damping 100 fs; isotropic c-rescale, -1000 → 1000 bar, damping 1000 fs), 10 steps"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestep": 0.5}, r"'timestep' is not a known key\n.*timestep\n.*did you mean 'timestep_fs'"),
        ({"thermo": {"evry": 5}}, r"'evry' is not a known key\n.*thermo/evry\n.*did you mean 'every'"),
        ({"dt": 0.5}, r"(?s)'dt' is not a known key.*here it is 'timestep_fs'"),
        ({"steps": 5}, r"(?s)'steps' is not a known key.*a key of a stage"),
        ({"structure": None}, r"'structure'"),
        ({"stages": []}, r"at least 1 item"),
        ({"timestep_fs": -1}, r"greater than 0"),
        ({"timestep_fs": "fast"}, r"'timestep_fs' has the wrong value 'fast'"),
        ({"replicate": [2, 2]}, r"at least 3 items"),
        ({"precision": "double"}, r"'float64', 'mixed', 'tf32' or 'float32'"),
        ({"stages": [{"ensemble": "nvt", "steps": 5}]}, r"nvt stage needs 'thermostat'"),
        ({"stages": [{"ensemble": "nvt", "thermostat": "bussi", "steps": 5}]}, r"needs 'temperature_K'"),
        ({"stages": [{"ensemble": "nph", "steps": 5}]}, r"'nve', 'nvt', 'npt' or 'minimize'"),
        ({"stages": [{"ensemble": "npt", "steps": 5}]}, r"npt stage needs 'thermostat'"),
        ({"stages": [NVT | {"ensemble": "npt"}]}, r"npt stage needs 'pressure_bar'"),
        ({"stages": [NPT | {"barostat": "berendsen"}]}, r"'c-rescale'"),
        ({"stages": [NPT | {"pressure_bar": [1, 2, 3]}]}, r"is a ramp; for a pressure of each direction write {x"),
        ({"stages": [NPT | {"compressibility_per_bar": 0}]}, r"greater than 0"),
        ({"stages": [NPT | {"coupling": "xyz"}]}, r"'isotropic', 'anisotropic' or 'triclinic'"),
        ({"stages": [NPT | {"steps": 9}]}, r"would not move once in 9 steps"),
        ({"stages": [NPT | {"barostat_every": 0}]}, r"greater than 0|greater than or equal to 1"),
        ({"stages": [NPT | {"ensemble": "nvt"}]}, r"'pressure_bar' has no meaning in an nvt stage.*ensemble: npt"),
        ({"stages": [{"ensemble": "nve", "barostat_every": 5, "steps": 5}]}, r"'barostat_every' has no meaning"),
        # LAMMPS' Pdamp in ps.
        (
            {"stages": [NPT | {"pressure_damping_fs": 1}]},
            r"less than 5 times 'barostat_every' timesteps \(25 fs\).*femtoseconds",
        ),
        ({"stages": [NPT | {"damping_fs": 0.1}]}, r"'damping_fs' of stage . is 0.1, less than a timestep"),
        (
            {"stages": [{"ensemble": "nvt", "thermostat": "langvin", "temperature_K": 1, "steps": 5}]},
            r"unknown thermostat 'langvin': did you mean 'langevin'",
        ),
        ({"stages": [{"ensemble": "nve", "temperature_K": 3, "steps": 5}]}, r"'temperature_K' has no meaning"),
        ({"trajectory": {"file": "traj.xtc"}}, r"format of 'traj.xtc' is not clear.*\.extxyz"),
        ({"trajectory": {"file": "a.xyz"}, "thermo": {"file": "a.xyz"}}, r"two outputs would write to 'a.xyz'"),
        ({"trajectory": {"file": "a.lmp", "format": "lammps"}}, r"would overwrite the input 'a.lmp'"),
        ({"trajectory": {"file": "./a.lmp", "format": "lammps"}}, r"would overwrite the input './a.lmp'"),
        ({"trajectory": {"file": "b/../m.dp", "format": "lammps"}}, r"would overwrite the input 'b/../m.dp'"),
        ({"trajectory": {"file": "x.h5md"}, "restart": {"file": "./r.h5"}, "thermo": {"file": "r.h5"}}, "two outputs"),
        ({"deviation": {"models": ["./m.dp"]}}, r"is in the committee twice"),
        ({"stages": [{"ensemble": "nve", "damping_fs": 50, "steps": 5}]}, r"'damping_fs' has no meaning in an nve"),
        ({"stages": [{"ensemble": "nve", "chain_length": 3, "steps": 5}]}, r"'chain_length' has no meaning in an nve"),
        ({"stages": [NVT | {"thermostat": "bussi", "chain_length": 3}]}, r"'chain_length' has no meaning for bussi"),
        (
            {"stages": [{"ensemble": "nve", "max_move_A": 0.2, "steps": 5}]},
            r"no meaning in an nve .*ensemble: minimize",
        ),
        ({"stages": [NVT | {"force_tolerance_eV_A": 1}]}, r"'force_tolerance_eV_A' has no meaning in an nvt stage"),
        ({"stages": [MINIMIZE | {"temperature_K": 300}]}, r"'temperature_K' has no meaning in a minimize .*nvt"),
        ({"stages": [MINIMIZE | {"force_tolerance_eV_A": 0}]}, r"'force_tolerance_eV_A'.*greater than 0"),
        ({"stages": [MINIMIZE | {"max_move_A": -0.1}]}, r"'max_move_A'.*greater than 0"),
        (
            {"stages": [MINIMIZE | {"force_tolerance": 0.1}]},
            r"'force_tolerance' is not .*did you mean 'force_tolerance_eV_A'",
        ),
        ({"stages": [{"ensemble": "minimize"}]}, r"'steps'"),
        # LAMMPS' Tdamp in ps.
        (
            {"stages": [NVT | {"damping_fs": 0.1}]},
            r"'damping_fs' of stage . is 0.1, less than a timestep .*femtoseconds",
        ),
        ({"seed": 2**60}, r"'seed' has the wrong value .*less than"),
        ({"velocities": {"temperature_K": 3, "seed": 2**60}}, r"'seed' has the wrong value .*less than"),
    ],
)
def test_mistakes_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"(?s)" + message):
        parse_config(MdConfig, {**BASE, **changes})


def test_a_restart_may_go_on_in_its_own_file() -> None:
    parse_config(MdConfig, {**BASE, "structure": "restart.h5", "restart": {"file": "restart.h5"}})


def test_a_restart_file_must_be_known_as_such() -> None:
    with pytest.raises(InputError, match=r"use one of \.h5, \.hdf5, \.restart"):
        parse_config(MdConfig, {**BASE, "restart": {"file": "restart.dat"}})
