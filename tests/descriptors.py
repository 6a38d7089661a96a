"""The descriptors of this process, for tests that nothing is left open."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def open_descriptors(below: Path | None = None) -> set[tuple[int, str]]:
    """Numbers and what they lead to; only what is below that folder. What earlier tests left to the
    garbage collector may be closed at any moment: compare what is new, not how many there are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, or closed meanwhile
            leads_to = os.readlink(f"/proc/self/fd/{name}")
            if below is None or leads_to.startswith(str(below)):
                found.add((int(name), leads_to))
    return found
