"""How a room says which requests it answers, and to whom. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zchunk.clock import Now
from zchunk.protocol.messages import Request
from zchunk.tracker.actions import Action, Ask

#: roles that may ask
STORING = frozenset({"node"})
WRITING = frozenset({"node", "client"})
READING = frozenset({"node", "client", "observer"})

#: request -> (who may, what it does)
Handlers = Mapping[type[Request], tuple[frozenset[str], Callable[[Ask, Now], list[Action]]]]
