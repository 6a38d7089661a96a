"""Classes whose checks are made when they are first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Unready:
    """Those that are not ready yet. Thread-safe."""

    def __init__(self, make: Callable[[type], object]) -> None:
        """`make` changes the class itself."""
        self._make = make
        self._classes: set[type] = set()
        self._lock = threading.RLock()

    def add(self, cls: type) -> None:
        self._classes.add(cls)

    def __contains__(self, cls: type) -> bool:
        return cls in self._classes

    def make_ready(self, cls: type) -> None:
        """Does nothing where it is."""
        with self._lock:
            if cls in self._classes:
                self._make(cls)
                self._classes.remove(cls)  # last: until then other threads wait for the lock
