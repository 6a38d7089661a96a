"""Everything that is drawn: listings, the plan dialog, sentences about events.

Talk goes to stderr, tables that were asked for to stdout. Nothing moves without a
terminal; rich keeps to NO_COLOR by itself. Names come from others: each goes through
`visible` (text.py) before it is shown (SPEC S4).
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

import click

from zchunk.cli.table import print_table
from zchunk.cli.text import shortened, visible

if TYPE_CHECKING:
    from rich.console import Console

    from zchunk.node.jobs.records import JobStatus
    from zchunk.node.views import PeerShare
    from zchunk.protocol.messages import FileRecord, PeerRecord
    from zchunk.tracker.members.member_list import Member

#: Digits of a file id that a listing shows: enough to tell files apart, and to ask by.
SHORT_ID = 12
#: Of a job id: there are far fewer of them in a home.
SHORT_JOB_ID = 8


# -- numbers and times ----------------------------------------------------------------


def size_text(size: float) -> str:
    """`31.5 MB` (10^6), as SPEC has GB = 10^9; three digits are enough to read."""
    units = ("B", "kB", "MB", "GB", "TB")
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    places = 0 if value >= 99.95 or unit == 0 else 1 if value >= 9.995 else 2
    text = f"{value:.{places}f}"
    return f"{text.rstrip('0').rstrip('.') if places else text} {units[unit]}"


def binary_text(size: int) -> str:
    """For settings, which are round in binary units: `10 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size:,} bytes"


def count_text(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def duration_text(seconds: float) -> str:
    """`8 s`, `3:05`, `2:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def local_time(iso: str | None, *, seconds: bool = False) -> str:
    """An event's UTC time as the clock on the wall has it; with the date unless it is today."""
    if iso is None:
        return "never"
    moment = datetime.fromisoformat(iso).astimezone()
    today = datetime.now(timezone.utc).astimezone().date()
    clock = "%H:%M:%S" if seconds else "%H:%M"
    return moment.strftime(clock if moment.date() == today else f"%Y-%m-%d {clock}")


# -- the terminal ---------------------------------------------------------------------


def moves(stream: TextIO) -> bool:
    """Whether something may be redrawn there."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def console_of(stream: TextIO) -> Console:
    from rich.console import Console

    # Into a pipe a line is a line, however long.
    width = None if stream.isatty() else 10_000
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)


# -- listings -------------------------------------------------------------------------


def file_table(records: Iterable[FileRecord]) -> int:
    """As `print_table`."""
    return print_table(
        ("NAME", "SIZE", "CHUNKS", "COPIES", "CREATED", "ID"),
        (
            (
                r.name,
                size_text(r.size),
                f"{r.chunks_count:,}",
                str(r.replicas),
                _date_text(r.created_at_ms),
                r.file_id[:SHORT_ID],
            )
            for r in records
        ),
        right=(1, 2, 3),
    )


#: What a listing of peers needs to stand in one line each.
_WIDE = 110


def peer_table(records: Sequence[PeerRecord]) -> None:
    """In a narrow terminal without addresses and ids: `--json` has everything."""
    headings = ["NAME", "STATUS", "FREE", "CAPACITY", "CHUNKS", "LAST SEEN", "ADDRESS", "ID"]
    rows = [
        [
            r.name,
            status_text(r),
            size_text(r.free),
            size_text(r.capacity),
            f"{r.chunks:,}",
            _date_text(r.last_seen_ms),
            r.endpoints[0].removeprefix("tcp://") if r.endpoints else "-",
            r.peer_id[:SHORT_ID],
        ]
        for r in records
    ]
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE
    shown = len(headings) - 2 if narrow else len(headings)
    print_table(headings[:shown], [row[:shown] for row in rows], right=(2, 3, 4))


def status_text(record: PeerRecord) -> str:
    """`not known yet` of a peer that a tracker, just started, has not heard from."""
    return "not known yet" if record.unsure else record.status


def member_table(members: Sequence[Member]) -> None:
    print_table(
        ("NAME", "ROLE", "STATE", "JOINED", "ID"),
        [
            (
                m.name,
                m.role,
                "revoked" if m.revoked else "member",
                _date_text(m.added_ms),
                m.peer_id[:SHORT_ID],
            )
            for m in members
        ],
    )


def token_table(tokens: Sequence[Mapping[str, Any]]) -> None:
    """Of what `zchunk tokens --json` lists."""
    print_table(
        ("ID", "ROLE", "STATE", "VALID FOR", "EXPIRES", "USED BY"),
        [
            (
                t["token_id"][:SHORT_ID],
                t["role"],
                t["state"],
                "one member" if t["once"] else "any number",
                t["expires"],
                ", ".join(user["name"] or user["peer_id"][:SHORT_ID] for user in t["used_by"]) or "-",
            )
            for t in tokens
        ],
    )


def job_table(jobs: Sequence[JobStatus]) -> None:
    """A line for each job, and below the table why those that stand do so."""
    print_table(
        ("TARGET", "STATE", "CHUNKS", "JOB"),
        [
            (
                _target_text(j),
                j.state,
                f"{j.chunks_completed:,} of {j.chunks_count:,}",
                j.job_id[:SHORT_JOB_ID],
            )
            for j in jobs
        ],
        right=(2,),
    )
    notes = [f"{j.job_id[:SHORT_JOB_ID]}  {note}" for j in jobs if (note := job_note(j))]
    if notes:
        click.echo()
    for note in notes:
        _paragraph(note, sys.stdout)


def _target_text(job: JobStatus) -> str:
    """Where to, and which file it is where the target does not say so."""
    target = shown_path(job.target)
    return target if os.path.basename(target) == job.name else f"{target} ({shortened(job.name)})"


def job_note(job: JobStatus) -> str:
    """Why it stands, and what goes on; empty where its state says all."""
    if job.state == "waiting":
        names = ", ".join(job.missing_names) or "a peer"
        how = "continues by itself" if job.auto_resume else "auto-resume is off: `zchunk resume` continues"
        return f"waiting for {names} since {local_time(job.waiting_since)}; {how}"
    if job.active and job.state == "paused":
        return "`zchunk resume` continues"
    if job.active or job.state in ("complete", "cancelled"):
        return job.reason or ""
    return job.reason or "interrupted: `zchunk resume` continues"


def shown_path(path: str) -> str:
    """As short as it can be said here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def _date_text(milliseconds: int) -> str:
    if not milliseconds:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


def facts(rows: Sequence[tuple[str, str]], *, err: bool = False) -> None:
    """`Key  value` lines, the values in one column; a long one is broken between words."""
    indent = max(len(key) for key, _ in rows) + 2
    stream = sys.stderr if err else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else 10_000
    for key, value in rows:
        lines = textwrap.wrap(visible(value), max(20, width - indent)) or [""]
        click.echo(f"{key:<{indent}}{lines[0]}", err=err)
        for line in lines[1:]:
            click.echo(" " * indent + line, err=err)


# -- the upload dialog ----------------------------------------------------------------


@dataclass(frozen=True)
class PlanView:
    """What the upload dialog shows (SPEC "The upload dialog")."""

    name: str
    size: int
    chunk_size: int
    chunks_count: int
    threshold: int
    distributed: bool
    strategy: str
    replicas: int
    online: tuple[str, ...]
    shares: tuple[PeerShare, ...]
    #: by what it is encrypted, and what others see; empty where it is not
    encryption: str = ""


def plan_dialog(plan: PlanView) -> None:
    """On stderr: the file, the peers, what each takes, and what follows from it."""
    facts(
        [
            ("File", f"{plan.name}  ({size_text(plan.size)}, {count_text(plan.size, 'byte')})"),
            ("Kind", _kind_text(plan)),
            *([("Encrypted", plan.encryption)] if plan.encryption else []),
            ("Online", f"{count_text(len(plan.online), 'peer')}: {', '.join(plan.online)}"),
        ],
        err=True,
    )
    click.echo(err=True)
    _share_table(plan)
    click.echo(err=True)
    for line in consequence_lines(plan):
        _paragraph(line)
    click.echo(err=True)


def _paragraph(text: str, stream: TextIO | None = None) -> None:
    """On stderr by default, broken between words where a terminal would break anywhere."""
    stream = stream or sys.stderr
    width = shutil.get_terminal_size().columns if stream.isatty() else 10_000
    for line in textwrap.wrap(visible(text), max(20, width)):
        click.echo(line, file=stream)


def _kind_text(plan: PlanView) -> str:
    chunks = f"{count_text(plan.chunks_count, 'chunk')} of {binary_text(plan.chunk_size)}"
    copies = "1 copy" if plan.replicas == 1 else f"{plan.replicas} copies"
    if plan.distributed:
        return (
            f"needs distribution ({binary_text(plan.threshold)} or more): {chunks},"
            f" {copies} of each, strategy {plan.strategy}"
        )
    where = "one peer" if plan.replicas == 1 else f"each of {plan.replicas} peers"
    return f"no distribution (under {binary_text(plan.threshold)}): stored whole on {where}"


def _share_table(plan: PlanView) -> None:
    headings = ["PEER", "CHUNKS", "SIZE", "IF ONLY THIS PEER IS OFF"]
    rows = [[s.name, s.chunks_text, size_text(s.bytes), _lost_text(s, plan)] for s in plan.shares]
    if plan.replicas > 1:
        headings.insert(2, "COPIES")
        for row, share in zip(rows, plan.shares, strict=True):
            row.insert(2, str(share.copies))
    right = [headings.index("SIZE")] + ([2] if plan.replicas > 1 else [])
    print_table(headings, rows, right=right, err=True)


def _lost_text(share: PeerShare, plan: PlanView) -> str:
    if not share.chunks_lost:
        return "everything stays readable"
    return f"{share.chunks_lost:,} of {count_text(plan.chunks_count, 'chunk')} cannot be read"


def consequence_lines(plan: PlanView) -> list[str]:
    """What stays readable with any one peer off, and what does not (SPEC U9)."""
    lost = [share.chunks_lost for share in plan.shares]
    names = " and ".join(share.name for share in plan.shares)
    if not plan.chunks_count:
        return ["The file is empty: it has no chunks to spread."]
    if not any(lost):
        return ["With any one of these peers off, the whole file stays readable."]
    if len(plan.shares) == 1:
        return [f"While {names} is off, no part of the file is readable."]
    least, most = plan.chunks_count - max(lost), plan.chunks_count - min(lost)
    stay = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return [
        f"While any one of these peers is off, {stay} of {count_text(plan.chunks_count, 'chunk')} stay"
        " readable, but not the whole file.",
        "`--replicas 2` would keep the whole file readable.",
    ]


# -- waiting --------------------------------------------------------------------------


def waiting_text(event: dict[str, Any]) -> str:
    """`9 chunks wait for LAB-PC3, last seen 14:02` (SPEC D4)."""
    chunks = event["chunks_missing"]
    wait = f"{count_text(chunks, 'chunk')} {'waits' if chunks == 1 else 'wait'}"
    rows = [row for row in event.get("missing", []) if row.get("reason") != "refuses"]
    if not rows:
        return str(event.get("message") or f"{wait} for a peer")
    if len(rows) == 1:
        return f"{wait} for {rows[0]['name']}, {why_missing(rows[0])}"
    each = [f"{r['name']} ({r['chunks']:,}, {why_missing(r)})" for r in rows[:5]]
    more = f" and {count_text(len(rows) - 5, 'more peer')}" if len(rows) > 5 else ""
    # Copies of one chunk lie on several of them: any one will do.
    between = " or " if sum(row["chunks"] for row in rows) > chunks else ", "
    return f"{wait} for {between.join(each)}{more}"


def hellos_text(names: Sequence[str]) -> str:
    """Of nodes that a tracker, just started, has not heard from."""
    shown, more = ", ".join(map(shortened, names[:5])), len(names) - 5
    others = f" and {count_text(more, 'other')}" if more > 0 else ""
    return f"waiting for nodes to register: {shown}{others}"


def corrupt_text(event: dict[str, Any]) -> str:
    """`chunk 3 from LAB-PC3 came corrupt: taken from another holder` (SPEC D8)."""
    then = (
        "fetching it from another holder"
        if event["other_holders"]
        else "asking it again, no other peer has it"
    )
    return f"chunk {event['chunk_index']} from {event['name']} was corrupt: {then}"


def event_line(event: dict[str, Any]) -> str:
    """`14:02:05 #17 peer.up LAB-PC3 (hello)`: an event for people."""
    what = [str(event[key]) for key in ("name", "file_id", "sha256") if event.get(key)][:1]
    reason = event.get("reason")
    if event["topic"] == "budget.held":
        reason = f"by {event['held_by_name']}"
    if event["topic"] == "missed":
        what = [f"events {event['first']:,} to {event['last']:,}: the tracker no longer has them"]
    words = [event["topic"], *what, *([f"({reason})"] if reason else [])]
    return visible(f"{local_time(event['time'], seconds=True)} #{event['seq']} {' '.join(words)}")


def why_missing_short(row: dict[str, Any]) -> str:
    """The same in a few words, for a column."""
    known = {
        "unreachable": "cannot be reached",
        "offline-store": "its disk is offline",
        "unsure": "not heard from yet",
        "unreadable": "cannot read them now",
        "refuses": "refuses chunks now",
        "busy": "busy with others",
    }
    return known.get(row.get("reason", ""), f"off since {local_time(row['last_seen'])}")


def why_missing(row: dict[str, Any]) -> str:
    if row.get("reason") == "unreachable":
        return "which is up, but cannot be reached from here"
    if row.get("reason") == "offline-store":
        return "which is up, but its disk is offline"
    if row.get("reason") == "unsure":
        return "which the tracker has not heard from yet"
    if row.get("reason") == "unreadable":
        return "which is up, but cannot read them now; trying again"
    if row.get("reason") == "busy":
        return "which is busy with others"
    return f"last seen {local_time(row['last_seen'])}"
