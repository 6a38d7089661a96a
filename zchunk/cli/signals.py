"""SIGINT, SIGTERM and the terminal's hang-up: a thread of its own acts on them.

Python runs a handler in the main thread, as soon as that runs Python code. One that was about to
wait for a lock when the signal came waits on, and the signal is lost until it wakes. So the
handlers here do nothing. The interpreter writes the number of each signal to a pipe while it
comes (`signal.set_wakeup_fd`), and a thread reads it there.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from zchunk.cli.output import last_words
from zchunk.errors import Interrupted

if TYPE_CHECKING:
    from zchunk.cli.common import Invocation

#: A progress bar has hidden it.
_SHOW_CURSOR = b"\x1b[?25h\n"


def stop_signals() -> list[int]:
    """What ends a command cleanly: Ctrl-C, SIGTERM, and the terminal's hang-up, unless whoever
    started the command wants it to outlive the terminal (nohup)."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


class SignalThread:
    """Calls `on_signal` for each of `stop_signals` that comes, until `end`. Made and ended in the
    main thread."""

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        numbers = stop_signals()
        self._numbers = frozenset(numbers)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()
        self._written_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _nothing) for number in numbers}

    def end(self) -> None:
        """What came before is acted on; then the former handlers are back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._written_before)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _run(self) -> None:
        while came := os.read(self._reading, 64):
            for number in came:
                if number in self._numbers:
                    self._on_signal()


def _nothing(number: int, frame: FrameType | None) -> None:
    """Without a handler its number would not be written."""


class StopSignal:
    """Set by one of `stop_signals`; what servers wait for."""

    def __init__(self, *events: threading.Event) -> None:
        """`events` are set with it: whatever the main thread may be waiting for."""
        self.stopped = False
        self._events = events
        self._signals = SignalThread(self._stop)

    def end(self) -> None:
        """Nothing is set from now on."""
        self._signals.end()

    def _stop(self) -> None:
        self.stopped = True
        for event in self._events:
            event.set()


@contextmanager
def interruptible(invocation: Invocation, interrupt: Callable[[], None]) -> Iterator[None]:
    """In the block the first of `stop_signals` calls `interrupt`, in another thread, and a second
    one ends the process on the spot: what was verified and written is kept either way.

    An exception in any place of the engine would lose the event that is being dealt with.
    """
    pressed = 0

    def on_signal() -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 1:
            interrupt()
        else:
            _end_at_once(invocation)

    signals = SignalThread(on_signal)
    try:
        yield
    finally:
        signals.end()


def _end_at_once(invocation: Invocation) -> None:
    if invocation.json:
        last_words(1, json.dumps(Interrupted("interrupted at once").to_json()).encode() + b"\n")
    if os.isatty(2):
        last_words(2, _SHOW_CURSOR)
    os._exit(Interrupted.exit_code)
