"""What the environment of a step of Slurm says."""

from __future__ import annotations

import os

import pytest

from dphpc.parallel.launch import first_host, launched, meeting_point, unlaunched, without_mpi


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rank 1 of 4, started by srun without help for an MPI."""
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI", "SLURM", "PALS", "MV2", "MASTER")):
            monkeypatch.delenv(name)
    given = {"PROCID": 1, "STEP_NUM_TASKS": 4, "STEP_NODELIST": "node[07-08]", "STEP_NUM_NODES": 2, "JOB_ID": 123456}
    for name, value in {**given, "STEP_ID": 3}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return monkeypatch


def test_ranks_that_no_mpi_joins(step: pytest.MonkeyPatch) -> None:
    assert without_mpi()
    step.setenv("PMIX_RANK", "1")  # srun --mpi=pmix
    assert not without_mpi()
    step.delenv("PMIX_RANK")
    step.setenv("PMI_RANK", "1")  # --mpi=pmi2
    step.setenv("PMI_SIZE", "4")
    assert not without_mpi()
    step.delenv("PMI_RANK")
    step.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not without_mpi()


def test_what_a_rank_starts_is_no_rank(step: pytest.MonkeyPatch) -> None:
    of_ranks = (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_MCA_ess_base_vpid",
        "PMIX_RANK",
        "PMI_RANK",
        "PMI_FD",
    )
    kept = ("OMPI_MCA_rmaps_base_oversubscribe", "OMPI_ALLOW_RUN_AS_ROOT", "PMIX_MCA_gds", "SLURM_JOB_ID", "PATH")
    for name in (*of_ranks, *kept):
        step.setenv(name, "1")
    assert launched().launcher
    environment = unlaunched(os.environ)
    assert not environment.keys() & {*of_ranks, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}
    assert environment.keys() >= set(kept)


def test_ranks_meet_on_the_first_node_at_the_steps_own_port(step: pytest.MonkeyPatch) -> None:
    host, port = meeting_point()
    assert host == "node07"
    assert 10_000 <= port < 30_000
    step.setenv("SLURM_STEP_ID", "4")
    assert meeting_point()[1] != port
    step.setenv("SLURM_STEP_NUM_NODES", "1")  # whose name may be unknown to itself
    assert meeting_point()[0] == "127.0.0.1"
    step.setenv("MASTER_ADDR", "10.0.0.7")
    step.setenv("MASTER_PORT", "29500")
    assert meeting_point() == ("10.0.0.7", 29500)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[03-05,08],x1", "n03"), ("n-[1-2]", "n-1"), ("r[2,4]n[7-9].site", "r2n7.site")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
