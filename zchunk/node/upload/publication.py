"""What follows when every chunk has its copies: the manifest to its holders, then the commit.

Called by `runner.py`, in the bulk loop. What may not happen here: a commit before the manifest is
durable at every holder and, where its disk takes it, in the uploader's home.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zchunk.content.manifest import Manifest
from zchunk.errors import ManifestInvalid, NotYetStored, PeerUnreachable, TooFewPeers, ZchunkError
from zchunk.node.bulk.job_driver import JobDriver
from zchunk.node.bulk.location import check_answered
from zchunk.node.bulk.plane import TRACKER_TIMEOUT_S
from zchunk.node.control.plane import checked, expect
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.source_pass import SourcePass
from zchunk.protocol.messages import Commit, Committed, Conclude, Message, Ok, Plan, Planned, PutManifest
from zchunk.system import disk

_MANIFEST_TRIES = 3
_CONCLUDE_S = 2.0
#: A refused commit is mended so often, each time after a pause: mostly a peer went, and the
#: event that says so to the job is on its way.
_MENDS = 3
_MEND_PAUSE_S = 1.0


class Publication:
    def __init__(
        self,
        *,
        driver: JobDriver[Any],
        job: UploadJob,
        source_pass: SourcePass,
        name: str,
        path: Path,
        plan: Plan,
        planned: Planned,
        keep_at: Path,
        on_refused: Callable[[str, str], None],
        on_done: Callable[[Committed], None],
    ) -> None:
        """`path` is the source's; `keep_at` the folder where the uploader keeps the manifests of
        its files (SPEC U4). `on_refused(peer_id, why)`: it does not keep the manifest."""
        self._driver = driver
        self._bulk = driver.bulk
        self._job = job
        self._pass = source_pass
        self._name = name
        self._path = path
        self._plan = plan
        self._planned = planned
        self._keep_at = keep_at
        self._on_refused = on_refused
        self._on_done = on_done
        self._all_stored = False
        self._manifest: Manifest | None = None
        self._keeping = False
        #: raised when a peer goes after everything was stored: older answers do not count
        self._round = 0
        #: refusals of the commit so far; when the last one is to be mended, and what it was
        self._mends = 0
        self._mend_at: float | None = None
        self._refusal: ZchunkError | None = None

    def stored_all(self) -> None:
        """Every chunk has its copies."""
        self._all_stored = True
        self.go_on_if_ready()

    def reopened(self) -> None:
        """Some copies are to be made again."""
        self._all_stored = False
        self._round += 1
        self._mend_at = None

    def deadline(self) -> float | None:
        return self._mend_at

    def go_on_if_ready(self) -> None:
        """All is stored, or all of the file was read: with both it begins."""
        if not (self._all_stored and self._pass.is_over) or self._driver.ended:
            return
        if self._keeping:
            return
        if self._manifest is None:
            self._keeping = True
            self._driver.submit(self._bulk.pools.writing, self._made_manifest, self._kept)
        else:
            self._put_manifests()

    def _made_manifest(self) -> Manifest:
        """Raises FileChanged."""
        manifest = self._pass.manifest(self._name)
        try:
            self._keep(manifest)
        except ZchunkError as error:
            # The nodes keep it too, and the same put finds the same file.
            text = "the manifest of %s could not be kept here: %s"
            self._driver.log.warning(text, self._path, error.message)
        return manifest

    def _keep(self, manifest: Manifest) -> None:
        """Durable before the commit."""
        path = self._keep_at / manifest.file_id
        with disk.storage_errors(path, "writing"):
            disk.private_folder(self._keep_at)
        disk.write_durable(path, manifest.canonical)

    def _kept(self, manifest: Manifest) -> None:
        self._manifest, self._keeping = manifest, False
        self.go_on_if_ready()  # a peer may have gone meanwhile

    def _put_manifests(self) -> None:
        holders = self._job.all_holders() or [record.peer_id for record in self._planned.peers]
        waiting = set(holders)
        until = self._driver.now() + self._bulk.settings.transfer.request_timeout_s

        def stored(peer_id: str) -> None:
            waiting.discard(peer_id)
            if not waiting and self._all_stored:
                self._commit()

        for peer_id in holders:
            self._put_manifest(peer_id, stored, _MANIFEST_TRIES, until)

    def _put_manifest(self, peer_id: str, stored: Callable[[str], None], tries: int, until: float) -> None:
        """A peer that has not taken it by then is given up, as one that takes no chunk."""
        assert self._manifest is not None
        message = PutManifest(
            upload_id=self._plan.upload_id,
            file_id=self._manifest.file_id,
            manifest=self._manifest.canonical,
        )
        this_round = self._round

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self._driver.ended or this_round != self._round:
                return  # a peer went: the job starts over with what is left
            problem = expect(Ok, reply, error)
            again = isinstance(problem, (PeerUnreachable, ManifestInvalid)) and self._driver.now() < until
            if isinstance(problem, Ok):
                stored(peer_id)
            elif again and tries > 1:
                self._put_manifest(peer_id, stored, tries - 1, until)
            elif isinstance(problem, ManifestInvalid) or not self._pass.chunks_count:
                self._driver.fail(problem)  # every peer would say so; an empty file can go nowhere else
            else:
                self._manifest_refused(peer_id, problem)

        self._bulk.links.request(peer_id, message, self._bulk.settings.transfer.request_timeout_s, answer)

    def _manifest_refused(self, peer_id: str, problem: ZchunkError) -> None:
        """What it holds does not count: that goes elsewhere, or waits for it by name."""
        name = self._driver.peer_name(peer_id)
        self._driver.log.info("%s does not keep the manifest: %s", name, problem.message)
        self._on_refused(peer_id, f"it does not keep the file's manifest: {problem.message}")
        self._driver.perform(self._job.given_up(peer_id, self._driver.now()))

    def _commit(self, tries: int = _MANIFEST_TRIES) -> None:
        assert self._manifest is not None
        plan = self._plan
        commit = Commit(
            upload_id=plan.upload_id,
            replicas=plan.replicas,
            min_peers=plan.min_peers,
            distribute=plan.distribute,
            file_id=self._manifest.file_id,
            manifest=self._manifest.canonical,
        )
        this_round = self._round

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self._driver.ended or (this_round != self._round and not isinstance(reply, Committed)):
                return  # refused for what the job is mending already
            try:
                committed = checked(expect(Committed, reply, error))
                check_answered(commit.file_id, committed.file)
            except ZchunkError as problem:
                self._not_committed(problem, tries)
            else:
                self._conclude(committed)

        self._bulk.control.request(commit, TRACKER_TIMEOUT_S, self._bulk.loop, answer)

    def _not_committed(self, problem: ZchunkError, tries: int) -> None:
        if isinstance(problem, ManifestInvalid) and tries > 1:
            self._commit(tries - 1)  # damaged on its way
        elif isinstance(problem, (NotYetStored, TooFewPeers)) and self._mends < _MENDS:
            self._mends += 1
            self._refusal, self._mend_at = problem, self._driver.now() + _MEND_PAUSE_S
        else:
            self._driver.fail(problem)

    def on_time(self, now: float) -> None:
        if self._mend_at is not None and self._mend_at <= now:
            self._mend(now)

    def _mend(self, now: float) -> None:
        """No peer went, and yet the tracker misses copies: a node lost them, or its report
        was lost. Only the chunks that it names, where it names them all."""
        assert self._refusal is not None
        self._driver.log.info("the commit was refused: %s", self._refusal.message)
        self._mend_at = None
        named = self._refusal.details.get("first_missing")
        listed = named if isinstance(named, (list, tuple)) else ()
        known = [index for index in listed if type(index) is int and 0 <= index < self._pass.chunks_count]
        all_named = known and len(known) == self._refusal.details.get("chunks_missing")
        self._driver.perform(self._job.doubted(known if all_named else None, now))

    def _conclude(self, committed: Committed) -> None:
        """End the leases, so that a removal frees the space at once. A node that does not
        hear it lets them run out."""
        waiting = set(self._job.all_holders())
        if not waiting:
            self._on_done(committed)

        def answer(peer_id: str) -> None:
            waiting.discard(peer_id)
            if not waiting and not self._driver.ended:
                self._on_done(committed)

        for peer_id in sorted(waiting):
            self._bulk.links.request(
                peer_id,
                Conclude(upload_id=self._plan.upload_id),
                _CONCLUDE_S,
                lambda reply, error, peer_id=peer_id: answer(peer_id),  # type: ignore[misc]
            )
