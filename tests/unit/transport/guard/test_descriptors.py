"""transport/guard/descriptors.py: one connection is ended, and never another that has its number."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from zchunk.transport.guard.descriptors import Descriptor, descriptor, is_open, own_end, shut_down


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """(the far end, ours)."""
    far = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    return far, ours


def known(ours: socket.socket) -> Descriptor:
    found = descriptor(ours.fileno())
    assert found is not None
    return found


def test_a_connection_is_known_by_its_number_and_its_far_end(listener: socket.socket) -> None:
    far, ours = pair(listener)
    with far, ours:
        assert known(ours) == Descriptor(ours.fileno(), far.getsockname())
        assert is_open(known(ours))


def test_what_is_no_connection_has_no_descriptor(listener: socket.socket) -> None:
    read, write = os.pipe()
    before = open_descriptors()
    try:
        assert descriptor(read) is None
        assert descriptor(listener.fileno()) is None
        assert descriptor(10**6) is None
        assert not open_descriptors() - before, "no copy is left open"
    finally:
        os.close(read)
        os.close(write)


def test_the_far_end_sees_the_end_and_the_number_stays_its_owners(listener: socket.socket) -> None:
    far, ours = pair(listener)
    with far, ours:
        which = known(ours)
        shut_down(which)
        assert far.recv(1) == b""
        assert ours.recv(1) == b""
        assert os.fstat(which.number), "closing it is libzmq's"


def test_another_connection_with_the_same_number_is_left_alone(listener: socket.socket) -> None:
    far, ours = pair(listener)
    which = known(ours)
    ours.close()
    far.close()
    later_far, later = pair(listener)
    os.dup2(later.fileno(), which.number)
    try:
        assert not is_open(which)
        shut_down(which)
        later_far.send(b"x")
        assert later.recv(1) == b"x"
    finally:
        if which.number not in (later.fileno(), later_far.fileno()):
            os.close(which.number)
        later.close()
        later_far.close()


def test_a_connection_that_is_gone_is_nothing(listener: socket.socket) -> None:
    far, ours = pair(listener)
    which = known(ours)
    ours.close()
    far.close()
    shut_down(which)
    assert not is_open(which)


# -- files ----------------------------------------------------------------------------------

_TRY = """
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("locked")
else:
    print("free")
"""


def state(path: Path) -> str:
    """What another process finds."""
    done = subprocess.run([sys.executable, "-c", _TRY, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_looking_at_a_file_leaves_its_locks(tmp_path: Path) -> None:
    """SQLite's are such. Without them another process that opens the database takes itself for
    the only one, and cuts the shared index off under our mapping: SIGBUS."""
    path = tmp_path / "database"
    path.write_bytes(b"x")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert state(path) == "locked"
        assert own_end(file.fileno()) is None
        assert descriptor(file.fileno()) is None
        assert state(path) == "locked"
    assert state(path) == "free"
