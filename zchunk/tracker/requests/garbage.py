"""What nodes ask before they delete: which chunks no file needs, which files were removed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import (
    MAX_FIND,
    FilesFound,
    FindFiles,
    GetRemovals,
    Release,
    Released,
    Removals,
)
from zchunk.tracker.actions import Action, Ask
from zchunk.tracker.requests.handlers import STORING, Handlers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.store import TrackerStore


class GarbageRequests:
    def __init__(self, mark: StoreMark) -> None:
        self._mark = mark

    def handlers(self) -> Handlers:
        return {
            Release: (STORING, self._release),
            GetRemovals: (STORING, self._removals),
            FindFiles: (STORING, self._find_files),
        }

    def _release(self, ask: Ask, now: Now) -> list[Action]:
        hashes = split_hashes(ask.message.hashes)

        def run(store: TrackerStore) -> tuple[list[bytes], int]:
            return store.release(ask.peer_id, hashes), store.commit_number

        def released(result: tuple[list[bytes], int], _: Now) -> list[Action]:
            free, number = result
            return ask.reply(
                Released(store_id=self._mark.store_id, commit_number=number, hashes=b"".join(free))
            )

        return ask.work(run, released)

    def _removals(self, ask: Ask, now: Now) -> list[Action]:
        def found(result: tuple[list[str], int, bool], _: Now) -> list[Action]:
            file_ids, up_to, more = result
            return ask.reply(
                Removals(
                    store_id=self._mark.store_id, commit_number=up_to, file_ids=tuple(file_ids), more=more
                )
            )

        return ask.work(lambda store: store.removals(ask.message.since), found)

    def _find_files(self, ask: Ask, now: Now) -> list[Action]:
        file_ids = [file_id.hex() for file_id in split_hashes(ask.message.file_ids, MAX_FIND)]

        def run(store: TrackerStore) -> FilesFound:
            files, removed = store.files_among(file_ids)
            return FilesFound(
                store_id=self._mark.store_id,
                commit_number=store.commit_number,
                file_ids=_packed(files),
                removed=_packed(removed),
            )

        return ask.work(run, lambda found, _: ask.reply(found))


def _packed(file_ids: list[str]) -> bytes:
    return b"".join(map(bytes.fromhex, file_ids))
