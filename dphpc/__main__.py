"""The program `dphpc`, also as `python -m dphpc`."""

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background
        signal.signal(signal.SIGINT, _interrupt)
    from dphpc.cli.main import main as run

    try:
        run()
    except KeyboardInterrupt:  # before a command has begun, which catches its own
        _end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C ends the process at once while a module is imported, where libraries swallow exceptions."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
