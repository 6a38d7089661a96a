"""How many descriptors this process may have open. A tracker or node has one for each
connection, and the usual soft limit (1,024) is less than its hosts allow."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_limit() -> int:
    """Raises the soft limit as far as the hard one lets it; returns what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft
