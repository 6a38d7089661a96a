"""The first lines of the `zchunk` command: what must happen before anything else is imported.

A join token on the command line is overwritten there, since every user of the PC can read a
process's arguments for as long as it runs. Ctrl-C ends the command in words, also while it is
still being imported (system/interrupts.py).
"""

from __future__ import annotations

import os
import sys

# Nothing else: until `main` has begun, Ctrl-C ends the command with a traceback.
from zchunk.system.interrupts import end, end_interrupted, ending_at_once, keep_interrupts

#: Begins like one: see transport/auth.py, which is not imported yet.
_TOKEN = "zchunk1-"
#: What it takes to import the rest, and to tell of errors.
_DESCRIPTORS = 8


def main() -> None:
    """The console script's entry point."""
    sys.unraisablehook = keep_interrupts
    try:
        with ending_at_once():
            hide_tokens()
            check_limit()
            from zchunk.cli import main as run
        run()
    except KeyboardInterrupt:  # once more, while it was ending
        end_interrupted()


def check_limit() -> None:
    """Raises the soft limit of descriptors; ends the process where modules could not be opened."""
    import json

    from zchunk.system import file_limit

    file_limit.raise_limit()
    problem = file_limit.shortage("zchunk", _DESCRIPTORS)
    if problem is not None:
        told = {"event": "error", "code": "storage_unavailable", "exit_code": 1, "message": problem}
        end(1, json.dumps(told).encode() + b"\n", f"zchunk: {problem}\n".encode())


def hide_tokens() -> None:
    """Stars in place of join tokens, in what others see of this process's arguments; `sys.argv`
    stays. Where the system does not say where they are (not Linux) nothing changes."""
    tokens = [argument for argument in sys.argv if _TOKEN in argument]
    if not tokens:
        return
    import ctypes

    try:
        with open("/proc/self/stat", "rb") as file:
            # Behind the process's name, which may hold anything: the 48th and 49th field.
            fields = file.read().rpartition(b")")[2].split()
        begin, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    if not begin < end:  # hidden from us
        return
    arguments = ctypes.string_at(begin, end - begin)
    for token in map(os.fsencode, tokens):
        at = arguments.find(token + b"\0")
        if at >= 0:
            ctypes.memset(begin + at, ord("*"), len(token))
