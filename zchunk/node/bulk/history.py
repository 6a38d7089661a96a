"""The last transitions of a pure job: which event it was given, and the state it was in then. Pure.

For the people who mend it: an `IllegalEvent` and, with -vv, the end of a job show them. Blocks are
not among them: there are too many, and each would push out what led to it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

#: More than lead to anything that was seen so far.
_KEPT = 50


class Transition(NamedTuple):
    #: monotonic seconds
    at: float
    #: the method's name, and what it was told
    event: str
    facts: tuple[Any, ...]
    #: the job's, before
    state: str

    def __str__(self) -> str:
        facts = ", ".join(_short(fact) for fact in self.facts)
        return f"{self.at:.3f} {self.state}: {self.event}({facts})"


class History:
    """The latest last."""

    def __init__(self) -> None:
        self._kept: deque[Transition] = deque(maxlen=_KEPT)

    def note(self, now: float, state: str, event: str, *facts: Any) -> None:
        """For people only once it is asked for: `facts` are kept as they are."""
        self._kept.append(Transition(now, event, facts, state))

    @property
    def transitions(self) -> list[Transition]:
        return list(self._kept)

    def __str__(self) -> str:
        return "\n".join(map(str, self._kept)) or "nothing has happened"


def _short(fact: Any) -> str:
    if isinstance(fact, BaseException):
        return f"{type(fact).__name__}: {str(fact)[:80]}"
    text = str(fact)
    return text if len(text) <= 40 else f"{text[:37]}..."
