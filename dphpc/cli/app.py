"""What every command shares: how it is registered, how it logs, and how its errors are shown."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dphpc.core.errors import EXIT_ASTRAY, AstrayError, DphpcError, writing
from dphpc.parallel.launch import launched, without_mpi

log = logging.getLogger(__name__)

LOG_LEVELS = {"0": "ERROR", "1": "WARNING", "2": "INFO", "3": "DEBUG"}
"""DeePMD-kit's numbers for log levels."""

app = typer.Typer(
    name="dphpc",
    help="Train neural-network potentials on ab-initio data and run molecular dynamics with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The commonly used commands and flags of DeePMD-kit work here: [bold]dp --pt train input.json[/bold] "
    "becomes [bold]dphpc train input.json[/bold]; --pt, --tf and the like are accepted and change nothing.",
)

Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: a GPU where there is one.")]

DeviceOfInput = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, or auto: a GPU where there is one; the input's choice if not given."),
]

DataFile = Annotated[Path | None, typer.Option("--datafile", "-f", help="File with one system a line, in place of -s.")]


def systems_of(datafile: Path) -> list[str]:
    """The systems named in a file, one in each line."""
    return [line.strip() for line in datafile.read_text().splitlines() if line.strip()]


repeated_options: dict[str, tuple[str, ...]] = {}
"""Command -> its options that take several values after one flag, as `dp` has them (`-t O H`)."""


def command(
    name: str, *, repeated: Sequence[str] = (), to: typer.Typer = app, parallel: bool = False
) -> Callable[[Callable[..., None]], Any]:
    """Register a function as the command `name`, with dp's logging flags and `--debug` added.

    Parameters
    ----------
    repeated
        Flags of this command that take several values, such as `-t O H`.
    to
        The group the command goes into.
    parallel
        Whether several ranks run it together; for any other command the first rank does the work, and the others end.
    """
    if repeated:
        repeated_options[name] = tuple(repeated)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, log_level: str, log_path: Path | None, debug: bool, **kwargs: Any) -> None:
            _start_logging(log_level)
            _, rank, size = launched()
            if not parallel and size > 1:
                if rank > 0:
                    return
                log.warning("%d ranks were started: one does the work", size)
            try:
                if log_path is not None:
                    _log_into(log_path, parallel)
                function(*args, **kwargs)
            except (DphpcError, OSError, MemoryError, KeyboardInterrupt) as error:
                if debug:
                    raise
                _end(error)

        # typer reads the signature: the function's own parameters, then those every command has.
        signature = inspect.signature(function, eval_str=True)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), *_COMMON_PARAMETERS]
        )
        # typer keeps the line breaks of all paragraphs but the first.
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        return to.command(name, help="\n\n".join(" ".join(lines.split()) for lines in paragraphs))(run)

    return register


def _common(
    log_level: Annotated[
        str,
        typer.Option("--log-level", "-v", help="ERROR, WARNING, INFO, DEBUG or 0 to 3.", rich_help_panel="Messages"),
    ] = "INFO",
    log_path: Annotated[
        Path | None,
        typer.Option("--log-path", "-l", help="Write messages into this file too.", rich_help_panel="Messages"),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Messages")
    ] = False,
) -> None:
    """The parameters that `command` adds."""


_COMMON_PARAMETERS = [
    p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for p in inspect.signature(_common, eval_str=True).parameters.values()
]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; yields the function to call with (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Console(logging.Handler):
    """Prints messages to the present `sys.stderr`, which a progress bar may have replaced; INFO without its level.

    Messages marked `on_screen` have been printed already and go to log files only.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_screen", False):
            return
        text = self.format(record)
        print(text if record.levelno == logging.INFO else f"{record.levelname}: {text}", file=sys.stderr)


def _start_logging(level: str) -> None:
    name = LOG_LEVELS.get(level, level.upper())
    if name not in LOG_LEVELS.values():
        raise typer.BadParameter(f"'{level}' is none of {', '.join(LOG_LEVELS.values())}, 0, 1, 2, 3", param_hint="-v")
    logger = logging.getLogger("dphpc")
    logger.setLevel(name if launched().rank == 0 else logging.ERROR)
    logger.handlers[:] = [_Console()]


def _log_into(path: Path, parallel: bool) -> None:
    """Write the first rank's messages to a file, too; if it cannot be opened, all ranks end."""

    def open_file() -> None:
        with writing(path):
            file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)-7s %(message)s"))
        logging.getLogger("dphpc").addHandler(file)

    if parallel and launched().size > 1 and not without_mpi():
        from dphpc.parallel.comm import from_first, world

        from_first(world(), open_file)
    elif launched().rank == 0:
        open_file()


def show_result(text: str) -> None:
    """Print what a command found, and log it for `--log-path`."""
    print(text)
    for line in filter(None, text.splitlines()):
        log.info(line, extra={"on_screen": True})


def exit_if_stopped(signal: int | None) -> None:
    """End with status 128 + signal if one has ended the work: a script must not take it for the whole."""
    if signal:
        raise typer.Exit(128 + signal)


def _end(error: BaseException) -> NoReturn:
    """Show an error as one message and end the process."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130)
    if getattr(error, "speaks", True):
        print(f"error: {_describe(error)}", file=sys.stderr)
    raise typer.Exit(EXIT_ASTRAY if isinstance(error, AstrayError) else 1)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, MemoryError):
        return f"the memory of this machine does not suffice: {error}".removesuffix(": ")
    return str(error)
