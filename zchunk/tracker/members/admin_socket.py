"""How a command on the tracker's home and the tracker that runs there agree on the list of members.

The command changes the file, then says so at a Unix socket in the home; the answer comes when the
change is in force, so that what the command tells its user is true. Nothing is believed that comes
in by it: it makes the tracker look at its own file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from zchunk.errors import NotAllowed, NotFound, TrackerUnreachable
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, MembersChanged
from zchunk.system import disk, json_files
from zchunk.transport.unix_socket import SCHEME, LocalClient, LocalServer

_NAME = "tracker.sock"
#: Names the socket where it had to be made elsewhere.
_ELSEWHERE = "socket.json"


def open_socket(folder: Path) -> LocalServer:
    """For a tracker that holds the lock of HOME/tracker `folder`. Raises OSError where there can be no
    socket, ZchunkError where its place cannot be noted."""
    door = LocalServer(folder.absolute(), _NAME)
    try:
        disk.discard(folder / _ELSEWHERE)
        if door.endpoint != _usual(folder):
            disk.write_durable(folder / _ELSEWHERE, json.dumps(door.endpoint).encode(), mode=0o600)
    except BaseException:
        door.close()
        raise
    return door


def members_changed(folder: Path, timeout_s: float) -> None:
    """What was changed in the list of members of the tracker at `folder` is in force on return; so it
    is where none runs.

    Raises TrackerUnreachable where one runs and does not answer, NotAllowed where it is another
    user's, and what keeps it from reading its list; the change is written all the same.
    """
    for endpoint in _endpoints(folder):
        try:
            with LocalClient(endpoint, timeout_s) as line:
                answer = line.ask(wire.encode(MembersChanged(), 1))
        except NotFound:
            continue
        except TimeoutError:
            raise TrackerUnreachable(
                f"the change is saved, but the tracker running on {folder} has not confirmed it within"
                f" {timeout_s:g} s; it takes effect when that tracker responds again"
            ) from None
        except NotAllowed:
            raise NotAllowed(
                f"the change is saved, but another user runs the tracker on {folder}: run this command as"
                " that user"
            ) from None
        _check(answer)
        return


def _check(answer: Sequence[bytes]) -> None:
    message = wire.decode(answer).message
    if isinstance(message, ErrorReply):
        error = wire.raised(message)
        raise type(error)(f"the change is saved, but the running tracker cannot apply it: {error.message}")


def _usual(folder: Path) -> str:
    return f"{SCHEME}{folder.absolute() / _NAME}"


def _endpoints(folder: Path) -> list[str]:
    """Where a tracker on `folder` may listen."""
    try:
        return [_usual(folder), json_files.text(json_files.read(folder / _ELSEWHERE))]
    except (OSError, ValueError):
        return [_usual(folder)]
