"""The program `dphpc`, also as `python -m dphpc`."""

import signal


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback also while its modules are imported."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # it may be ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dphpc.cli import main as commands

    commands.load_commands()
    signal.signal(signal.SIGINT, handler)
    commands.main()


if __name__ == "__main__":
    main()
