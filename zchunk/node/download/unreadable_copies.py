"""Copies of chunks that their holders cannot read now, and when each is asked for again. Pure.

Such a copy is neither damaged nor lost: the holder's disk, or the holder, has a bad moment.
Called by `job.py`.

May not happen here: a copy that is never asked for again; one that is asked for again at once,
over and over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
#: A pause so long is waited for without a word: most such moments are over by then.
_MOMENT_S = 2.0


@dataclass(slots=True)
class _Pause:
    seconds: float
    #: monotonic; None once it is over
    until: float | None


class UnreadableCopies:
    def __init__(self) -> None:
        #: chunk -> peer -> the pause of its copy
        self._copies: dict[int, dict[str, _Pause]] = {}

    def refused(self, chunk: int, peer_id: str, now: float) -> None:
        """The peer could not read its copy: it has a pause, twice as long as the one before."""
        copies = self._copies.setdefault(chunk, {})
        before = copies[peer_id].seconds if peer_id in copies else 0.0
        pause = min(max(2 * before, _FIRST_PAUSE_S), _MAX_PAUSE_S)
        copies[peer_id] = _Pause(pause, now + pause)

    def pausing(self, chunk: int) -> Collection[str]:
        """Peers that are not asked for the chunk yet."""
        if chunk not in self._copies:
            return ()
        return [peer_id for peer_id, pause in self._copies[chunk].items() if pause.until is not None]

    def is_brief(self, chunk: int) -> bool:
        """Whether a copy of it was refused only just now: mostly that is a moment."""
        pauses = self._copies.get(chunk, {}).values()
        return any(pause.until is not None and pause.seconds <= _MOMENT_S for pause in pauses)

    def brief(self) -> list[int]:
        return [chunk for chunk in self._copies if self.is_brief(chunk)]

    def end_pauses(self, now: float) -> bool:
        """Whether some are over, so that these peers are asked again."""
        over = [pause for pause in self._pausing() if pause.until is not None and pause.until <= now]
        for pause in over:
            pause.until = None
        return bool(over)

    def deadline(self) -> float | None:
        return min((pause.until for pause in self._pausing() if pause.until is not None), default=None)

    def was_read(self, chunk: int, peer_id: str) -> bool | None:
        """Bytes of the chunk came from the peer. If it could not read it before, its other copies
        are asked for at once, too: True where that was more than a moment. None: it always could."""
        pause = self._copies.get(chunk, {}).get(peer_id)
        if pause is None:
            return None
        self.started_anew(peer_id)
        return pause.seconds > _MOMENT_S

    def started_anew(self, peer_id: str) -> None:
        """The peer is asked again for everything."""
        for copies in self._copies.values():
            copies.pop(peer_id, None)

    def forget(self, chunk: int) -> None:
        """It came, from wherever."""
        self._copies.pop(chunk, None)

    def _pausing(self) -> list[_Pause]:
        return [pause for copies in self._copies.values() for pause in copies.values()]
