"""Pieces of work: done once, side by side, ended in order."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dphpc.active import work as work_module
from dphpc.active.commands import command_line
from dphpc.active.work import Stopped, Work, Workshop
from dphpc.core.cores import n_cores
from dphpc.core.errors import InputError, RunError


def shell(folder: Path, script: str, **settings: Any) -> Work:
    return Work(folder.name, folder, "record.json", settings, lambda _: ["/bin/sh", "-c", script])


def do(folder: Path, *works: Work, at_once: int = 1, share_cores: bool = False) -> None:
    workshop = Workshop(folder)
    with workshop.alone():
        workshop.do(works, at_once, share_cores)


def test_a_folder_has_its_name_when_the_work_is_done(tmp_path: Path) -> None:
    works = [shell(tmp_path / name, "pwd; echo once >> ../count") for name in "ab"]
    do(tmp_path, *works)
    assert (tmp_path / "a" / "log").read_text().strip() == str(tmp_path / "a.part")
    do(tmp_path, *works)
    assert (tmp_path / "count").read_text() == "once\n" * 2


def test_what_has_failed_is_done_again_in_the_same_folder(tmp_path: Path) -> None:
    work = shell(tmp_path / "a", "echo begun >> tries; echo the reason >&2; test $(wc -l < tries) -gt 1")
    with pytest.raises(RunError, match=r"a ended with status 1\n  \| the reason"):
        do(tmp_path, work)
    assert not (tmp_path / "a").exists()
    do(tmp_path, work)
    assert (tmp_path / "a" / "tries").read_text() == "begun\n" * 2


def test_other_settings_are_refused_with_their_place(tmp_path: Path) -> None:
    do(tmp_path, shell(tmp_path / "a", "true", stages=[{"steps": 5}, {"steps": 7}]))
    with pytest.raises(InputError, match="done with another stages/1/steps: 7 in place of 8"):
        shell(tmp_path / "a", "true", stages=[{"steps": 5}, {"steps": 8}]).is_done()
    with pytest.raises(InputError, match=r"another stages: .* in place of none"):
        shell(tmp_path / "a", "true").is_done()
    with pytest.raises(RunError):
        do(tmp_path, shell(tmp_path / "b", "false", seed=1))
    with pytest.raises(InputError, match="begun with another seed: 1 in place of 2"):
        do(tmp_path, shell(tmp_path / "b", "true", seed=2))


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_go_side_by_side(tmp_path: Path, at_once: int) -> None:
    # Each waits until so many have begun, but not for ever, and a little for one too many.
    wait = f"echo >> ../begun; for _ in $(seq 500); do test $(wc -l < ../begun) -ge {at_once} && break; sleep .02; done"
    script = f"echo >> ../running; {wait}; sleep 0.1; wc -l < ../running > seen; sed -i 1d ../running"
    works = [shell(tmp_path / name, script) for name in "abc"]
    do(tmp_path, *works, at_once=at_once)
    assert max(int((tmp_path / name / "seen").read_text()) for name in "abc") == at_once


def test_cores_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(name: str, **options: Any) -> str:
        works = [shell(tmp_path / name / k, 'echo "threads $OMP_NUM_THREADS"') for k in "ab"]
        do(tmp_path, *works, **options)
        return (tmp_path / name / "a" / "log").read_text().strip()

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads("alone", share_cores=True) == f"threads {n_cores()}"
    assert threads("side by side", at_once=2, share_cores=True) == f"threads {max(1, n_cores() // 2)}"
    assert threads("with a launcher", at_once=2) == "threads"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads("as the user says", at_once=2, share_cores=True) == "threads 7"


def test_a_process_is_no_rank_of_what_started_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    do(tmp_path, shell(tmp_path / "a", 'echo "rank $PMI_RANK"'))
    assert (tmp_path / "a" / "log").read_text().strip() == "rank"


NEVER = "trap 'echo ended in order; exit 143' TERM; touch ../started; while true; do sleep 0.05; done"


def test_if_one_fails_the_others_end_in_order(tmp_path: Path) -> None:
    fails = shell(tmp_path / "b", "until test -f ../started; do sleep 0.05; done; exit 4")
    with pytest.raises(RunError, match="b ended with status 4"):
        do(tmp_path, shell(tmp_path / "a", NEVER), fails, at_once=2)
    assert "ended in order" in (tmp_path / "a.part" / "log").read_text()


def test_a_signal_ends_all_in_order(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match="SIGUSR1") as caught:
        do(tmp_path, shell(tmp_path / "a", NEVER), shell(tmp_path / "b", "true"))
    thread.join()
    assert caught.value.number == signal.SIGUSR1
    assert "ended in order" in (tmp_path / "a.part" / "log").read_text()
    assert not list(tmp_path.glob("b*"))


def test_who_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "PATIENCE", 0.3)
    deaf = shell(tmp_path / "a", "trap '' TERM; touch ../started; while true; do sleep 0.05; done")
    fails = shell(tmp_path / "b", "until test -f ../started; do sleep 0.05; done; exit 4")
    with pytest.raises(RunError):
        do(tmp_path, deaf, fails, at_once=2)
    until = time.monotonic() + 300.0
    while True:  # no process holds the folder any more, once a killed one's last child is gone, too
        try:
            with Workshop(tmp_path).alone():
                break
        except InputError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_process_that_is_left_behind_keeps_others_out(tmp_path: Path) -> None:
    do(tmp_path, shell(tmp_path / "a", "sleep 600 > /dev/null & echo $! > left"))
    with pytest.raises(InputError, match="a process that one has left behind"), Workshop(tmp_path).alone():
        pass
    os.kill(int((tmp_path / "a" / "left").read_text()), signal.SIGKILL)


def test_commands_are_this_pythons_behind_a_launcher(tmp_path: Path) -> None:
    program = tmp_path / "launch it"
    program.write_text('#!/bin/sh\nshift; exec echo launched "$2" "$3" "$4"\n')
    program.chmod(0o755)
    words = command_line(f"'{os.path.relpath(program)}' -n", "train", "input.json")
    work = Work("a", tmp_path / "a", "record.json", {}, lambda _: words)
    do(tmp_path, work)
    assert (tmp_path / "a" / "log").read_text() == "launched -m dphpc train\n"
    assert json.loads((tmp_path / "a" / "record.json").read_text()) == {}
