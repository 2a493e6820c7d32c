"""Commands that a loop starts: `dphpc` behind a launcher, and the user's own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

from dphpc.core.errors import InputError


def command_line(launch: str, *arguments: str) -> list[str]:
    """The command `dphpc ARGUMENTS`, run by this Python, after a launcher's words."""
    prefix = shlex.split(launch)
    if prefix and "/" in prefix[0]:  # it runs in another directory; a bare name is found by PATH there
        prefix[0] = os.path.abspath(prefix[0])
    return [*prefix, sys.executable, "-m", "dphpc", *arguments]


def require_program(command: str, where: str, here: bool = True) -> None:
    """Raise InputError unless the first word of a command is a program, or cannot be known as it is not run `here`."""
    try:
        program = (shlex.split(command) or [""])[0]
    except ValueError as error:
        raise InputError(f"the command cannot be read: {error}", where=where) from None
    if here and shutil.which(program) is None:
        raise _no_program(program, where)


def require_shell_command(command: str, where: str) -> None:
    """Raise InputError if /bin/sh cannot parse a command, or does not know its first word as far as that is clear."""
    checked = subprocess.run(["/bin/sh", "-n", "-c", command], capture_output=True, text=True, check=False)
    if checked.returncode:
        raise InputError(f"the shell cannot read the command: {checked.stderr.strip()}", where=where)
    words = shlex.shlex(command, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    try:
        word = next((w for w in words if w.strip("(") and not _ASSIGNMENT.match(w)), "")
    except ValueError:  # quotes that shlex and the shell read differently
        return
    if not word or word[0] in "<>&|;~" or set(word) & set("$`*?["):  # depends on what the shell expands
        return
    # `command -v` knows the shell's built-in commands, too.
    known = ["/bin/sh", "-c", 'command -v -- "$1"', "sh", word]
    if shutil.which(word) is None and ("/" in word or subprocess.run(known, stdout=subprocess.DEVNULL).returncode):
        raise _no_program(word, where)


_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def _no_program(name: str, where: str) -> InputError:
    return InputError(
        f"there is no program '{name}'", where=where, expected="a program in PATH, or with its path",
        remedy="load its module, or correct the name",
    )  # fmt: skip
