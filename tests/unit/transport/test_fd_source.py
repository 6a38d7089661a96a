"""transport/fd_source.py and system/interfaces.py: the system says when something is to be looked at."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.runtime.loop import Loop, LoopThread
from zchunk.system import interfaces
from zchunk.transport.base import Arrival, Delivery, Readable
from zchunk.transport.fd_source import FdSource
from zchunk.transport.poller import ZmqPoller

PATIENCE_S = 20.0
#: CLONE_NEWNET of linux/sched.h
_NEWNET = 0x40000000


@contextmanager
def rung_by(fd: int) -> Iterator[list[Arrival]]:
    loop = Loop(ZmqPoller(), SystemClock(), "test")
    rung: list[Arrival] = []
    failures: list[BaseException] = []
    loop.add_socket(FdSource(fd), rung.append)
    thread = LoopThread(loop, failures.append)
    thread.start()
    try:
        yield rung
    finally:
        thread.stop()
        assert not failures


def test_a_bell_rings_once_for_all_that_came() -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    bell = FdSource(read)
    assert bell.receive() is None
    os.write(write, b"x" * 1000)
    os.write(write, b"y")
    assert bell.receive() == Readable()
    assert bell.receive() is None
    assert bell.send([b"x"]) is Delivery.GONE
    bell.close()
    os.close(write)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


def test_what_was_lost_rings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)

    def lost(fd: int, count: int) -> bytes:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    bell = FdSource(read)
    monkeypatch.setattr(os, "read", lost)
    assert bell.receive() == Readable()
    monkeypatch.undo()
    bell.close()
    os.close(write)


@pytest.mark.skipif(not shutil.which("ip") or os.geteuid() != 0, reason="needs ip, and root")
def test_an_address_that_comes_rings_and_one_that_goes() -> None:
    """In a network namespace of a thread's own."""
    failures: list[BaseException] = []

    def inside() -> None:
        try:
            assert ctypes.CDLL(None).unshare(_NEWNET) == 0
            fd = interfaces.watch_interfaces()
            assert fd is not None
            with rung_by(fd) as rung:
                for action in ("add", "del"):
                    rung.clear()
                    subprocess.run(["ip", "address", action, "10.9.8.7/24", "dev", "lo"], check=True)
                    wait_for(lambda: rung, PATIENCE_S, "the bell")
        except BaseException as error:  # noqa: BLE001 - handed on
            failures.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert not failures, failures
