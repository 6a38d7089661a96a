"""What nodes ask before they delete: which chunks no file needs, which files were removed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import (
    MAX_FIND,
    CheckFiles,
    FilesFound,
    FilesUnknown,
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
            CheckFiles: (STORING, self._check_files),
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

    def _check_files(self, ask: Ask, now: Now) -> list[Action]:
        file_ids = _file_ids(ask)
        return ask.work(
            lambda store: store.unknown_files(file_ids),
            lambda unknown, _: ask.reply(FilesUnknown(file_ids=_packed(unknown))),
        )

    def _find_files(self, ask: Ask, now: Now) -> list[Action]:
        file_ids = _file_ids(ask)

        def run(store: TrackerStore) -> tuple[list[str], int]:
            return store.files_among(file_ids), store.commit_number

        def found(result: tuple[list[str], int], _: Now) -> list[Action]:
            files, number = result
            return ask.reply(
                FilesFound(store_id=self._mark.store_id, commit_number=number, file_ids=_packed(files))
            )

        return ask.work(run, found)


def _file_ids(ask: Ask) -> list[str]:
    return [file_id.hex() for file_id in split_hashes(ask.message.file_ids, MAX_FIND)]


def _packed(file_ids: list[str]) -> bytes:
    return b"".join(map(bytes.fromhex, file_ids))
