"""Plans of uploads, shown to people before anything is stored, and their carrying out.

Whoever uploads from a thread asks for a plan, which opens the file; the plan is run, or abandoned.
Callers: the client.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zchunk.content.manifest import chunk_count
from zchunk.errors import TooFewPeers
from zchunk.node.control.hello_wait import PlanPatience
from zchunk.node.jobs.blocking import OnEvent, run
from zchunk.node.manager import DistributedChunkManager, PutOptions, file_name
from zchunk.node.tracker_requests import TrackerRequests
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.upload_keys import Encryption, UploadKeys
from zchunk.protocol.messages import Abandon, Plan, Planned
from zchunk.runtime.blocking_calls import Calls

if TYPE_CHECKING:
    from zchunk.node.views import PeerShare


class PlannedUpload:
    """A plan to confirm: `run` carries it out, `abandon` drops it."""

    def __init__(
        self,
        plans: UploadPlans,
        source: SourceFile,
        name: str,
        plan: Plan,
        planned: Planned,
        options: PutOptions,
    ) -> None:
        self._plans = plans
        self._source = source
        self.name = name
        self.options = options
        self.plan = plan
        self.planned = planned

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def chunks_count(self) -> int:
        return chunk_count(self.size, self.plan.chunk_size)

    def shares(self) -> tuple[PeerShare, ...]:
        """Each peer's part."""
        from zchunk.node import views

        return views.peer_shares(self.plan, self.planned)

    def plan_event(self) -> dict[str, Any]:
        """The `plan` event of SPEC "Machine-readable output"."""
        from zchunk.node import views

        encrypted = self.options.encrypt is not None
        return views.plan_event(self.name, self.plan, self.planned, encrypted=encrypted)

    def run(self, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Uploads; returns the `done` event. Raises ZchunkError; Ctrl-C leaves it resumable."""
        try:
            return self._plans.carry_out(self, self._source, on_event)
        finally:
            self._source.close()

    def abandon(self) -> None:
        """Drops the plan: others may use the space that it reserved."""
        self._source.close()
        self._plans.requests.ask(Abandon(upload_id=self.plan.upload_id), 1.0)


class UploadPlans:
    def __init__(
        self,
        *,
        manager: DistributedChunkManager,
        requests: TrackerRequests,
        calls: Calls,
        keys: UploadKeys,
        own_peer: Callable[[], str | None],
    ) -> None:
        """`own_peer`: the peer id of the own node, if there is one; asks the tracker perhaps."""
        self.requests = requests
        self._manager = manager
        self._calls = calls
        self._keys = keys
        self._own_peer = own_peer

    def plan(
        self,
        path: Path,
        options: PutOptions,
        on_refused: Callable[[TooFewPeers], None],
        *,
        for_peers: bool = False,
    ) -> PlannedUpload:
        """What an upload would do; nothing is stored yet. `for_peers`: waits until there are enough.
        Raises NotFound, NotAllowed or InvalidUsage for the file, TooFewPeers, NoSpace."""
        patience = PlanPatience(for_peers=for_peers)
        return self.requests.patiently(lambda: self._plan_now(path, options), patience, on_refused)

    def _plan_now(self, path: Path, options: PutOptions) -> PlannedUpload:
        source = SourceFile(path)
        try:
            name = file_name(source.path, options)
            plan = self._manager.plan_request(source.size, options, self._own_peer())
            return PlannedUpload(self, source, name, plan, self.requests.expect(plan, Planned), options)
        except BaseException:
            source.close()
            raise

    def carry_out(
        self, planned: PlannedUpload, source: SourceFile, on_event: OnEvent | None
    ) -> dict[str, Any]:
        """See `PlannedUpload.run`."""
        encryption = self._encryption(source.path, planned.options)
        loop = self._manager.bulk.loop
        with self._calls.call(job=True) as call:
            upload = self._manager.distribute_chunks(
                source=source,
                name=planned.name,
                plan=planned.plan,
                planned=planned.planned,
                emit=call.emit,
                encryption=encryption,
            )
            done = run(call, loop, upload.start, upload.stop, on_event)
        if encryption is not None:
            self._keys.forget(source.path)
        return done

    def _encryption(self, source: Path, options: PutOptions) -> Encryption | None:
        if options.encrypt is None:
            return None
        return self._keys.begin(source, options.encrypt, hide_name=options.hide_name)
