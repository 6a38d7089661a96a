"""Files that are stored: where their chunks are, the listing, removal. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zchunk.clock import Now
from zchunk.protocol.messages import FileRecord, Files, ListFiles, Locate, Located, Remove, Removed
from zchunk.tracker.actions import Action, Ask
from zchunk.tracker.records import removed_fields
from zchunk.tracker.requests.handlers import READING, WRITING, Handlers
from zchunk.tracker.rules.health import FileHealth
from zchunk.tracker.state.event_log import EventLog
from zchunk.tracker.state.peers import Peers
from zchunk.tracker.state.store_mark import StoreMark

if TYPE_CHECKING:
    from zchunk.tracker.store.store import LocatedRows, TrackerStore


class FileRequests:
    def __init__(self, peers: Peers, events: EventLog, health: FileHealth, mark: StoreMark) -> None:
        self._peers = peers
        self._events = events
        self._health = health
        self._mark = mark

    def handlers(self) -> Handlers:
        return {
            Locate: (READING, self._locate),
            ListFiles: (READING, self._list_files),
            Remove: (WRITING, self._remove),
        }

    def _locate(self, ask: Ask, now: Now) -> list[Action]:
        locate: Locate = ask.message

        def run(store: TrackerStore) -> LocatedRows:
            return store.locate(store.resolve(locate.name_or_id, locate.unique).file_id)

        def located(rows: LocatedRows, _: Now) -> list[Action]:
            return ask.reply(
                Located(
                    file=rows.file,
                    peers=self._peers.named(rows.peer_ids),
                    manifest=rows.manifest,
                    holder_counts=rows.holder_counts,
                    holder_peers=rows.holder_peers,
                    holder_times=rows.holder_times,
                )
            )

        return ask.work(run, located, reads=True)

    def _list_files(self, ask: Ask, now: Now) -> list[Action]:
        def listed(page: tuple[list[FileRecord], str], _: Now) -> list[Action]:
            return ask.reply(Files(files=tuple(page[0]), next_page=page[1]))

        return ask.work(lambda store: store.list_files(ask.message.page), listed, reads=True)

    def _remove(self, ask: Ask, now: Now) -> list[Action]:
        file_id: str = ask.message.file_id

        def run(store: TrackerStore) -> tuple[int, bool]:
            before = store.commit_number
            number = store.remove_file(file_id, store.now_ms())
            return number, number > before

        def removed(result: tuple[int, bool], now: Now) -> list[Action]:
            commit_number, fresh = result
            self._mark.commit_number = max(self._mark.commit_number, commit_number)
            actions = ask.reply(Removed(file_id=file_id, commit_number=commit_number))
            if fresh:
                self._health.removed(file_id)
                fields = removed_fields(file_id, commit_number)
                actions.append(self._events.publish("file.removed", fields, now))
            return actions

        return ask.work(run, removed)
