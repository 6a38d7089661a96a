"""The manifests that a node keeps beside its chunks, and the cluster whose removals it obeys.

May not happen here: a manifest taken from who sent no chunk of its file; one deleted because
another cluster's tracker, or an older state of its own, does not know it.
"""

from __future__ import annotations

from collections.abc import Iterable

from zchunk.content import manifest
from zchunk.content.manifest import Manifest
from zchunk.errors import ForeignStore, NoSpace, NotAllowed
from zchunk.node.store.chunk_index import RECOVERED
from zchunk.node.store.open_store import OpenStore
from zchunk.node.store.storing import Storing

#: Uploads of which it is known which manifest they brought.
_REMEMBERED = 10_000


class KeptManifests:
    def __init__(self, opened: OpenStore, storing: Storing) -> None:
        self._open = opened
        self._storing = storing
        #: upload id -> the file whose manifest it brought, of the latest uploads
        self._brought: dict[str, str] = {}

    def put(self, file_id: str, data: bytes, upload_id: str) -> None:
        """Keeps a file's manifest: durable on return, and its chunks are referenced. One for each
        upload that has a chunk of the file leased here. Until it is known to be a file's it has
        that upload's lease, 24 h from now.

        Raises ManifestInvalid, NotAllowed (no such upload, or it brought another one; neither
        is retryable), NoSpace, StoreOffline (retryable), StorageFailure (the store is then
        flagged).
        """
        self._open.check_writable()
        parsed = manifest.parse(data, file_id)
        if self._open.manifests.has_whole(file_id):
            with self._open.index_lock:
                self._open.manifests.renew(file_id)
            return
        with self._open.index_lock:
            self._admit(file_id, parsed, upload_id)
        taken = manifest.kept_bytes(len(data))
        if not self._storing.reserve_space(taken):
            raise NoSpace(f"this node has no space for a manifest of {len(data)} bytes")
        try:
            self._keep(file_id, data, parsed)
        finally:
            self._storing.unreserve(taken)

    def _admit(self, file_id: str, parsed: Manifest, upload_id: str) -> None:
        """Else who may upload could fill the disk with manifests of files that nobody puts."""
        named = {row.sha256 for row in parsed.chunks}
        lost = self._open.index.leased_by(
            RECOVERED, self._open.clock.wall()
        )  # perhaps with the one of this upload
        leased = self._open.index.leased_by(upload_id) + lost
        if named and named.isdisjoint(leased):
            raise NotAllowed(
                "this upload has sent no chunk of that file to this node: offer its chunks first"
            )
        if self._brought.setdefault(upload_id, file_id) != file_id:
            raise NotAllowed("this upload has already sent the manifest of another file to this node")
        while len(self._brought) > _REMEMBERED:
            del self._brought[next(iter(self._brought))]

    def _keep(self, file_id: str, data: bytes, parsed: Manifest) -> None:
        with self._open.flagging():
            self._open.manifests.write(file_id, data)
        with self._open.index_lock:
            self._open.folder.check_online()
            self._open.manifests.add(file_id, parsed)

    def know(self, file_ids: Iterable[str]) -> None:
        """They are those of files: from now on they go only when these are removed."""
        with self._open.index_lock:
            self._open.folder.check_online()
            self._open.manifests.know(file_ids)

    def drop(self, file_ids: Iterable[str], store_id: str, commit_number: int) -> list[str]:
        """To the trash, durably, with those of `file_ids`, no files in that state of the tracker's
        store, that are not known to be and whose lease has ended; which these were.

        Raises ForeignStore as `seen_store`: nothing is moved then."""
        with self._open.index_lock:
            self.seen_store(store_id, commit_number)
            now_wall, claimed = self._open.clock.wall(), self._open.manifests.claimed()
            ended = [file_id for file_id in file_ids if claimed.get(file_id, now_wall + 1) <= now_wall]
            for file_id in ended:
                self._open.manifests.forget(file_id, store_id, now_wall)
            return ended

    def forget(self, file_id: str) -> None:
        """The file was removed: its manifest goes to the trash and names no chunk any more.
        Durable on return; one that is not kept is no error."""
        with self._open.index_lock:
            self._open.folder.check_online()
            if self._open.manifests.has(file_id):
                self._open.manifests.forget(
                    file_id, self._open.cluster.store_id or "local", self._open.clock.wall()
                )

    def seen_store(self, store_id: str, commit_number: int) -> None:
        """Remembers, durably on return, the cluster's store and its highest commit number.

        Raises ForeignStore for another store than the first one, for an older state of
        it (a backup put back), and where `cluster.json` is lost, so that neither can be told:
        their deletions must not be obeyed. Nothing changes then.
        """
        with self._open.index_lock:
            self._open.folder.check_online()
            if self._has_lost_its_cluster():
                raise ForeignStore(
                    f"{self._open.folder.cluster} is missing: this node cannot tell whether the tracker's"
                    " database is an older copy. It deletes nothing unless the tracker knows the files of"
                    " all its chunks"
                )
            self._open.cluster.remember(store_id, commit_number)

    def adopt_store(self, store_id: str, commit_number: int) -> bool:
        """As `seen_store` where `cluster.json` is lost, and that store knows all files that are kept
        here. Whether that was so; else nothing changes."""
        with self._open.index_lock:
            self._open.folder.check_online()
            if not self._has_lost_its_cluster():
                return False
            self._open.cluster.remember(store_id, commit_number)
            return True

    def _has_lost_its_cluster(self) -> bool:
        """Manifests come only after a tracker was met."""
        return self._open.cluster.store_id is None and bool(self._open.manifests.ids())

    def upload_ended(self, upload_id: str) -> None:
        """It brings no manifest any more."""
        self._brought.pop(upload_id, None)
