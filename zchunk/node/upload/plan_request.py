"""Asks the tracker for a plan, for who runs in the bulk loop and asks nobody: `node/manager.py`.

A refusal by a tracker that has just started waits for what its nodes say (`control/hello_wait.py` decides),
and ends by their events. What may not happen here: two answers to one question.
"""

from __future__ import annotations

from collections.abc import Callable

from zchunk.errors import PeersUnsure, ZchunkError
from zchunk.node.bulk.plane import TRACKER_TIMEOUT_S, BulkPlane
from zchunk.node.control.hello_wait import PlanPatience
from zchunk.node.control.plane import expect
from zchunk.protocol.messages import Message, PeerRecord, Plan, Planned


class PlanRequest:
    """`answer`, with the plan or the error, runs once, in the bulk loop."""

    def __init__(self, bulk: BulkPlane, plan: Plan, answer: Callable[[Planned | ZchunkError], None]) -> None:
        self._bulk = bulk
        self._plan = plan
        self._answer = answer
        self._patience = PlanPatience()
        self._asking = self._waiting = False

    def start(self) -> None:
        self._asking = True
        self._bulk.control.request(self._plan, TRACKER_TIMEOUT_S, self._bulk.loop, self._answered)

    # -- Timed ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        return None if self._asking else self._patience.deadline()

    def on_time(self, now: float) -> None:
        if (deadline := self.deadline()) is not None and deadline <= now:
            self.start()

    # -- inside ---------------------------------------------------------------------

    def _answered(self, reply: Message | None, error: ZchunkError | None) -> None:
        self._asking = False
        planned = expect(Planned, reply, error)
        now = self._bulk.loop.clock.monotonic()
        if isinstance(planned, PeersUnsure) and self._patience.waits(planned, now):
            self._wait()
            return
        self._leave()
        self._answer(planned)

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._bulk.listen(self._on_peer, _nothing, _nothing)
            self._bulk.loop.add_timed(self)

    def _leave(self) -> None:
        if self._waiting:
            self._waiting = False
            self._bulk.unlisten(self._on_peer, _nothing, _nothing)
            self._bulk.loop.remove_timed(self)

    def _on_peer(self, record: PeerRecord) -> None:
        if not (record.unsure or self._asking):
            self.start()


def _nothing(peer_id: str, is_so: bool) -> None:
    """Reach and turns are of no concern here."""
