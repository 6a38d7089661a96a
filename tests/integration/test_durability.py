"""Under strace: nothing is said to be stored or done before the disk has it (PROOF)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file
from tests.integration.conftest import SMALL
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

_CALLS = "fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write"
_LINE = re.compile(r"(\d+) +(.*)")
#: `"stored": true` as msgpack writes it and strace shows it: the answer to a chunk's last block.
_STORED = r"\246stored\303"


def tracer(out: Path) -> list[str]:
    # -D: the traced process is our child, and gets our signals.
    return ["strace", "-D", "-f", "-q", "-y", "-s", "4096", "-o", str(out), "-e", f"trace={_CALLS}"]


@dataclass(frozen=True)
class Call:
    """`began` and `ended` are line numbers: what ended before another began was before it."""

    name: str
    text: str
    began: int
    ended: int


def calls(path: Path) -> list[Call]:
    found, open_calls = [], {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines()):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith("<unfinished ...>"):
            open_calls[pid] = (number, text)
        elif text.startswith("<... "):
            began, start = open_calls.pop(pid)
            found.append(Call(start.partition("(")[0], start + text, began, number))
        elif "(" in text:
            found.append(Call(text.partition("(")[0], text, number, number))
    for began, start in open_calls.values():
        found.append(Call(start.partition("(")[0], start, began, 10**9))
    return found


def first(found: list[Call], names: tuple[str, ...], *texts: str, after: int = -1) -> Call:
    for call in sorted(found, key=lambda call: call.began):
        if call.began > after and call.name in names and all(text in call.text for text in texts):
            return call
    raise AssertionError(f"no {names} with {texts}")


SYNC = ("fsync", "fdatasync")
RENAME = ("rename", "renameat", "renameat2")
SEND = ("sendto", "sendmsg", "write")


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("traced"), {**SMALL, "security.transport": "plain"}) as cluster:
        # What a node sends is read off its calls, so nothing is encrypted.
        cluster.start_node("plain")
        yield cluster


def test_stored_means_durable(pair: Cluster, folder: Path) -> None:
    """Per chunk: file sync, rename, folder sync; only then `stored`."""
    out = folder / "trace"
    traced = pair.start_node("traced", prefix=tracer(out))
    source = make_file(folder / "file.bin", 2 * MIB)
    pair.client.put(source.path)
    hashes = pair.client.info("file.bin")["chunks_hashes"]
    mine = traced.holds(hashes)
    assert len(mine) == 16
    assert traced.process.end() == 0
    wait_for(lambda: "exited with 0" in out.read_text(errors="replace"), PATIENCE_S, "strace is through")
    found = calls(out)
    durable_at = []
    for sha256 in mine:
        path = str(traced.chunk_path(sha256))
        sync = first(found, SYNC, f"/tmp/{sha256}.")
        rename = first(found, RENAME, f"/tmp/{sha256}.", path, after=sync.ended)
        durable_at.append(first(found, SYNC, f"<{Path(path).parent}>", after=rename.ended).ended)
    durable_at.sort()
    told = sorted(c.began for c in found if c.name in SEND for _ in range(c.text.count(_STORED)))
    assert len(told) == 16, "one `stored` for each chunk"
    for earlier, (durable, said) in enumerate(zip(durable_at, told, strict=True)):
        assert durable < said, f"`stored` number {earlier + 1} was sent before so many chunks were durable"


@pytest.mark.row("D5")
def test_done_means_durable(pair: Cluster, folder: Path) -> None:
    """The download: file sync, rename, folder sync, and then the `done` event."""
    pair.start_node("second")
    source = make_file(folder / "file.bin", 2 * MIB)
    pair.client.put(source.path)
    out, target = folder / "trace", folder / "out" / "copy"
    target.parent.mkdir()
    traced = pair.join("traced client", prefix=tracer(out))
    out.unlink()
    traced.get("file.bin", target)
    wait_for(lambda: "exited with 0" in out.read_text(errors="replace"), PATIENCE_S, "strace is through")
    found = calls(out)
    done = first(found, ("write",), "write(1<", r"\"event\": \"done\"")
    rename = first(found, RENAME, f"{target}.zpart", f'"{target}"')
    syncs = [c for c in found if c.name in SYNC and f"{target}.zpart>" in c.text]
    assert max(call.ended for call in syncs) < rename.began, "nothing is written behind the last sync"
    folder_sync = first(found, SYNC, f"<{target.parent}>", after=rename.ended)
    assert folder_sync.ended < done.began
