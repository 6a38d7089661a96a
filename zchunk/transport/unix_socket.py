"""A door for other processes of the same user on this PC: a Unix socket.

Its name is in a folder that only the user may enter, its mode is 0600, and the system tells whose
process connects. A connection carries one request and its answer, each the frames of
`protocol.wire` as a msgpack array of byte strings. `LocalServer` listens, in a loop; `LocalClient`
asks and waits.

What may not happen here: an answer to a process of another user (but root's); a name taken away
under a process that listens at it, for which whoever listens holds a lock of its own; more kept of
a connection than `MAX_BYTES` each way.
"""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import msgpack

from zchunk.errors import NotAllowed, NotFound
from zchunk.system import disk
from zchunk.system.file_limit import is_want
from zchunk.transport.base import Arrival, Buffer, Delivery, Received

log = logging.getLogger(__name__)

SCHEME = "unix:"
MAX_BYTES = 4 * 1024 * 1024
_MAX_FRAMES = 8
_MAX_CONNECTIONS = 32
#: What a socket's address has room for, less the zero at its end (unix(7)).
_MAX_NAME = 107
_PIECE = 65536
#: So long an answer may take to be read at the end.
_LINGER_S = 1.0
_IO = selectors.EVENT_READ | selectors.EVENT_WRITE


@dataclass(slots=True)
class _Connection:
    name: bytes
    line: socket.socket
    reader: msgpack.Unpacker = field(default_factory=lambda: _reader())
    unsent: bytearray = field(default_factory=bytearray)
    has_asked: bool = False


class LocalServer:
    """A socket of a loop (`base.Socket`)."""

    def __init__(self, folder: Path, name: str) -> None:
        """Listens as `name` in `folder`, or elsewhere if the folder cannot hold a socket: `endpoint`
        says where. What is left there of a process that was killed goes. Raises OSError: nothing
        is left open then, nor any name."""
        self._connections: dict[bytes, _Connection] = {}
        self._numbers = itertools.count(1)
        with ExitStack() as opened:
            self._path, self._listener = _listen(folder, name)
            opened.callback(_forget, self._path, folder)
            opened.callback(self._listener.close)
            self.endpoint = f"{SCHEME}{self._path}"
            self._spare = os.dup(self._listener.fileno())
            opened.callback(self._close_spare)
            self._selector = selectors.DefaultSelector()
            opened.callback(self._selector.close)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._opened = opened.pop_all()

    def pollable(self) -> list[int]:
        """One descriptor, which is ready when any of them is (epoll, kqueue)."""
        return [self._selector.fileno()]

    def receive(self) -> Received | None:
        for key, events in self._selector.select(0):
            if (received := self._turn(key.data, events)) is not None:
                return received  # what else is ready stays so
        return None

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        to = self._connections.get(connection)
        if to is None:
            return Delivery.GONE
        packed = _pack(frames)
        if len(to.unsent) + len(packed) > MAX_BYTES:
            return Delivery.FULL
        to.unsent += packed
        self._write(to)
        return Delivery.SENT if connection in self._connections else Delivery.GONE

    def reject(self, arrival: Arrival) -> None:
        if isinstance(arrival, Received) and (found := self._connections.get(arrival.connection)):
            self._end(found)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            with suppress(OSError):
                connection.line.settimeout(_LINGER_S)
                connection.line.sendall(connection.unsent)
            self._end(connection)
        self._opened.close()

    # -- inside -----------------------------------------------------------------------

    def _turn(self, connection: _Connection | None, events: int) -> Received | None:
        if connection is None:
            self._accept()
            return None
        if events & selectors.EVENT_WRITE:
            self._write(connection)
        return self._read(connection) if events & selectors.EVENT_READ else None

    def _accept(self) -> None:
        try:
            line, _ = self._listener.accept()
        except OSError as error:
            if is_want(error):
                self._refuse_one()
            return
        if not _is_ours(line) or not self._has_room():
            log.info("refused a connection to %s", self._path)
            line.close()
            return
        line.setblocking(False)
        connection = _Connection(b"%d" % next(self._numbers), line)
        try:
            self._selector.register(line, selectors.EVENT_READ, connection)
        except OSError as error:  # no memory for it, or one watch too many (epoll(7))
            log.info("refused a connection to %s: %s", self._path, error)
            line.close()
            return
        self._connections[connection.name] = connection

    def _has_room(self) -> bool:
        """Of all that stand the oldest that has not asked ends: who means to asks at once."""
        if len(self._connections) >= _MAX_CONNECTIONS:
            silent = next((one for one in self._connections.values() if not one.has_asked), None)
            if silent is None:
                return False
            self._end(silent)
        return True

    def _refuse_one(self) -> None:
        """No descriptor is left: whoever waits would wake the loop again and again."""
        self._close_spare()
        with suppress(OSError):
            self._listener.accept()[0].close()
            self._spare = os.dup(self._listener.fileno())

    def _close_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _read(self, connection: _Connection) -> Received | None:
        """The request, once all of it is there. Whoever says anything else is ended."""
        try:
            piece = connection.line.recv(_PIECE)
            if not piece or connection.has_asked:
                raise ValueError("unexpected data")
            connection.reader.feed(piece)
            for message in connection.reader:
                connection.has_asked = True
                return Received(_frames(message), connection.name)
        except BlockingIOError:
            pass
        except (OSError, ValueError, msgpack.UnpackException):
            self._end(connection)
        return None

    def _write(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                del connection.unsent[: connection.line.send(connection.unsent[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError:
            self._end(connection)
            return
        wanted = _IO if connection.unsent else selectors.EVENT_READ
        self._selector.modify(connection.line, wanted, connection)

    def _end(self, connection: _Connection) -> None:
        if self._connections.pop(connection.name, None) is not None:
            self._selector.unregister(connection.line)
            connection.line.close()


class LocalClient:
    """A connection to a `LocalServer`; use as a context manager. Blocks."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        """Raises NotFound where nobody listens any more, NotAllowed where this user may not
        connect, TimeoutError where `timeout_s` (for all of the exchange) has passed."""
        if not endpoint.startswith(SCHEME):
            raise NotFound(f"no process of this version listens at {endpoint!r}")
        self._until = time.monotonic() + timeout_s
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._line.settimeout(timeout_s)
            with _address(Path(endpoint.removeprefix(SCHEME))) as address:
                self._line.connect(address)
        except OSError as error:
            self._line.close()
            raise _meaning(error) from error

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()

    @property
    def process(self) -> str:
        """Who listens there, for people."""
        pid, _ = _credentials(self._line)
        return f"process {pid}" if pid else "process"

    def ask(self, frames: Sequence[Buffer]) -> Sequence[bytes]:
        """The frames of the answer. Raises NotFound where the connection ends without one, and
        for what is none; TimeoutError."""
        reader = _reader()
        try:
            self._line.sendall(_pack(frames))
            while True:
                self._line.settimeout(max(0.001, self._until - time.monotonic()))
                piece = self._line.recv(_PIECE)
                if not piece:
                    raise NotFound("the process ended without an answer")
                reader.feed(piece)
                for message in reader:
                    return _frames(message)
        except (OSError, ValueError, msgpack.UnpackException) as error:
            raise _meaning(error) from error


# -- messages -------------------------------------------------------------------------


def _pack(frames: Sequence[Buffer]) -> bytes:
    packed: bytes = msgpack.packb([bytes(frame) for frame in frames], use_bin_type=True)
    return packed


def _reader() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        raw=True,
        use_list=True,
        max_buffer_size=MAX_BYTES,
        max_array_len=_MAX_FRAMES,
        max_str_len=0,
        max_map_len=0,
        max_ext_len=0,
    )


def _frames(message: object) -> list[bytes]:
    """Raises ValueError for anything but an array of byte strings."""
    if not isinstance(message, list) or not all(isinstance(frame, bytes) for frame in message):
        raise ValueError("not a message")
    return message


# -- names ----------------------------------------------------------------------------


def _listen(folder: Path, name: str) -> tuple[Path, socket.socket]:
    try:
        disk.private_folder(folder)
        return folder / name, _bind(folder / name)
    except OSError as error:
        if is_want(error):
            raise
        # Some network and FUSE file systems have no sockets, and a home may be read-only.
        log.info("cannot create a socket in %s (%s): using another folder", folder, error)
    made = Path(tempfile.mkdtemp(prefix="zchunk-", dir=os.environ.get("XDG_RUNTIME_DIR") or None))
    try:
        return made / name, _bind(made / name)
    except OSError:
        made.rmdir()
        raise


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the name gets the socket's own mode: it is nobody else's for no moment.
        with suppress(OSError):
            os.fchmod(listener.fileno(), 0o600)
        with suppress(FileNotFoundError):
            os.unlink(path)
        with _address(path) as address:
            listener.bind(address)
        try:
            os.chmod(path, 0o600)
            listener.listen()
        except OSError:
            disk.discard(path)
            raise
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _forget(path: Path, folder: Path) -> None:
    """The name of a door that was to be in `folder`, and the folder that was made for it elsewhere."""
    with suppress(OSError):
        os.unlink(path)
        if path.parent != folder:
            os.rmdir(path.parent)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What `path` is called at a socket: where it is too long, by its folder's descriptor."""
    if len(os.fsencode(path)) <= _MAX_NAME:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _meaning(error: Exception) -> Exception:
    if isinstance(error, PermissionError):
        return NotAllowed("this user may not connect to the process")
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return NotFound("the process no longer listens")
    if isinstance(error, (ValueError, msgpack.UnpackException)):
        return NotFound("another program listens there")
    return error


# -- who it is ------------------------------------------------------------------------


def _is_ours(line: socket.socket) -> bool:
    _, uid = _credentials(line)
    return uid in (None, 0, os.geteuid())


def _credentials(line: socket.socket) -> tuple[int | None, int | None]:
    """(process id, user id) of the other side; None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    pid, uid, _ = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
