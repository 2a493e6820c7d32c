"""What files and programs of this machine say; one that cannot be asked says nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path


def lines_of(path: str | Path) -> list[str]:
    """The lines of a text file; none if it cannot be read."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def output_of(*command: str) -> str | None:
    """What a program prints, without space around it; None if it is missing, fails or takes more than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
