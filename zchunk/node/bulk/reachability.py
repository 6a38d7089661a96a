"""Whether a peer can be reached from here, whatever the tracker says of it. Pure.

Responsible for when to doubt, when to ask and when to give up; `peer_connections.py` sends and
connects. What may not happen here: a peer called unreachable while anything comes from
it; one that does not answer kept for longer than `CONNECT_S`, or `SILENCE_S` + `ANSWER_S`.

A connection that a partition cut stays open without a word, and blocks on their way may
take their time. So a peer that owes answers and is silent is asked something that it
answers at once; what else it has on the way comes before that answer, and counts as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Seconds to connect, while something waits for it.
CONNECT_S = 2.0
#: Seconds without a message from a peer that owes one, until it is asked,
SILENCE_S = 2.0
#: and seconds it then has to send anything at all.
ANSWER_S = 2.0


class Verdict(Enum):
    FINE = "fine"
    #: ask it something
    ASK = "ask"
    #: not reachable from here: end what waits for it, connect anew
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class Reachability:
    """One peer's connection. Times are monotonic seconds."""

    #: when connecting began, or the last message came, or the first was sent after a rest
    since: float
    linked: bool = False
    #: told to be unreachable, and not linked since
    lost: bool = False
    _owes: bool = False
    _asked_at: float | None = None

    def wants(self, owes: bool, now: float) -> None:
        """Whether something waits for this peer: answers, or requests for the connection."""
        if owes and not self._owes:
            self.since, self._asked_at = now, None
        self._owes = owes

    def heard(self, now: float) -> None:
        """Any message came."""
        self.since, self._asked_at = now, None

    def link(self, linked: bool, now: float) -> bool:
        """The connection is made, or broke; True when an unreachable peer is back."""
        self.linked, self.since, self._asked_at = linked, now, None
        back, self.lost = self.lost and linked, self.lost and not linked
        return back

    def on_time(self, now: float) -> Verdict:
        due = self.deadline()
        if due is None or due > now:
            return Verdict.FINE
        if self.linked and self._asked_at is None:
            self._asked_at = now
            return Verdict.ASK
        self.linked, self.lost = False, True
        return Verdict.UNREACHABLE

    def deadline(self) -> float | None:
        if not self._owes or self.lost:
            return None
        if not self.linked:
            return self.since + CONNECT_S
        return self.since + SILENCE_S if self._asked_at is None else self._asked_at + ANSWER_S
