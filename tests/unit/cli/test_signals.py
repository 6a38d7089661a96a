"""Signals are acted on by a thread, whatever the main thread waits for."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from zchunk.cli import signals
from zchunk.cli.common import Invocation
from zchunk.cli.signals import SignalThread, StopSignal, interruptible


def to_another_thread(number: int) -> None:
    """The system may choose any; the main thread is then not interrupted in what it waits for."""
    thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number))
    thread.start()
    thread.join()


def test_a_hang_up_stops_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        assert signals.stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signals.stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_ctrl_c_interrupts_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    calls: list[str] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    with interruptible(Invocation(), lambda: calls.append("interrupt")):
        signal.raise_signal(signal.SIGINT)
    assert calls == ["interrupt"]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with interruptible(Invocation(json=True), lambda: None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert codes == [130]
    assert json.loads(capfd.readouterr().out)["exit_code"] == 130


def test_a_signal_that_does_not_wake_the_main_thread_is_not_lost() -> None:
    """What it waits for here has no deadline in a server."""
    ended = threading.Event()
    before = {number: signal.getsignal(number) for number in signals.stop_signals()}
    stop = StopSignal(ended)
    try:
        threading.Thread(target=to_another_thread, args=(signal.SIGTERM,)).start()
        assert ended.wait(10.0)
        assert stop.stopped
    finally:
        stop.end()
    assert {number: signal.getsignal(number) for number in before} == before


def test_other_signals_stop_nothing() -> None:
    came: list[str] = []
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    thread = SignalThread(lambda: came.append("stop"))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        thread.end()
        signal.signal(signal.SIGUSR1, before)
    assert (seen, came) == ([signal.SIGUSR1], [])
