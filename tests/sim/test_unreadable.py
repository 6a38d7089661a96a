"""A node whose disk refuses reads for a while (SPEC D8): no sound chunk is set apart or told lost,
and everything goes on when the disk does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, Cluster, Outcome, SimNode


@contextmanager
def refusing(node: SimNode, number: int = errno.EIO) -> Iterator[list[Path]]:
    """Inside the block no chunk of the node can be opened. Yields the files that somebody tried."""
    node.store.parts.readers.close()  # whatever is open stays readable otherwise
    chunks, real, tried = node.folder / "store" / "chunks", os.open, []

    def refuse(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        path = Path(str(name))
        if chunks not in path.parents or not path.is_file():
            return real(name, flags, *rest, **more)
        tried.append(path)
        raise OSError(number, os.strerror(number), str(name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield tried


def put(cluster: Cluster, path: Path, **options: Any) -> dict[str, Any]:
    outcome = cluster.client().put(path, **options)
    cluster.run(lambda: outcome.ended, f"the upload of {path.name}")
    done: dict[str, Any] = outcome.expect_done()
    return done


def waits_for(outcome: Outcome) -> list[tuple[str, str]]:
    told = [event for event in outcome.events if event["event"] == "waiting"]
    return [(row["name"], row["reason"]) for row in told[-1]["missing"]] if told else []


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 30.0])
def test_a_download_waits_for_a_disk_that_refuses_and_nothing_is_lost(
    root: Path, seconds: float, number: int
) -> None:
    cluster = Cluster(root, 1, nodes=2)
    path = cluster.make_file("file", 9 * CHUNK)
    put(cluster, path)
    node = cluster.nodes[0]
    held = node.store.hashes()
    with refusing(node, number) as tried:
        outcome = cluster.client().get("file", root / "got")
        cluster.run_for(seconds)
    assert tried
    assert not outcome.ended
    assert waits_for(outcome) == ([] if seconds < 3.0 else [("a", "unreadable")])
    cluster.run(lambda: outcome.ended, "the download", limit_s=61.0)
    outcome.expect_done()
    assert (root / "got").read_bytes() == path.read_bytes()
    assert node.store.hashes() == held
    assert not list((node.folder / "store" / "trash").iterdir())
    assert not [e for e in cluster.tracker.server.core.events.history if e.topic.startswith("file.un")]
    cluster.run_for(60.0)
    assert node.parts.registration.self_check.deadline() is None, "every doubt was looked at and settled"
    cluster.verify({"file": path})


def test_a_download_that_does_not_wait_says_who_cannot_read(root: Path) -> None:
    cluster = Cluster(root, 2, nodes=2)
    path = cluster.make_file("file", 9 * CHUNK)
    put(cluster, path)
    with refusing(cluster.nodes[0]):
        outcome = cluster.client().get("file", root / "got", wait=False)
        cluster.run(lambda: outcome.ended, "it to give up", limit_s=10.0)
    assert outcome.error is not None
    assert outcome.error.code == "partial"
    assert "5 wait for a, which cannot read them now" in outcome.error.message


def test_a_replica_stands_in_at_once(root: Path) -> None:
    cluster = Cluster(root, 3, nodes=2)
    path = cluster.make_file("file", 9 * CHUNK)
    put(cluster, path, replicas=2)
    with refusing(cluster.nodes[0]):
        outcome = cluster.client().get("file", root / "got")
        cluster.run(lambda: outcome.ended, "the download", limit_s=1.0)
    outcome.expect_done()
    assert (root / "got").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_put_of_chunks_that_their_holder_cannot_read_sends_them_there_again(
    root: Path, number: int
) -> None:
    """With two peers both are needed; what comes replaces what cannot be read."""
    cluster = Cluster(root, 4, nodes=2)
    path = cluster.make_file("file", 8 * CHUNK)
    put(cluster, path)
    node = cluster.nodes[0]
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    before = {p.name: p.stat().st_ino for p in (node.folder / "store" / "chunks").glob("*/*")}
    with refusing(node, number):
        done = put(cluster, other)
        assert done["bytes_sent"] == 4 * CHUNK
        assert len(done["peers"]) == 2
    after = {p.name: p.stat().st_ino for p in (node.folder / "store" / "chunks").glob("*/*")}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    cluster.verify({"file": path, "other": other})
