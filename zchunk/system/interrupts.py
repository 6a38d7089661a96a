"""Ctrl-C where an exception would get lost: while a module is imported, or in a destructor.

Imported by the first lines of the `zchunk` command, before anything else: so it imports next to
nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 130
_SOON_S = 0.01
_AS_JSON = b'{"event": "error", "code": "interrupted", "exit_code": 130, "message": "interrupted"}\n'


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
