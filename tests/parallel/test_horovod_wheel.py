"""The cache of Horovod's wheel: what it is kept by, what is taken from it, what is not.  CI makes the build itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from dphpc.core.errors import InputError
from dphpc.parallel.horovod_wheel import BUILD, VERSION, cache_folder, cached, is_sound, keep, mpi_headers

BIN = Path(sys.executable).parent
NAME = f"horovod-{VERSION}-py3-none-any.whl"
MPICXX = shutil.which("mpicxx", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
HAS_HEADERS = (
    MPICXX is not None
    and not subprocess.run(
        [MPICXX, "-x", "c++", "-E", "-"], input=b"#include <mpi.h>\n", capture_output=True, check=False
    ).returncode
)  # a distribution's MPI may have an mpicxx without them
needs_mpicxx = pytest.mark.skipif(not HAS_HEADERS, reason="no mpicxx with mpi.h here: Horovod cannot be built")


def environment(*folders: Path, **given: str) -> dict[str, str]:
    """This process's, with programs of these folders first."""
    return os.environ | {"PATH": os.pathsep.join([*map(str, folders), str(BIN), os.environ["PATH"]])} | given


def script(path: Path, text: str) -> Path:
    """A program at that path; the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path.parent


def folder_of(python: Path | str, env: dict[str, str]) -> str:
    """`cache_folder` of another Python."""
    code = "import os; from dphpc.parallel.horovod_wheel import cache_folder; print(cache_folder(dict(os.environ)))"
    return subprocess.check_output([str(python), "-c", code], env=env, text=True).strip()


def wheel_of(path: Path) -> Path:
    """A small wheel, as pip leaves it."""
    info = f"horovod-{VERSION}.dist-info"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("horovod/__init__.py", f"__version__ = '{VERSION}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: horovod\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"horovod/__init__.py,,\n{info}/METADATA,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_mpicxx
def test_another_mpi_or_recipe_has_another_folder(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mpi.h").write_text("#define MPI_VERSION 9\n")
    other_headers = script(
        tmp_path / "headers" / "mpicxx", f'[ "$1" = -show ] || set -- "-I{tmp_path}" "$@"; exec "{MPICXX}" "$@"'
    )
    other_place = script(
        tmp_path / "place" / "mpicxx", f'if [ "$1" = -show ]; then echo c++ -I/opt/mpi; else exec "{MPICXX}" "$@"; fi'
    )
    ours = cache_folder(environment())
    others = [
        environment(other_headers),
        environment(other_place),
        environment(HOROVOD_GPU_OPERATIONS="NCCL"),
        environment(CXXFLAGS="-O1"),
    ]
    assert cache_folder(environment(UNRELATED="1")) == ours
    assert ours.parent == cache / "dphpc" / "horovod"
    assert len({ours, *map(cache_folder, others)}) == 5


@needs_mpicxx
def test_another_torch_of_the_same_version_has_another_folder(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("git_version = 'another'\n")
    ours = str(cache_folder(environment()))
    assert folder_of(sys.executable, environment()) == ours
    other = folder_of(sys.executable, environment(PYTHONPATH=str(tmp_path)))
    assert other[:-16] == ours[:-16]
    assert other != ours


@needs_mpicxx
def test_an_mpi_in_another_virtual_environment_is_the_same(cache: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        venv.create(tmp_path / name, symlinks=True)
        text = f'if [ "$1" = -show ]; then echo c++ -I{tmp_path / name}/include; else exec "{MPICXX}" "$@"; fi'
        bin_ = script(tmp_path / name / "bin" / "mpicxx", text)
        env = environment(bin_, PYTHONPATH=os.pathsep.join(sys.path))
        folders.append(folder_of(bin_ / "python", env))
    assert folders[0] == folders[1]
    assert Path(folders[0]).is_relative_to(cache)


def test_an_mpi_without_headers_is_refused(tmp_path: Path) -> None:
    bare = script(tmp_path / "mpicxx", 'exec g++ -nostdinc "$@"')
    with pytest.raises(InputError, match=r"cannot compile an MPI program.*mpi\.h.*\n.*apt install") as caught:
        mpi_headers(environment(bare))
    assert str(bare / "mpicxx") in caught.value.what


def test_a_kept_wheel_is_found_and_pip_takes_it(tmp_path: Path) -> None:
    built, folder = wheel_of(tmp_path / NAME), tmp_path / "cache" / "key"
    assert cached(folder) is None
    old = os.umask(0o002)
    try:
        place = keep(built, folder)
    finally:
        os.umask(old)
    assert place.read_bytes() == built.read_bytes()
    assert cached(folder) == place
    assert os.listdir(folder) == [place.name]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(tmp_path / "here")]
    subprocess.run([*pip, str(place)], check=True)
    assert (tmp_path / "here" / "horovod" / "__init__.py").exists()


def test_a_damaged_or_foreign_wheel_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    place = keep(wheel_of(tmp_path / NAME), folder)
    whole = place.read_bytes()
    for text in (b"", whole[:-1], whole[:40] + b"?" + whole[41:], whole.replace(b"horovod/", b"another/")):
        place.write_bytes(text)
        assert cached(folder) is None
        assert caplog.messages[-1].startswith("not used, as it is damaged, not Horovod 0.28.1 or not yours alone: ")
        assert caplog.messages[-1].endswith(str(place))
    caplog.clear()
    assert cached(keep(tmp_path / NAME, folder).parent) == place
    assert not caplog.messages


@pytest.mark.parametrize(("ours", "others"), [("horovod-", "evil-"), (VERSION, "0.28.0"), (".whl", ".whl.whl")])
def test_a_wheel_of_another_name_is_not_taken(tmp_path: Path, ours: str, others: str) -> None:
    place = keep(wheel_of(tmp_path / NAME), tmp_path / "cache")
    foreign = place.rename(place.with_name(place.name.replace(ours, others)))
    assert cached(foreign.parent) is None
    foreign.rename(place)
    assert cached(place.parent) == place


def test_a_wheel_that_others_can_write_is_not_taken(tmp_path: Path) -> None:
    place = keep(wheel_of(tmp_path / NAME), tmp_path / "cache")
    for mode in (0o664, 0o646):
        place.chmod(mode)
        assert not is_sound(place)
    place.chmod(0o600)
    assert is_sound(place)
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(place, 12345, -1)
    assert not is_sound(place)


def test_compiler_flags_are_put_right() -> None:
    launcher = BUILD["CMAKE_CXX_COMPILER_LAUNCHER"].split(";")  # as CMake does
    said = subprocess.check_output([*launcher, "echo", "-std=c++14", "-std=c++17", "-g", "a b.cc"], text=True)
    assert said == "-std=c++20 -std=c++17 -g a b.cc -g0\n"


@needs_mpicxx
def test_build_tells_where_the_wheel_is(cache: Path, tmp_path: Path) -> None:
    wheel = keep(wheel_of(tmp_path / NAME), cache_folder(environment()))
    command = [sys.executable, "-m", "dphpc", "horovod", "build"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"{wheel}\n"), done.stderr
    assert done.stderr == f"Horovod {VERSION} was built before: {wheel}\n"


@pytest.mark.parametrize("action", ["build", "install"])
def test_what_is_missing_is_named_with_what_brings_it(cache: Path, action: str) -> None:
    command = [sys.executable, "-m", "dphpc", "horovod", action]
    env = os.environ | {"PATH": "/nowhere"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Horovod cannot be built without ")
    assert "g++ (apt install g++, or module load gcc), make (apt install make)" in done.stderr
    assert not cache.exists()
