"""Hands frames to libzmq, at once or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from zchunk.transport.base import Buffer
from zchunk.transport.guard.unread import Large

#: Below this size a copy is cheaper than libzmq's bookkeeping for shared memory.
_COPY_BELOW = 64 * 1024
#: As plain numbers: pyzmq's are slow to reckon with, and each message takes some.
NOW, NOW_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
#: With the connection's name. More than any message has, which its reader then refuses.
PARTS = 16


def send_frames(raw: zmq.Socket[bytes], frames: Sequence[Buffer]) -> list[Large]:
    """What of it is not copied: its memory is needed until libzmq has written it."""
    last, large = len(frames) - 1, []
    for at, frame in enumerate(frames):
        flags = NOW if at == last else NOW_MORE
        if len(frame) < _COPY_BELOW:
            raw.send(frame, flags)
        else:
            large.append((raw.send(frame, flags, copy=False, track=True), len(frame)))
    return large


def large_bytes(frames: Sequence[Buffer]) -> int:
    large = 0
    for frame in frames:
        if len(frame) >= _COPY_BELOW:
            large += len(frame)
    return large
