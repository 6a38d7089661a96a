"""A new key for a member, under its old id.

What may not happen here: the old key given up before the tracker has taken the new one; a
new key lost that the tracker has taken already. So the new one is on disk before the
tracker hears of it, and whoever died in between runs it again.
"""

from __future__ import annotations

import os
from pathlib import Path

from zchunk.clock import Clock
from zchunk.errors import NotAllowed
from zchunk.node.control.single_request import TrackerAt, ask_once
from zchunk.node.home.membership import NEXT_KEY, Identity, Membership, key_of
from zchunk.protocol.messages import RotateKey
from zchunk.system import disk
from zchunk.transport.auth import load_or_make_key
from zchunk.transport.base import Transport
from zchunk.transport.keys import KeyPair

_KEY = "key.json"


def rotate(folder: Path, membership: Membership, transport: Transport, clock: Clock, timeout_s: float) -> str:
    """Makes the role at `folder` a new key pair; returns the public key, in hex.

    The caller holds what keeps others from using the old one meanwhile. Raises NotAllowed,
    TrackerUnreachable, StorageFailure; nothing has changed then, or running it again ends it.
    """
    old, new = key_of(folder), load_or_make_key(folder / NEXT_KEY)
    try:
        _announce(old, new, membership, transport, clock, timeout_s)
    except NotAllowed:
        # An earlier run may have got this far: then the new key is the one that is let in.
        _announce(new, new, membership, transport, clock, timeout_s)
    with disk.storage_errors(folder / _KEY, "replacing"):
        os.replace(folder / NEXT_KEY, folder / _KEY)
        disk.sync_folder(folder)
    return new.public.hex()


def _announce(
    own: KeyPair, new: KeyPair, membership: Membership, transport: Transport, clock: Clock, timeout_s: float
) -> None:
    identity = Identity(membership.peer_id, own if membership.transport == "curve" else None)
    tracker = TrackerAt(membership.tracker, bytes.fromhex(membership.tracker_key), identity)
    ask_once(tracker, RotateKey(public_key=new.public), transport, clock, timeout_s)
