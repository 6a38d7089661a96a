"""The first lines of the `zchunk` command: what must happen before anything else is imported.

A join token on the command line is overwritten there, since every user of the PC can read a
process's arguments for as long as it runs. Ctrl-C ends the command in words, also while it is
still being imported.
"""

from __future__ import annotations

import os
import signal
import sys

# Nothing else: until `main` has begun, Ctrl-C ends the command with a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

#: Begins like one: see transport/auth.py, which is not imported yet.
_TOKEN = "zchunk1-"
_INTERRUPTED = 130
_SOON_S = 0.01
#: What it takes to import the rest, and to tell of errors.
_DESCRIPTORS = 8
_AS_JSON = b'{"event": "error", "code": "interrupted", "exit_code": 130, "message": "interrupted"}\n'


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


class ending_at_once:
    """In the block, which imports something, Ctrl-C ends the process on the spot: in an import an
    exception may get lost, and there is nothing to keep. In other threads it does nothing."""

    def __enter__(self) -> None:
        self._usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._set(end_interrupted)

    def __exit__(self, *error: object) -> None:
        self._set(signal.default_int_handler)

    def _set(self, handler: Callable[[int, FrameType | None], object]) -> None:
        if self._usual:
            try:
                signal.signal(signal.SIGINT, handler)
            except ValueError:
                self._usual = False


def keep_interrupts(lost: UnraisableHookArgs) -> None:
    """A Ctrl-C that fell into a place which cannot raise is made again, and not shown."""
    if lost.exc_type is KeyboardInterrupt:
        import threading

        # Not from here, which is such a place.
        again = threading.Timer(_SOON_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def check_limit() -> None:
    """Raises the soft limit of descriptors; ends the process where modules could not be opened."""
    import json

    from zchunk.system import file_limit

    file_limit.raise_limit()
    problem = file_limit.shortage("zchunk", _DESCRIPTORS)
    if problem is not None:
        told = {"event": "error", "code": "storage_unavailable", "exit_code": 1, "message": problem}
        end(1, json.dumps(told).encode() + b"\n", f"zchunk: {problem}\n".encode())


def end_interrupted(number: int = 0, frame: FrameType | None = None) -> None:
    """Ends the process on the spot, in words."""
    end(_INTERRUPTED, _AS_JSON, b"zchunk: interrupted\n")


def end(code: int, as_json: bytes, words: bytes) -> NoReturn:
    """The process, with what it tells of it: `as_json` on stdout where JSON was asked for."""
    for fd, said in ((1, as_json if "--json" in sys.argv else b""), (2, words)):
        try:
            os.write(fd, said)
        except OSError:
            continue
    os._exit(code)


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
