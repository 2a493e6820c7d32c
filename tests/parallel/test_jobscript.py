"""Job scripts: the templates themselves, and what is filled into them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dphpc.cli.slurm import RESOURCES
from dphpc.core.errors import InputError
from dphpc.parallel import jobscript
from dphpc.parallel.jobscript import fill, job_script, mpi_library, srun_plugin, template

FOLDER = Path(__file__).resolve().parents[2] / "jobscripts"
TEMPLATES = sorted(path.name for path in FOLDER.iterdir())


def directives(script: str) -> dict[str, str]:
    """Options that sbatch would read: before the first command, up to a comment."""
    found = {}
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH "):
            key, _, value = line.split()[1].partition("=")
            found[key] = value
        elif not line.startswith("#"):
            break
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_package_has_the_template_that_users_see(name: str) -> None:
    assert template(name) == (FOLDER / name).read_text(), "install anew: make install"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_line_is_explained(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    assert all(re.match(r"##?SBATCH --\S+ +# \w", line) for line in lines if "SBATCH --" in line.split("  #")[0])
    # A comment speaks for the lines up to the next blank one.
    blocks = "\n".join(lines[lines.index("set -euo pipefail") + 1 :]).strip().split("\n\n")
    assert [block for block in blocks if not block.startswith("#")] in ([], ['"${launch[@]}" dphpc "${arguments[@]}"'])


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("time", "90 90:00 1:30:00 1-12 1-12:00 1-12:00:00", "foo 12h 1:2:3:4 1-2-3 1- :30 -5 1.5 1-12:00:00:00 1½"),
        ("mem", "0 64000 64G 64g 500M 1T 8000000K", "lots G 64GB 1.5G 64P -1 64-G"),
    ],
)
def test_times_and_memory_are_as_slurm_takes_them(key: str, good: str, bad: str) -> None:
    for value in good.split():
        assert directives(job_script("train", ["input.json"], {key: value}))[f"--{key}"] == value
    for value in [*bad.split(), ""]:
        with pytest.raises(InputError, match=rf"(?s)does not take '{re.escape(value)}'.*--{key}.*expected"):
            job_script("train", ["input.json"], {key: value})


@pytest.mark.parametrize("name", TEMPLATES)
def test_everything_can_be_filled_in(name: str, tmp_path: Path) -> None:
    text = (FOLDER / name).read_text()
    wanted = {key.replace("_", "-"): f"value-{i}" for i, key in enumerate(RESOURCES)}
    if "cpu" in name or "mpi" in name:
        del wanted["gpus-per-node"]
    script = fill(text, wanted, {"arguments": "(a 'b c')", "PATH": "/x"})
    found = directives(script)
    assert {key: found[f"--{key}"] for key in wanted} == wanted
    assert set(directives(text)) <= set(found)
    assert len(script.splitlines()) == len(text.splitlines())
    comments = [line.partition(" # ")[2] for line in text.splitlines()]
    assert [line.partition(" # ")[2] for line in script.splitlines()] == comments
    (tmp_path / name).write_text(script)
    subprocess.run(["bash", "-n", tmp_path / name], check=True)
    assert "arguments=(a 'b c')\n" in script
    assert "export PATH=/x\n" in script


@pytest.mark.parametrize("value", ["a b", "", "a#b", "a\nscancel"])
def test_a_value_that_breaks_the_script_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="--account"):
        fill(template("md-cpu.slurm"), {"account": value}, {})


def test_the_template_follows_from_the_job() -> None:
    md = job_script("md", ["my run.yaml"], {"nodes": "3"}, mpi="mpirun")
    assert directives(md)["--nodes"] == "3"
    assert "arguments=('my run.yaml')\n" in md
    assert "\nmpi=mpirun\n" in md
    assert "mpi=" not in job_script("train", ["input.json"], {"nodes": "1"})
    several = job_script("train", ["input.json"], {"ntasks-per-node": "4"}, mpi="pmi2")
    assert "\nmpi=pmi2\n" in several
    assert (directives(several)["--nodes"], directives(several)["--ntasks-per-node"]) == ("1", "4")


def test_a_loop_has_one_template_for_all() -> None:
    script = job_script("learn", ["learn.yaml"], {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4"})
    found = directives(script)
    assert (found["--nodes"], found["--ntasks-per-node"], found["--gpus-per-node"]) == ("2", "4", "4")
    assert "arguments=(learn.yaml)\n" in script
    assert "--device" not in script
    with pytest.raises(InputError, match="a loop is no scaling test"):
        job_script("learn", ["learn.yaml"], {}, scaling=True, mpi="pmix")


def test_training_without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"ntasks-per-node": "4"}
    script = job_script("train", ["input.json"], resources, mpi="none")
    assert "\nmpi=none\n" in script
    assert "arguments=(input.json --data-parallel torch)\n" in script
    for command, scaling in (("md", False), ("train", True)):
        with pytest.raises(InputError, match="need MPI"):
            job_script(command, ["input"], resources, mpi="none", scaling=scaling)
    monkeypatch.setattr(jobscript, "mpi_library", lambda: None)
    resources["gpus-per-node"] = "4"
    assert "\nmpi=none\n" in job_script("train", ["input.json"], resources)
    with pytest.raises(InputError, match="finds no MPI"):
        job_script("md", ["run.yaml"], resources)


@pytest.mark.parametrize("command", ["md", "train"])
def test_a_rank_for_each_gpu(command: str) -> None:
    script = job_script(command, ["input"], {"gpus-per-node": "2"}, mpi="pmix")
    found = directives(script)
    assert (found["--gpus-per-node"], found["--ntasks-per-node"], found["--nodes"]) == ("2", "2", "1")
    # An option that the user gives comes later and goes before it.
    assert f'dphpc {command} --device cuda "${{arguments[@]}}" --continue &' in script
    assert "--gpu-bind=none" in script
    shared = job_script(command, ["input"], {"gpus-per-node": "2", "ntasks-per-node": "4"}, mpi="pmix")
    assert directives(shared)["--ntasks-per-node"] == "4"
    study = job_script(command, ["input"], {"gpus-per-node": "8", "nodes": "2"}, mpi="pmix", scaling=True)
    assert f"arguments=({command} --device cuda input)\n" in study
    assert directives(study)["--array"] == "0-4%1"
    assert "--gpus-per-node" not in directives(job_script("md", ["run.yaml"], {}, mpi="pmix", scaling=True))


@pytest.mark.parametrize(("nodes", "per_node", "last"), [(1, 1, 0), (1, 8, 3), (2, 8, 4), (3, 8, 4)])
def test_a_scaling_array_ends_with_the_ranks_there_are(nodes: int, per_node: int, last: int) -> None:
    resources = {"nodes": str(nodes), "ntasks-per-node": str(per_node)}
    script = job_script("md", ["run.yaml"], resources, mpi="pmix", scaling=True)
    assert directives(script)["--array"] == f"0-{last}%1"
    assert "arguments=(md run.yaml)\n" in script


def test_srun_is_told_of_the_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here: what the MPI needs
    assert srun_plugin("Open MPI v5.0.11, package: …") == "pmix"
    assert srun_plugin("MPICH Version:      5.0.2\nMPICH Release date: …") == "pmi2"
    assert srun_plugin("Intel(R) MPI Library 2021.11 for Linux* OS") == "pmi2"
    with pytest.raises(InputError, match=r"(?s)not known: Some MPI.*--mpi mpirun"):
        srun_plugin("Some MPI\nmore")
    with pytest.raises(InputError, match="mpi4py finds no MPI"):
        srun_plugin(None)
    (tmp_path / "srun").write_text("#!/bin/sh\necho MPI plugin types are...  >&2\necho '\tnone\n\tpmi2' >&2\n")
    (tmp_path / "srun").chmod(0o755)
    assert srun_plugin("MPICH Version: 5.0.2") == "pmi2"
    assert srun_plugin("Open MPI v5.0.11") == "mpirun"  # this cluster has no pmix: mpirun


def test_the_mpi_of_this_environment_is_known() -> None:
    library = mpi_library()
    assert library is not None
    assert srun_plugin(library) in ("pmix", "pmi2", "mpirun")
