"""`zchunk tracker` and `zchunk node`: processes in the foreground, until a signal.

In a terminal they say where they run and what to do next. Else, and with `--json`, their only line
on stdout is `ready {json}`, for the program that started them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zchunk.cli.common import (
    Invocation,
    as_size,
    everywhere,
    importing,
    json_option,
    pass_invocation,
    say,
    token_text,
)
from zchunk.cli.joining import allow_plain_option, check_same_cluster, host_name, join_cluster, new_key_option
from zchunk.cli.output import announce
from zchunk.cli.signals import StopSignal
from zchunk.cli.text import visible
from zchunk.errors import (
    InvalidUsage,
    NotJoined,
    TokenRefused,
    TrackerUnreachable,
    TransportMismatch,
    WrongServer,
)
from zchunk.system import file_limit
from zchunk.system.os_errors import check_descriptors
from zchunk.transport.guard import cpu_timer

if TYPE_CHECKING:
    from zchunk.config import Settings
    from zchunk.node.home.membership import Membership
    from zchunk.node.process import NodeProcess
    from zchunk.tracker.process import Tracker
    from zchunk.transport.auth import Token

log = logging.getLogger(__name__)

FIRST_TOKEN_S = 24 * 3600.0
#: While the tracker does not answer, a node says so this often.
_REMIND_S = 30.0

#: Descriptors that it has before anybody comes, 12 of them for the test of its doors; and some for the
#: first who come.
_OF_A_TRACKER, _OF_A_NODE = 52, 64

_PLAIN = (
    "transport is plain: anyone in this network can read chunks in transit and pose as a"
    " member; use it only where you trust every PC and cable"
)


def _private(home: Path) -> None:
    """What a server makes (its databases, locks and chunks too) is for its owner alone, whatever the
    umask. Of a home that others made too open it says so: it may hold more than is ours to close."""
    os.umask(0o077)
    try:
        mode = os.stat(home).st_mode
    except OSError:
        return  # it is not there yet, or the next step says what is wrong with it
    if mode & 0o022 and not mode & stat.S_ISVTX:
        say(f"other users of this PC can write to {home} and replace its files; run `chmod go-w {home}`")


def _take_descriptors(what: str, own: int) -> None:
    """Raises StorageUnavailable where there are not enough."""
    check_descriptors(what, file_limit.SPARE + own)
    file_limit.keep()


def _is_watched(invocation: Invocation) -> bool:
    """By people at a terminal; else a program has started us."""
    return not invocation.json and sys.stdout.isatty()


def _introduce(invocation: Invocation, greeting: list[str], **fields: Any) -> None:
    """Greets people; gives `fields` to programs."""
    if _is_watched(invocation):
        announce("\n".join(map(visible, greeting)))
    else:
        announce(f"ready {json.dumps(fields)}")


def _take_leave(invocation: Invocation, what: str) -> None:
    if _is_watched(invocation):
        announce(f"\n{visible(what)} stopped")  # below the terminal's "^C"


def _home_option(invocation: Invocation) -> str:
    """For commands that are shown: where they find this server's home, from any folder."""
    given = invocation.home_given
    return "" if given is None else f" --home {shlex.quote(str(given.absolute()))}"


def _host_port(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://")


# -- tracker --------------------------------------------------------------------------


@click.command()
@click.option("--bind", metavar="ADDR", help="Address for requests, HOST:PORT; port 0 picks a free one.")
@click.option("--events", metavar="ADDR", help="Address for events (default: the next port).")
@click.option(
    "--advertise",
    metavar="ADDR",
    multiple=True,
    help="Address at which others reach this PC; may be repeated.",
)
@click.option("--new-database", is_flag=True, help="The database is lost: start with an empty one.")
@click.option("--new-members", is_flag=True, help="The list of members is lost: start with an empty one.")
@click.option("--new-key", is_flag=True, help="The tracker's key is lost: create a new one.")
@json_option
@everywhere()
@pass_invocation
def tracker(
    invocation: Invocation,
    bind: str | None,
    events: str | None,
    advertise: tuple[str, ...],
    new_database: bool,
    new_members: bool,
    new_key: bool,
) -> None:
    """Run the tracker, in the foreground.

    The tracker knows which node holds which chunk, and which nodes are up. A cluster has one
    tracker. Its first start creates its key and shows a join token for nodes.
    """
    _take_descriptors("a tracker", _OF_A_TRACKER)
    _private(invocation.home)
    cpu_timer.timer.arrange()
    settings = invocation.settings({"tracker": {"bind": bind, "events": events, "advertise": advertise}})
    with importing():
        from zchunk.clock import SystemClock
        from zchunk.tracker.process import Tracker
        from zchunk.transport.zeromq import ZmqTransport

    transport = ZmqTransport()
    lost = {"database": new_database, "members": new_members, "key": new_key}
    anew = [part for part, is_lost in lost.items() if is_lost]
    running = Tracker(invocation.home / "tracker", settings, SystemClock(), transport, anew=anew)
    try:
        _serve_tracker(running, invocation)
    finally:
        running.close()
        transport.close()


def _serve_tracker(running: Tracker, invocation: Invocation) -> None:
    from zchunk.runtime.loop import LoopThread

    ended = threading.Event()
    failures: list[BaseException] = []

    def on_failure(error: BaseException) -> None:
        failures.append(error)
        ended.set()

    StopSignal(ended)
    running.listen_to_commands()
    thread = LoopThread(running.loop, on_failure)
    thread.start()
    try:
        running.prove_closed()
        _introduce_tracker(running, invocation)
        ended.wait()
    finally:
        thread.stop()
    if failures:
        raise failures[0]
    _take_leave(invocation, "tracker")
    longest_ms = 1000 * running.loop.longest_turn_s
    log.info(
        "the tracker has stopped; requests refused: %d; the longest turn of its control loop took %.0f ms",
        running.server.refused,
        longest_ms,
    )


def _introduce_tracker(running: Tracker, invocation: Invocation) -> None:
    if running.settings.security.transport == "plain":
        say(_PLAIN)
    # A start that failed before this (port taken) has made the key, but was none.
    is_first = running.membership.is_new
    token = _first_token(running) if is_first else ""
    watched = _is_watched(invocation)
    if not watched:
        _show_first_token(token)  # a program that has read `ready` finds it
    endpoint = running.reachable_at(running.endpoint)[0]
    _introduce(
        invocation,
        _tracker_greeting(_host_port(endpoint), _home_option(invocation), is_first),
        endpoint=endpoint,
        events=running.reachable_at(running.events)[0],
        peer_id=running.key.peer_id,
        home=str(invocation.home),
    )
    if watched:
        _show_first_token(token)


def _tracker_greeting(where: str, home: str, is_first: bool) -> list[str]:
    lines = [f"tracker running at {where} (Ctrl-C stops it)"]
    if not is_first:
        lines.append(f"get a token for another PC:  zchunk token{home}   (in another terminal)")
        lines.append("add that PC:                 zchunk node --join -   (there; paste the token)")
    return lines


def _first_token(running: Tracker) -> str:
    from zchunk.clock import SystemClock
    from zchunk.tracker.home import make_token

    transport = running.settings.security.transport
    made = make_token(
        running.files, SystemClock(), role="node", expires_s=FIRST_TOKEN_S, once=False, transport=transport
    )
    return made.encode()


def _show_first_token(token: str) -> None:
    """If there is one. On stderr, in a terminal or not: it is a secret, and stdout may be a file that
    others read."""
    if not token:
        return
    say("This is a new cluster. On each PC that is to store chunks (this PC too), run `zchunk node --join -`")
    say("within 24 hours, and paste this token:")
    click.echo(f"\n  {token}\n", err=True)
    say("`zchunk token` on this PC prints more tokens; `zchunk token --role client` prints one for a PC that")
    say("stores nothing.")


# -- node -----------------------------------------------------------------------------


@click.command()
@click.option(
    "--join",
    "token",
    metavar="TOKEN",
    help="Join the cluster of this token. Use - to be asked for it (or to read stdin), @FILE to read a file.",
)
@click.option("--bind", metavar="ADDR", help="Address for chunks, HOST:PORT; port 0 picks a free one.")
@click.option("--name", metavar="NAME", help="Name shown for this node (default: host name).")
@click.option("--capacity", callback=as_size, metavar="SIZE", help="Maximum space for chunks, e.g. 20GB.")
@click.option(
    "--advertise",
    metavar="ADDR",
    multiple=True,
    help="Address at which others reach this PC; may be repeated.",
)
@new_key_option
@allow_plain_option
@click.option("--new-store", is_flag=True, help="The store is lost: start with the one found, or a new one.")
@click.option("--no-web", is_flag=True, expose_value=False, help="No web page (this release has none).")
@json_option
@everywhere()
@pass_invocation
def node(
    invocation: Invocation,
    token: str | None,
    bind: str | None,
    name: str | None,
    capacity: int | None,
    advertise: tuple[str, ...],
    new_key: bool,
    allow_plain: bool,
    new_store: bool,
) -> None:
    """Run a node, in the foreground: this PC stores chunks.

    The first start needs a token (--join). Later starts remember the cluster, and the last
    --bind, --capacity and --advertise.
    """
    _take_descriptors("a node", _OF_A_NODE)
    _private(invocation.home)
    cpu_timer.timer.arrange()
    folder = invocation.home / "node"
    with importing():
        from zchunk.node.home import options
        from zchunk.node.home.membership import check_transport, note_parts

    given = {"bind": bind, "capacity": capacity, "advertise": advertise}
    kept = options.load(folder, given)
    settings = invocation.settings({"node": {**given, "name": name}}, {"node": kept})
    membership = (
        _remembered(folder, new_key)
        if token is None
        else _joined(folder, _node_token(token), settings, new_key, allow_plain)
    )
    if name is not None and name != membership.name:
        raise InvalidUsage(
            f"this node joined as {membership.name} and keeps that name; to use {name},"
            " join again with another --home"
        )
    options.keep(folder, kept, given)
    note_parts(folder)
    with importing():
        from zchunk.node.process import NodeProcess

    check_transport(membership, settings)
    process = NodeProcess(folder, membership, settings, new_store=new_store)
    try:
        _serve_node(process, membership, settings, invocation)
    finally:
        process.stop()
    _take_leave(invocation, f"node {membership.name}")
    log.info("the node has stopped; requests refused: %d", process.parts.service.refused)


def _remembered(folder: Path, new_key: bool) -> Membership:
    """Who this node is since it joined."""
    from zchunk.node.home.membership import load

    if new_key:
        raise InvalidUsage("--new-key creates a new member: give a new token with --join")
    known = load(folder)
    if known is None:
        raise NotJoined(
            f"{folder} has not joined a cluster; run `zchunk node --join -` once, with a token"
            " (`zchunk token` on the tracker's PC prints one)"
        )
    return known


def _node_token(argument: str) -> Token:
    from zchunk.transport.auth import parse_token

    token = parse_token(token_text(argument))
    if token.role != "node":
        raise TokenRefused(
            f"this token has the role {token.role}, but a node needs one with the role node:"
            " `zchunk token --role node` on the tracker's PC prints one"
        )
    return token


def _joined(folder: Path, token: Token, settings: Settings, new_key: bool, allow_plain: bool) -> Membership:
    """Who this node is with that token; joins where it is nobody yet."""
    from zchunk.node.home.membership import find, forget_key

    known = find(folder)
    if known is not None:
        check_same_cluster(folder, known, token, allow_plain)
    if new_key:
        forget_key(folder)
    if known is None or new_key:
        return join_cluster(folder, token, settings.node.name or host_name(), settings)
    return _join_again(folder, token, known, settings)


def _join_again(folder: Path, token: Token, known: Membership, settings: Settings) -> Membership:
    """Nothing changes for a member, but where its tracker is, once that tracker has answered there; one
    whose list was lost knows it again. One that does not answer, or a token from a year ago in a
    start script, changes nothing, and stops no node."""
    where = ", ".join(known.tracker)
    try:
        joined = join_cluster(folder, token, known.name, settings)
    except (TrackerUnreachable, TokenRefused, WrongServer, TransportMismatch) as error:
        say(f"did not join again, nothing was changed: {error.message}")
        say(f"this node continues as {known.name}, with the tracker at {where}")
        return known
    if (joined.tracker, joined.transport) != (known.tracker, known.transport):
        say(f"the tracker is now at {', '.join(joined.tracker)}, with {joined.transport} transport")
    say(f"{folder} is already a member of this cluster, as {joined.name}")
    return joined


def _serve_node(
    process: NodeProcess, membership: Membership, settings: Settings, invocation: Invocation
) -> None:
    ended = threading.Event()
    stop = StopSignal(ended, process.settled)
    process.on_end = ended.set
    process.start()
    _await_registration(process, membership, settings.client.tracker_timeout_s)
    if process.failure is None and not stop.stopped:
        if membership.transport == "plain":
            say(_PLAIN)
        endpoint = _endpoint(process, settings)
        _introduce(
            invocation,
            _node_greeting(membership, _host_port(endpoint), invocation),
            endpoint=endpoint,
            peer_id=membership.peer_id,
            home=str(invocation.home),
            name=membership.name,
            web=None,
        )
        ended.wait()
    if process.failure is not None:
        raise process.failure


def _node_greeting(membership: Membership, where: str, invocation: Invocation) -> list[str]:
    cluster, home = ", ".join(map(_host_port, membership.tracker[:1])), _home_option(invocation)
    return [
        f"node {membership.name} running at {where} (Ctrl-C stops it)",
        f"joined the cluster of {cluster}; stores chunks in {invocation.home.absolute() / 'node' / 'store'}",
        f"list the nodes:  zchunk peers{home}   (in another terminal)",
        f"upload a file:   zchunk put{home} FILE",
    ]


def _await_registration(process: NodeProcess, membership: Membership, first_s: float) -> None:
    """Until the tracker has registered us, refused us, or a signal came."""
    where = ", ".join(membership.tracker)
    patience = first_s
    while not process.settled.wait(patience):
        patience = _REMIND_S
        say(f"the tracker at {where} does not answer; this node keeps trying")


def _endpoint(process: NodeProcess, settings: Settings) -> str:
    """Where others reach this node: of a wildcard, the first address of this PC."""
    from zchunk.system import addresses
    from zchunk.system.interfaces import interface_addresses

    at = addresses.parse(process.parts.endpoint)
    return addresses.announced(
        bound=at.host,
        port=at.port,
        advertise=settings.node.advertise,
        seen_from=None,
        interfaces=interface_addresses(),
    )[0]
