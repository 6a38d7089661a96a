"""Which calls of which process fail with what, and from when on, drawn from a seed; strace does it.

`0` stands for calls that do less than they were asked for: nothing, which is what a read at the
end of a file and a write to a full pipe say too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

SHORT = "0"
_READS, _WRITES = "preadv,preadv2", "pwrite64"
_SYNCS, _RENAMES = "fsync,fdatasync", "rename,renameat,renameat2"
#: process -> calls -> what they fail with. Of the commands, `put` and `get`, only calls on the file
#: itself are meant: they load their own program by the same calls.
_FAULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "node": {
        _READS: ("EIO", "ESTALE", "ENOMEM", "EACCES", SHORT),
        "openat": ("EMFILE", "ENFILE", "EACCES", "ENOMEM"),
        _WRITES: ("ENOSPC", "EIO", "EROFS", "EINTR", SHORT),
        _SYNCS: ("EIO", "ENOSPC", "EINTR", "ESTALE"),
        _RENAMES: ("EROFS", "EACCES", "ESTALE", "ENOSPC"),
        "mmap": ("ENOMEM",),
    },
    "tracker": {
        _WRITES: ("ENOSPC", "EIO", "EROFS"),
        _SYNCS: ("EIO", "ENOSPC", "EINTR"),
    },
    "put": {
        "openat": ("EACCES", "EMFILE", "ENFILE", "ESTALE"),
        "pread64": ("EIO", "ESTALE"),
    },
    "get": {
        "openat": ("EACCES", "EMFILE", "ENOSPC", "EROFS"),
        _WRITES: ("ENOSPC", "EIO", "EROFS", SHORT),
        _SYNCS: ("EIO", "EINTR", "ESTALE"),
        _RENAMES: ("EROFS", "EACCES"),
    },
}
#: An interrupted call is made again, for ever if it were always so.
_INTERRUPTIONS = 5


@dataclass(frozen=True)
class Fault:
    who: str
    calls: str
    error: str
    #: the first call that fails, of each thread
    first: int = 1

    @property
    def inject(self) -> str:
        """As strace wants it."""
        does = "retval=0" if self.error == SHORT else f"error={self.error}"
        last = f"..{self.first + _INTERRUPTIONS}" if self.error == "EINTR" else "+"
        return f"{self.calls}:{does}:when={self.first}{last}"

    def __str__(self) -> str:
        return f"{self.who}-{self.calls.partition(',')[0]}-{self.error}"


def drawn(number: int, rng: Random) -> Iterator[Fault]:
    """Different ones, every error among the first of them, and each call once before any twice."""
    left = [Fault(who, c, e) for who, of in _FAULTS.items() for c, errors in of.items() for e in errors]
    wanted = list(dict.fromkeys(fault.error for fault in left))
    used: Counter[tuple[str, str]] = Counter()
    for _ in range(number):
        error = wanted.pop(0) if wanted else None
        fitting = [fault for fault in left if error in (None, fault.error)]
        fewest = min(used[fault.who, fault.calls] for fault in fitting)
        fault = rng.choice([f for f in fitting if used[f.who, f.calls] == fewest])
        left.remove(fault)
        used[fault.who, fault.calls] += 1
        yield Fault(fault.who, fault.calls, fault.error, rng.randint(1, 2) if fault.who == "node" else 1)
