"""Driver for i-PI: evaluates energies, forces and virials of structures that the server sends through a socket.

The protocol is i-PI's (Kapil et al., Comput. Phys. Commun. 236, 214 (2019)), as implemented by ASE's `IPIProtocol`.
"""

from __future__ import annotations

import logging
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase.calculators.socketio import IPIProtocol, SocketClosed
from numpy.typing import ArrayLike, NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.config import Config, load_config
from dphpc.core.errors import DataError, InputError, RunError
from dphpc.core.signals import stop_signals
from dphpc.core.units import duration
from dphpc.interfaces.elements import ElementPotential
from dphpc.md.structures import read_structure, require_file
from dphpc.ops.threads import default_threads

log = logging.getLogger(__name__)

Evaluate = Callable[[Doubles, Doubles], tuple[float, Doubles, Doubles]]
"""Positions (natoms, 3) Å and cell (3, 3) Å -> energy in eV, forces (natoms, 3) eV/Å, virial (3, 3) eV."""

PREFIX = "/tmp/ipi_"
"""Beginning of the path of i-PI's unix sockets, unless its input sets another `sockets_prefix`."""

SKIN = 1.0
"""Å by which the neighbor list reaches beyond the cutoff."""

RETRY = 0.1
"""Seconds between two attempts to connect to a server."""

LOG_EVERY = 10.0
"""Seconds between two log messages about the rate."""

SILENCE = 30.0
"""Seconds of the server's silence until a message tells of it, and again after twice, four times, … as long: i-PI may
have reasons, such as other drivers that are slower, and never says them."""


class DriverInput(Config):
    """The input of DeePMD-kit's `dp_ipi`.

    Attributes
    ----------
    use_unix
        Whether `host` is the name of a unix socket.
    graph_file
        The model file.
    coord_file
        An xyz file with the names of the atoms, in i-PI's order.
    atom_type
        The model's type for each name.
    verbose
        Whether to log each structure.
    """

    taken_by: ClassVar = "ipi"

    use_unix: bool = False
    host: str = "localhost"
    port: int = 31415
    graph_file: str | None = None
    coord_file: str | None = None
    atom_type: dict[str, int] | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Address:
    """The address at which i-PI listens: a unix socket, or a port of a host.

    Attributes
    ----------
    unix
        The `address` of i-PI's input, or the path of a socket; None for host and port.
    """

    unix: str | None = None
    host: str = "localhost"
    port: int = 31415

    @property
    def path(self) -> str | None:
        """Path of the unix socket; None for host and port."""
        return self.unix if self.unix is None or "/" in self.unix else PREFIX + self.unix

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.path is None else self.path

    def connect(self, wait: float) -> socket.socket:
        """A socket that is connected to the server, which may take up to `wait` seconds to listen.

        Raises
        ------
        InputError
            There is no such host, or no such port.
        RunError
            The server does not answer in time.
        """
        deadline, waiting = time.monotonic() + wait, False
        while True:
            try:
                return self._attempt()
            except (socket.gaierror, OverflowError) as error:
                raise InputError(f"there is no such address: {error}", where=str(self)) from None
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._silence(error, wait) from None
            if not waiting:
                log.info("waiting for i-PI at %s, up to %g s", self, wait)
                waiting = True
            time.sleep(RETRY)

    def _silence(self, error: OSError, wait: float) -> RunError:
        remedy = "start i-PI first, or give it more time with --wait; compare <ffsocket> of its input"
        if self.path is not None and isinstance(error, ConnectionRefusedError):
            remedy = "the file is left of a run that has died: remove it, i-PI does not start while it is there"
        return RunError(
            f"i-PI does not answer: {error.strerror or error}", where=str(self),
            expected=f"a server that listens within {wait:g} s", remedy=remedy,
        )  # fmt: skip

    def _attempt(self) -> socket.socket:
        if self.path is not None:
            unix = socket.socket(socket.AF_UNIX)
            try:
                unix.connect(self.path)
            except OSError:
                unix.close()
                raise
            return unix
        inet = socket.create_connection((self.host, self.port), timeout=10.0)
        inet.settimeout(None)
        # A message is sent in small pieces; without this each would wait for the previous one to be acknowledged.
        inet.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inet.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # detects a dead server
        return inet


@dataclass
class Served:
    """The work that a driver has done.

    Attributes
    ----------
    structures, seconds
        Number of structures evaluated, and seconds since the connection.
    stopped_by
        Number of the signal that ended it; None if the server did.
    """

    structures: int = 0
    seconds: float = 0.0
    stopped_by: int | None = None


class _Stop(Exception):
    """Raised by a signal, to end the driver."""


def serve(evaluate: Evaluate, n_atoms: int, address: Address, wait: float = 60.0, level: int = logging.DEBUG) -> Served:
    """Evaluate the structures that a server sends, until it says EXIT or disconnects, or a signal arrives.

    Parameters
    ----------
    wait
        Seconds that the server may take until it listens.
    level
        Logging level of the message about each structure.

    Raises
    ------
    InputError, RunError
        As in `Address.connect`; or the server sends another number of atoms, or a message that is not in the protocol.
    """
    served, began = Served(), time.monotonic()

    def stop(number: int) -> None:
        served.stopped_by = number
        raise _Stop  # else the driver would go on waiting for a message

    try:
        with stop_signals(stop), address.connect(wait) as connection:
            began = time.monotonic()
            log.info("connected to i-PI at %s, %d atoms", address, n_atoms)
            _converse(IPIProtocol(connection), evaluate, n_atoms, served, level)
        end = "i-PI has ended the run"
    except _Stop:
        end = f"stopped by {signal.Signals(served.stopped_by or 0).name}"
    except SocketClosed:
        end = "i-PI has closed the connection"
    except ConnectionError as error:
        end = f"i-PI is gone ({error.strerror or error})"
    served.seconds = time.monotonic() - began
    log.info("%s: %s", end, _rate(served.structures, served.seconds))
    return served


def _rate(structures: int, seconds: float) -> str:
    return f"{structures} structures in {seconds:.1f} s, {structures / max(seconds, 1e-9):.4g} a second"


def _converse(protocol: IPIProtocol, evaluate: Evaluate, n_atoms: int, served: Served, level: int) -> None:
    """Answer the server's messages until EXIT; counts structures in `served`."""
    results: tuple[float, Doubles, Doubles] | None = None
    since, counted = time.monotonic(), 0
    while (message := _message(protocol)) != "EXIT":
        if message == "STATUS":
            protocol.sendmsg("READY" if results is None else "HAVEDATA")
        elif message == "INIT":
            protocol.recvinit()  # a bead's number and a string, both unused
        elif message == "POSDATA":
            results = evaluate(*_structure(protocol, n_atoms))
            served.structures += 1
            log.log(level, "structure %d: %.8f eV", served.structures, results[0])
            passed = time.monotonic() - since
            if passed > LOG_EVERY:
                log.info("%s", _rate(served.structures - counted, passed))
                since, counted = time.monotonic(), served.structures
        elif message == "GETFORCE" and results is not None:
            protocol.sendforce(*results)
            results = None
        else:
            raise RunError(
                f"the server says {message!r}",
                expected="the messages of i-PI",
                remedy="does another program listen there?",
            )


def _message(protocol: IPIProtocol) -> str:
    """The server's next message; tells on the screen that none comes."""
    since, began, told = time.strftime("%H:%M:%S"), time.monotonic(), SILENCE
    while not select.select([protocol.socket], [], [], max(0.0, began + told - time.monotonic()))[0]:
        log.info("i-PI has said nothing since %s (%s): waiting on, Ctrl-C ends", since, duration(told))
        told *= 2
    try:
        return str(protocol.recvmsg())
    except UnicodeDecodeError:
        return "what is no text"


def _structure(protocol: IPIProtocol, n_atoms: int) -> tuple[Doubles, Doubles]:
    """Receive positions (natoms, 3) and cell (3, 3), in Å."""
    try:
        cell, _, positions = protocol.recvposdata()
    except AssertionError:
        raise RunError(
            "i-PI sends positions or a cell that are not finite", remedy="is its timestep too long?"
        ) from None
    if len(positions) != n_atoms:
        raise RunError(
            f"i-PI sends {len(positions)} atoms, the structure has {n_atoms}",
            expected="the structure that i-PI starts from, with its atoms in the same order",
        )
    return positions, cell


def evaluator(potential: ElementPotential, types: NDArray[np.int32], fparam: ArrayLike | None = None) -> Evaluate:
    """A function that evaluates structures periodic in all three directions, and keeps its neighbor list.

    Parameters
    ----------
    types
        (natoms,) types of the atoms, in i-PI's order.
    fparam
        Frame parameters (numb_fparam,), if the model needs them.

    Raises
    ------
    InputError, DataError
        Parameters are missing, or have the wrong shape.
    """
    kept, periodic = potential.surroundings(SKIN), np.ones(3, bool)
    potential.models[0].parameter_columns(1, len(types), fparam)

    def evaluate(positions: Doubles, cell: Doubles) -> tuple[float, Doubles, Doubles]:
        out, _ = potential.evaluate(kept.at(positions, cell, periodic, types), fparam)
        return out.energy, out.forces, 0.5 * (out.virial + out.virial.T)

    return evaluate


def driver_input(
    path: Path | None, model: Path | None, structure: Path | None, unix: str | None, host: str | None, port: int | None
) -> DriverInput:
    """The driver's input: that of a file, if there is one, with options that override it.

    Raises
    ------
    InputError
        The file is wrong; no model, structure or address is given; or two addresses are.
    """
    given = DriverInput() if path is None else load_config(DriverInput, path)
    changes: dict[str, object] = {}
    if unix is not None:
        changes |= {"use_unix": True, "host": unix}
    if host is not None or port is not None:
        old = "localhost" if given.use_unix else given.host
        changes |= {"use_unix": False, "host": host or old, "port": port or given.port}
    if (unix is None and port is None and path is None) or (unix is not None and "port" in changes):
        raise InputError(
            "the options give " + ("no address" if unix is None else "two addresses"),
            expected="--unix NAME, or --port PORT with or without --host",
            remedy="take 'mode', 'address' and 'port' of <ffsocket> in i-PI's input",
        )
    for key, flag, value in (("graph_file", "--model", model), ("coord_file", "--structure", structure)):
        if value is not None:
            changes[key] = str(value)
        elif getattr(given, key) is None:
            raise InputError(
                f"no {flag[2:]} is given", remedy=f"add {flag}" + ("" if path is None else f", or '{key}'")
            )
    return given.updated(**changes)


def run_ipi(
    given: DriverInput, *, type_map: list[str] | None = None, fparam: ArrayLike | None = None, wait: float = 60.0,
    precision: str = "float64", threads: int | None = None, device: str = "cpu",
) -> Served:  # fmt: skip
    """Run the driver that an input describes, until the server or a signal ends it.

    Parameters
    ----------
    type_map
        Species of the structure's types, if its file does not name them.

    Raises
    ------
    DphpcError
        An input is wrong, the server cannot be reached, or it sends another structure.
    """
    assert given.graph_file is not None and given.coord_file is not None
    potential = ElementPotential(given.graph_file, None, precision, threads or default_threads(), device)
    if given.atom_type is None:
        types = _types_by_element(given.coord_file, type_map, potential)
    else:
        types = _types_by_name(Path(given.coord_file), given.atom_type, potential.models[0].get_ntypes())
    address = Address(given.host) if given.use_unix else Address(None, given.host, given.port)
    level = logging.INFO if given.verbose else logging.DEBUG
    return serve(evaluator(potential, types, fparam), len(types), address, wait, level)


def _types_by_element(path: str, type_map: list[str] | None, potential: ElementPotential) -> NDArray[np.int32]:
    """(natoms,) types of a structure's atoms from their species, in the order of their ids."""
    source = read_structure(path, type_map, None, with_fixed=False)
    for name in source.species:
        if name not in potential.elements:
            raise InputError(
                f"the structure has species '{name}', which the model does not know", where=path,
                expected=f"species of the model: {', '.join(potential.elements)}",
            )  # fmt: skip
    types = np.array([potential.elements.index(name) for name in source.species], np.int32)
    rows = source.read(0, source.n_atoms)
    return types[rows["types"][np.argsort(rows["ids"], kind="stable")]]


def _types_by_name(path: Path, atom_type: Mapping[str, int], n_types: int) -> NDArray[np.int32]:
    """(natoms,) types of an xyz file's atoms from their names, which need not be elements."""
    for name, number in atom_type.items():
        if not 0 <= number < n_types:
            raise InputError(f"'{name}' is of type {number}", where="key 'atom_type'", expected=f"0 to {n_types - 1}")
    require_file(str(path), "coord_file")
    try:
        lines = path.read_text().splitlines()
        names = [line.split()[0] for line in lines[2 : 2 + int(lines[0])]]
        if len(names) < max(1, int(lines[0])):
            raise ValueError(f"{len(names)} lines of atoms")
    except (ValueError, IndexError) as error:
        raise DataError(f"the file is no xyz file: {error}", where=str(path)) from None
    for k, name in enumerate(names):
        if name not in atom_type:
            raise InputError(
                f"the structure has an atom '{name}'", where=f"{path}, line {k + 3}",
                expected=f"names in 'atom_type': {', '.join(atom_type)}",
            )  # fmt: skip
    return np.array([atom_type[name] for name in names], np.int32)
