"""transport/unix_socket.py: a door for processes of the same user, wherever its folder is."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.descriptors import open_descriptors
from tests.unit.system.test_file_limit import none_left
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.errors import NotAllowed, NotFound
from zchunk.runtime.loop import Loop, LoopThread
from zchunk.system import file_limit
from zchunk.transport import unix_socket
from zchunk.transport.base import Arrival, Delivery, Received
from zchunk.transport.poller import ZmqPoller
from zchunk.transport.unix_socket import MAX_BYTES, LocalClient, LocalServer

PATIENCE_S = 20.0
NAME = "0123456789abcdef.sock"


class Server:
    """A door in a loop of its own that answers with what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop(ZmqPoller(), SystemClock(), "server")
        self.door = LocalServer(folder, NAME)
        self.at = self.door.endpoint
        self.asked: list[Received] = []
        self.answers = True
        self.failures: list[BaseException] = []
        self.loop.add_socket(self.door, self._on_arrival)
        self.thread = LoopThread(self.loop, self.failures.append)
        self.thread.start()

    def _on_arrival(self, arrival: Arrival) -> None:
        assert isinstance(arrival, Received)
        self.asked.append(arrival)
        if self.answers:
            assert self.door.send(arrival.frames, arrival.connection) is Delivery.SENT

    def ask(self, *frames: bytes) -> Any:
        with LocalClient(self.at, PATIENCE_S) as line:
            return line.ask(frames)

    def close(self) -> None:
        self.thread.stop()
        assert self.failures == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "jobs")
    yield server
    server.close()


# -- messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [(b"x",), (b"", b"two"), (bytes(MAX_BYTES - 100),)])
def test_an_answer_comes_back(server: Server, frames: tuple[bytes, ...]) -> None:
    assert server.ask(*frames) == list(frames)


def test_many_ask_at_once(server: Server) -> None:
    told: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: told.append((n, server.ask(b"%d" % n)))) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(told) == [(n, [b"%d" % n]) for n in range(20)]


def test_who_does_not_read_holds_nobody_up_and_little(server: Server) -> None:
    with LocalClient(server.at, PATIENCE_S) as line:
        line._line.sendall(unix_socket._pack([b"x"]))
        wait_for(lambda: server.asked, PATIENCE_S, "the question")
        connection = server.asked[0].connection
        told: list[Delivery] = []
        done = threading.Event()

        def flood() -> None:
            told.extend(server.door.send([bytes(MAX_BYTES // 2)], connection) for _ in range(4))
            done.set()

        server.loop.post(flood)
        assert done.wait(PATIENCE_S)
        assert told[-1] is Delivery.FULL
        assert server.ask(b"meanwhile") == [b"meanwhile"]


def test_who_ends_is_answered_no_more(server: Server) -> None:
    server.answers = False
    line = LocalClient(server.at, PATIENCE_S)
    line._line.sendall(unix_socket._pack([b"x"]))
    wait_for(lambda: server.asked, PATIENCE_S, "the question")
    line.__exit__(None, None, None)
    gone: list[bool] = []

    def is_gone() -> bool:
        server.loop.post(
            lambda: gone.append(server.door.send([b"x"], server.asked[0].connection) is Delivery.GONE)
        )
        return any(gone)

    wait_for(is_gone, PATIENCE_S, "its end is known")


def test_a_rejected_connection_ends_and_others_do_not(server: Server) -> None:
    server.answers = False
    with LocalClient(server.at, PATIENCE_S) as line, LocalClient(server.at, PATIENCE_S) as other:
        line._line.sendall(unix_socket._pack([b"bad"]))
        wait_for(lambda: server.asked, PATIENCE_S, "the question")
        server.loop.post(lambda: server.door.reject(server.asked[0]))
        assert line._line.recv(1) == b""
        server.answers = True
        assert other.ask([b"good"]) == [b"good"]


def test_what_was_answered_last_is_read_after_the_end(server: Server) -> None:
    answer = bytes(MAX_BYTES - 100)
    server.answers = False
    with LocalClient(server.at, PATIENCE_S) as line:
        told: list[Any] = []
        asking = threading.Thread(target=lambda: told.append(line.ask([b"x"])))
        asking.start()
        wait_for(lambda: server.asked, PATIENCE_S, "the question")

        def end() -> None:
            server.door.send([answer], server.asked[0].connection)
            server.loop.remove_socket(server.door)

        server.loop.post(end)
        asking.join(PATIENCE_S)
    assert told == [[answer]]


def test_beyond_the_limit_the_oldest_that_says_nothing_is_ended(server: Server) -> None:
    """So that who keeps silent keeps nobody else out."""
    lines = [LocalClient(server.at, PATIENCE_S) for _ in range(unix_socket._MAX_CONNECTIONS)]
    assert lines[0].ask([b"x"]) == [b"x"]
    assert server.ask(b"one more") == [b"one more"]
    with pytest.raises(NotFound):
        lines[1].ask([b"x"])
    assert lines[2].ask([b"x"]) == lines[-1].ask([b"x"]) == [b"x"]
    for line in lines:
        line.__exit__(None, None, None)


def test_beyond_the_limit_who_waits_for_an_answer_stays(server: Server) -> None:
    server.answers = False
    lines = [LocalClient(server.at, PATIENCE_S) for _ in range(unix_socket._MAX_CONNECTIONS)]
    for line in lines:
        line._line.sendall(unix_socket._pack([b"x"]))
    wait_for(lambda: len(server.asked) == len(lines), PATIENCE_S, "all have asked")
    with LocalClient(server.at, PATIENCE_S) as surplus, pytest.raises(NotFound):
        surplus.ask([b"x"])
    for asked in server.asked:
        server.loop.post(lambda asked=asked: server.door.send(asked.frames, asked.connection))  # type: ignore[misc, arg-type]
    assert [unix_socket._frames(msgpack.unpackb(line._line.recv(64))) for line in lines] == [[b"x"]] * len(
        lines
    )
    for line in lines:
        line.__exit__(None, None, None)
    wait_for(lambda: not server.door._connections, PATIENCE_S, "their ends are seen")
    server.answers = True
    assert server.ask(b"x") == [b"x"]


def test_who_comes_when_no_descriptor_is_left_is_ended(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as line, none_left():
        line.settimeout(PATIENCE_S)
        for _ in range(3):
            line.connect(server.at.removeprefix("unix:"))
            assert line.recv(1) == b""
            line.close()
            line.__init__(socket.AF_UNIX)  # type: ignore[misc]
    assert server.ask(b"x") == [b"x"]


def test_who_cannot_be_waited_for_is_ended_and_others_are_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(server.door._selector, "register", refuse(errno.ENOSPC))
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(PATIENCE_S)
            line.connect(server.at.removeprefix("unix:"))
            assert line.recv(1) == b""
    assert server.ask(b"x") == [b"x"]
    wait_for(lambda: open_descriptors() <= before, PATIENCE_S, "the connections are closed")


# -- what fails leaves nothing ---------------------------------------------------------------


def refuse(number: int) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a door is made whose folder cannot hold it."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.mark.parametrize(
    ("of", "call", "number"),
    [
        (socket.socket, "bind", errno.EADDRINUSE),
        (os, "chmod", errno.EPERM),
        (socket.socket, "listen", errno.EOPNOTSUPP),
        (os, "dup", errno.EMFILE),
        (selectors, "DefaultSelector", errno.EMFILE),
        (selectors.DefaultSelector, "register", errno.ENOSPC),
    ],
)
def test_a_door_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch, of: Any, call: str, number: int
) -> None:
    home, before = tmp_path / "jobs", open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(of, call, refuse(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            LocalServer(home, NAME)
    assert open_descriptors() <= before
    assert list(home.iterdir()) == list(runtime.iterdir()) == []


def test_with_too_few_descriptors_a_door_leaves_nothing(tmp_path: Path, runtime: Path) -> None:
    home, needed = tmp_path / "jobs", 3
    for count in range(needed):
        with none_left() as taken:
            for _ in range(count):
                os.close(taken.pop())
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                LocalServer(home, NAME)
            assert file_limit.free(needed) == count
        assert list(home.iterdir()) == list(runtime.iterdir()) == []
    with none_left() as taken:
        for _ in range(needed):
            os.close(taken.pop())
        LocalServer(home, NAME).close()
        assert file_limit.free(needed) == needed


# -- nobody, or somebody else ---------------------------------------------------------------


def test_who_hangs_is_waited_for_so_long_and_no_longer(server: Server) -> None:
    server.answers = False
    with LocalClient(server.at, 0.2) as line:
        assert line.process == f"process {os.getpid()}"
        with pytest.raises(TimeoutError):
            line.ask([b"x"])


def test_nobody_listens(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        server.ask(b"x")
    for endpoint in ("tcp://127.0.0.1:5", "unix:", "unix:/no/such/folder/x", f"unix:{tmp_path}"):
        with pytest.raises(NotFound):
            LocalClient(endpoint, 1.0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400\r\n\r\n", b"\x91\xa1x", b"\xc4"])
def test_another_program_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()

        def serve() -> None:
            line, _ = other.accept()
            with line, suppress(OSError):
                line.recv(100)
                line.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with LocalClient(f"unix:{tmp_path}/other", PATIENCE_S) as line, pytest.raises(NotFound):
            line.ask([b"x"])
        thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is tried as root")
def test_another_user_is_not_heard(server: Server) -> None:
    """Not even where the modes of the folders let him."""
    path = Path(server.at.removeprefix("unix:"))
    path.chmod(0o666)
    for folder in path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    script = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\n"
        "line = socket.socket(socket.AF_UNIX); line.settimeout(20); line.connect(sys.argv[1])\n"
        "try:\n    line.sendall(bytes.fromhex('91c40178'))\n    heard = line.recv(1)\n"
        "except OSError:\n    heard = b''\nprint(heard)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "b''\n"
    assert server.asked == []
    assert server.ask(b"x") == [b"x"]


def test_who_may_not_connect_is_told_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("_", (socket.socket,), {"connect": refuse}))
    with pytest.raises(NotAllowed):
        LocalClient(server.at, 1.0)


# -- where it is ----------------------------------------------------------------------------


def test_its_folder_and_its_name_are_the_user_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = Server(tmp_path / "jobs")
    finally:
        os.umask(before)
    path = tmp_path / "jobs" / NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    server.close()


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / NAME))
        killed.listen()
    server = Server(tmp_path)
    assert server.ask(b"x") == [b"x"]
    server.close()


@pytest.mark.parametrize("length", [90, 108, 150, 3000])
def test_a_folder_may_be_deep(tmp_path: Path, length: int) -> None:
    folder = tmp_path
    while len(str(folder)) < length:
        folder /= "x" * min(200, length - len(str(folder)))
    before = open_descriptors()
    server = Server(folder)
    assert server.at == f"unix:{folder}/{NAME}"
    assert server.ask(b"x") == [b"x"]
    server.close()
    assert list(folder.iterdir()) == []
    assert not open_descriptors() - before


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EROFS])
def test_a_folder_that_can_hold_no_socket_has_it_elsewhere(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    bind = unix_socket._bind

    def refuse(path: Path) -> socket.socket:
        if path.parent == tmp_path / "jobs":
            raise OSError(number, os.strerror(number))
        return bind(path)

    monkeypatch.setattr(unix_socket, "_bind", refuse)
    server = Server(tmp_path / "jobs")
    path = Path(server.at.removeprefix("unix:"))
    assert path.parent.parent == runtime
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert server.ask(b"x") == [b"x"]
    server.close()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize(("number", "places"), [(errno.EPERM, 2), (errno.EMFILE, 1)])
def test_where_none_can_be_made_it_is_said_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, places: int
) -> None:
    """Without descriptors there is none elsewhere either, and that is what is said."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tried: list[Path] = []

    def refuse(path: Path) -> socket.socket:
        tried.append(path)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(unix_socket, "_bind", refuse)
    before = open_descriptors()
    with pytest.raises(OSError, match=os.strerror(number)):
        LocalServer(tmp_path / "jobs", NAME)
    assert len(tried) == places
    assert not open_descriptors() - before
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
