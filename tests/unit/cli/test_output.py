"""zchunk/cli/output: talk never fails and holds nobody up, a lost result is an error."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for
from zchunk.cli import common, output
from zchunk.cli.output import ReaderGone, Results, Talk
from zchunk.errors import NoSpace, OutputLost, TrackerUnreachable


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:  # the test has
            continue


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, bytes(4096))
    except BlockingIOError:
        os.set_blocking(fd, True)


def take_all(fd: int, talk: Talk) -> bytes:
    """What is written until the talk has nothing more to say."""
    taken, said = b"", threading.Event()
    talk._put(said)
    os.set_blocking(fd, False)

    def ended() -> bool:
        nonlocal taken
        last = said.is_set()
        try:
            taken += os.read(fd, 1 << 20)
        except BlockingIOError:
            return last
        return False

    wait_for(ended, 10, "everything is written")
    return taken


# -- talk -----------------------------------------------------------------------------


def test_talk_is_out_in_order_when_it_is_flushed(pipe: tuple[int, int]) -> None:
    talk = Talk(pipe[1], "utf-8")
    for number in range(100):
        talk.write(f"{number}\n")
    talk.flush()
    assert os.read(pipe[0], 65536).decode() == "".join(f"{n}\n" for n in range(100))


def test_talk_that_the_encoding_has_not_is_escaped(pipe: tuple[int, int]) -> None:
    talk = Talk(pipe[1], "ascii")
    print("\u65e5", file=talk, flush=True)
    assert os.read(pipe[0], 100) == b"\\u65e5\n"


def test_talk_into_a_closed_pipe_or_a_full_disk_is_dropped(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    full = os.open("/dev/full", os.O_WRONLY)
    for fd in (pipe[1], full, 999):
        talk = Talk(fd, "utf-8")
        print("lost", file=talk, flush=True)
    os.close(full)


def test_what_comes_after_a_failure_is_written_again(tmp_path: Path) -> None:
    """A log's disk was full for a while."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(fd)
    talk = Talk(fd, "utf-8")
    print("before", file=talk, flush=True)
    os.dup2(full, fd)
    print("while", file=talk, flush=True)
    os.dup2(kept, fd)
    print("after", file=talk, flush=True)
    for each in (fd, full, kept):
        os.close(each)
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_stuck_pipe_is_waited_for_once(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PATIENCE_S", 0.2)
    fill(pipe[1])
    talk = Talk(pipe[1], "utf-8")
    began = time.monotonic()
    for _ in range(10_000):
        print("a line", file=talk, flush=True)
    assert 0.2 <= time.monotonic() - began < 2.0
    assert talk._due.qsize() <= output._MOST_WAITING + 1, "what waits is bounded"
    taken = take_all(pipe[0], talk)
    assert 0 < taken.count(b"a line") <= output._MOST_WAITING + 1, "the rest is dropped"
    assert not talk._stuck


def test_other_threads_never_wait(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PATIENCE_S", 60.0)
    fill(pipe[1])
    talk = Talk(pipe[1], "utf-8")
    worker = threading.Thread(target=print, args=("a line",), kwargs={"file": talk, "flush": True})
    worker.start()
    worker.join(5.0)
    assert not worker.is_alive()
    assert take_all(pipe[0], talk).endswith(b"a line\n")


def test_a_stream_made_non_blocking_by_others_loses_nothing(pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    os.set_blocking(pipe[1], False)
    talk = Talk(pipe[1], "utf-8")
    talk.write("there\n")
    assert take_all(pipe[0], talk).endswith(b"there\n")


# -- results --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EIO, OutputLost),
        (errno.EBADF, OutputLost),
        (errno.EPIPE, ReaderGone),
    ],
)
def test_a_lost_result_is_told_once_and_known_at_the_end(
    number: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(output, "_write_some", refuse)
    monkeypatch.setattr(sys, "stdout", Results(1, "utf-8"))
    with pytest.raises(kind):
        output.emit_json({"a": 1})
    output.emit_json({"b": 2})
    with pytest.raises(kind):
        output.check_written()


def test_an_event_that_is_lost_stops_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Results(full, "utf-8"))
    for number in range(3):
        output.emit_event({"number": number})
    with pytest.raises(NoSpace, match="cannot write to standard output"):
        output.check_written()
    os.close(full)


def test_whole_results_are_no_error(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Results(pipe[1], "utf-8"))
    output.emit_json(["\u65e5"])
    sys.stdout.buffer.write(b"\0\xff")
    output.check_written()
    assert os.read(pipe[0], 100) == b'["\\u65e5"]\n\0\xff'


def test_a_list_is_written_as_its_values_come(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Results(pipe[1], "utf-8"))
    os.set_blocking(pipe[0], False)
    seen = b""

    def values() -> Iterator[str]:
        nonlocal seen
        for number in range(3):
            yield f"{number}" * 20000  # more than the stream holds back
            seen += os.read(pipe[0], 1 << 20)
            assert f"{number}".encode() in seen, "before the next one is asked for"

    output.emit_json_list(values())
    seen += os.read(pipe[0], 1 << 20)
    assert json.loads(seen) == [f"{number}" * 20000 for number in range(3)]
    assert seen.endswith(b"]\n")


@pytest.mark.parametrize("values", [[], [1], [{"a": "\u65e5"}, None]])
def test_lists_and_lists_in_objects_are_json(
    values: list[Any], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Results(pipe[1], "utf-8"))
    output.emit_json_list(iter(values))
    output.emit_json_object({"a": 1, "rows": iter(values), "b": [2]})
    first, second = os.read(pipe[0], 1000).splitlines()
    assert first.decode() == json.dumps(values)
    assert second.decode() == json.dumps({"a": 1, "rows": values, "b": [2]})


def test_a_list_that_breaks_off_is_no_list_and_the_error_stands_alone(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Results(pipe[1], "utf-8"))

    def values(count: int) -> Iterator[int]:
        yield from range(count)
        raise TrackerUnreachable("gone")

    for count, written in ((2, b"[0, 1\n"), (0, b"")):
        with pytest.raises(TrackerUnreachable):
            output.emit_json_list(values(count))
        output.emit_event({"event": "error"})
        assert os.read(pipe[0], 1000) == written + b'{"event": "error"}\n'


# -- what is made to be shown -----------------------------------------------------------


def test_what_cannot_be_drawn_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.unharmed("the progress"):
        raise KeyError("a bug")
    assert capsys.readouterr().err == "the progress cannot be shown: KeyError('a bug')\n"
    with pytest.raises(KeyboardInterrupt), output.unharmed("the progress"):
        raise KeyboardInterrupt


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "full")


def test_a_log_line_that_cannot_be_written_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    common.set_up_logs(0)
    (handler,) = [h for h in logging.getLogger().handlers if isinstance(h, common._Stderr)]
    monkeypatch.setattr(sys, "stderr", _Full())
    for args in (("there",), ("too", "many")):
        handler.emit(logging.LogRecord("zchunk", logging.WARNING, "", 0, "%s", args, None))


# -- last words ---------------------------------------------------------------------------


def test_last_words_never_wait_and_never_raise(pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    output.last_words(pipe[1], b"x")
    os.close(pipe[0])
    output.last_words(pipe[1], b"x")
    output.last_words(999, b"x")
    master, slave = pty.openpty()
    os.close(master)
    output.last_words(slave, b"x")
    os.close(slave)
