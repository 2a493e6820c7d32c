"""Files that runs write become figures; damaged ones are refused with a message."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from dphpc.core.errors import DataError, InputError
from dphpc.md.run import run_md
from dphpc.plots.curves import thermo
from dphpc.plots.draw import KINDS, Options, draw, guess_kind
from dphpc.plots.frames import read_frames
from dphpc.plots.parity import parity, read_details
from dphpc.plots.style import save
from dphpc.plots.tables import read_table
from tests.lennard_jones import LennardJones

LCURVE = """#  step      rmse_val    rmse_trn    rmse_e_val  rmse_e_trn    rmse_f_val  rmse_f_trn         lr
# If there is no available reference data, rmse_*_{val,trn} will print nan
      0      2.94e+01    2.83e+01      1.20e-01    1.21e-01      9.30e-01    8.95e-01    1.0e-03
    100      6.00e+00    6.10e+00      2.00e-02    2.10e-02      3.30e-01    3.20e-01    9.0e-04
    200      4.00e+00    4.10e+00      1.00e-02    1.10e-02      2.30e-01    2.20e-01    8.0e-04
"""
DEVI = """# data/one
#       step         max_devi_v         min_devi_v         avg_devi_v         max_devi_f         min_devi_f  \
       avg_devi_f             devi_e
           0       4.0e-02       1.0e-03       2.0e-02       3.0e-01       1.0e-02       8.0e-02       1.0e-03
           1       5.0e-02       1.0e-03       2.0e-02       2.0e-01       1.0e-02       7.0e-02       2.0e-03
"""
THERMO = (
    "step,time_ps,temperature_K,potential_eV,kinetic_eV,total_eV,conserved_eV,pressure_bar,pxx_bar,pyy_bar,pzz_bar,"
    "pxy_bar,pxz_bar,pyz_bar,volume_A3\n"
    + "".join(f"{i},{i / 1000},{300 + i},-5.0,1.{i},{-4 + i / 10},-4.0,{10 * i},1,2,3,4,5,6,160\n" for i in range(5))
)

ROUNDS = """round,entry,frames,accurate,candidate,failed,worst_devi_f,labelled,rmse_f,rmse_e,train_s,explore_s,label_s,\
converged
0,0,20,0.25,0.5,0.25,0.7,5,0.4,0.02,9,1,2,0
1,0,20,1,0,0,0.05,0,nan,nan,9,1,0,1
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """One file of each kind of plot."""
    written = {"lcurve": "lcurve.out", "devi": "model_devi.out", "thermo": "thermo.csv", "rdf": "traj.extxyz"}
    written["rounds"] = "rounds.csv"
    for kind, text in (("lcurve", LCURVE), ("devi", DEVI), ("thermo", THERMO), ("rounds", ROUNDS)):
        (tmp_path / written[kind]).write_text(text)
    ase.io.write(tmp_path / written["rdf"], [bulk("Si", a=a) for a in (5.40, 5.41, 5.42)])
    rng = np.random.default_rng(3)
    for name, width, n in (("e_peratom", 1, 20), ("f", 3, 2000), ("v_peratom", 9, 20)):
        labels = rng.normal(size=(n, width))
        rows = np.hstack([labels, labels + 0.25])
        np.savetxt(tmp_path / f"test.{name}.out", rows, header="data/one: data_x pred_x")
    return {kind: str(tmp_path / name) for kind, name in (written | {"parity": "test"}).items()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "msd"])  # a trajectory is taken for an rdf
def test_every_kind_is_recognized_and_drawn(kind: str, files: dict[str, str], tmp_path: Path) -> None:
    assert guess_kind(files[kind]) == kind
    drawn, figure = draw(None, [files[kind]])
    assert drawn == kind
    assert all(axes.get_xlabel() or kind == "thermo" for axes in figure.axes)
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert save(figure, tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert save(figure, tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")


def test_deviations_beside_rounds_are_drawn_too(files: dict[str, str], tmp_path: Path) -> None:
    table = Path(files["rounds"])
    without = len(draw(None, [str(table)])[1].axes[2].lines)
    for number, name in ((0, "00-a"), (0, "01-b"), (1, "00-a")):
        run = tmp_path / f"round-{number:02d}" / "explore" / name
        run.mkdir(parents=True)
        (run / "model_devi.out").write_text(DEVI)
    _, figure = draw(None, [str(table)])
    assert len(figure.axes[2].lines) > without
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([25, 100, 50, 0, 25, 0])


def test_absolute_errors_of_a_training(files: dict[str, str]) -> None:
    path = Path(files["lcurve"])
    text = path.read_text()
    for kind in "ef":
        text = text.replace(f"rmse_{kind}_", f"mae_{kind}_")
    path.write_text(text)
    kind, figure = draw(None, [str(path)])
    assert kind == "lcurve"
    assert [axes.get_ylabel() for axes in figure.axes] == ["MAE (meV/atom)", "MAE (eV/Å)"]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [120.0, 20.0, 10.0])


def test_nothing_is_left_out_silently(files: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no file given"):
        draw("lcurve", [])
    with pytest.raises(InputError, match="3 labels for 1 file"):
        draw("lcurve", [files["lcurve"]], ["a", "b", "c"])
    with pytest.raises(DataError, match="no column with an error") as caught:
        draw(None, [files["lcurve"], files["thermo"]])
    assert caught.value.where == "thermo.csv"
    for named in (["a", "a"], ["lcurve.out"]):
        with pytest.raises(InputError, match=f"two files are named '{named[0]}'"):
            draw("lcurve", [files["thermo"], files["lcurve"]], named)


NPT = {"thermostat": "bussi", "temperature_K": 60, "pressure_bar": 9, "pressure_damping_fs": 20, "barostat_every": 2}


@pytest.mark.parametrize("stage", [{"ensemble": "nve", "steps": 4}, {"ensemble": "npt", "steps": 4, **NPT}])
def test_trajectories_of_md_are_read_in_every_format(stage: dict[str, object], tmp_path: Path) -> None:
    structure = tmp_path / "ar.extxyz"
    atoms = bulk("Ar", cubic=True)
    atoms.symbols[0] = "Ne"
    ase.io.write(structure, atoms)
    run = {
        "structure": str(structure), "velocities": {"temperature_K": 60}, "timestep_fs": 2.0,
        "stages": [stage], "thermo": {"file": None},
    }  # fmt: skip
    read = {}
    for name in ("t.extxyz", "t.lammpstrj", "t.h5md"):
        file = str(tmp_path / name)
        run_md({**run, "trajectory": {"every": 2, "file": file}}, potential=LennardJones(["Ar", "Ne"]))
        assert draw("rdf", [file], options=Options(pair=("Ne", "Ar")))[1].axes[0].get_ylabel() == "g(r) of Ne–Ar"
        read[name] = read_frames(file, skip=1)
    for frames in read.values():
        assert len(frames) == 2
        for frame, wanted in zip(frames, read["t.extxyz"], strict=True):
            assert frame.species.tolist() == ["Ne", "Ar", "Ar", "Ar"]
            np.testing.assert_allclose(frame.positions, wanted.positions, atol=1e-7)  # written with 8 digits
            np.testing.assert_allclose(frame.box.matrix, wanted.box.matrix)
            assert frame.box.periodic == wanted.box.periodic == (True, True, True)
        times = [frame.time for frame in frames]
        assert times == ([None, None] if frames is read["t.lammpstrj"] else pytest.approx([0.004, 0.008]))
    with pytest.raises(DataError, match="no frames"):
        read_frames(str(tmp_path / "t.h5md"), skip=3)
    ase.io.write(tmp_path / "slab.extxyz", bulk("Si", cubic=True) * (1, 1, 2))
    slab = (tmp_path / "slab.extxyz").read_text().replace('pbc="T T T"', 'pbc="T T F"')
    (tmp_path / "slab.extxyz").write_text(slab)
    with pytest.raises(DataError, match="repeat in all three directions") as caught:
        draw("rdf", [str(tmp_path / "slab.extxyz")])
    assert caught.value.where == str(tmp_path / "slab.extxyz")
    (tmp_path / "bad.h5md").write_text("x")
    with pytest.raises(DataError, match="cannot read"):
        read_frames(str(tmp_path / "bad.h5md"))


def test_a_dump_without_elements_is_known_and_its_types_are_numbers(tmp_path: Path) -> None:
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
    (tmp_path / "dump.md").write_text(f"{head}ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 1 1 1\n")
    assert draw(None, [str(tmp_path / "dump.md")], options=Options(pair=("1", "2")))[0] == "rdf"
    with pytest.raises(DataError, match="two of 1, 2"):
        draw("rdf", [str(tmp_path / "dump.md")], options=Options(pair=("O", "H")))


def test_several_runs_deviations_are_overlaid(tmp_path: Path) -> None:
    for name, text in (("00", DEVI), ("01", DEVI.replace("e-0", "e+0"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_devi.out").write_text(text)
    files = [str(tmp_path / name / "model_devi.out") for name in ("00", "01")]
    force, virial, spread = draw(None, files)[1].axes
    for axes, column in ((force, "max_devi_f"), (virial, "max_devi_v")):
        for line, file in zip(axes.lines, files, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), read_table(file)[column])
            assert axes.get_ylim()[1] > line.get_ydata().max()
    assert [text.get_text() for text in spread.get_legend().get_texts()] == ["00/model_devi.out", "01/model_devi.out"]


def test_several_learning_curves_are_overlaid(files: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other" / "lcurve.out"
    other.parent.mkdir()
    other.write_text(LCURVE)
    _, figure = draw("lcurve", [files["lcurve"], str(other)], labels=["DeePMD-kit"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Energy", "Force"]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["DeePMD-kit (validation)", "other/lcurve.out (validation)"]


def test_parity_measures_the_error(files: dict[str, str]) -> None:
    quantities = read_details([files["parity"]])
    assert [q.title for q in quantities] == ["Energy", "Force", "Virial"]
    assert [len(q.labels) for q in quantities] == [20, 6000, 180]
    assert quantities[0].rmse == pytest.approx(250.0)  # meV
    assert quantities[1].rmse == pytest.approx(0.25)
    assert quantities[1].mae == pytest.approx(0.25)
    np.savetxt(f"{files['parity']}.ae.out", [[-1.0, -1.5], [-2.0, -1.5]], header="data/one: data_ae pred_ae")
    assert read_details([files["parity"]])[3].rmse == pytest.approx(0.5)
    assert all(axes.get_xlabel() for axes in parity(quantities * 3).axes)  # more than there are colors


def test_columns_are_found_below_any_comments(files: dict[str, str]) -> None:
    curve = read_table(files["lcurve"])
    np.testing.assert_array_equal(curve["step"], [0, 100, 200])
    assert list(curve)[-1] == "lr"
    assert read_table(files["devi"])["devi_e"][1] == 2e-3
    assert read_table(files["thermo"])["pressure_bar"][4] == 40.0


def test_deviations_of_each_atom_are_left_out(tmp_path: Path) -> None:
    path, names = tmp_path / "model_devi.out", DEVI.splitlines()[1]
    header = f"{names}      atm_devi_f(N)\n"
    systems = {"one": (2, "1.0e-02 3.0e-01"), "three": (0, "1.0e-02 2.0e-02 nan")}  # of two atoms and of three
    frame = "4.0e-02 1.0e-03 2.0e-02 3.0e-01 1.0e-02 8.0e-02 1.0e-03"
    path.write_text("".join(f"# {s}\n{header}{step} {frame} {atoms}\n" for s, (step, atoms) in systems.items()))
    table = read_table(path)
    assert list(table) == names.lstrip("#").split()
    np.testing.assert_array_equal(table["step"], [2, 0])
    np.testing.assert_array_equal(table["devi_e"], 1e-3)
    assert draw(None, [str(path)])[0] == "devi"
    text = path.read_text()
    for damaged in (text.replace(" 1.0e-02 3.0e-01\n", "\n"), text[:-40]):  # no atom's column, a row cut off
        path.write_text(damaged)
        with pytest.raises(DataError, match="not a table of numbers"):
            read_table(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# step rmse_val\n1 2 3\n", "no header"),
        ("# step rmse_val\n1 two\n", "not a table of numbers"),
        ("# step rmse_val\n", "empty"),
        ("", "empty"),
    ],
)
def test_damaged_tables_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_minimizations_begin_the_conserved_quantity_anew() -> None:
    kinetic = np.array([2.0, 2.0, 0.0, 0.0, 3.0, 3.0])
    zero = np.zeros(6)
    table = {"time_ps": np.arange(6.0), "conserved_eV": np.array([1.0, 1.001, 0.5, 0.2, 9.0, 9.002])}
    table |= dict.fromkeys(("temperature_K", "potential_eV", "total_eV", "pressure_bar"), zero) | {
        "kinetic_eV": kinetic
    }
    drift = thermo(table).axes[2]
    np.testing.assert_allclose(drift.lines[0].get_ydata(), [0.0, 1.0, np.nan, np.nan, 0.0, 2.0], atol=1e-9)
    assert "minimizations apart" in drift.get_ylabel()
    rest = thermo(table | {"kinetic_eV": np.array([0.0, *kinetic[:2], 1.0, 1.0, 1.0])}).axes[2]  # starts at rest
    assert rest.lines[0].get_ydata()[1] == pytest.approx(1.0)
    assert rest.get_ylabel() == "change since start (meV)"
    only = thermo(table | {"kinetic_eV": zero}).axes[2]
    assert only.lines[0].get_ydata()[2] == pytest.approx(-500.0)


def test_where_time_stands_still_steps_are_shown(files: dict[str, str]) -> None:
    for still, label in ((False, "time (ps)"), (True, "step")):
        if still:
            head, *rows = Path(files["thermo"]).read_text().splitlines()
            rows = [",".join((step, "0", *rest)) for step, _, *rest in (row.split(",") for row in rows)]
            Path(files["thermo"]).write_text("\n".join((head, *rows, "")))
        _, figure = draw(None, [files["thermo"]])
        last = figure.axes[-1]
        assert last.get_xlabel() == label
        assert list(last.lines[0].get_xdata())[-1] == pytest.approx(4 if still else 0.004)


def test_a_box_that_changes_is_shown(files: dict[str, str]) -> None:
    path = Path(files["thermo"])
    assert len(draw(None, [str(path)])[1].axes) == 4
    head, *rows = path.read_text().splitlines()
    rows = [row.removesuffix("160") + f"{160 + i},{2.5 - i / 10},4,{5 + i / 10},8" for i, row in enumerate(rows)]
    path.write_text("\n".join((f"{head},density_g_cm3,a_A,b_A,c_A", *rows, "")))
    density, lengths = draw(None, [str(path)])[1].axes[4:]
    np.testing.assert_allclose(density.lines[0].get_ydata(), 2.5 - np.arange(5) / 10)
    assert [line.get_label() for line in lengths.lines] == ["a", "b", "c"]
    np.testing.assert_allclose(lengths.lines[1].get_ydata(), 2.0 * np.arange(5))
    assert [axes.get_xlabel() for axes in (density, lengths)] == ["time (ps)"] * 2


def test_panels_of_rounds_have_one_scale(files: dict[str, str]) -> None:
    _, figure = draw(None, [files["rounds"]])
    limits = {axes.get_xlim() for axes in figure.axes}
    assert len(limits) == 1
    assert all(low < 0 and high > 1 for low, high in limits)


def test_wrong_requests_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor a kind"):
        draw(None, ["lcurv"])
    with pytest.raises(InputError, match="no plot 'lcurv'"):
        draw("lcurv", [files["lcurve"]])
    with pytest.raises(InputError, match="2 files"):
        draw("thermo", [files["thermo"], files["thermo"]])
    with pytest.raises(DataError, match="no column"):
        draw("thermo", [files["lcurve"]])
    (tmp_path / "old.out").write_text(DEVI.replace("max_devi_v", "devi_v"))
    with pytest.raises(DataError, match="no column max_devi_v"):
        draw("devi", [str(tmp_path / "old.out")])
    with pytest.raises(DataError, match="dphpc test"):
        draw("parity", [str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="no frames"):
        draw("rdf", [files["rdf"]], options=Options(skip=3))
    with pytest.raises(DataError, match=r"(?s)species 'O'.*two of Si"):
        draw("rdf", [files["rdf"]], options=Options(pair=("O", "Si")))
    with pytest.raises(InputError, match="two species"):
        draw("rdf", [files["rdf"]], options=Options(pair=("Si",)))
    for kind, wrong, takers in (
        ("thermo", Options(r_max=8.0), "'rdf'"),
        ("thermo", Options(table=tmp_path / "thermo2.csv"), "'rdf' or 'msd'"),
        ("thermo", Options(pair=("Si", "Si")), "'rdf'"),
        ("msd", Options(pair=("Si", "Si")), "'rdf'"),
        ("rdf", Options(interval=1.0), "'msd'"),
        ("lcurve", Options(skip=1), "'rdf' or 'msd'"),
    ):
        with pytest.raises(InputError, match=f"(?s)for a plot '{kind}'.*a plot {takers}"):
            draw(kind, [files["thermo"]], options=wrong)
    _, figure = draw("lcurve", [files["lcurve"]])
    with pytest.raises(InputError, match="cannot write"):
        save(figure, tmp_path / "out.doc")
