"""A home's membership: its key, and the tracker it joined. A JSON file, kept durable.

HOME/node and HOME/client have one each; a client of a home where only a node has
joined acts as that node.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zchunk.config import Settings
from zchunk.errors import InvalidUsage, NotAllowed, NotFound, NotJoined, StorageFailure
from zchunk.system import addresses, disk, json_files
from zchunk.system.home_state import HomeState, is_there
from zchunk.transport.auth import ROLES, Token, load_key, make_key
from zchunk.transport.keys import CurveClient, CurveServer, KeyPair

_FILE, _KEY = "membership.json", "key.json"
#: part of a role's folder -> its file (system/home_state.py)
_PARTS = {"key": _KEY, "membership": _FILE, "options": "options.json"}
_NODE_RAN = ("incarnation.json", "store/zchunk-store.json")
#: What an earlier release left beside each part.
_TRACES = {"key": (_FILE, *_NODE_RAN), "membership": _NODE_RAN, "options": ()}
#: A new key that the tracker may have taken already (control/rotate_key.py).
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
        f"this home joined its cluster with {membership.transport}: remove the setting, or join with a new"
        " token of a tracker that has the same setting",
    )


def check_token(token: Token, settings: Settings) -> None:
    """Raises InvalidUsage where the configuration asks for another transport than the cluster
    has that this token is for: a token that is good once is not to be used up for that."""
    _check(
        settings,
        token.transport,
        f"this token is for a cluster with {token.transport}: remove the setting, or use a token of a"
        " tracker that has the same setting",
    )


def _check(settings: Settings, transport: str, but: str) -> None:
    asked = settings.security.transport
    if ("security", "transport") in settings.given and asked != transport:
        raise InvalidUsage(f"security.transport is set to {asked}, but {but}")


def state_of(folder: Path) -> HomeState:
    """Which parts the role at `folder` has had: `key`, `membership`, `options`."""
    return HomeState(folder, _TRACES)


def note_parts(folder: Path) -> None:
    """Those that are there now: a home of an earlier release keeps no record of them."""
    state_of(folder).note(*(part for part, name in _PARTS.items() if is_there(folder / name)))


def _how_to_join(folder: Path) -> str:
    return "zchunk node --join -" if folder.name == "node" else "zchunk join -"


def key_of(folder: Path) -> KeyPair:
    """The key pair of this role, made at its first start. Raises StateLost where it had one."""
    path = folder / _KEY
    if (key := load_key(path)) is not None:
        return key
    state = state_of(folder)
    state.check_first(
        "key",
        f"{path} is missing, and without its key this PC is no longer a member: restore it from a backup, or"
        f" join as a new member, with a new token: `{_how_to_join(folder)} --new-key`",
    )
    state.note()
    key = make_key(path)
    state.note("key")
    return key


def forget_key(folder: Path) -> None:
    """The key was lost, and the next `key_of` makes another. Raises InvalidUsage where it was not."""
    if is_there(folder / _KEY):
        raise InvalidUsage(f"--new-key is for a lost key, but {folder / _KEY} exists; move it away first")
    state_of(folder).forget("key")


def save(folder: Path, membership: Membership) -> None:
    disk.private_folder(folder)
    data = json.dumps(asdict(membership), indent=1).encode()
    disk.write_durable(folder / _FILE, data, mode=0o600)
    state_of(folder).note("membership")


def load(folder: Path) -> Membership | None:
    """None where this role has not joined. Raises as `find` does, and StateLost where it has."""
    membership = find(folder)
    if membership is None:
        state_of(folder).check_first(
            "membership",
            f"{folder / _FILE} is missing, but this home has joined a cluster: restore it from a backup, or"
            f" join again with a new token: `{_how_to_join(folder)}` (this PC stays the same member)",
        )
    return membership


def find(folder: Path) -> Membership | None:
    """None without a file, for whoever joins. Raises StorageFailure for one that is damaged, else as
    `disk.storage_errors` does."""
    path = folder / _FILE
    try:
        with disk.storage_errors(path, "reading"):
            return _membership(json_files.record(json_files.read(path)))
    except NotFound:
        return None
    except (ValueError, KeyError, InvalidUsage):
        raise StorageFailure(f"{path} is damaged; join again with a new token") from None


def _membership(raw: dict[str, Any]) -> Membership:
    """Raises ValueError, KeyError or InvalidUsage for anything but one."""
    tracker, events = json_files.texts(raw["tracker"]), json_files.texts(raw["events"])
    if not tracker:
        raise ValueError("no tracker")
    for address in (*tracker, *events):
        addresses.parse(address)
    return Membership(
        peer_id=json_files.text(raw["peer_id"], "[0-9a-f]{32}"),
        name=json_files.text(raw["name"], most=64),
        role=json_files.one_of(raw["role"], ROLES),
        store_id=json_files.text(raw["store_id"], most=64),
        tracker=tracker,
        tracker_key=json_files.key(raw["tracker_key"]).hex(),
        events=events,
        transport=json_files.one_of(raw["transport"], ("plain", "curve")),
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


def check_fetches(membership: Membership) -> None:
    """Nodes would refuse each chunk: better said at once. Raises NotAllowed."""
    if membership.role == "observer":
        raise NotAllowed(
            f"{membership.name} is an observer and may not download; join with a client token"
            " (`zchunk token --role client` on the tracker's PC prints one)"
        )
