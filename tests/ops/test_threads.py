"""Threads of the kernels in processes that are forked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PARENT = """
import multiprocessing, os, signal, sys, types
from dphpc import DeepPot
from dphpc.ops import threads
from tests.models import random_model, random_structure

dp = DeepPot(random_model(1))
x, cell, kinds = random_structure()

def energy(shift=0.0):
    return float(dp.eval(x + shift, cell, kinds)[0][0, 0])

def child(shift):
    signal.alarm(20)  # a child that hangs ends
    return abs(energy(shift) - expected) < 1e-9, threads.get_threads()

threads.set_threads(2)
expected = energy()  # from here on a second thread waits for the kernels' next loop
"""

CANNOT_RELEASE = """
kernels = types.SimpleNamespace(release_threads=lambda: False)  # as of an older OpenMP
sys.modules["dphpc._native"] = types.SimpleNamespace(kernels=kernels)
"""

FORK = """
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, repr(child(0.0)).encode())
    os._exit(0)
os.close(writing)
print(os.read(reading, 100).decode(), os.wait()[1], energy() == expected, threads.get_threads())
"""

POOL = """
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(child, [0.0, 0.1, 0.2]).get(30)
print(found[0], sum(found[0] != other for other in found), energy() == expected, threads.get_threads())
"""


@pytest.mark.parametrize("way", [FORK, POOL])
@pytest.mark.parametrize(("openmp", "n_threads"), [("", 2), (CANNOT_RELEASE, 1)])
def test_a_forked_process_computes_and_so_does_its_parent(way: str, openmp: str, n_threads: int) -> None:
    run = [sys.executable, "-c", PARENT + openmp + way]
    result = subprocess.run(run, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"(True, {n_threads}) 0 True 2"
