from __future__ import annotations

import os
from pathlib import Path

import pytest

from dphpc.core.errors import InputError, RunError
from dphpc.core.files import claimed, whole, write_whole


def test_the_name_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with whole(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
        assert partial.parent == tmp_path
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_fails_leaves_what_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def cut() -> None:
        with whole(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        cut()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_links_are_replaced_and_remains_removed(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    with whole(tmp_path / "link") as partial:
        partial.write_text("remains of a killed process")
        with whole(tmp_path / "link") as again:  # the same process, and so the same name
            assert again == partial
            assert not again.exists()
            again.symlink_to("new")
        partial.symlink_to("newer")
    assert os.readlink(tmp_path / "link") == "newer"
    assert (tmp_path / "old").read_text() == "old"


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, named = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda _: named.append(path.exists()))
    for sync in (False, True):
        path.unlink(missing_ok=True)
        with whole(path, sync=sync) as partial:
            partial.write_text("text")
    assert named == [False]


def test_texts_make_their_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.txt", "Å")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "Å"


def test_a_folder_is_complete_or_not_there(tmp_path: Path) -> None:
    def make(fails: bool) -> None:
        with whole(tmp_path / "new") as partial:
            partial.mkdir()
            (partial / "a.txt").write_text("text")
            if fails:
                raise KeyError

    with pytest.raises(KeyError):
        make(fails=True)
    assert os.listdir(tmp_path) == []
    make(fails=False)
    assert os.listdir(tmp_path) == ["new"]
    assert (tmp_path / "new" / "a.txt").read_text() == "text"


def test_claimed_files_are_refused_to_others_until_the_end(tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "sub" / "new.csv"
    old.write_text("before")

    def others() -> None:
        with claimed([new, old]):
            pass

    with claimed([old]):
        with pytest.raises(InputError, match=r"another run .* writes this file.*\n.*old.csv"):
            others()
        assert old.read_text() == "before"
        old.write_text("by the run that has it")
    others()
    assert old.read_text() == "by the run that has it"
    assert new.read_text() == ""


def test_devices_are_open_to_all_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    shared = ["/dev/null", tmp_path / "pipe"]
    with claimed(shared), claimed(shared):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), claimed([tmp_path / "file" / "t.csv"]):
        pass
