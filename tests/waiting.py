"""Waiting for a condition with a deadline: what tests do instead of sleeping for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """The first true value of `condition`; fails when the deadline passes before."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)
    return value
