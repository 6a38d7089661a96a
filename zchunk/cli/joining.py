"""How a home becomes a member of a cluster, for `zchunk join` and `zchunk node`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zchunk.errors import InvalidUsage

if TYPE_CHECKING:
    from zchunk.config import Settings
    from zchunk.node.home.membership import Membership
    from zchunk.transport.auth import Token

new_key_option = click.option(
    "--new-key", is_flag=True, help="The key of this home is lost: create a new one and join as a new member."
)
allow_plain_option = click.option(
    "--allow-plain", is_flag=True, help="Accept a token of a cluster without encryption."
)


def host_name() -> str:
    """The PC's name without its domain, as a node's name may be."""
    name = "".join(c for c in socket.gethostname().partition(".")[0] if c.isprintable()).strip()
    return name[:48] or "node"


def join_cluster(folder: Path, token: Token, name: str, settings: Settings) -> Membership:
    """One request to the tracker; remembered in `folder`. Raises as `join.join` does, and
    InvalidUsage for a token that does not go with the configuration."""
    from zchunk.clock import SystemClock
    from zchunk.node.control.join import join
    from zchunk.node.home.membership import check_token
    from zchunk.transport.zeromq import ZmqTransport

    check_token(token, settings)
    transport = ZmqTransport()
    try:
        return join(folder, token, name, transport, SystemClock(), settings.client.tracker_timeout_s)
    finally:
        transport.close()


def check_same_cluster(folder: Path, known: Membership, token: Token, allow_plain: bool) -> None:
    """Raises InvalidUsage where the token is another tracker's, or asks a home that encrypts to
    stop it: in plain transport whoever answers could be anybody, and a token is easily forged."""
    where = ", ".join(known.tracker)
    if known.tracker_key != token.tracker_key.hex():
        raise InvalidUsage(f"{folder} belongs to another cluster (tracker at {where}); choose another --home")
    if (known.transport, token.transport) == ("curve", "plain") and not allow_plain:
        raise InvalidUsage(
            f"this token is for plain transport, but {folder} joined its cluster (tracker at {where}) with"
            " encryption; nothing was changed. If the tracker's operator confirms the change, add"
            " --allow-plain"
        )
