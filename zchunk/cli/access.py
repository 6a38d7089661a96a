"""`zchunk peers allow` and `revoke`, `zchunk rotate-key`: who is let in, and by which key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from zchunk.cli import render
from zchunk.cli.common import Invocation, agreed, check_can_ask, everywhere, json_option, pass_invocation, say
from zchunk.cli.members import peers
from zchunk.cli.output import emit_event, emit_json
from zchunk.cli.tracker_home import in_force, member_json, members_here, tracker_here
from zchunk.errors import Interrupted, InvalidUsage, NotJoined

if TYPE_CHECKING:
    from zchunk.tracker.members.administration import Stopped
    from zchunk.tracker.members.member_list import Member
    from zchunk.tracker.members.membership import Membership

_SHOWN = 20


# -- revoke ---------------------------------------------------------------------------


@peers.command()
@click.argument("peer")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@json_option
@everywhere()
@pass_invocation
def revoke(invocation: Invocation, peer: str, yes: bool) -> None:
    """Revoke a member: its key is rejected everywhere. Run it on the tracker's PC.

    PEER is a name, an id, or the beginning of an id. Lists the files that become unreadable
    because no other node stores some of their chunks, then asks. `zchunk peers allow` makes
    them readable again. The join tokens that the member used are withdrawn too.
    """
    from zchunk.tracker.members.administration import find_member

    check_can_ask(yes)
    membership = members_here(invocation)
    member = find_member(membership, peer)
    if not member.revoked:
        stopped = _files_that_stop(invocation, membership, member)
        if invocation.json:
            emit_event(_plan_json(member, stopped))
        else:
            _show_stopped(member, stopped)
        if not yes and not agreed(f"Revoke {member.name}?", default=False):
            raise Interrupted("cancelled; nothing was changed")
    member, tokens = membership.revoke(member.peer_id)
    in_force(invocation)
    if invocation.json:
        withdrawn = [entry.key_id for entry in tokens]
        emit_json({"event": "done", **member_json(member), "tokens_withdrawn": withdrawn})
        return
    say(f"{member.name} is revoked; `zchunk peers allow {member.name}` admits it again")
    if tokens:
        ids = ", ".join(entry.key_id[: render.SHORT_ID] for entry in tokens)
        say(
            f"withdrew the {'tokens' if len(tokens) > 1 else 'token'} it joined with ({ids}): other members"
            " stay, but a PC that has not joined yet needs a new token"
        )


def _files_that_stop(invocation: Invocation, membership: Membership, member: Member) -> list[Stopped]:
    from zchunk.tracker.members.administration import files_that_stop

    if member.role != "node":
        return []
    with _store(invocation) as store:
        return files_that_stop(store, membership, member.peer_id)


@contextmanager
def _store(invocation: Invocation) -> Iterator[Any]:
    from zchunk.clock import SystemClock

    store = tracker_here(invocation).store(invocation.settings(), SystemClock())
    try:
        yield store
    finally:
        store.close()


def _plan_json(member: Member, stopped: list[Stopped]) -> dict[str, Any]:
    files = [{"file_id": f.file_id, "name": f.name, "chunks_lost": f.chunks_lost} for f in stopped]
    return {"event": "plan", "peer_id": member.peer_id, "name": member.name, "files": files}


def _show_stopped(member: Member, stopped: list[Stopped]) -> None:
    if not stopped:
        say(f"no file becomes unreadable without {member.name} ({member.role})")
        return
    verb = "becomes" if len(stopped) == 1 else "become"
    say(f"without {member.name}, {render.count_text(len(stopped), 'file')} {verb} unreadable:")
    for file in stopped[:_SHOWN]:
        chunks = render.count_text(file.chunks_lost, "chunk")
        say(f"  {file.name}: {chunks} stored nowhere else (id {file.file_id[: render.SHORT_ID]})")
    if len(stopped) > _SHOWN:
        say(f"  and {len(stopped) - _SHOWN:,} more; --json lists all")


# -- allow ----------------------------------------------------------------------------


@peers.command()
@click.argument("peer")
@json_option
@everywhere()
@pass_invocation
def allow(invocation: Invocation, peer: str) -> None:
    """Admit a revoked member again. Run it on the tracker's PC.

    PEER is a name, an id, or the beginning of an id. A new member needs a token: `zchunk
    token`.
    """
    from zchunk.tracker.members.administration import find_member

    membership = members_here(invocation)
    member = membership.allow(find_member(membership, peer).peer_id)
    in_force(invocation)
    if invocation.json:
        emit_json({"event": "done", **member_json(member)})
    else:
        say(f"{member.name} is admitted, as {member.role}; restart it if it has stopped")


# -- rotate-key -----------------------------------------------------------------------


@click.command("rotate-key")
@click.option(
    "--role", type=click.Choice(["node", "client"]), help="Which key to replace, if this home has both."
)
@json_option
@everywhere()
@pass_invocation
def rotate_key(invocation: Invocation, role: str | None) -> None:
    """Replace the key of this home's node or client. Its id stays the same.

    The old key is rejected everywhere afterwards. Stop a node first. Running commands of this
    home lose their connection; run them again to continue.
    """
    from zchunk.clock import SystemClock
    from zchunk.node.control.rotate_key import rotate
    from zchunk.node.home.membership import load
    from zchunk.node.process import node_lock
    from zchunk.transport.zeromq import ZmqTransport

    roles = [r for r in ("node", "client") if load(invocation.home / r) is not None]
    if not roles or (role is not None and role not in roles):
        as_what = f" as {role}" if role else ""
        raise NotJoined(f"{invocation.home} has not joined a cluster{as_what}; choose another --home")
    if role is None and len(roles) > 1:
        raise InvalidUsage("this home has a node and a client; choose one with --role")
    folder = invocation.home / (role or roles[0])
    membership = load(folder)
    assert membership is not None
    lock = node_lock(folder) if folder.name == "node" else None
    transport = ZmqTransport()
    try:
        timeout_s = invocation.settings().client.tracker_timeout_s
        public_key = rotate(folder, membership, transport, SystemClock(), timeout_s)
    finally:
        transport.close()
        if lock is not None:
            lock.release()
    if invocation.json:
        emit_json({"event": "done", "peer_id": membership.peer_id, "public_key": public_key})
    else:
        say(f"{membership.name} has a new key; its id stays {membership.peer_id[: render.SHORT_ID]}")
