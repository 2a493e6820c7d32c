"""The driver of i-PI: under i-PI itself, under servers that behave and that do not, and started wrongly."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.socketio import IPIProtocol, SocketIOCalculator
from ase.io import read, write

from dphpc.core.errors import DataError, DphpcError, InputError, RunError
from dphpc.interfaces import ipi
from dphpc.interfaces.ase import DPHPC
from dphpc.interfaces.ipi import Address, DriverInput, Served, driver_input, run_ipi
from dphpc.model.compress import compress
from dphpc.model.model_file import write_model
from tests.models import random_model, random_structure

SILICON = Path(__file__).parents[2] / "examples" / "silicon"
MODEL = compress(random_model(1))[0]


@pytest.fixture
def water(tmp_path: Path) -> Atoms:
    """A structure of oxygen and hydrogen with its calculator; model and structure are files in `tmp_path`, too."""
    x, cell, types = random_structure()
    atoms = Atoms([("O", "H")[t] for t in types], x, cell=cell, pbc=True)
    write_model(MODEL, tmp_path / "model.dp")
    write(tmp_path / "init.extxyz", atoms)
    atoms.calc = DPHPC(MODEL)
    return atoms


@pytest.fixture
def start() -> Iterator[Callable[..., Future[Served]]]:
    """`start(input, …)` is a driver in a thread of its own."""
    with ThreadPoolExecutor() as pool:
        yield lambda *given, **options: pool.submit(run_ipi, *given, **options)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """A unix socket's that no other test has."""
    return f"dphpc_{os.getpid()}_{tmp_path.name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """A server's socket in `tmp_path`, to be spoken through by hand."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        server.settimeout(300)
        yield server


def given(folder: Path, structure: str = "init.extxyz") -> DriverInput:
    """As of the options, with the socket of `listening`."""
    return driver_input(None, folder / "model.dp", folder / structure, str(folder / "socket"), None, None)


@pytest.mark.parametrize("mode", ["unix", "inet"])
def test_the_numbers_are_those_of_the_ase_calculator(
    water: Atoms, tmp_path: Path, start: Callable[..., Future[Served]], name: str, mode: str
) -> None:
    """ASE plays i-PI: atoms move and the cell changes there."""
    where = {"unixsocket": name} if mode == "unix" else {"port": free_port()}
    address = (name, None, None) if mode == "unix" else (None, "localhost", where["port"])
    served = water.copy()
    driver = start(driver_input(None, tmp_path / "model.dp", tmp_path / "init.extxyz", *address))  # before the server
    with SocketIOCalculator(**where, timeout=300) as served.calc:
        for step in range(4):
            served.set_cell(water.cell * (1 + 0.01 * step), scale_atoms=True)
            served.rattle(0.01 if step < 3 else 0.6, seed=step)
            water.cell, water.positions = served.cell, served.positions
            assert served.get_potential_energy() == pytest.approx(water.get_potential_energy(), abs=1e-10)
            np.testing.assert_allclose(served.get_forces(), water.get_forces(), atol=1e-10)
            np.testing.assert_allclose(served.get_stress(), water.get_stress(), atol=1e-12)
    result = driver.result(300)
    assert (result.structures, result.stopped_by) == (4, None)


def test_an_input_of_dp_ipi(water: Atoms, tmp_path: Path, start: Callable[..., Future[Served]], name: str) -> None:
    names = [{"O": "OW", "H": f"HW{1 + k % 2}"}[s] for k, s in enumerate(water.get_chemical_symbols())]
    lines = [f"{n} {x} {y} {z}" for n, (x, y, z) in zip(names, water.positions, strict=True)]
    (tmp_path / "conf.xyz").write_text("\n".join([str(len(water)), "# a comment", *lines, ""]))
    settings = {
        "verbose": True, "use_unix": True, "port": 31415, "host": name, "graph_file": str(tmp_path / "model.dp"),
        "coord_file": str(tmp_path / "conf.xyz"), "atom_type": {"OW": 0, "HW1": 1, "HW2": 1},
    }  # fmt: skip
    (tmp_path / "water.json").write_text(json.dumps(settings))
    served = water.copy()
    with SocketIOCalculator(unixsocket=name, timeout=300) as served.calc:
        driver = start(driver_input(tmp_path / "water.json", None, None, None, None, None))
        assert served.get_potential_energy() == pytest.approx(water.get_potential_energy(), abs=1e-10)
    assert driver.result(300).structures == 1


def test_options_go_before_the_input(tmp_path: Path) -> None:
    path = tmp_path / "water.json"
    path.write_text('{"use_unix": true, "host": "a", "graph_file": "graph.pb", "coord_file": "conf.xyz"}')
    same = driver_input(path, None, None, None, None, None)
    assert (same.use_unix, same.host, same.graph_file, same.coord_file) == (True, "a", "graph.pb", "conf.xyz")
    other = driver_input(path, Path("b.dp"), Path("c.xyz"), None, None, 7)
    assert (other.use_unix, other.host, other.port) == (False, "localhost", 7)
    assert (other.graph_file, other.coord_file) == ("b.dp", "c.xyz")
    assert driver_input(path, None, None, "n", None, None).host == "n"
    assert Address("n").path == "/tmp/ipi_n"
    assert Address("/scratch/n").path == "/scratch/n"


def test_lammps_data_name_the_atoms_by_their_ids(
    water: Atoms, tmp_path: Path, start: Callable[..., Future[Served]], listening: socket.socket
) -> None:
    a, b, c = water.cell.array
    order = np.random.default_rng(0).permutation(len(water))
    types = [("O", "H").index(s) + 1 for s in water.get_chemical_symbols()]
    rows = [f"{k + 1} {types[k]} {' '.join(map(str, water.positions[k]))}" for k in order]
    head = f"#\n\n{len(water)} atoms\n2 atom types\n0 {a[0]} xlo xhi\n0 {b[1]} ylo yhi\n0 {c[2]} zlo zhi\n"
    (tmp_path / "water.lmp").write_text(
        head + f"{b[0]} {c[0]} {c[1]} xy xz yz\n\nAtoms # atomic\n\n" + "\n".join(rows) + "\n"
    )
    driver = start(given(tmp_path, "water.lmp"), type_map=["O", "H"])
    protocol = IPIProtocol(listening.accept()[0])
    results = protocol.calculate(water.positions, water.cell.array)
    protocol.end()
    np.testing.assert_allclose(results["forces"], water.get_forces(), atol=1e-10)
    assert driver.result(300).structures == 1


# Under i-PI

PROPERTIES = "step, conserved, potential, volume, virial_md"
ATOMIC_UNITS = np.array([1.0, units.Ha, units.Ha, units.Bohr**3, *[units.Ha / units.Bohr**3] * 6])
"""In which i-PI writes: its own factors have seven digits."""
NVE = "<dynamics mode='nve'> <timestep units='femtosecond'> 1 </timestep> </dynamics>"
NPT = """<dynamics mode='npt'> <timestep units='femtosecond'> 1 </timestep>
  <thermostat mode='langevin'> <tau units='femtosecond'> 100 </tau> </thermostat>
  <barostat mode='isotropic'> <tau units='femtosecond'> 200 </tau>
    <thermostat mode='langevin'> <tau units='femtosecond'> 100 </tau> </thermostat> </barostat> </dynamics>"""
PIMD = """<dynamics mode='nvt'> <timestep units='femtosecond'> 0.5 </timestep>
  <thermostat mode='pile_g'> <tau units='femtosecond'> 100 </tau> </thermostat> </dynamics>"""


def run_under_i_pi(folder: Path, dynamics: str, server: str, address: list[str], beads: int, steps: int) -> list[str]:
    """A run of eight atoms of silicon in `folder`, with a driver for each bead; what the drivers say."""
    atoms = read(SILICON / "si8.poscar")
    assert isinstance(atoms, Atoms)
    atoms.rattle(0.05, seed=1)
    cell = " ".join(f"{v:.12f}" for v in atoms.cell.cellpar())
    lines = [f"{s} {x:.12f} {y:.12f} {z:.12f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    comment = f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}"
    (folder / "init.xyz").write_text("\n".join([str(len(atoms)), comment, *lines, ""]))
    (folder / "input.xml").write_text(f"""<simulation verbosity='low' floatformat='%24.16e'>
      <output prefix='run'>
        <properties stride='5' filename='out'> [ {PROPERTIES} ] </properties>
        <trajectory stride='5' filename='pos' format='ase'> positions{{ase}} </trajectory>
      </output>
      <total_steps>{steps}</total_steps>
      <prng><seed>1</seed></prng>
      <ffsocket name='dphpc' pbc='False' {server} <latency>1e-4</latency> </ffsocket>
      <system>
        <initialize nbeads='{beads}'>
          <file mode='xyz'> init.xyz </file> <velocities mode='thermal' units='kelvin'> 300 </velocities>
        </initialize>
        <forces> <force forcefield='dphpc'/> </forces>
        <ensemble> <temperature units='kelvin'> 300 </temperature> <pressure units='bar'> 1 </pressure> </ensemble>
        <motion mode='dynamics'> {dynamics} </motion>
      </system>
    </simulation>""")
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dphpc", "ipi", "-m", str(SILICON / "silicon.dp"), "-s", "init.xyz", *address]
    drivers = [
        subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(beads)
    ]
    for driver in drivers:  # all are there when i-PI comes, so that each has work
        assert driver.stderr is not None
        assert driver.stderr.readline().startswith("waiting for i-PI at")
    i_pi = [Path(sysconfig.get_path("scripts")) / "i-pi", "input.xml"]
    done = subprocess.run(i_pi, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    said = [driver.communicate(timeout=300)[1] for driver in drivers]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [driver.returncode for driver in drivers] == [0] * beads, said
    return said


def outcome(folder: Path, beads: int) -> tuple[np.ndarray, list[list[Atoms]]]:
    """Rows of the properties, and each bead's frames with a calculator."""
    frames = [read(folder / f"run.pos_{k}.extxyz", index=":") for k in range(beads)]
    for atoms in (atoms for of_bead in frames for atoms in of_bead):
        atoms.pbc = True  # i-PI's first frame says so, too
        atoms.calc = DPHPC(SILICON / "silicon.dp")
    return np.loadtxt(folder / "run.out") * ATOMIC_UNITS, frames  # type: ignore[return-value]


def test_constant_energy_under_i_pi(tmp_path: Path, name: str) -> None:
    server = f"mode='unix'> <address>{name}</address>"
    (said,) = run_under_i_pi(tmp_path, NVE, server, ["--unix", name], 1, 100)
    rows, (frames,) = outcome(tmp_path, 1)
    energies = [atoms.get_potential_energy() for atoms in frames]
    assert "i-PI has ended the run: 101 structures" in said
    assert f"connected to i-PI at /tmp/ipi_{name}, 8 atoms" in said
    np.testing.assert_allclose(rows[:, 2], energies, atol=1e-7)  # positions are written with eight digits
    assert np.ptp(rows[:, 1]) < 0.005  # measured: 0.7 meV


def test_constant_pressure_under_i_pi(tmp_path: Path) -> None:
    port = free_port()
    server = f"mode='inet'> <address>localhost</address> <port>{port}</port>"
    run_under_i_pi(tmp_path, NPT, server, ["--port", str(port)], 1, 100)
    rows, (frames,) = outcome(tmp_path, 1)
    energies = [atoms.get_potential_energy() for atoms in frames]
    np.testing.assert_allclose(rows[:, 2], energies, atol=1e-7)  # positions are written with eight digits
    stress = np.array([atoms.get_stress(voigt=False) for atoms in frames])
    expected = -stress[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(rows[:, 4:], expected, atol=1e-7)  # measured: 1e-9 of 0.01 eV/Å³
    assert np.ptp(rows[:, 3]) > 1.0
    assert np.ptp(rows[:, 1]) < 0.02


@pytest.mark.slow
def test_two_beads_under_i_pi(tmp_path: Path, name: str) -> None:
    server = f"mode='unix'> <address>{name}</address>"
    said = run_under_i_pi(tmp_path, PIMD, server, ["--unix", name], 2, 60)
    rows, beads = outcome(tmp_path, 2)
    energies = np.mean([[atoms.get_potential_energy() for atoms in frames] for frames in beads], axis=0)
    np.testing.assert_allclose(rows[:, 2], energies, atol=1e-7)  # positions are written with eight digits
    apart = [np.linalg.norm(a.positions - b.positions) for a, b in zip(*beads, strict=True)]
    assert apart[-1] > 0.01, "the beads are two"
    counts = [int(text.partition("run: ")[2].split()[0]) for text in said]
    assert sum(counts) == 2 * 61
    assert min(counts) > 0, "both drivers work"
    assert np.ptp(rows[:, 1]) < 0.02


# Servers that are not there, go away or say something else


def test_a_server_that_goes_away_ends_the_driver(
    water: Atoms,
    tmp_path: Path,
    start: Callable[..., Future[Served]],
    listening: socket.socket,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dphpc.interfaces.ipi")
    for leave, said in ((b"", "has closed the connection"), (b"POSDATA     123", "has closed the connection")):
        driver = start(given(tmp_path))
        connection = listening.accept()[0]
        IPIProtocol(connection).calculate(water.positions, water.cell.array)
        connection.sendall(leave)
        connection.close()
        assert driver.result(300).structures == 1
        assert said in caplog.messages[-1]
    driver = start(given(tmp_path))
    connection = listening.accept()[0]
    protocol = IPIProtocol(connection)
    protocol.sendposdata(water.cell.array, water.cell.array, water.positions)
    protocol.sendmsg("GETFORCE")
    connection.close()  # with the answer unread
    assert driver.result(300).structures == 1
    assert "i-PI" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("speak", "message"),
    [
        (
            lambda p, a: p.sendposdata(a.cell.array, a.cell.array, a.positions[:5]),
            "sends 5 atoms, the structure has 24",
        ),
        (lambda p, a: p.sendposdata(a.cell.array, a.cell.array, a.positions * np.nan), "are not finite"),
        (lambda p, a: p.sendposdata(a.cell.array * 0, a.cell.array, a.positions), "cell has no vector"),
        (lambda p, a: p.sendmsg("GET /"), "the server says 'GET /'"),
        (lambda p, a: p.sendmsg("GETFORCE"), "the server says 'GETFORCE'"),
        (lambda p, a: p.socket.sendall(b"\xff" * 12), "the server says 'what is no text'"),
    ],
)
def test_what_a_server_may_not_say(
    water: Atoms,
    tmp_path: Path,
    start: Callable[..., Future[Served]],
    listening: socket.socket,
    speak: Callable[[IPIProtocol, Atoms], None],
    message: str,
) -> None:
    driver = start(given(tmp_path))
    connection = listening.accept()[0]
    speak(IPIProtocol(connection), water)
    with pytest.raises((RunError, DataError), match=message):
        driver.result(300)
    assert connection.recv(1) == b"", "the driver has hung up"


def test_an_init_is_read(
    water: Atoms, tmp_path: Path, start: Callable[..., Future[Served]], listening: socket.socket
) -> None:
    driver = start(given(tmp_path))
    connection = listening.accept()[0]
    protocol = IPIProtocol(connection)
    protocol.sendinit()
    protocol.calculate(water.positions, water.cell.array)
    protocol.end()
    assert driver.result(300).structures == 1


def test_a_server_that_is_not_there(water: Atoms, tmp_path: Path, name: str) -> None:
    files = (None, tmp_path / "model.dp", tmp_path / "init.extxyz")
    began = time.monotonic()
    with pytest.raises(RunError, match=f"(?s)No such file.*ipi_{name}.*within 0.5 s.*start i-PI first"):
        run_ipi(driver_input(*files, name, None, None), wait=0.5)
    assert time.monotonic() - began >= 0.5
    with pytest.raises(RunError, match=r"(?s)refused.*localhost:"):
        run_ipi(driver_input(*files, None, None, free_port()), wait=0.0)
    with pytest.raises(InputError, match=r"(?s)no such address.*nowhere\.invalid:1"):
        run_ipi(driver_input(*files, None, "nowhere.invalid", 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "left"))
    with pytest.raises(RunError, match="left of a run that has died"):
        run_ipi(driver_input(*files, str(tmp_path / "left"), None, None), wait=0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(water: Atoms, tmp_path: Path, listening: socket.socket, number: int) -> None:
    command = [sys.executable, "-m", "dphpc", "ipi", "-m", "model.dp", "-s", "init.extxyz", "--unix", "./socket"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as driver:
        protocol = IPIProtocol(listening.accept()[0])
        protocol.calculate(water.positions, water.cell.array)
        driver.send_signal(number)
        said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}: 1 structures" in said
    assert "Traceback" not in said
    assert protocol.socket.recv(1) == b""


def test_a_silent_server_is_waited_for_and_told_of(
    water: Atoms,
    tmp_path: Path,
    start: Callable[..., Future[Served]],
    listening: socket.socket,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipi, "SILENCE", 0.1)
    caplog.set_level(logging.INFO, "dphpc.interfaces.ipi")
    driver = start(given(tmp_path))
    protocol = IPIProtocol(listening.accept()[0])
    deadline = time.monotonic() + 300
    while len(told := [text for text in caplog.messages if "has said nothing" in text]) < 3:  # after 0.1, 0.2, 0.4 s
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert re.fullmatch(r"i-PI has said nothing since \d\d:\d\d:\d\d \(0:00:00\): waiting on, Ctrl-C ends", told[0])
    protocol.calculate(water.positions, water.cell.array)
    protocol.sendmsg("EXIT")
    assert driver.result(300).structures == 1


def test_the_rate_is_logged(
    water: Atoms,
    tmp_path: Path,
    start: Callable[..., Future[Served]],
    listening: socket.socket,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dphpc.interfaces.ipi.LOG_EVERY", 0.0)
    caplog.set_level(logging.INFO, "dphpc.interfaces.ipi")
    driver = start(given(tmp_path))
    protocol = IPIProtocol(listening.accept()[0])
    for _ in range(3):
        protocol.calculate(water.positions, water.cell.array)
    protocol.end()
    driver.result(300)
    assert len([text for text in caplog.messages if text.startswith("1 structures in")]) == 3
    assert caplog.messages[-1].startswith("i-PI has ended the run: 3 structures in")


# Wrong inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "m.dp", "s.xyz", None, None, None), "give no address"),
        ((None, "m.dp", "s.xyz", None, "host", None), "give no address"),
        ((None, "m.dp", "s.xyz", "name", None, 5), "give two addresses"),
        ((None, "m.dp", "s.xyz", "name", "host", None), "give two addresses"),
        ((None, None, "s.xyz", "name", None, None), "(?s)no model is given.*--model"),
        ((None, "m.dp", None, "name", None, None), "(?s)no structure is given.*--structure"),
        (("in.json", None, None, None, None, None), "(?s)no model is given.*or 'graph_file'"),
        (("bad.json", None, None, None, None, None), "(?s)'use_unx' is not a known key.*did you mean 'use_unix'"),
        (("none.json", None, None, None, None, None), "none.json"),
    ],
)
def test_options_that_do_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text('{"port": 5}')
    Path("bad.json").write_text('{"use_unx": true}')
    paths = [None if a is None else Path(a) for a in arguments[:3]]
    with pytest.raises(InputError, match=message):
        driver_input(*paths, *arguments[3:])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"graph_file": "none.dp"}, {}, "no such model"),
        ({"graph_file": "graph.pb"}, {}, "(?s)holds no graph.*graph.pb"),
        ({"coord_file": "none.xyz"}, {}, "there is no file 'none.xyz'"),
        ({"coord_file": "none.xyz", "atom_type": {"OW": 0}}, {}, "there is no file 'none.xyz'"),
        ({"coord_file": "carbon.xyz"}, {}, "(?s)species 'C'.*carbon.xyz.*O, H"),
        ({"atom_type": {"O": 0}}, {}, "(?s)an atom 'H'.*line 4.*atom_type': O"),
        ({"atom_type": {"O": 0, "H": 2}}, {}, "(?s)'H' is of type 2.*0 to 1"),
        ({"coord_file": "short.xyz", "atom_type": {"O": 0, "H": 1}}, {}, "(?s)no xyz file.*short.xyz"),
        ({"coord_file": "model.dp", "atom_type": {"O": 0}}, {}, "(?s)no xyz file"),
        ({}, {"precision": "half"}, "precision"),
    ],
)
def test_inputs_that_do_not_fit(
    water: Atoms,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("carbon.xyz").write_text("1\n\nC 0 0 0\n")
    Path("short.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\n")
    Path("graph.pb").write_text("")
    usual = {"graph_file": "model.dp", "coord_file": "init.extxyz", "use_unix": True, "host": "nowhere"}
    with pytest.raises(DphpcError, match=message):
        run_ipi(DriverInput.model_validate(usual | changes), wait=0.0, **options)


def test_frame_parameters(tmp_path: Path) -> None:
    fitting = {"numb_fparam": 2, "fparam_avg": np.zeros(2), "fparam_inv_std": np.ones(2)}
    write_model(random_model(5, fitting=fitting), tmp_path / "model.dp")
    Path(tmp_path / "a.xyz").write_text("1\n\nO 0 0 0\n")
    wanted = driver_input(None, tmp_path / "model.dp", tmp_path / "a.xyz", "nowhere", None, None)
    with pytest.raises(InputError, match="2 'fparam' and none"):
        run_ipi(wanted, wait=0.0)
    with pytest.raises(RunError, match="does not answer"):
        run_ipi(wanted, wait=0.0, fparam=[0.1, 0.2])
