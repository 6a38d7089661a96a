"""How many descriptors this process may have open. A tracker or node has one for each
connection, and the usual soft limit (1,024) is less than its hosts allow."""

from __future__ import annotations

from contextlib import suppress

try:
    import resource
except ImportError:  # Windows: there is no such limit, and each command imports this
    resource = None  # type: ignore[assignment]


def raise_limit() -> int | None:
    """Raises the soft limit as far as the hard one lets it; returns what holds now, None where
    there is no limit to raise."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft
