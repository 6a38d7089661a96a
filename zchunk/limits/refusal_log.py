"""What was refused, counted; and a line in the log about it that no flood can make many. Pure.

The first of a quiet minute is logged at once, what follows together with its number and
the addresses it came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from zchunk.errors import ZchunkError

_QUIET_S = 60.0
#: Kinds of refusal told apart: more than these together are "others".
_KINDS = 20


class RefusalLog:
    def __init__(self) -> None:
        #: since the start
        self.count = 0
        self._since: Counter[str] = Counter()
        self._next_line = float("-inf")

    def log(
        self, error: ZchunkError, address: str | None, now: float, say: Callable[[str, str], None]
    ) -> None:
        """Counts one; `say` is a method of a logger, called where it is time for a line."""
        line = self.note(error, address, now)
        if line is not None:
            say("%s", line)

    def note(self, error: ZchunkError, address: str | None, now: float) -> str | None:
        """Counts one; the line to log, if it is time for one."""
        self.count += 1
        if now < self._next_line:
            kind = f"{error.code} to {address or 'unknown'}"
            self._since[kind if kind in self._since or len(self._since) < _KINDS else "others"] += 1
            return None
        self._next_line = now + _QUIET_S
        before, self._since = self._since, Counter()
        line = f"refused {error.code} to {address or 'unknown'}: {error.message[:200]!r}"
        if not before:
            return line
        rest = ", ".join(f"{kind} {times} times" for kind, times in before.most_common())
        return f"{line}; also refused since the last such line: {rest}"
