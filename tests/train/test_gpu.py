"""Whole trainings on a GPU."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dphpc
from dphpc.cli.main import main
from dphpc.core.errors import InputError, RunError
from dphpc.ops.se_a import cuda
from dphpc.parallel.comm import Serial
from dphpc.train import run
from dphpc.train.checkpoint import Checkpoint
from dphpc.train.gpu_step import GpuStep
from dphpc.train.parameters import Parameters
from tests.models import random_model
from tests.train.systems import FORMS, shared_input, small_input, with_descriptor, write_systems

N_STEPS = 20

DPA1: dict[str, Any] = shared_input()["model"]["descriptor"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data."""
    write_systems(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plays_a_gpu(emulated, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Trainings that ask for a GPU get the one that the host plays; what they ask for is written down."""
    asked: list[tuple[str, int]] = []

    def find(choice: str, rank: int) -> Any:
        asked.append((choice, rank))
        return None if choice == "cpu" else emulated

    monkeypatch.setattr(run, "find_device", find)
    monkeypatch.setattr(cuda, "MOST_SHARES", 3)  # blocks without work take the host time
    return asked


def given(**changes: Any) -> dict[str, Any]:
    """A training whose batches have so many pairs that all go by the table, on the CPU too."""
    training = {"numb_steps": N_STEPS, "disp_freq": 10, "save_freq": 10, **changes}
    whole = {**small_input(**training), "dphpc": {"table_tolerance": 1e-3}}
    whole["training"]["training_data"]["batch_size"] = [5, 4]  # all frames
    return whole


def state(step: int) -> dict[str, np.ndarray]:
    loaded = Checkpoint.load(Path(f"model.ckpt-{step}.safetensors"))
    return {**loaded.arrays, **loaded.optimizer}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_twenty_steps_equal_the_cpus_and_go_on_on_either(folder, plays_a_gpu, caplog) -> None:
    caplog.set_level(logging.INFO, "dphpc.train")
    dphpc.train(given())
    on_cpu, curve = state(N_STEPS), np.loadtxt("lcurve.out")
    assert "device" not in caplog.text
    dphpc.train(given(), device="cuda")
    assert plays_a_gpu == [("cpu", 0), ("cuda", 0)]
    assert "device: emulated GPU" in caplog.text
    assert_same(state(N_STEPS), on_cpu)  # measured 7e-15
    np.testing.assert_allclose(np.loadtxt("lcurve.out"), curve, rtol=2e-2)  # printed with three digits
    once = state(N_STEPS)
    dphpc.train({**given(), "dphpc": {"table_tolerance": 1e-3, "device": "cuda"}}, restart="model.ckpt-10")
    again = state(N_STEPS)
    assert all(np.array_equal(again[name], value) for name, value in once.items())
    dphpc.train(given(), restart="model.ckpt-10")
    assert_same(state(N_STEPS), on_cpu)
    dphpc.train(given(), restart="model.ckpt-10", device="auto")
    assert_same(state(N_STEPS), on_cpu)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("AdamW", 1e-9), ("HybridMuon", 1e-5)],  # measured 7e-15, 4e-7: Muon's products are rounded to float32
)
def test_other_optimizers(folder, plays_a_gpu, name: str, tolerance: float) -> None:
    states = []
    for device in ("cpu", "cuda"):
        dphpc.train({**given(numb_steps=4, save_freq=4), "optimizer": {"type": name}}, device=device)
        states.append(state(4))
    assert_same(states[1], states[0], tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_networks_that_types_share(folder, plays_a_gpu, form: str) -> None:
    own = with_descriptor(given(numb_steps=6, save_freq=3, disp_freq=2), **DPA1 | FORMS[form])
    states = []
    for device in ("cpu", "cuda"):
        dphpc.train(own, device=device)
        states.append(state(6))
    assert_same(states[1], states[0])  # measured 5e-15
    dphpc.train(own, restart="model.ckpt-3", device="cuda")
    assert all(np.array_equal(state(6)[name], value) for name, value in states[1].items())


def test_soap_trains_as_on_the_cpu(folder, plays_a_gpu) -> None:
    """Its first bases are eigenvectors of products that lack ranks: what rounding makes them."""
    soap = {**given(numb_steps=4, disp_freq=4, save_freq=4), "optimizer": {"type": "SOAP"}}
    found, expected = (dphpc.train(soap, device=device).training for device in ("cuda", "cpu"))
    assert found["rmse_f"] == pytest.approx(expected["rmse_f"], rel=1e-2)
    assert all(np.isfinite(value).all() for value in state(4).values())


def test_a_gradient_that_is_not_finite_is_seen_a_step_later(folder, plays_a_gpu, monkeypatch) -> None:
    """Or when the state is asked for; the GPU has left the weights alone meanwhile."""
    backward, weights = GpuStep.backward, []

    def broken(step: GpuStep, *args: Any) -> None:
        backward(step, *args)
        weights.append(step.parameters.flats[0].detach().clone())
        if len(weights) == 2:
            step.parameters.gradient_parts("descriptor")[0][3] = np.nan

    monkeypatch.setattr(GpuStep, "backward", broken)
    with pytest.raises(RunError, match="step before is not finite") as caught:
        dphpc.train(given(numb_steps=4, save_freq=4), device="cuda")
    assert "step 3" in str(caught.value)
    assert len(weights) == 2
    weights.clear()
    kept = Parameters.fetch
    after: list[torch.Tensor] = []
    monkeypatch.setattr(Parameters, "fetch", lambda p: (after.append(p.flats[0].detach().clone()), kept(p))[1])
    with pytest.raises(RunError, match="the step before is not finite"):
        dphpc.train(given(numb_steps=2, save_freq=2), device="cuda")
    assert torch.equal(after[-1], weights[1])
    assert not torch.equal(weights[1], weights[0])
    assert not Path("model.ckpt-2.safetensors").exists()


def test_what_a_gpu_does_not_do_ends_the_run_before_it_starts(folder, plays_a_gpu) -> None:
    with pytest.raises(InputError, match="through the table"):
        dphpc.train({**given(), "dphpc": {"embedding": "network"}}, device="cuda")
    with pytest.raises(InputError, match="LKF does not run on a GPU"):
        dphpc.train({**given(), "optimizer": {"type": "LKF"}}, device="cuda")
    kinked = given()
    kinked["model"]["descriptor"]["activation_function"] = "relu"
    with pytest.raises(InputError, match="kinks"):
        dphpc.train(kinked, device="cuda")
    with pytest.raises(InputError, match="device"):
        dphpc.train(given(), device="gpu")
    with pytest.raises(InputError, match="devise"):
        dphpc.train(given(), devise="cuda")
    assert not Path("lcurve.out").exists()


def test_without_cupy_cuda_ends_and_auto_takes_the_cpu(folder, monkeypatch, caplog, capsys) -> None:
    caplog.set_level(logging.INFO, "dphpc.train")
    monkeypatch.setitem(sys.modules, "cupy", None)
    (folder / "input.json").write_text(json.dumps(given(numb_steps=1)))
    with pytest.raises(SystemExit) as ended:
        main(["train", "input.json", "--device", "cuda"])
    assert ended.value.code == 1
    assert "CuPy is not installed" in capsys.readouterr().err
    dphpc.train("input.json", device="auto")
    assert "device: cpu, no GPU that CuPy sees" in caplog.text


def test_a_torch_that_cannot_use_the_gpu(emulated, monkeypatch) -> None:
    def refuse(array: Any) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "from_dlpack", refuse)
    with pytest.raises(InputError, match="cannot use emulated GPU: Torch not compiled with CUDA"):
        Parameters(random_model(1), emulated)


@pytest.mark.mpi
@pytest.mark.two_ranks
@pytest.mark.parametrize("descriptor", [{}, DPA1, DPA1 | FORMS["smooth"]], ids=["se_e2_a", "concat", "smooth"])
def test_several_ranks_train_as_one(common_folder, comm, plays_a_gpu, descriptor: dict[str, Any]) -> None:
    few = with_descriptor(given(numb_steps=3, save_freq=3), **descriptor)
    dphpc.train(few, comm=comm, device="cuda")
    several = state(3)
    comm.barrier()
    assert plays_a_gpu == [("cuda", comm.node_rank)]
    if comm.rank == 0:
        dphpc.train(few, comm=Serial())
        assert_same(several, state(3))
    comm.barrier()


def test_on_a_real_gpu(gpu, folder) -> None:
    dphpc.train(given())
    on_cpu = state(N_STEPS)
    runs = []
    for _ in range(2):
        dphpc.train(given(), device="cuda")
        runs.append(state(N_STEPS))
    assert_same(runs[0], on_cpu)
    assert all(np.array_equal(runs[1][name], value) for name, value in runs[0].items())
