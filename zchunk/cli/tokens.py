"""`zchunk tokens`: which join tokens there are, and taking them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zchunk.cli import render
from zchunk.cli.common import Invocation, everywhere, json_option, pass_invocation, say
from zchunk.cli.output import emit_json
from zchunk.cli.tracker_home import in_force, members_here
from zchunk.errors import InvalidUsage

if TYPE_CHECKING:
    from zchunk.tracker.members.member_list import TokenEntry
    from zchunk.tracker.members.membership import Membership


@click.group(invoke_without_command=True)
@click.option("--all", "everything", is_flag=True, help="Include used and expired tokens.")
@json_option
@everywhere()
@click.pass_context
def tokens(context: click.Context, everything: bool) -> None:
    """List the open join tokens. Run it on the tracker's PC."""
    if context.invoked_subcommand is None:
        _list(context.ensure_object(Invocation), everything)


@tokens.command("list")
@click.option("--all", "everything", is_flag=True, help="Include used and expired tokens.")
@json_option
@everywhere()
@pass_invocation
def list_tokens(invocation: Invocation, everything: bool) -> None:
    """List the open join tokens (as `zchunk tokens` does)."""
    _list(invocation, everything)


@tokens.command()
@click.argument("token_id", required=False)
@click.option("--all", "everything", is_flag=True, help="Withdraw all tokens.")
@json_option
@everywhere()
@pass_invocation
def withdraw(invocation: Invocation, token_id: str | None, everything: bool) -> None:
    """Withdraw a join token. Run it on the tracker's PC; the tracker may be running or not.

    TOKEN_ID is an id from `zchunk tokens`, or at least its first 8 digits. Members that have
    joined with it stay members; `zchunk peers revoke` revokes one.
    """
    from zchunk.tracker.members.administration import find_token

    if everything == (token_id is not None):
        raise InvalidUsage("give the id of a token, or --all")
    membership = members_here(invocation)
    meant = list(membership.listed.tokens) if token_id is None else [find_token(membership, token_id).key_id]
    withdrawn = membership.withdraw(meant)
    in_force(invocation)
    if invocation.json:
        listed = [token_json(membership, entry) for entry in withdrawn]
        emit_json({"event": "done", "tokens": listed})
    else:
        say(f"{render.count_text(len(withdrawn), 'token')} withdrawn; `zchunk token` prints a new one")


def _list(invocation: Invocation, everything: bool) -> None:
    membership = members_here(invocation)
    entries = sorted(membership.listed.tokens.values(), key=lambda t: (t.expires_ms, t.key_id))
    listed = [token_json(membership, entry) for entry in entries]
    shown = [entry for entry in listed if everything or entry["state"] == "open"]
    if invocation.json:
        emit_json(shown)
    elif shown:
        render.token_table(shown)
    else:
        say("no open tokens; `zchunk token` prints one")


def token_json(membership: Membership, entry: TokenEntry) -> dict[str, Any]:
    """`used_by` are the members that it made, by name where one is known."""
    from zchunk.clock import SystemClock, iso_utc

    members = membership.listed.members
    return {
        "token_id": entry.key_id,
        "role": entry.role,
        "state": entry.state(int(SystemClock().wall() * 1000)),
        "expires": iso_utc(entry.expires_ms / 1000),
        "once": entry.once,
        "used_by": [
            {"peer_id": peer_id, "name": members[peer_id].name if peer_id in members else None}
            for peer_id in entry.used_by
        ],
    }
