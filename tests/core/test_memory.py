"""Memory that is left, by the machine's files and by those of control groups as Slurm and Docker make them."""

from pathlib import Path

import pytest

from dphpc.core import memory
from dphpc.core.memory import memory_available

MB = 10**6


def write_group(folder: Path, limit: str, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip(names, (limit, str(70 * MB)), strict=True):
        (folder / name).write_text(f"{text}\n")
    prefix = "" if version == 2 else "total_"
    stat = f"anon {30 * MB}\n{prefix}inactive_file {25 * MB}\n{prefix}active_file {15 * MB}\nfile {40 * MB}\n"
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("own", "limits", "version"),
    [
        ("0::/", {"": "90000000"}, 2),  # a container
        ("0::/slurm/job_1/step_0", {"slurm/job_1": "90000000", "slurm/job_1/step_0": "max"}, 2),
        ("3:cpu:/\n4:hugetlb,memory:/slurm/job_1", {"memory": f"{2**63 - 4096}", "memory/slurm/job_1": "90000000"}, 1),
        ("4:memory:/docker/1f", {"memory": "90000000"}, 1),  # a container that does not see its group on the host
    ],
)
def test_the_narrowest_group_counts_and_files_kept_in_memory_do_not(
    own: str, limits: dict[str, str], version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    without = memory_available()
    assert without > 200 * MB
    (tmp_path / "own").write_text(f"{own}\n")
    for folder, limit in limits.items():
        write_group(tmp_path / folder, limit, version)
    assert memory_available() == (90 - 70 + 40) * MB
