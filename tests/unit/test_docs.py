"""docs/ says what the code does: messages, error codes, settings, the manifest, examples.

What is compared is named in docs/protocol.md and docs/events.md by fixed forms: a heading
with a type or topic in backticks, tables whose first cell is a name in backticks, fenced
blocks with a word behind the fence.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from blake3 import blake3

from zchunk import config
from zchunk.clock import Now, SystemClock
from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest, parse
from zchunk.errors import BY_CODE
from zchunk.node.control.join import join
from zchunk.node.home.membership import Membership
from zchunk.node.process import NodeProcess
from zchunk.node.serving import access
from zchunk.protocol.messages import (
    BY_TYPE,
    HEADER_FIELDS,
    PAYLOAD_FIELDS,
    FileRecord,
    MemberRecord,
    PeerRecord,
    Record,
    ReportHeld,
    Request,
)
from zchunk.runtime.loop import LoopThread
from zchunk.tracker import core
from zchunk.tracker.home import make_token
from zchunk.tracker.members import gate
from zchunk.tracker.members.member_list import Member as TrackerMember
from zchunk.tracker.members.member_list import MemberList
from zchunk.tracker.process import Tracker
from zchunk.tracker.records import health_fields, held_fields
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.rules import health
from zchunk.tracker.state.store_mark import StoreMark
from zchunk.transport.zeromq import ZmqTransport

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
EVENTS = (DOCS / "events.md").read_text()

# -- reading the documents --------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """Heading with a name in backticks -> what stands under it, up to the next heading."""
    parts = re.split(r"^#{2,3} (.*)$", text, flags=re.MULTILINE)
    found = zip(parts[1::2], parts[2::2], strict=True)
    return {title.strip("`"): body for title, body in found if re.fullmatch(r"`[a-z_.]+`", title)}


def table(text: str) -> list[list[str]]:
    """Rows whose first cell is in backticks, that cell without them."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[row[0].strip().strip("`"), *(cell.strip() for cell in row[1:])] for row in rows]


def names(text: str) -> list[str]:
    return [row[0] for row in table(text)]


def chapter(text: str, title: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def fenced(text: str, word: str) -> str:
    match = re.search(rf"^```{word}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, word
    return match[1]


_RECORDS = (PeerRecord, MemberRecord, FileRecord)
MESSAGES = sections(PROTOCOL)
TOPICS = sections(EVENTS)

# -- messages -----------------------------------------------------------------------------


def test_every_message_has_a_section_and_every_section_a_message() -> None:
    assert sorted(MESSAGES) == sorted(BY_TYPE)


@pytest.mark.parametrize("kind", sorted(BY_TYPE))
def test_a_message_has_exactly_its_fields_payload_last_in_frame_order(kind: str) -> None:
    cls = BY_TYPE[kind]
    listed = names(MESSAGES[kind])
    assert sorted(listed) == sorted((*HEADER_FIELDS[cls], *PAYLOAD_FIELDS[cls]))
    payload = [row[0] for row in table(MESSAGES[kind]) if row[1] == "payload"]
    assert tuple(payload) == PAYLOAD_FIELDS[cls]
    assert listed[len(listed) - len(payload) :] == payload


@pytest.mark.parametrize("kind", sorted(k for k, cls in BY_TYPE.items() if issubclass(cls, Request)))
def test_a_request_names_its_answer(kind: str) -> None:
    assert f"Answer: `{BY_TYPE[kind].REPLY.TYPE}`." in MESSAGES[kind]  # type: ignore[attr-defined]


@pytest.mark.parametrize("record", _RECORDS)
def test_records_have_exactly_their_fields(record: type[Record]) -> None:
    text = chapter(PROTOCOL, "Records").split(f"{record.__name__}, ")[1].split("\n\n")[1]
    assert names(text) == list(record.__struct_fields__)


@pytest.mark.row("S2")
def test_roles_are_those_of_the_tracker() -> None:
    rows = dict(table(chapter(PROTOCOL, "Identity")))
    handlers = _handlers()
    only_nodes = {kind for kind, roles in handlers.items() if roles == {"node"}}
    everyone = {kind for kind, roles in handlers.items() if "observer" in roles}
    assert set(re.findall(r"`(\w+)`", rows["client"])) == only_nodes
    assert set(re.findall(r"`(\w+)`", rows["observer"])) == everyone


def _handlers() -> dict[str, frozenset[str]]:
    """What the tracker answers -> who may ask."""
    made = core.TrackerCore(
        members=SimpleNamespace(listed=MemberList()),
        peers=(),
        timing=Timing(1.0, 3.0),
        epoch="",
        mark=StoreMark("", 0),
        events_at=(),
        now=Now(0.0, 0),
    )
    return {request.TYPE: roles for request, (roles, _) in made._handlers.items()}


# -- names in backticks --------------------------------------------------------------------

#: Words of the documents that are no names of the code's tables.
_WORDS = {
    *("v", "t", "id", "f", "from", "a", "k", "r", "p", "s", "e", "have", "zchunk1-"),
    *("node", "client", "observer", "plain", "curve", "up", "down", "left", "draining", "offline-store"),
    *("revoked", "round_robin", "contiguous", "balanced", "host", "encoding", "rows", "sealed", "version"),
    *("stored_size", "plain_blake3", "hello", "lease", "goodbye", "connection"),
    *("details.suggestion", "details.online", "details.needed", "details.free"),
    *("details.unsure", "details.unsure_s", "details.refusing"),
    *("details.chunks_missing", "details.first_missing", "details.candidates"),
    *("config.yaml", "hello.bin", "time", "first", "last"),
    *("tracker.send", "tracker.recv", "complete", "degraded", "unavailable", "downloads", "uploads"),
}


def _known() -> set[str]:
    every = {name: {*HEADER_FIELDS[cls], *PAYLOAD_FIELDS[cls]} for name, cls in BY_TYPE.items()}
    found = {*_WORDS, *BY_TYPE, *BY_CODE, *TOPICS}
    for kind, of_type in every.items():
        found |= of_type | {f"{kind}.{field}" for field in of_type}
    found |= {name for record in _RECORDS for name in record.__struct_fields__}
    found |= {"file.file_id", gate.REQUESTS, gate.EVENTS, access.DOOR}
    for section, model in config.SECTIONS.items():
        found |= {*model.__struct_fields__, *(f"{section}.{key}" for key in model.__struct_fields__)}
    for topic in TOPICS.values():
        found |= set(names(topic))
    return found


@pytest.mark.parametrize("text", [PROTOCOL, EVENTS], ids=["protocol", "events"])
def test_names_in_backticks_exist(text: str) -> None:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    used = set(re.findall(r"`([a-z][a-z0-9_.-]*)`", prose))
    assert not used - _known()


# -- tables ----------------------------------------------------------------------------------


def test_error_codes_are_those_of_the_code_with_exit_code_and_retryable() -> None:
    rows = {row[0]: (int(row[1]), row[2] == "yes") for row in table(chapter(PROTOCOL, "Error codes"))}
    assert rows == {code: (cls.exit_code, cls.retryable) for code, cls in BY_CODE.items()}


def test_configuration_keys_are_those_of_the_shipped_file_with_their_defaults() -> None:
    shipped = yaml.load((ROOT / "config.yaml").read_text(), yaml.BaseLoader)
    defaults = {f"{section}.{key}": value for section, keys in shipped.items() for key, value in keys.items()}
    rows = {row[0]: row[1] for row in table(chapter(PROTOCOL, "Configuration keys and the protocol"))}
    assert rows == {key: "[]" if value == [] else value for key, value in defaults.items()}


# -- the manifest --------------------------------------------------------------------------------


@pytest.mark.row("U3", "D1")
def test_the_manifest_example_is_what_the_code_computes() -> None:
    contents = (b"a" * 65536, b"bcd")
    rows = tuple(
        ChunkRow(len(data), IDENTITY, hashlib.sha256(data).digest(), blake3(data).digest(), None)
        for data in contents
    )
    whole = hashlib.sha256(b"".join(contents)).digest()
    manifest = Manifest("hello.bin", 65539, whole, 65536, rows)
    shown = "".join(line.split()[0] for line in fenced(PROTOCOL, "manifest").splitlines())
    assert shown == manifest.canonical.hex()
    assert f"has {len(manifest.canonical)} bytes" in PROTOCOL
    assert fenced(PROTOCOL, "file-id").strip() == manifest.file_id
    assert parse(bytes.fromhex(shown)) == manifest


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.row("I1")
def test_the_published_topics_are_documented_and_no_other() -> None:
    rooms = Path(core.__file__).parent
    source = "".join(path.read_text() for path in rooms.rglob("*.py"))
    published = set(re.findall(r'(?:events\.publish|self\._event)\("([a-z.]+)"', source))
    for pair in re.findall(r'topic = "([a-z.]+)" if .* else "([a-z.]+)"', source):
        published |= set(pair)
    assert {*published, *health.TOPICS} == set(TOPICS)


@pytest.mark.parametrize("topic", health.TOPICS)
def test_the_fields_of_a_files_health_are_documented(topic: str) -> None:
    copies = health.Copies("f" * 64, "f", 2, 10, 0, 1)
    assert names(TOPICS[topic]) == list(health_fields(copies))


def test_the_fields_of_held_memory_are_documented() -> None:
    report = ReportHeld(member="10.0.0.7", purpose="downloads", size=1, budget=2, seconds=3.0)
    node = TrackerMember("f" * 32, b"k" * 32, "A", "node", 0, False)
    assert names(TOPICS["budget.held"]) == list(held_fields(node, report, None))


@pytest.fixture(params=["curve", "plain"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """A tracker, and a home that has joined it as an observer; in both transports."""
    bind, security = {"bind": "127.0.0.1:0"}, {"transport": request.param}
    settings = config.load(None, {"tracker": bind, "node": bind, "security": security}, environ={})
    transport, clock = ZmqTransport(), SystemClock()
    tracker = Tracker(tmp_path / "tracker", settings, clock, transport)
    thread = LoopThread(tracker.loop, lambda error: None)
    thread.start()

    def enrol(folder: Path, role: str) -> Membership:
        token = make_token(tracker.files, clock, role=role, expires_s=60, once=True, transport=request.param)
        joining = ZmqTransport()
        try:
            return join(folder, token, folder.parent.name, joining, clock, 10)
        finally:
            joining.close()

    home = tmp_path / "watcher"
    enrol(home / "client", "observer")
    yield SimpleNamespace(settings=settings, enrol=enrol, home=home)
    thread.stop()
    tracker.close()
    transport.close()


@pytest.mark.row("I1", "S2")
def test_the_subscriber_example_follows_a_real_tracker(cluster: SimpleNamespace, tmp_path: Path) -> None:
    code = fenced(EVENTS, "python subscriber")
    command = [sys.executable, "-c", code, str(cluster.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        guard = threading.Timer(30, watcher.kill)
        guard.start()
        try:
            assert watcher.stdout.readline() == "snapshot {}\n"
            membership = cluster.enrol(tmp_path / "A" / "node", "node")
            node = NodeProcess(tmp_path / "A" / "node", membership, cluster.settings)
            node.start()
            joined, came = watcher.stdout.readline(), watcher.stdout.readline()
            node.stop()
            left = watcher.stdout.readline()
        finally:
            guard.cancel()
            watcher.kill()
    assert joined.startswith("member.joined {")
    assert came.startswith("peer.up {")
    assert "'name': 'A', 'reason': 'hello'" in came
    assert left.startswith("peer.down {")
    assert "'reason': 'goodbye'" in left
    assert set(names(TOPICS["peer.up"])) == set(yaml.safe_load(came.partition(" ")[2]))
    member = yaml.safe_load(joined.partition(" ")[2])
    assert names(TOPICS["member.joined"]) == list(member)
    assert sorted(member["member"]) == sorted(MemberRecord.__struct_fields__)


# -- what documents may not say -------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)[^)]*\)", path.read_text()):
        assert not target or (DOCS / target).exists(), target
