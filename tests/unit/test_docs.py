"""docs/ says what the code does: the pages of docs/reference are current, names and links exist,
examples work.

What is compared is named in protocol.md and events.md by fixed forms: a heading
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
from pages import commands, python_api
from pages import events as event_pages
from pages import messages as message_pages
from pages.__main__ import FILLERS, page
from pages.template import fill

from zchunk import config
from zchunk.client import Client
from zchunk.clock import SystemClock
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
    Request,
)
from zchunk.runtime.loop import LoopThread
from zchunk.tracker.home import make_token
from zchunk.tracker.members import gate
from zchunk.tracker.process import Tracker
from zchunk.transport.zeromq import ZmqTransport

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PROTOCOL = (REFERENCE / "protocol.md").read_text()
EVENTS = (REFERENCE / "events.md").read_text()

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

# -- what is generated ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILLERS)
def test_a_page_is_as_the_code_is(name: str) -> None:
    """Else run scripts/reference."""
    assert (REFERENCE / f"{name}.md").read_text() == page(name)


def test_what_the_page_says_of_a_field_is_its_comment() -> None:
    listed = {row[0]: row[1:] for row in table(MESSAGES["inventory"])}
    assert list(listed) == ["page", "last", "hashes"]
    assert listed["last"] == ["bool", "the last page"]
    assert listed["hashes"][0] == "payload"


def test_an_event_with_other_fields_than_the_template_names_makes_no_page() -> None:
    template = "### `file.removed`\n{{fields\nfile_id: which\n}}"
    with pytest.raises(ValueError, match="commit_number"):
        fill(template, event_pages.FILLERS)


def test_every_message_has_a_section_and_every_section_a_message() -> None:
    assert sorted(MESSAGES) == sorted(BY_TYPE)


@pytest.mark.parametrize("kind", sorted(k for k, cls in BY_TYPE.items() if issubclass(cls, Request)))
def test_a_request_names_its_answer(kind: str) -> None:
    assert f"Answer: `{BY_TYPE[kind].REPLY.TYPE}`." in MESSAGES[kind]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", sorted(kind for kind, cls in BY_TYPE.items() if cls.__struct_fields__))
def test_a_message_has_exactly_its_fields_payload_last_in_frame_order(kind: str) -> None:
    cls = BY_TYPE[kind]
    listed = names(MESSAGES[kind])
    assert sorted(listed) == sorted((*HEADER_FIELDS[cls], *PAYLOAD_FIELDS[cls]))
    payload = [row[0] for row in table(MESSAGES[kind]) if row[1] == "payload"]
    assert tuple(payload) == PAYLOAD_FIELDS[cls]
    assert listed[len(listed) - len(payload) :] == payload


@pytest.mark.row("S2")
def test_roles_are_those_of_the_tracker() -> None:
    rows = dict(table(chapter(PROTOCOL, "Identity")))
    asked = message_pages.handlers()
    only_nodes = {kind for kind, roles in asked.items() if roles == {"node"}}
    everyone = {kind for kind, roles in asked.items() if "observer" in roles}
    assert set(re.findall(r"`(\w+)`", rows["client"])) == only_nodes
    assert set(re.findall(r"`(\w+)`", rows["observer"])) == everyone
    assert {"hello", "stored", "release"} <= only_nodes
    assert {"list_files", "get_events"} <= everyone


def test_every_public_method_of_the_client_says_what_it_does() -> None:
    assert not python_api.undocumented()
    assert all(hasattr(Client, name) for name in python_api.INTERNAL)


def test_every_command_is_on_its_page() -> None:
    text = (REFERENCE / "commands.md").read_text()
    for context in commands.contexts()[1:]:
        assert f"\n## {context.command_path}\n" in text
    assert "--min-peers" in text


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
    assert event_pages.published() == set(TOPICS)


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


PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of headings, as they are on the usual pages for Markdown."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#{1,4} (.*)$", plain, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def files(folder: Path) -> list[Path]:
    return [*folder.rglob("*.py"), *(path for path in folder.glob("*") if path.is_file())]


def test_pages_that_code_and_scripts_name_exist() -> None:
    texts = [path.read_text() for folder in ("zchunk", "scripts", "tests") for path in files(ROOT / folder)]
    named = {page for text in texts for page in re.findall(r"\bdocs/[\w/-]+\.md", text)}
    assert named
    assert not [page for page in sorted(named) if not (ROOT / page).exists()]


@pytest.mark.parametrize("path", sorted((DOCS / "design").glob("*.md")), ids=lambda path: path.name)
def test_modules_that_a_page_names_exist(path: Path) -> None:
    modules = {f"/{module.relative_to(ROOT / 'zchunk')}" for module in (ROOT / "zchunk").rglob("*.py")}
    named = set(re.findall(r"`(?:zchunk/)?([\w/]+\.py)`", path.read_text()))
    assert not {name for name in named if not any(module.endswith(f"/{name}") for module in modules)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_tests_that_a_page_names_exist(path: Path) -> None:
    named = set(re.findall(r"\b((?:scripts|tests)/[\w/.]*\w)", path.read_text()))
    assert not {name for name in named if not (ROOT / name).exists()}
