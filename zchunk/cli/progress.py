"""A job's progress on the terminal: what its events have said, a bar for the whole and one
for each peer, or a line now and then where nothing may move.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import click

from zchunk.cli.output import unharmed
from zchunk.cli.render import (
    console_of,
    count_text,
    duration_text,
    moves,
    size_text,
    waiting_text,
    why_missing_short,
)
from zchunk.cli.text import shortened, visible

#: Rows of peers under the bar; the rest of a large cluster is summed up in one.
MAX_ROWS = 12


@dataclass
class PeerView:
    """One peer's part of a download."""

    name: str
    #: chunks that it holds and that are not here yet
    chunks: int
    completed: int = 0
    in_progress: int = 0
    #: why it is waited for; empty while it is not
    missing: str = ""
    waiting: int = 0

    @property
    def chunks_text(self) -> str:
        return f"{self.completed:,} of {count_text(self.chunks, 'chunk')}"

    @property
    def state_text(self) -> str:
        if self.missing:
            return f"{self.waiting:,} waiting: {self.missing}"
        return f"{self.in_progress} in progress" if self.in_progress else ""


@dataclass
class JobView:
    """What a job's events have said so far; pure."""

    #: bytes of payload that the whole job moves
    total_bytes: int
    chunks_count: int
    chunks_completed: int = 0
    kept: int = 0
    bytes_moved: int = 0
    bytes_per_second: float = 0.0
    waiting: str | None = None
    paused: bool = False
    #: a download's sources, peer id -> what comes from it
    peers: dict[str, PeerView] = field(default_factory=dict)
    #: False until the job's plan is known
    begun: bool = True
    #: what it does until then
    preparing: str = "starting"
    done: bool = False

    def take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "preparing":
            share = event["bytes_checked"] / max(1, event["size"])
            self.preparing = f"checking existing data: {share:.0%}"
        elif kind == "plan":
            self.begun = True
            self.kept = event.get("chunks_kept", 0) + event.get("chunks_of_zeros", 0)
            self.chunks_completed = self.kept
            self.chunks_count = event["chunks_count"]
            self._take_peers(event.get("peers", []))
        elif kind == "progress":
            if event["chunks_completed"] > self.chunks_completed:
                self.waiting = None
            self.chunks_completed = event["chunks_completed"]
            self.bytes_moved = event["bytes"]
            self.bytes_per_second = event["bytes_per_second"]
            self._take_progress(event.get("peers", {}))
        elif kind == "waiting":
            self.waiting = waiting_text(event)
            self._take_missing(event.get("missing", []))
            # Newer than the last progress: only what comes after it ends the waiting.
            self.chunks_completed = self.chunks_count - event["chunks_missing"]
        elif kind == "resumed":
            self.waiting = None
            self._is_back(event["peer_id"])
        elif kind in ("paused", "continued"):
            self.paused = kind == "paused"
            self.waiting = None

    def _take_peers(self, rows: list[dict[str, Any]]) -> None:
        by_name = sorted(rows, key=lambda row: (row["name"], row["peer_id"]))
        self.peers = {r["peer_id"]: PeerView(shortened(r["name"], 24), r["chunks_wanted"]) for r in by_name}
        for row in by_name:
            peer = self.peers[row["peer_id"]]
            if row["status"] != "up" and peer.chunks:
                peer.missing, peer.waiting = "off", peer.chunks

    def _take_progress(self, counts: dict[str, dict[str, int]]) -> None:
        for peer_id, peer in self.peers.items():
            count = counts.get(peer_id, {"completed": peer.completed, "in_progress": 0})
            if count["completed"] > peer.completed:
                peer.missing, peer.waiting = "", 0
            peer.completed, peer.in_progress = count["completed"], count["in_progress"]

    def _take_missing(self, rows: list[dict[str, Any]]) -> None:
        for peer in self.peers.values():
            peer.missing, peer.waiting, peer.in_progress = "", 0, 0
        for row in rows:
            missed = self.peers.get(row["peer_id"])
            if missed is not None:
                missed.missing, missed.waiting = why_missing_short(row), row["chunks"]

    def _is_back(self, peer_id: str) -> None:
        if (peer := self.peers.get(peer_id)) is not None:
            peer.missing, peer.waiting = "", 0

    @property
    def fraction(self) -> float:
        """From 0 to 1; whole only when every chunk is."""
        if not self.begun:
            return 0.0
        if self.chunks_completed >= self.chunks_count:
            return 1.0
        by_chunks = self.chunks_completed / self.chunks_count
        kept = self.kept / self.chunks_count
        by_bytes = kept + self.bytes_moved / max(1, self.total_bytes)
        return min(0.99, max(by_chunks, by_bytes))

    @property
    def state_text(self) -> str:
        """Time left, or that it waits, or what is still done."""
        if not self.begun:
            return self.preparing
        if self.done:
            return "done"
        if self.paused:
            return "paused"
        if self.waiting is not None:
            return "waiting"
        if self.chunks_completed >= self.chunks_count:
            return "finishing"
        if self.bytes_per_second <= 0:
            return ""
        return f"{duration_text((1 - self.fraction) * self.total_bytes / self.bytes_per_second)} left"

    @property
    def speed_text(self) -> str:
        if self.waiting is not None or self.paused or not self.begun:
            return ""
        return f"{size_text(self.bytes_per_second)}/s"

    @property
    def chunks_text(self) -> str:
        if not self.begun:
            return ""
        return f"{self.chunks_completed:,} of {count_text(self.chunks_count, 'chunk')}"

    def line(self) -> str:
        parts = (self.chunks_text, self.speed_text, self.state_text)
        return f"{self.fraction:4.0%}  {', '.join(part for part in parts if part)}"


class ProgressLine:
    """A job's progress on stderr: a bar that moves on a terminal, else a line now and then.

    Use as a context manager; `show` after each event, `note` for what is worth a line.
    """

    _EVERY_S = 5.0

    def __init__(self, job: JobView, what: str) -> None:
        """`what`: the verb in front of it, "get" or "put"."""
        self._job = job
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        #: peer id -> its row under the bar
        self._rows: dict[str, Any] = {}
        self._line_at = 0.0
        self._last_note = ""

    def __enter__(self) -> ProgressLine:
        with unharmed("a progress bar"):
            if moves(sys.stderr):
                self._start_bar()
        return self

    def __exit__(self, *_: object) -> None:
        with unharmed("a progress bar"):
            if self._bar is not None:
                self._update()
                self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays; the same one twice is said once."""
        if text == self._last_note:
            return
        self._last_note = text
        if self._bar is not None:
            self._bar.console.print(visible(text), soft_wrap=False)
        else:
            click.echo(visible(text), err=True)

    def show(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if self._bar is not None:
            self._update()
        elif now >= self._line_at and self._job.waiting is None and not self._job.paused:
            self._line_at = now + self._EVERY_S
            click.echo(f"{self._what} {self._job.line()}", err=True)

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._job.fraction, **self._columns())
        for peer_id, peer in list(self._job.peers.items())[:MAX_ROWS]:
            columns = {"chunks": peer.chunks_text, "speed": "", "state": peer.state_text}
            if peer_id not in self._rows:
                self._rows[peer_id] = self._bar.add_task(f"  {peer.name}", total=peer.chunks, **columns)
            self._bar.update(self._rows[peer_id], completed=peer.completed, **columns)
        self._bar.refresh()

    def _columns(self) -> dict[str, str]:
        job = self._job
        return {"chunks": job.chunks_text, "speed": job.speed_text, "state": job.state_text}

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = ("{task.fields[chunks]}", "{task.fields[speed]}", "{task.fields[state]}")
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            *[TextColumn(column, markup=False) for column in columns],
            console=console_of(sys.stderr),
            auto_refresh=False,
            expand=True,
        )
        bar.start()
        self._bar = bar
        self._task = self._bar.add_task(self._what, total=1.0, **self._columns())
