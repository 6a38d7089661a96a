"""`zchunk join`, `token` and `peers`: who takes part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zchunk.cli import render
from zchunk.cli.common import (
    Invocation,
    as_duration,
    everywhere,
    importing,
    json_option,
    pass_invocation,
    say,
    token_text,
)
from zchunk.cli.joining import allow_plain_option, check_same_cluster, host_name, join_cluster, new_key_option
from zchunk.cli.output import emit_json
from zchunk.errors import TrackerUnreachable

if TYPE_CHECKING:
    pass


# -- join -----------------------------------------------------------------------------


@click.command()
@click.argument("token")
@click.option("--name", metavar="NAME", help="Name of this member (default: host name plus -client).")
@new_key_option
@allow_plain_option
@json_option
@everywhere()
@pass_invocation
def join(invocation: Invocation, token: str, name: str | None, new_key: bool, allow_plain: bool) -> None:
    """Join a cluster, so that the commands of this home can use it.

    `zchunk token` on the tracker's PC prints a TOKEN. Use - to be asked for it (or to read it
    from stdin), or @FILE to read it from a file. A token on the command line stays in the
    shell's history, and other users of this PC can see it for a moment.
    """
    from zchunk.node.home.membership import find, forget_key
    from zchunk.transport.auth import parse_token

    parsed = parse_token(token_text(token))
    folder = invocation.home / "client"
    known = find(folder)
    if known is not None:
        check_same_cluster(folder, known, parsed, allow_plain)
    if new_key:
        forget_key(folder)
    # The plain name of the PC is left to its node.
    joined = join_cluster(folder, parsed, name or f"{host_name()}-client", invocation.settings())
    if invocation.json:
        emit_json(
            {"event": "done", "peer_id": joined.peer_id, "name": joined.name, "role": joined.role}
            | {"home": str(invocation.home), "tracker": joined.tracker[0]}
        )
    else:
        say(f"joined as {joined.role} {joined.name}; try `zchunk peers` and `zchunk ls`")


# -- token ----------------------------------------------------------------------------


@click.command()
@click.option(
    "--role",
    type=click.Choice(["node", "client", "observer"]),
    default="node",
    show_default=True,
    help="Role of the members that join with it.",
)
@click.option(
    "--expires",
    callback=as_duration,
    default="24h",
    show_default=True,
    help="How long it is valid, e.g. 30m, 24h or 7d.",
)
@click.option("--once", is_flag=True, help="Valid for one member only.")
@json_option
@everywhere()
@pass_invocation
def token(invocation: Invocation, role: str, expires: float, once: bool) -> None:
    """Print a join token. Run it on the tracker's PC; the tracker may be running or not.

    A node stores chunks. A client uploads, downloads and removes files. An observer lists
    files, peers and events.
    """
    settings = invocation.settings()
    with importing():
        from zchunk.cli.tracker_home import in_force, tracker_here
        from zchunk.clock import SystemClock, iso_utc
        from zchunk.tracker.home import make_token

    made = make_token(
        tracker_here(invocation),
        SystemClock(),
        role=role,
        expires_s=expires,
        once=once,
        transport=settings.security.transport,
    )
    try:
        in_force(invocation)
    except TrackerUnreachable as error:  # one that goes on finds an unknown token by itself
        say(error.message)
    if invocation.json:
        expires_at = iso_utc(made.expires_ms / 1000)
        emit_json(
            {
                "token": made.encode(),
                "token_id": made.key.peer_id,
                "role": role,
                "expires": expires_at,
                "once": once,
            }
        )
    else:
        click.echo(made.encode())


# -- peers ----------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@json_option
@everywhere()
@click.pass_context
def peers(context: click.Context) -> None:
    """List the nodes of the cluster: up or down, and their space."""
    if context.invoked_subcommand is None:
        _list(context.ensure_object(Invocation))


@peers.command("list")
@click.option(
    "--all",
    "everyone",
    is_flag=True,
    help="List all members, including clients and revoked ones (on the tracker's PC).",
)
@json_option
@everywhere()
@pass_invocation
def list_peers(invocation: Invocation, everyone: bool) -> None:
    """List the nodes of the cluster (as `zchunk peers` does)."""
    if everyone:
        _list_members(invocation)
    else:
        _list(invocation)


def _list_members(invocation: Invocation) -> None:
    from zchunk.cli.tracker_home import member_json, members_here

    members = sorted(
        members_here(invocation).listed.members.values(), key=lambda m: (m.role, m.name, m.peer_id)
    )
    if invocation.json:
        emit_json([member_json(member) for member in members])
    else:
        render.member_table(members)


def _list(invocation: Invocation) -> None:
    with invocation.client() as client:
        records = client.peers()
    if invocation.json:
        from zchunk.node import views

        emit_json([views.peer(record) for record in records])
    elif records:
        render.peer_table(records)
        for record in records:
            if record.status == "up" and record.refuses:
                say(f"{record.name} refuses chunks: {record.refuses}")
    else:
        say("no node has joined yet; start one with `zchunk node --join -`")
