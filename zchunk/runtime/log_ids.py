"""Which request or job a log line is about: a few words before its text.

A request is handled in one call of a loop, and in the works that it leads to: it is named for that
time, in that thread, and the log's formatter asks for `current`. The lines of a job come from many
callbacks of a loop that drives several jobs: they are logged through `of`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, TypeVar

T = TypeVar("T")

#: Digits of an id in a log line; as many as `zchunk jobs` shows.
_SHORT = 8


#: its id; the sender's peer id, or where there is none the address
Request = tuple[int, str | None]
Before = Token[Request | None]

_request: ContextVar[Request | None] = ContextVar("request", default=None)


def begin(request: Request | None) -> Before:
    """Lines are about `request`, until `end` is given what this returns. Of every message: so cheap."""
    return _request.set(request)


def end(before: Before) -> None:
    _request.reset(before)


def during(request: Request | None, call: Callable[[], T]) -> T:
    """Lines that `call` logs are about `request`."""
    before = begin(request)
    try:
        return call()
    finally:
        end(before)


def ongoing() -> Request | None:
    return _request.get()


def current() -> str:
    """`request 12 of 3fa9c1e2: `, or nothing."""
    request = _request.get()
    if request is None:
        return ""
    request_id, sender = request
    name = sender or "unknown"
    return f"request {request_id} of {name[:_SHORT] if len(name) == 32 else name}: "


class _About(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        about = (self.extra or {})["about"]
        return f"{about}: {msg}", kwargs


def of(log: logging.Logger, kind: str, id_: str) -> logging.LoggerAdapter[logging.Logger]:
    """A logger for a job: `of(log, "job", job_id).info(...)`. `id_`: of letters and digits."""
    return _About(log, {"about": f"{kind} {id_[:_SHORT]}"})
