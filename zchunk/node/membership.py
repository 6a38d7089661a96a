"""A home's membership: its key, and the tracker it joined. A JSON file, kept durable.

HOME/node and HOME/client have one each; a client of a home where only a node has
joined acts as that node.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zchunk import addresses, disk, jsonfiles
from zchunk.config import Settings
from zchunk.errors import InvalidUsage, NotJoined, StorageFailure
from zchunk.transport.auth import ROLES, Token, load_or_make_key
from zchunk.transport.keys import CurveClient, CurveServer, KeyPair

_FILE = "membership.json"
#: A new key that the tracker may have taken already (rotation.py).
NEXT_KEY = "key.next.json"


@dataclass(frozen=True)
class Membership:
    """Where the tracker is and who we are to it. Addresses are `tcp://host:port`."""

    peer_id: str
    name: str
    role: str
    store_id: str
    tracker: tuple[str, ...]
    tracker_key: str  # hex
    events: tuple[str, ...]
    transport: str


@dataclass(frozen=True)
class Identity:
    """Who a process is at its sockets. `key` is None in plain transport: there it can only
    say who it is (`claim`), and believes what others say."""

    peer_id: str
    key: KeyPair | None
    #: a rotation of the key was begun and not ended
    rotating: bool = False

    @property
    def encrypts(self) -> bool:
        return self.key is not None

    @property
    def claim(self) -> str | None:
        return None if self.encrypts else self.peer_id

    def to_server(self, server_key: bytes) -> CurveClient | None:
        """How to connect to who has this public key."""
        return None if self.key is None else CurveClient(self.key, server_key)

    def at_door(self, door: str) -> CurveServer | None:
        return None if self.key is None else CurveServer(self.key, door)


def identity_of(folder: Path, membership: Membership) -> Identity:
    """Raises StorageFailure where the key's file is damaged."""
    key = key_of(folder) if membership.transport == "curve" else None
    return Identity(membership.peer_id, key, rotating=(folder / NEXT_KEY).exists())


def check_transport(membership: Membership, settings: Settings) -> None:
    """Raises InvalidUsage where the configuration asks for another transport than the
    cluster has that was joined."""
    _check(
        settings,
        membership.transport,
        f"the cluster was joined with {membership.transport}:"
        " join with a new token from a tracker that has the same setting, or remove the setting",
    )


def check_token(token: Token, settings: Settings) -> None:
    """Raises InvalidUsage where the configuration asks for another transport than the cluster
    has that this token is for: a token that is good once is not to be used up for that."""
    _check(
        settings,
        token.transport,
        f"this token is for a cluster with {token.transport}:"
        " use one of a tracker that has the same setting, or remove the setting",
    )


def _check(settings: Settings, transport: str, but: str) -> None:
    asked = settings.security.transport
    if ("security", "transport") in settings.given and asked != transport:
        raise InvalidUsage(f"security.transport is {asked} here, and {but}")


def key_of(folder: Path) -> KeyPair:
    """The key pair of this role, made at its first start."""
    return load_or_make_key(folder / "key.json")


def save(folder: Path, membership: Membership) -> None:
    disk.private_folder(folder)
    data = json.dumps(asdict(membership), indent=1).encode()
    disk.write_durable(folder / _FILE, data, mode=0o600)


def load(folder: Path) -> Membership | None:
    """None where this role has not joined; StorageFailure for a file that is damaged."""
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with disk.storage_errors(path, "reading"):
            return _membership(jsonfiles.record(jsonfiles.read(path)))
    except (ValueError, KeyError, InvalidUsage):
        raise StorageFailure(f"{path} is damaged; join again with a new token") from None


def _membership(raw: dict[str, Any]) -> Membership:
    """Raises ValueError, KeyError or InvalidUsage for anything but one."""
    tracker, events = jsonfiles.texts(raw["tracker"]), jsonfiles.texts(raw["events"])
    if not tracker:
        raise ValueError("no tracker")
    for address in (*tracker, *events):
        addresses.parse(address)
    return Membership(
        peer_id=jsonfiles.text(raw["peer_id"], "[0-9a-f]{32}"),
        name=jsonfiles.text(raw["name"], most=64),
        role=jsonfiles.one_of(raw["role"], ROLES),
        store_id=jsonfiles.text(raw["store_id"], most=64),
        tracker=tracker,
        tracker_key=jsonfiles.key(raw["tracker_key"]).hex(),
        events=events,
        transport=jsonfiles.one_of(raw["transport"], ("plain", "curve")),
    )


def of_home(home: Path) -> tuple[Path, Membership]:
    """The role folder whose key a command of this home uses, and its membership.

    Raises NotJoined."""
    for role in ("client", "node"):
        membership = load(home / role)
        if membership is not None:
            return home / role, membership
    raise NotJoined(
        f"{home} has not joined a cluster; run `zchunk join -` "
        "(`zchunk token --role client` on the tracker's PC prints a token)"
    )


def own_node(home: Path) -> str | None:
    """The peer id of the node of this home, or None."""
    membership = load(home / "node")
    return membership.peer_id if membership is not None else None
