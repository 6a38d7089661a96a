"""A command's stdout and stderr, and what happens to output that cannot be written.

Talk goes to stderr: questions, progress, logs, the line that says why a command failed. It never
fails and never holds up work: a thread writes it, and what cannot be written is dropped.

Results go to stdout. A result that cannot be written ends the command: with an error of its own
where a disk is full or a terminal has gone, quietly where the reader has closed the pipe
(`| head`). Events of a job (`--json`) are told with `emit_event`: the job goes on without a
reader, and the command fails at its end.

What may not happen here: an exception out of `Talk`; a lost result with exit code 0. Installed by
the entry point; other callers of the commands (tests) have the streams that they gave.
"""

from __future__ import annotations

import errno
import io
import json
import os
import queue
import select
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

from zchunk.cli.text import visible
from zchunk.errors import NoSpace, OutputLost, ZchunkError

#: Text that waits for a stderr that takes nothing; more than this is dropped.
_MOST_WAITING = 1000
#: The main thread waits so long for its words to be out, so that they stand before its results.
_PATIENCE_S = 1.0


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ReaderGone(Exception):
    """Whoever read stdout has closed it: nothing more to do, and nothing wrong."""


# -- talk -----------------------------------------------------------------------------


class Talk(io.TextIOBase):
    """A stream for talk: written by a thread of its own, in order. A full disk, a terminal that
    has hung up, a closed or a stuck pipe cost the text, and nothing else."""

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self._due: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        #: nobody waits for a stream that took nothing for `_PATIENCE_S`
        self._stuck = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text, not {type(text).__name__}")
        if text and self._due.qsize() < _MOST_WAITING:
            self._put(text.encode(self._encoding, "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Waits, in the main thread: others have work to do."""
        if self._writer is None or self._stuck or threading.current_thread() is not threading.main_thread():
            return
        written = threading.Event()
        self._put(written)
        self._stuck = not written.wait(_PATIENCE_S)

    def _put(self, item: bytes | threading.Event) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="talk", daemon=True)
            self._writer.start()
        self._due.put(item)

    def _run(self) -> None:
        while True:
            item = self._due.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._write(item)
                self._stuck = False

    def _write(self, data: bytes) -> None:
        with suppress(OSError):
            while data:
                data = data[_write_some(self._fd, data) :]


def _write_some(fd: int, data: bytes | memoryview) -> int:
    """As `os.write`, also where another process has made the stream non-blocking."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            select.select([], [fd], [])


def announce(line: str) -> None:
    """A line on stdout that nobody has to take: a server goes on without it."""
    if isinstance(sys.stdout, Results):
        talk = Talk(sys.stdout.fileno(), sys.stdout.encoding)
        talk.write(f"{line}\n")
        talk.flush()
    else:
        click.echo(line)


def last_words(fd: int, data: bytes) -> None:
    """Written if that is possible at once; for signal handlers."""
    with suppress(OSError, ValueError):
        if select.select([], [fd], [], 0)[1]:
            os.write(fd, data)


# -- results --------------------------------------------------------------------------


class _Sink(io.RawIOBase):
    """Raises once what keeps it from being written; swallows what comes after."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.failure: OSError | None = None

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.failure is None:
            try:
                return _write_some(self._fd, data)
            except OSError as error:
                self.failure = error
                raise _lost(error) from None
        return len(data)


class Results(io.TextIOWrapper):
    """A stream for results. Raises OutputLost, NoSpace or ReaderGone, once."""

    def __init__(self, fd: int, encoding: str) -> None:
        self._sink = _Sink(fd)
        super().__init__(io.BufferedWriter(self._sink), encoding, "backslashreplace", newline="\n")

    @property
    def failure(self) -> OSError | None:
        """Why something is missing in what was written; None where nothing is."""
        return self._sink.failure


def _lost(error: OSError) -> Exception:
    if error.errno == errno.EPIPE:
        return ReaderGone()
    what = f"cannot write to standard output: {error.strerror}; the output is incomplete"
    return NoSpace(what) if error.errno in _FULL else OutputLost(what)


def check_written() -> None:
    """At a command's end. Raises as `Results` does where any of its results was lost."""
    sys.stdout.flush()
    if isinstance(sys.stdout, Results) and sys.stdout.failure is not None:
        raise _lost(sys.stdout.failure)


def emit_json(value: Any) -> None:
    """A result: one JSON value on a line of its own on stdout, at once. Raises as `Results`."""
    click.echo(json.dumps(value, default=str))
    sys.stdout.flush()


def emit_json_list(values: Iterable[Any]) -> None:
    """A result: one JSON list, on one line, written as its values come. Where they end with an
    error the list does not, and what is said of it stands on a line of its own."""
    begun = False
    try:
        for piece in _list_pieces(values):
            sys.stdout.write(piece)
            begun = True
    finally:
        if begun:
            sys.stdout.write("\n")
        sys.stdout.flush()


def emit_json_object(fields: Mapping[str, Any]) -> None:
    """A result: one JSON object on one line; iterators among its values are lists, written as
    their values come."""
    before = "{"
    for key, value in fields.items():
        sys.stdout.write(f"{before}{json.dumps(key)}: ")
        sys.stdout.writelines(
            _list_pieces(value) if isinstance(value, Iterator) else [json.dumps(value, default=str)]
        )
        before = ", "
    sys.stdout.write("}\n")
    sys.stdout.flush()


def _list_pieces(values: Iterable[Any]) -> Iterator[str]:
    before = "["
    for value in values:
        yield before + json.dumps(value, default=str)
        before = ", "
    yield "]" if before != "[" else "[]"


def emit_event(value: Any) -> None:
    """An event of work that goes on, as `emit_json`; raises nothing (see `check_written`)."""
    with suppress(ReaderGone, ZchunkError, OSError):
        emit_json(value)


# -- both -----------------------------------------------------------------------------


@contextmanager
def unharmed(what: str) -> Iterator[None]:
    """Around talk that has to be made first (drawn, put into words): it does not end the work it
    is about."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a bug in what is shown costs what is shown
        with suppress(OSError, ValueError):
            click.echo(f"{what} cannot be shown: {visible(repr(error))}", err=True)


@contextmanager
def guarded() -> Iterator[None]:
    """In the block stdout is a `Results` and stderr a `Talk`."""
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout = Results(1, _encoding(sys.stdout))
    sys.stderr = Talk(2, _encoding(sys.stderr))
    try:
        yield
    finally:
        leave()
        sys.stdout, sys.stderr = before


def leave() -> None:
    """Everything that can be written is; before the process ends."""
    with suppress(ReaderGone, ZchunkError, OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.flush()


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _open_missing() -> None:
    """A stream that was closed at the start (`>&-`) would be the next file that is opened, which
    then takes our words: nothing is there instead. Writing results there fails."""
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - stays open as long as the process
