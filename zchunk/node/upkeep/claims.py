"""Which kept manifests are those of files, and when the tracker is asked. Pure.

An upload gives its manifest to nodes before it is committed, and may end in between: nobody tells
them then. So a manifest has its upload's lease until it is known to be a file's: by the event of
the commit, or by the tracker's answer, which is asked for at each registration and once a day.
One that is known to be a file's is never asked about again; a removal alone ends it.

What may not happen here: a manifest dropped that was once known to be a file's, or while its lease
runs, or at the first answer, which may cross a commit; one that is asked about without end.

`now` is monotonic seconds, leases end at wall times. Called by `claim_check.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: So often without another reason.
_DAY_S = 24 * 3600.0
#: A manifest that is no file's goes when that is answered again, so much later.
_GRACE_S = 3600.0
#: After a failure it is asked again so much later, and twice as late each time.
_AGAIN_S, _MAX_AGAIN_S = 60.0, 3600.0


class Claims:
    def __init__(self) -> None:
        self._ask_at: float | None = None
        self._pause_s = _AGAIN_S
        #: answered, after their lease, to be no files -> since when
        self._doubted: dict[str, float] = {}

    def registered(self, now: float) -> None:
        """With the tracker whose deletions the node obeys."""
        self._ask_at, self._pause_s = now, _AGAIN_S

    def unsure(self) -> None:
        """It is another one, or an older state of it: nothing is asked, and no answer counts."""
        self._ask_at, self._doubted = None, {}

    def deadline(self) -> float | None:
        """When to ask about all that are claimed; None while there is nobody to ask, or an
        answer is still to come."""
        return self._ask_at

    def asked(self) -> None:
        """To be followed by `answered` or `failed`."""
        self._ask_at = None

    def answered(
        self, claimed: Mapping[str, float], files: Collection[str], now: float, wall: float
    ) -> tuple[str, ...]:
        """`claimed`: what was asked about -> when its lease ends; `files` of them are files. Which
        of the others may go."""
        unknown = claimed.keys() - set(files)
        over = {file_id for file_id in unknown if claimed[file_id] <= wall}
        doubted = {file_id: self._doubted.get(file_id, now) for file_id in over}
        dropped = {file_id for file_id, since in doubted.items() if since + _GRACE_S <= now}
        self._doubted = {file_id: doubted[file_id] for file_id in over - dropped}
        self._pause_s = _AGAIN_S
        self._ask_at = now + min(self._grace_left(now), _until_next(unknown - over, claimed, wall))
        return tuple(sorted(dropped))

    def _grace_left(self, now: float) -> float:
        return min((since + _GRACE_S - now for since in self._doubted.values()), default=_DAY_S)

    def failed(self, now: float) -> None:
        self._ask_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _MAX_AGAIN_S)


def _until_next(waiting: Collection[str], claimed: Mapping[str, float], wall: float) -> float:
    """A day, or until the first lease of those that wait ends."""
    return min((max(_AGAIN_S, claimed[file_id] - wall) for file_id in waiting), default=_DAY_S)
