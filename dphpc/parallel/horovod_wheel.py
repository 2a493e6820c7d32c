"""Horovod's wheel for this Python, torch and MPI: built once, then taken from the user's cache.

Horovod's last release does not build against today's torch without help.  It is built with the settings in `BUILD` in
a virtual environment of its own, so that the user's environment stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dphpc.core.errors import InputError, RunError
from dphpc.core.files import whole
from dphpc.parallel.launch import START_ANYWHERE

VERSION = "0.28.1"
"""The last release (2023)."""

BUILD = {
    # It asks for C++14, torch's headers need 20; flags that are added elsewhere are taken out again.  Its -g, which is
    # 40 % of the compiler's time and nine tenths of the wheel, loses against a later -g0.
    "CMAKE_CXX_COMPILER_LAUNCHER": 'bash;-c;exec "${@/#-std=c++1[14]/-std=c++20}" -g0;_',
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
}
"""Environment of the build."""

TOOLCHAIN = "set(CMAKE_UNITY_BUILD ON)\nset(CMAKE_UNITY_BUILD_BATCH_SIZE 0)\n"
"""CMake's toolchain file, by which all sources are compiled as one: they include much the same headers, which take most
of the time (measured: 92 instead of 222 s, in 2.5 GB).  Sources for GPUs were not tried so, and are compiled apart."""

TOOLS = {
    "mpicxx": "the MPI's compiler",
    "g++": "apt install g++, or module load gcc",
    "make": "apt install make",
}
"""Programs that the build calls, and how to get them."""

BUILD_PACKAGES = ("setuptools<81", "wheel", "packaging")
"""What Horovod's setup.py imports; later setuptools lack what it asks of them."""

log = logging.getLogger(__name__)


def find_or_build() -> Path:
    """The cached wheel for this environment; built first, in some minutes, if there is none.

    Raises
    ------
    InputError
        A tool, a package or the MPI's headers are missing.
    RunError
        The build failed.
    """
    env = _environment()
    missing = [f"{tool} ({how})" for tool, how in TOOLS.items() if shutil.which(tool, path=env["PATH"]) is None]
    missing += [f"{name} (pip install {name})" for name in ("torch", "mpi4py") if find_spec(name) is None]
    if missing:
        raise InputError(f"Horovod cannot be built without {', '.join(missing)}")
    folder = cache_folder(env)
    wheel = cached(folder)
    if wheel is None:
        mpicxx = shutil.which("mpicxx", path=env["PATH"])
        log.info("building Horovod %s with %s; this takes minutes", VERSION, mpicxx)
        folder.mkdir(parents=True, exist_ok=True)  # or fail before the minutes
        with tempfile.TemporaryDirectory(prefix="dphpc-horovod-") as place:
            wheel = keep(_build(Path(place), env), folder)
        log.info("built, and kept as %s", wheel)
    else:
        log.info("Horovod %s was built before: %s", VERSION, wheel)
    return wheel


def install(wheel: Path) -> None:
    """Install a wheel into this environment, in place of any other build, and try it on two ranks.

    Raises
    ------
    RunError
        It cannot be installed, or its sums on two ranks are wrong.
    """
    env = _environment()
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    _run([*pip, "--force-reinstall", "--no-deps", str(wheel)], env)
    _run([*pip, str(wheel)], env)  # what it needs and is not here yet
    mpirun = shutil.which("mpirun", path=env["PATH"])
    if mpirun is None:
        raise RunError("Horovod is installed, but there is no mpirun to try it with", remedy="load the MPI's module")
    try:
        print(_run([mpirun, "-n", "2", sys.executable, "-m", "dphpc", "horovod", "test"], env | START_ANYWHERE))
    except RunError as error:
        raise RunError(error.what, remedy=f"delete {wheel} to have it built anew") from None


def cache_folder(env: dict[str, str]) -> Path:
    """The folder for wheels of this Python, torch, MPI, compiler and build settings.

    An MPI inside the virtual environment counts as the same MPI in another one.
    """
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    recipe = {name: value for name, value in env.items() if name.startswith("HOROVOD_") or name in _COMPILERS}
    identity = [
        str(sysconfig.get_config_var("SOABI")),
        Path(torch.origin).with_name("version.py").read_text(),  # its commit and its CUDA
        mpi_headers(env),
        _run(["mpicxx", "-show"], env).replace(sys.prefix, ""),
        repr(sorted((recipe | BUILD).items())) + TOOLCHAIN,
    ]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "dphpc" / "horovod" / f"{VERSION}-{python}-torch{version('torch')}-{digest}"


_COMPILERS = ("CXX", "CXXFLAGS", "LDFLAGS", "MPICH_CXX", "OMPI_CXX")


def mpi_headers(env: dict[str, str]) -> str:
    """All that mpi.h declares and defines, with the compiler's own macros: what a build depends on.

    Raises
    ------
    InputError
        mpicxx has no mpi.h, as Linux packages without their -dev part leave it.
    """
    words = ["mpicxx", "-x", "c++", "-E", "-dD", "-P", "-"]
    done = subprocess.run(words, input="#include <mpi.h>\n", env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise InputError(
            f"{shutil.which('mpicxx', path=env['PATH'])} cannot compile an MPI program: {why}",
            remedy="install the MPI's headers, e.g. apt install libopenmpi-dev or libmpich-dev",
        )
    return done.stdout


def cached(folder: Path) -> Path | None:
    """A wheel in the folder that `is_sound`; None if there is none."""
    wheels = sorted(folder.glob("*.whl"))
    sound = next(filter(is_sound, wheels), None)
    if wheels and sound is None:
        log.warning("not used, as it is damaged, not Horovod %s or not yours alone: %s", VERSION, wheels[0])
    return sound


def is_sound(wheel: Path) -> bool:
    """Whether a file has the name of a Horovod wheel, the checksum in that name, and is writable by its user alone."""
    named = _NAME.fullmatch(wheel.name)
    status = wheel.stat()
    ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return named is not None and ours and named["digest"] == _digest(wheel)


def keep(wheel: Path, folder: Path) -> Path:
    """Copy a wheel into the cache, with its checksum in the name as a build number (which must begin with a digit)."""
    head = f"horovod-{VERSION}-"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{head}0{_digest(wheel)}-{wheel.name.removeprefix(head)}"
    with whole(place) as partial:
        shutil.copyfile(wheel, partial)
        partial.chmod(0o644)  # whatever the umask, see `is_sound`
    return place


_NAME = re.compile(rf"horovod-{re.escape(VERSION)}-0(?P<digest>[0-9a-f]{{64}})-[^-]+-[^-]+-[^-.]+\.whl")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _build(place: Path, env: dict[str, str]) -> Path:
    """Build the wheel in an empty folder, in an environment of its own that sees this one's packages."""
    venv.create(place / "env", symlinks=True)
    vars_ = {"base": str(place / "env"), "platbase": str(place / "env")}
    packages, programs = (sysconfig.get_path(name, "venv", vars_) for name in ("purelib", "scripts"))
    ours = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (Path(packages) / "ours.pth").write_text("\n".join(ours))  # after its own: its setuptools come first
    pip = [sys.executable, "-m", "pip", "--python", f"{programs}/python"]
    cmake = [] if shutil.which("cmake", path=env["PATH"]) else ["cmake"]
    _run([*pip, "install", "--quiet", "--ignore-installed", *BUILD_PACKAGES, *cmake], env)
    env = env | BUILD | {"PATH": f"{programs}{os.pathsep}{env['PATH']}", "MAKEFLAGS": env.get("MAKEFLAGS") or "-j1"}
    if not any(name.startswith("HOROVOD_GPU") for name in env):
        (place / "toolchain.cmake").write_text(TOOLCHAIN)
        env["CMAKE_TOOLCHAIN_FILE"] = str(place / "toolchain.cmake")
    how = ["--no-build-isolation", "--no-cache-dir", "--no-deps", "--wheel-dir", str(place)]
    _run([*pip, "wheel", *how, f"horovod=={VERSION}"], env)
    return next(place.glob(f"horovod-{VERSION}-*.whl"))


def _environment() -> dict[str, str]:
    """This process's environment, with the folder of this Python first in PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _run(words: list[str], env: dict[str, str]) -> str:
    """What a program prints; RunError if it fails."""
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(words[:6])} … failed:\n{done.stdout[-4000:]}")
    return done.stdout.strip()
