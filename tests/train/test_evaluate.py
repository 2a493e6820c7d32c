"""`test` and `model-devi` on data whose errors are known beforehand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dphpc.core.errors import DataError, InputError
from dphpc.model.model_file import write_model
from dphpc.potential.committee import Measure
from dphpc.potential.deep_pot import DeepPot
from dphpc.train.evaluate import model_devi
from dphpc.train.evaluate import test as evaluate
from tests.models import random_model, random_structure

N_ATOMS, N_FRAMES = 12, 3


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two models `a.dp`, `b.dp`, and a system labelled by the first with known errors added."""
    for name, seed in (("a", 1), ("b", 2)):
        write_model(random_model(seed), tmp_path / f"{name}.dp")
    write_model(random_model(3, n_types=1), tmp_path / "one_type.dp")
    structures = [random_structure(N_ATOMS, 6.0, seed=k) for k in range(N_FRAMES)]
    x, cells = (np.array([s[k] for s in structures]) for k in range(2))
    types = structures[0][2]
    energy, force, virial = DeepPot(tmp_path / "a.dp").eval(x, cells, types)
    folder = tmp_path / "data" / "set.000"
    folder.mkdir(parents=True)
    np.savetxt(folder.parent / "type.raw", types, fmt="%d")
    (folder.parent / "type_map.raw").write_text("O\nH\n")
    arrays = {
        "coord": x.reshape(N_FRAMES, -1),
        "box": cells.reshape(N_FRAMES, 9),
        "energy": energy.ravel() + np.array([0.3, -0.3, 0.3]),
        "force": force.reshape(N_FRAMES, -1) + 0.02,
        "virial": virial,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return tmp_path


def test_errors_are_those_put_in(labelled: Path) -> None:
    report = evaluate(labelled / "a.dp", str(labelled / "data"), detail_prefix=labelled / "out" / "detail")
    assert report.total.measures("e") == pytest.approx((0.3, 0.3))
    assert report.total.measures("e_peratom") == pytest.approx((0.3 / N_ATOMS, 0.3 / N_ATOMS))
    assert report.total.measures("f") == pytest.approx((0.02, 0.02))
    assert report.total.measures("v") == pytest.approx((0.0, 0.0), abs=1e-10)
    assert report.total.measures("s") == pytest.approx((0.0, 0.0), abs=1e-10)
    assert "Force  RMSE        : 2.000000e-02 eV/Å" in str(report)
    assert "weighted" not in str(report)
    rows = np.loadtxt(labelled / "out" / "detail.f.out")
    assert rows.shape == (N_FRAMES * N_ATOMS, 6)
    assert rows[:, :3] - rows[:, 3:] == pytest.approx(0.02 * np.ones((N_FRAMES * N_ATOMS, 3)))
    assert sorted(p.name for p in (labelled / "out").iterdir()) == [
        "detail.e.out", "detail.e_peratom.out", "detail.f.out", "detail.s.out", "detail.v.out",
        "detail.v_peratom.out",
    ]  # fmt: skip


def test_stress_is_minus_the_virial_by_the_volume(labelled: Path) -> None:
    """The sign and the header of `dp test`, columns of label and prediction."""
    evaluate(labelled / "a.dp", str(labelled / "data"), detail_prefix=labelled / "detail")
    header = (labelled / "detail.s.out").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith(f"# {labelled / 'data'} (eV/Å³): data_sxx data_sxy")
    assert header.endswith("pred_szy pred_szz")
    volumes = np.abs(np.linalg.det(np.load(labelled / "data/set.000/box.npy").reshape(-1, 3, 3)))
    stress, virial = (np.loadtxt(labelled / f"detail.{name}.out", encoding="utf-8") for name in "sv")
    np.testing.assert_allclose(stress, -virial / volumes[:, None], rtol=1e-14)


def test_weighted_forces_are_weighted_over_all_systems(labelled: Path) -> None:
    """Σ w |ΔF| / Σ w over all systems that have `atom_pref`, as `dp test` adds them up."""
    shutil.copytree(labelled / "data", labelled / "more")
    shutil.copytree(labelled / "data", labelled / "without")
    for name, error, weights in (("data", 0.02, 1.0 + np.arange(N_ATOMS) % 2), ("more", 0.05, 10.0 * np.ones(N_ATOMS))):
        np.save(labelled / name / "set.000/atom_pref.npy", np.tile(weights, (N_FRAMES, 1)))
        force = np.load(labelled / name / "set.000/force.npy") - 0.02
        force.reshape(N_FRAMES, N_ATOMS, 3)[:, ::2] += error  # the other half has none
        np.save(labelled / name / "set.000/force.npy", force)
    report = evaluate(labelled / "a.dp", [str(labelled / name) for name in ("data", "more", "without")])
    mean = 0.02 / 3, 0.05 / 2
    means = [errors.measures("f_weighted") for errors in report.systems.values()]
    assert means[0] == pytest.approx((mean[0], 0.02 / 3**0.5))
    assert means[1] == pytest.approx((mean[1], 0.05 / 2**0.5))
    assert means[2] is None
    total = (1.5 * mean[0] + 10.0 * mean[1]) / 11.5
    squares = (1.5 * 0.02**2 / 3 + 10.0 * 0.05**2 / 2) / 11.5
    assert report.total.measures("f_weighted") == pytest.approx((total, squares**0.5))
    assert f"Force weighted MAE : {total:e} eV/Å\nForce weighted RMSE: {squares**0.5:e} eV/Å" in str(report)


def test_a_part_of_the_frames(labelled: Path) -> None:
    report = evaluate(labelled / "a.dp", str(labelled / "data"), n_frames=2)
    assert list(report.n_frames.values()) == [2]
    assert np.diff(report.total.table("e"), axis=1).ravel() == pytest.approx([-0.3, 0.3])
    shuffled = evaluate(labelled / "a.dp", str(labelled / "data"), shuffle_seed=0).total.table("e")
    assert shuffled is not None
    assert sorted(np.diff(shuffled, axis=1).ravel()) == pytest.approx([-0.3, -0.3, 0.3])


@pytest.mark.parametrize("only", [False, True])
def test_errors_of_atomic_energies(labelled: Path, only: bool) -> None:
    model, files, prefix = labelled / "a.dp", labelled / "data" / "set.000", labelled / "detail"
    with pytest.raises(DataError, match=r"(?s)no atom_ener\.npy, which --atomic needs.*data"):
        evaluate(model, str(labelled / "data"), atomic=True)
    x, cells = (np.load(files / f"{name}.npy") for name in ("coord", "box"))
    types = np.loadtxt(labelled / "data" / "type.raw", dtype=int)
    energies = DeepPot(model).eval(x, cells, types, atomic=True)[3].reshape(N_FRAMES, N_ATOMS)
    error = np.where(np.arange(N_ATOMS) % 2, 0.1, 0.3)  # RMSE √0.05
    np.save(files / "atom_ener.npy", energies + error)
    if only:
        for name in ("energy", "force", "virial"):
            (files / f"{name}.npy").unlink()
    report = evaluate(model, str(labelled / "data"), detail_prefix=prefix, atomic=True)
    assert report.total.measures("ae") == pytest.approx((0.2, np.sqrt(0.05)))
    assert (report.total.table("e") is None) == only
    assert "Atomic ener MAE    : 2.000000e-01 eV\nAtomic ener RMSE   : 2.236068e-01 eV" in str(report)
    rows = np.loadtxt(labelled / "detail.ae.out")
    assert rows == pytest.approx(np.column_stack([(energies + error).ravel(), energies.ravel()]))
    if not only:
        assert evaluate(model, str(labelled / "data")).total.table("ae") is None


def test_labels_are_looked_for_before_the_first_frame(labelled: Path) -> None:
    shutil.copytree(labelled / "data", labelled / "more")
    for name in ("energy", "force", "virial"):
        (labelled / "more" / "set.000" / f"{name}.npy").unlink()
    done: list[int] = []
    systems = [str(labelled / name) for name in ("data", "more")]
    with pytest.raises(DataError, match=r"(?s)no labels.*more"):
        evaluate(labelled / "a.dp", systems, progress=lambda i, _: done.append(i))
    assert not done


def test_unlabelled_system_is_refused(labelled: Path) -> None:
    for name in ("energy", "force", "virial"):
        (labelled / "data" / "set.000" / f"{name}.npy").unlink()
    with pytest.raises(DataError, match="no labels"):
        evaluate(labelled / "a.dp", str(labelled / "data"))


def test_model_deviation(labelled: Path) -> None:
    output = labelled / "model_devi.out"
    rows = model_devi([labelled / "a.dp", labelled / "b.dp"], str(labelled / "data"), output, frequency=10)
    written = np.loadtxt(output)
    assert written[:, 0].tolist() == [0, 10, 20]
    assert written[:, 1:] == pytest.approx(rows, rel=1e-5)
    x = np.load(labelled / "data" / "set.000" / "coord.npy")
    cells = np.load(labelled / "data" / "set.000" / "box.npy")
    types = np.loadtxt(labelled / "data" / "type.raw", dtype=int)
    f = [DeepPot(labelled / f"{m}.dp").eval(x, cells, types)[1] for m in "ab"]
    # Of two numbers the standard deviation is half their distance.
    half = np.linalg.norm(f[0] - f[1], axis=-1) / 2
    assert rows[:, 3] == pytest.approx(half.max(axis=1))
    assert rows[:, 5] == pytest.approx(half.mean(axis=1))


def test_model_deviation_needs_like_models(labelled: Path) -> None:
    with pytest.raises(InputError, match="two or more"):
        model_devi([labelled / "a.dp"], str(labelled / "data"), labelled / "out")
    with pytest.raises(InputError, match="type map"):
        model_devi([labelled / "a.dp", labelled / "one_type.dp"], str(labelled / "data"), labelled / "out")


@pytest.mark.parametrize("real_error", [False, True])
@pytest.mark.parametrize(("relative", "relative_v"), [(None, None), (0.5, None), (None, 0.1)])
def test_measures_of_model_deviation(
    labelled: Path, real_error: bool, relative: float | None, relative_v: float | None
) -> None:
    measure = Measure(True, relative, relative_v, real_error)
    output, models = labelled / "model_devi.out", [labelled / "a.dp", labelled / "b.dp"]
    rows = model_devi(models, str(labelled / "data"), output, measure=measure)
    files = labelled / "data" / "set.000"
    x, cells, energy, force, virial = (
        np.load(files / f"{name}.npy") for name in ("coord", "box", "energy", "force", "virial")
    )
    types = np.loadtxt(labelled / "data" / "type.raw", dtype=int)
    e, f, v = (np.array(k) for k in zip(*(DeepPot(model).eval(x, cells, types) for model in models), strict=True))
    e, v = e[..., 0] / N_ATOMS, v / N_ATOMS
    if real_error:
        e0, f0, v0 = energy.ravel() / N_ATOMS, force.reshape(N_FRAMES, N_ATOMS, 3), virial.reshape(-1, 9) / N_ATOMS
    else:
        e0, f0, v0 = (sum(k) / 2 for k in (e, f, v))
    devi_e, devi_f, devi_v = (np.sqrt(((k - k0) ** 2).sum(axis=0) / 2) for k, k0 in ((e, e0), (f, f0), (v, v0)))
    devi_f = np.sqrt((devi_f**2).sum(axis=-1))
    if relative is not None:
        devi_f /= np.sqrt((f0**2).sum(axis=-1)) + relative
    if relative_v is not None:
        devi_v /= np.sqrt((v0**2).sum(axis=-1, keepdims=True)) + relative_v
    expected = np.column_stack(
        (
            *(devi_v.max(axis=1), devi_v.min(axis=1), np.sqrt((devi_v**2).sum(axis=1)) / 3),
            *(devi_f.max(axis=1), devi_f.min(axis=1), devi_f.sum(axis=1) / N_ATOMS),
            *(devi_e, devi_f),
        )
    )
    assert rows == pytest.approx(expected[:, :7], rel=1e-9)
    assert np.loadtxt(output)[:, 1:] == pytest.approx(expected, rel=1e-5)
    assert output.read_text().splitlines()[1].split()[-1] == "atm_devi_f(N)"


def test_real_error_without_virials(labelled: Path) -> None:
    (labelled / "data" / "set.000" / "virial.npy").unlink()
    output = labelled / "out"
    with pytest.raises(DataError, match=r"no virial.npy"):
        model_devi(
            [labelled / "a.dp"], str(labelled / "data"), output, measure=Measure(relative_v=1.0, real_error=True)
        )
    assert not output.exists()
    # One model has an error, though no deviation from itself: 0.02 eV/Å in each component, 0.3 eV.
    rows = model_devi([labelled / "a.dp"], str(labelled / "data"), output, measure=Measure(real_error=True))
    assert np.isnan(rows[:, :3]).all()
    assert rows[:, 3:6] == pytest.approx(0.02 * np.sqrt(3))
    assert rows[:, 6] == pytest.approx(0.3 / N_ATOMS)


def test_impossible_measures_are_refused(labelled: Path) -> None:
    for name in ("energy", "force"):
        (labelled / "data" / "set.000" / f"{name}.npy").unlink()
    output = labelled / "out"
    with pytest.raises(DataError, match=r"no energy.npy and no force.npy"):
        model_devi([labelled / "a.dp"], str(labelled / "data"), output, measure=Measure(real_error=True))
    assert not output.exists()
    for level in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--relative_v"):
            Measure(relative_v=level)
