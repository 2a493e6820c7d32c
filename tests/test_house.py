"""Which folder may import what, and how long files may be, read from the files themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dphpc"

# What each folder may import beside itself.  `_native` holds the compiled kernels.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "model": {"core"},
    "_native": set(),
    "ops": {"core", "model", "_native"},
    "parallel": {"core"},
    "potential": {"core", "model", "ops", "parallel"},
    "md": {"core", "model", "ops", "potential", "parallel"},
    "train": {"core", "model", "ops", "potential", "parallel"},
    "active": {"core", "model", "ops", "potential", "parallel", "md", "train"},
    # `_native` says for which instruction set the kernels are compiled into LAMMPS' plugin.
    "interfaces": {"core", "model", "_native", "ops", "potential", "parallel", "md", "train"},
    "plots": {"core"},
    "cli": set(),  # everything, see below
}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"cli"}

# The homes of packages that are optional, heavy or tied to a machine: path prefixes or file names.
HOMES: dict[str, tuple[str, ...]] = {
    "torch": ("ops/*/autograd.py", "train/*.py", "train/*/*.py", "parallel/gradients.py", "parallel/process_group.py"),
    "cupy": ("ops/*/cuda.py", "core/device.py"),
    "cupy_backends": ("core/device.py",),
    "mpi4py": ("parallel/comm.py",),
    "horovod": ("parallel/gradients.py",),
    "dpdispatcher": ("active/queue.py",),
    "typer": ("cli/*.py",),
    "rich": ("cli/*.py", "train/*.py", "md/*.py"),
}

LONG_FILE = 400


def imported_modules(source: str) -> Iterator[str]:
    """Names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which folder they reach"
            yield node.module or ""
            # `from dphpc import md` imports a folder, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """House rules that the imports of a file of the package (path inside dphpc/) break."""
    found = []
    folder = path.parts[0] if len(path.parts) > 1 else None  # the package's own __init__ and __main__ are free
    for module in imported_modules(source):
        top, _, rest = module.partition(".")
        if top == "dphpc" and folder is not None:
            target = rest.partition(".")[0]
            if target in MAY_IMPORT and target != folder and target not in MAY_IMPORT[folder]:
                found.append(f"{path}: {folder} imports {module}")
        elif top in HOMES and not any(path.match(home) for home in HOMES[top]):
            found.append(f"{path}: {top} may be imported in {', '.join(HOMES[top])} only")
    return sorted(set(found))


def test_imports_go_one_way():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += violations(path.relative_to(PACKAGE), path.read_text())
    assert not found, "\n".join(found)


def test_every_folder_has_a_rule():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/box.py", "from dphpc.model.fitting import EnergyFitting"),
        ("md/engine.py", "def f():\n    import torch.nn"),
        ("parallel/halo.py", "import dphpc.ops.threads"),
        ("train/trainer.py", "from dphpc import md"),
        ("md/run.py", "from dphpc.active.loop import learn"),
        ("active/loop.py", "from dphpc.interfaces.ase import DPHPC"),
        ("parallel/halo.py", "from mpi4py import MPI"),
        ("ops/se_a/native.py", "import cupy"),
        ("md/engine.py", "import typer"),
        ("active/jobs.py", "import dpdispatcher"),
    ],
)
def test_rules_catch(path, source):
    assert violations(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/se_a/autograd.py", "import torch"),
        ("train/trainer.py", "from dphpc.parallel.gradients import average"),
        ("cli/main.py", "import typer\nfrom dphpc import md"),
        ("active/loop.py", "from dphpc import md, train"),
        ("parallel/comm.py", "from mpi4py import MPI"),
    ],
)
def test_rules_allow(path, source):
    assert not violations(Path(path), source)


def test_long_files_say_why():
    files = [p for p in [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.*")] if p.is_file()]
    long = []
    for path in files:
        lines = path.read_text().splitlines()
        if len(lines) > LONG_FILE and f"{LONG_FILE} lines" not in "\n".join(lines[:15]):
            long.append(f"{path.relative_to(ROOT)}: {len(lines)} lines")
    assert not long, f"files over {LONG_FILE} lines must say why at their top: {long}"
