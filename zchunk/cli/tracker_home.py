"""What several commands do on the tracker's own home: its files, its list of members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zchunk.cli.common import Invocation
from zchunk.errors import NotFound

if TYPE_CHECKING:
    from zchunk.tracker.home import TrackerFiles
    from zchunk.tracker.members.member_list import Member
    from zchunk.tracker.members.membership import Membership


def tracker_here(invocation: Invocation) -> TrackerFiles:
    """Those of the tracker of this home. Raises NotFound where there is none."""
    from zchunk.system.home_state import is_there
    from zchunk.tracker.home import TrackerFiles

    files = TrackerFiles(invocation.home / "tracker")
    if not is_there(files.folder):
        raise NotFound(
            f"{invocation.home} has no tracker: run this on the tracker's PC, with the tracker's --home"
        )
    return files


def in_force(invocation: Invocation) -> None:
    """What was changed in the list of members counts at the running tracker, too, when this returns.
    Raises as `admin_socket.members_changed` does."""
    from zchunk.tracker.members.admin_socket import members_changed

    timeout_s = invocation.settings().client.tracker_timeout_s
    members_changed(tracker_here(invocation).folder, timeout_s)


def members_here(invocation: Invocation) -> Membership:
    """The allow list of the tracker of this home. Raises NotFound where there is none."""
    from zchunk.clock import SystemClock

    return tracker_here(invocation).membership(SystemClock())


def member_json(member: Member) -> dict[str, Any]:
    from zchunk.clock import iso_utc

    return {
        "peer_id": member.peer_id,
        "name": member.name,
        "role": member.role,
        "revoked": member.revoked,
        "added": iso_utc(member.added_ms / 1000),
        "public_key": member.public_key.hex(),
    }
