from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from threadpoolctl import threadpool_info, threadpool_limits

import dphpc
from dphpc.core.errors import DataError, InputError, RunError
from dphpc.model.compress import compress
from dphpc.model.model_file import read_model
from dphpc.ops.threads import get_threads, set_threads
from dphpc.potential.deep_pot import DeepPot
from dphpc.train import checkpoint
from dphpc.train.checkpoint import Checkpoint, find_checkpoint
from dphpc.train.data import Batch
from dphpc.train.freeze import freeze
from dphpc.train.initial import STATISTICS, model_arrays
from dphpc.train.trainer import Trainer
from tests.train.systems import peer_input, peer_lkf_input, small_input, write_system, write_systems

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_systems(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(path: str) -> dict[str, np.ndarray]:
    loaded = Checkpoint.load(Path(path))
    return {**loaded.arrays, **loaded.optimizer}


def signalled_at(step: int) -> Callable[..., dict[str, float]]:
    """What takes the place of `Trainer._train_one` to send this process SIGTERM in the step after `step`."""
    original = Trainer._train_one

    def train_one(self: Trainer, *arguments: Any) -> dict[str, float]:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    return train_one


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss_and_writes_its_files() -> None:
    result = dphpc.train(small_input(numb_steps=60, disp_freq=20, save_freq=25, max_ckpt_keep=2))
    lines = Path("lcurve.out").read_text().splitlines()
    assert lines[0] == (
        "# step       rmse_val    rmse_trn    rmse_e_val  rmse_e_trn    rmse_f_val  rmse_f_trn    rmse_v_val"
        "  rmse_v_trn   lr      "
    )
    steps = [int(line.split()[0]) for line in lines[2:]]
    assert steps == [1, 20, 40, 60]
    assert float(lines[-1].split()[2]) < 0.5 * float(lines[2].split()[2])  # measured 0.2
    assert sorted(path.name for path in Path().glob("model.ckpt*")) == [
        "model.ckpt-50.safetensors", "model.ckpt-60.safetensors", "model.ckpt.safetensors",
    ]  # fmt: skip
    assert Path("checkpoint").read_text().strip() == "model.ckpt-60.safetensors"
    assert json.loads(Path("out.json").read_text())["training"]["numb_steps"] == 60
    assert result.step == 60
    assert not result.interrupted
    assert "force" in str(result)
    assert "<table>" in result._repr_html_()


@pytest.mark.parametrize("embedding", ["table", "network"])
def test_eight_steps_equal_deepmd_kit(embedding: str) -> None:
    write_system(Path("one"), 32, 1, seed=9)
    given = {**peer_input(), "dphpc": {"embedding": embedding}}
    dphpc.train(given, init_model=HERE / "peer_start.dp", skip_neighbor_stat=True)
    # Measured: 1.5e-7 of the way, where Adam divides a small gradient's rounding by its size.
    assert_at_the_peers_end("peer_end.dp", 2e-6)


def test_types_that_are_in_no_training_system_are_named(caplog: pytest.LogCaptureFixture) -> None:
    given, text = small_input(numb_steps=1), "which type_map names: their networks stay as they are"
    dphpc.train(given)
    assert text not in caplog.text
    given["model"]["type_map"] += ["Na", "Cl"]
    dphpc.train(given)
    assert f"no training system has atoms of Na, Cl, {text}" in caplog.text
    given["model"]["type_map"] += [f"X{n}" for n in range(10)]
    dphpc.train(given)
    assert f"of Na, Cl, X0, X1, X2, X3, X4, X5, X6, X7 and 2 more, {text}" in caplog.text


def test_eight_steps_of_lkf_equal_deepmd_kit() -> None:
    """Two frames a batch, prefactors that change; each group of forces has all six atoms."""
    write_system(Path("six"), 6, 2, seed=10)
    given = {**peer_lkf_input(), "dphpc": {"embedding": "network"}}
    dphpc.train(given, init_model=HERE / "peer_start.dp", skip_neighbor_stat=True)
    assert_at_the_peers_end("peer_lkf_end.dp", 1e-9)


def assert_at_the_peers_end(file: str, tolerance: float) -> None:
    """The last weights are DeePMD-kit's within a part of the way from `peer_start.dp`."""
    start, end = (model_arrays(read_model(HERE / name)) for name in ("peer_start.dp", file))
    ours = Checkpoint.load(Path("model.ckpt-8.safetensors")).arrays
    for name, value in end.items():
        moved = np.abs(value - start[name]).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance * max(moved, 1e-3))
        assert moved > 1e-3 or name in STATISTICS


@pytest.mark.parametrize("change", [{}, {"disp_avg": True, "disp_freq": 4}])
def test_restart_goes_on_to_the_bit(change: dict[str, Any]) -> None:
    given = small_input(save_freq=5, **change)
    dphpc.train(given)
    curve, whole = Path("lcurve.out").read_text(), state("model.ckpt-12.safetensors")
    dphpc.train(given, restart="model.ckpt-5")  # lcurve.out holds lines of later steps, which must be replaced
    assert Path("lcurve.out").read_text() == curve
    assert same(state("model.ckpt-12.safetensors"), whole)


def test_the_same_command_continues_its_training() -> None:
    given = small_input(save_freq=4)
    dphpc.train(small_input(numb_steps=1, seed=3))
    other = dphpc.train(given, restart=None, init_model="model.ckpt")  # what the first part begins from
    curve, whole = Path("lcurve.out").read_text(), state("model.ckpt-12.safetensors")
    assert other.step == 12
    goes_on_from("model.ckpt-8.safetensors")
    dphpc.train(given, resume=True, init_model="model.ckpt-4")  # goes on, so it takes no weights
    assert Path("lcurve.out").read_text() == curve
    assert same(state("model.ckpt-12.safetensors"), whole)
    with pytest.raises(InputError, match="12 steps"):
        dphpc.train(given, resume=True)
    Path("model.ckpt.safetensors").unlink()
    assert dphpc.train(given, resume=True).step == 12  # nothing to go on from: from the beginning


def goes_on_from(checkpoint: str) -> None:
    """Make a checkpoint the newest."""
    Path("model.ckpt.safetensors").unlink()
    Path("model.ckpt.safetensors").symlink_to(checkpoint)


def test_trainings_in_one_folder_continue_each_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = small_input(save_ckpt="a/model.ckpt", disp_file="a/lcurve.out")
    dphpc.train(given)
    curve, whole = Path("a/lcurve.out").read_text(), state("a/model.ckpt.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_one", signalled_at(6))
        assert dphpc.train(given).step == 7
    dphpc.train(small_input(save_ckpt="b/model.ckpt", seed=8))
    dphpc.train(given, resume=True)
    assert Path("a/lcurve.out").read_text() == curve
    assert same(state("a/model.ckpt.safetensors"), whole)


def test_a_run_killed_early_is_not_taken_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    dphpc.train(small_input())
    whole = state("model.ckpt.safetensors")
    dphpc.train(small_input(seed=3))

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_one", killed)
        with pytest.raises(SystemExit):
            dphpc.train(small_input())
    assert dphpc.train(small_input(), resume=True).steps_run == 12
    assert same(state("model.ckpt.safetensors"), whole)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "AdamW"},
        {"type": "HybridMuon"},
        {"type": "SOAP", "precondition_frequency": 3},
        {"type": "LKF", "kf_blocksize": 300},
        {"type": "LKF", "kf_blocksize": 300, "kf_precision": "float32"},
    ],
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_optimizer_restarts_to_the_bit(optimizer: dict[str, Any], precision: str) -> None:
    half = 10 if optimizer["type"] == "LKF" else 50  # one of its steps is five updates
    given = {**small_input(save_freq=half, numb_steps=2 * half, disp_freq=half), "optimizer": optimizer}
    given["model"]["fitting_net"]["precision"] = precision
    dphpc.train(given)
    curve, whole = Path("lcurve.out").read_text(), state(f"model.ckpt-{2 * half}.safetensors")
    dphpc.train(given, restart=f"model.ckpt-{half}")
    assert Path("lcurve.out").read_text() == curve
    assert same(state(f"model.ckpt-{2 * half}.safetensors"), whole)
    if optimizer["type"] != "AdamW":  # Adam goes on from AdamW's state
        with pytest.raises(InputError, match="not written by Adam"):
            dphpc.train({**given, "optimizer": {"type": "Adam"}}, restart=f"model.ckpt-{half}")


def test_a_second_training_leaves_the_files_of_one_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original, refused = Trainer._train_one, list[str | None]()

    def train_one(self: Trainer, *arguments: Any) -> Any:
        if self.step == 6 and refused == []:
            refused.append(None)  # lest one that is not refused comes here again
            before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
            for again in ({}, {"resume": True}):
                with pytest.raises(InputError, match="another run that has not ended") as caught:
                    dphpc.train(small_input(seed=7), **again)
                refused.append(caught.value.where)
            assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
        return original(self, *arguments)

    dphpc.train(small_input())
    curve = Path("lcurve.out").read_text()
    monkeypatch.setattr(Trainer, "_train_one", train_one)
    dphpc.train(small_input())
    assert refused == [None, "lcurve.out", "lcurve.out"]
    assert Path("lcurve.out").read_text() == curve


def test_a_signal_ends_the_run_with_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    dphpc.train(small_input())
    curve, whole = Path("lcurve.out").read_text(), state("model.ckpt-12.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_one", signalled_at(6))
        result = dphpc.train(small_input())
    assert result.interrupted
    assert result.step == 7
    assert str(result.checkpoint) == "model.ckpt-7.safetensors"
    assert not dphpc.train(small_input(), restart=".").interrupted
    assert Path("lcurve.out").read_text() == curve
    assert same(state("model.ckpt-12.safetensors"), whole)


def test_freeze_gives_the_checkpoint_as_a_model() -> None:
    dphpc.train(small_input())
    model = read_model(freeze(".", "m.dp"))
    loaded = Checkpoint.load(Path("model.ckpt-12.safetensors"))
    assert same(model_arrays(model), loaded.arrays)
    assert model.min_nbor_dist == loaded.min_distance
    coord, box = np.load("a/set.000/coord.npy"), np.load("a/set.000/box.npy")
    energy, force, _ = DeepPot("m.dp").eval(coord, box, np.loadtxt("a/type.raw", dtype=int))
    assert np.isfinite(energy).all()
    assert np.isfinite(force).all()
    with pytest.raises(InputError, match="no model file"):
        freeze(".", "m.pth")


def test_init_model_takes_weights_and_begins_anew() -> None:
    dphpc.train(small_input())
    freeze(".", "m.dp")
    before = state("model.ckpt-12.safetensors")
    small_steps = {"type": "exp", "start_lr": 1e-9, "stop_lr": 1e-10, "decay_steps": 5}
    for source in ("m.dp", "model.ckpt-12"):
        second = {**small_input(numb_steps=2, save_ckpt="second"), "learning_rate": small_steps}
        result = dphpc.train(second, init_model=source)
        assert result.step == 2
        after = Checkpoint.load(Path("second-2.safetensors"))
        assert after.step == 2
        for name, value in after.arrays.items():
            np.testing.assert_allclose(value, before[name], atol=1e-8)


def test_plain_network_trains_like_the_table() -> None:
    curves = []
    for embedding in ("table", "network"):
        dphpc.train({**small_input(), "dphpc": {"embedding": embedding}})
        curves.append(state("model.ckpt-12.safetensors"))
    for name, value in curves[0].items():
        np.testing.assert_allclose(value, curves[1][name], rtol=1e-5, atol=1e-8)  # Adam divides small gradients


def test_kinks_go_by_the_network() -> None:
    given = small_input(numb_steps=2)
    given["model"]["descriptor"]["activation_function"] = "relu6"
    assert dphpc.train(given).step == 2
    assert Checkpoint.load(Path("model.ckpt-2.safetensors")).grid is None


def test_times_are_logged_unless_the_input_says_no(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dphpc.train")
    for timed in (True, False):
        caplog.clear()
        dphpc.train(small_input(numb_steps=1, time_training=timed), output=None)
        assert "batch       1: trn: rmse" in caplog.text
        assert (" step/s, 0:00:00 left" in caplog.text) == timed


def test_validation_energies_in_another_unit_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Those of `c` times 10, -30 instead of -3 eV/atom; at the first line only."""
    told = "have both the same unit, reference energies and order of types?"
    dphpc.train(small_input(numb_steps=3), output=None)
    assert told not in caplog.text
    energies = next(Path("c").glob("set.*/energy.npy"))
    np.save(energies, 10.0 * np.load(energies))
    dphpc.train(small_input(numb_steps=6), output=None)
    assert caplog.text.count(told) == 1


def test_epochs_without_validation_data() -> None:
    given = small_input(numb_steps=None, numb_epoch=2)
    del given["training"]["validation_data"]
    result = dphpc.train(given, output=None)
    # 2 epochs; 3 of 5 batches are of `a`, 2 of `b`.
    assert result.step == 10
    header = Path("lcurve.out").read_text().splitlines()[0]
    assert header == "# step       rmse_trn    rmse_e_trn    rmse_f_trn    rmse_v_trn   lr      "


def test_no_steps_write_the_model_as_it_starts() -> None:
    result = dphpc.train(small_input(numb_steps=0))
    assert str(result.checkpoint) == "model.ckpt-0.safetensors"
    assert read_model(freeze(".", "m.dp")).type_map == ["O", "H"]


def test_users_mistakes() -> None:
    dphpc.train(small_input())
    other = small_input(numb_steps=20)
    other["model"]["descriptor"]["neuron"] = [4, 8]
    with pytest.raises(InputError, match="model/descriptor/neuron"):
        dphpc.train(other, restart=".")
    with pytest.raises(InputError, match="has done 12 steps"):
        dphpc.train(small_input(), restart=".")
    with pytest.raises(InputError, match=r"has shape \(64, 12\)"):
        dphpc.train(other, init_model="model.ckpt-12")
    with pytest.raises(InputError, match="neighbor statistics"):
        dphpc.train(small_input(), skip_neighbor_stat=True)
    with pytest.raises(InputError, match="--restart and --init-model exclude each other"):
        dphpc.train(small_input(), restart=".", init_model=".")


@pytest.mark.parametrize("optimizer", ["Adam", "LKF"])
def test_a_training_that_would_change_no_weight_is_refused(optimizer: str) -> None:
    given = {**small_input(), "optimizer": {"type": optimizer}}
    for section in ("descriptor", "fitting_net"):
        given["model"][section]["trainable"] = False
    with pytest.raises(InputError, match="no weight is trained"):
        dphpc.train(given)
    given["training"]["numb_steps"] = 0
    given["optimizer"] = {"type": "Adam"}
    assert dphpc.train(given).step == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_cutoff_in_nanometers_finds_no_pair(skip: bool, caplog: pytest.LogCaptureFixture) -> None:
    given = small_input(numb_steps=1)
    given["model"]["descriptor"] |= {"sel": [4, 4], "rcut": 0.5, "rcut_smth": 0.05}
    assert dphpc.train(given, skip_neighbor_stat=skip).step == 1
    assert ("no atom of the training data has a neighbor within rcut, 0.5 Å" in caplog.text) == (not skip)
    assert compress(read_model(freeze(".", "m.dp")))[1].n_intervals > 0


@pytest.mark.parametrize(
    ("file", "loss", "where"),
    [
        ("energy", {}, "loss/start_pref_e"),
        ("force", {}, "loss/start_pref_f"),
        ("virial", {}, "loss/start_pref_v"),
        ("atom_ener", {"start_pref_ae": 1, "limit_pref_ae": 1}, "loss/start_pref_ae"),
        ("atom_pref", {"start_pref_pf": 1, "limit_pref_pf": 1}, "loss/start_pref_pf"),
    ],
)
def test_a_term_whose_label_no_system_has_is_refused(file: str, loss: dict[str, float], where: str) -> None:
    given = small_input(numb_steps=1)
    given["loss"] |= loss
    one, other = (Path(f"{system}/set.000/{file}.npy") for system in "ab")
    one.unlink(missing_ok=True)
    if other.is_file():
        assert dphpc.train(given, output=None).step == 1  # one system without it is as before
        other.unlink()
    with pytest.raises(InputError, match=rf"no system of the training data has {file}\.npy") as caught:
        dphpc.train(given)
    assert caught.value.where == where
    off = {f"{end}_{where[11:]}": 0 for end in ("start", "limit")}
    assert dphpc.train({**given, "loss": {**given["loss"], **off}}, output=None).step == 1


def test_a_refused_run_overwrites_nothing() -> None:
    dphpc.train(small_input())
    written, other = Path("out.json").read_text(), small_input(numb_steps=20, stat_file="stat.hdf5")
    other["model"]["fitting_net"]["neuron"] = [8]
    for options in ({"restart": "."}, {"init_model": "model.ckpt"}, {"data_parallel": "mpii"}):
        with pytest.raises(InputError):
            dphpc.train(other, **options)
        assert Path("out.json").read_text() == written
        assert not Path("stat.hdf5").exists()


def test_another_trainings_checkpoints_stay(caplog: pytest.LogCaptureFixture) -> None:
    dphpc.train(small_input())
    assert "stay here" not in caplog.text
    before = state("model.ckpt-8.safetensors")
    dphpc.train(small_input(numb_steps=6, save_freq=3, seed=8))
    assert "of another training stay here (model.ckpt-4.safetensors to -12)" in caplog.text
    assert same(state("model.ckpt-8.safetensors"), before)
    assert Path("checkpoint").read_text().strip() == "model.ckpt-6.safetensors"


def test_other_validation_data_ask_for_another_learning_curve() -> None:
    given = small_input()
    dphpc.train(given)
    written = [Path(name).read_text() for name in ("lcurve.out", "out.json")]
    given["training"].pop("validation_data")
    with pytest.raises(DataError, match=r"other columns(.|\n)*another training/disp_file"):
        dphpc.train(given, restart="model.ckpt-8")
    assert [Path(name).read_text() for name in ("lcurve.out", "out.json")] == written
    given["training"]["disp_file"] = "other.out"
    assert dphpc.train(given, restart="model.ckpt-8").step == 12


def test_a_full_disk_is_named_with_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    original = Trainer._train_one

    def train_one(self: Trainer, *arguments: Any) -> dict[str, float]:
        if self.step == 5:
            monkeypatch.setattr(checkpoint, "save_file", full)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_one", train_one)
    with pytest.raises(RunError) as caught:
        dphpc.train(small_input())
    assert "No space left" in caught.value.what
    assert caught.value.where == "model.ckpt-8.safetensors"
    assert "the last checkpoint is model.ckpt-4.safetensors" in str(caught.value.remedy)
    with pytest.raises(RunError, match=r"No such file|cannot be written(.|\n)*/dev/null/out.json"):
        dphpc.train(small_input(), output="/dev/null/out.json")


def test_files_may_be_in_new_folders() -> None:
    given = small_input(numb_steps=2, disp_file="new/lc.out", save_ckpt="ckpt/model")
    dphpc.train(given, output="made/out.json")
    assert Path("new/lc.out").is_file()
    assert Path("made/out.json").is_file()


def test_threads_are_as_before() -> None:
    blas = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    set_threads(3)
    with threadpool_limits(2, user_api="blas"):
        dphpc.train({**small_input(numb_steps=1), "dphpc": {"n_threads": 1}})
        assert get_threads() == 3
        assert [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"] == [2] * len(blas)
    assert blas


def test_a_run_that_diverges_stops_and_names_the_step() -> None:
    wild = {"type": "exp", "start_lr": 1e160, "stop_lr": 1e150}
    with pytest.raises(RunError, match=r"step [234],") as caught:
        dphpc.train({**small_input(), "learning_rate": wild})
    assert "not finite" in str(caught.value)


def test_tensorboard_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        dphpc.train(small_input(tensorboard=True))


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, dphpc.train, dphpc.train.freeze, dphpc.train.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_small_batch_goes_by_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = Trainer.engine

    def recorded(self: Trainer, batch: Batch, n_pairs: int, **options: Any) -> object:
        assert self._table is not None
        n_knots = self._table.grid.n_intervals + 1
        used.append((type(original(self, batch, n_pairs, **options)).__name__, n_pairs >= 2 * 2 * n_knots))
        return original(self, batch, n_pairs, **options)

    monkeypatch.setattr(Trainer, "engine", recorded)
    dphpc.train({**small_input(numb_steps=8), "dphpc": {"table_tolerance": 1e-9}})
    assert set(used) == {("TableStep", True), ("NetworkStep", False)}


def test_a_killed_rank_ends_the_job_and_leaves_a_checkpoint(data: Path, mpirun: list[str]) -> None:
    endless = small_input(numb_steps=10**7, disp_freq=5, save_freq=5)
    (data / "input.json").write_text(json.dumps(endless))
    command = [*mpirun, "-n", "2", sys.executable, "-m", "dphpc", "train", str(data / "input.json")]
    with subprocess.Popen(command, cwd=data, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        assert any("model.ckpt-20" in line for line in job.stderr)
        ranks = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_rank(p, data)]
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGKILL)
        job.stderr.read()
        assert job.wait(timeout=300) != 0
    assert not [p for p in ranks if is_rank(p, data)]
    step = Checkpoint.load(find_checkpoint(data)).step
    endless["training"]["numb_steps"] = step + 3
    assert dphpc.train(endless, restart=data).step == step + 3


def test_ranks_are_started_by_mpirun_and_speak_with_one_voice(data: Path, mpirun: list[str]) -> None:
    (data / "input.json").write_text(json.dumps(small_input()))
    command = [*mpirun, "-n", "2", sys.executable, "-m", "dphpc", "train", "input.json", "--data-parallel"]
    done = subprocess.run([*command, "torch"], cwd=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = "data-parallel: 2 ranks divide each step's batch; gradients by torch.distributed (Gloo)"
    assert done.stderr.count(line) == 1
    assert done.stderr.count("finished 12 of 12") == 1
    if find_spec("horovod") is None:
        failed = subprocess.run([*command, "horovod"], cwd=data, capture_output=True, text=True)
        assert failed.returncode != 0
        assert failed.stderr.count("dphpc horovod install") == 1
        assert "Traceback" not in failed.stderr


def is_rank(process: int, folder: Path) -> bool:
    """Whether a process is a rank of the training in that folder."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return words[0].endswith(b"python") and str(folder / "input.json").encode() in words
    return False
