"""Encrypted files on a simulated cluster (SPEC S3): what lies where, what is sent again, and
that no nonce serves two plaintexts, whatever happens in between."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, Outcome
from zchunk.content import ciphers, encryption, hashing
from zchunk.content.encryption import FileKey, KeyFile, Passphrase
from zchunk.errors import ChunkCorrupt
from zchunk.node.upload.upload_keys import UploadKeys
from zchunk.transport.memory import Faults

NAME = "film.mkv"
SECRET = KeyFile(b"s" * 32)
STORED = CHUNK + 16
FAULTS = Faults(delay_min=0.0002, delay_max=0.03, loss=0.01, double=0.02, corrupt=0.01)


@pytest.fixture
def encryptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[bytes, bytes], set[bytes]]]:
    """(key, nonce) -> the digests of all that was encrypted and authenticated with it."""
    used: dict[tuple[bytes, bytes], set[bytes]] = defaultdict(set)
    encrypt = ciphers.encrypt

    def watched(key: bytes, nonce: bytes, bound: bytes, plain: memoryview, into: memoryview) -> None:
        used[key, nonce].add(hashlib.sha256(bytes([len(bound)]) + bound + plain).digest())
        encrypt(key, nonce, bound, plain, into)

    monkeypatch.setattr(ciphers, "encrypt", watched)
    yield used
    assert used
    assert all(len(inputs) == 1 for inputs in used.values()), "a nonce served two plaintexts"


def make_cluster(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Cluster:
    """Keys come from the seed, so that a seed is one story."""
    cluster = Cluster(root, seed, **options)
    cluster.secret = SECRET
    monkeypatch.setattr(encryption, "secrets", SimpleNamespace(token_bytes=cluster.rng.randbytes))
    return cluster


#: every chunk that was encrypted
SEALED: list[int] = []


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    SEALED.clear()
    encrypt_chunk = FileKey.encrypt_chunk

    def counted(self: FileKey, index: int, *args: Any) -> Any:
        SEALED.append(index)
        return encrypt_chunk(self, index, *args)

    monkeypatch.setattr(FileKey, "encrypt_chunk", counted)


def keys_of(cluster: Cluster) -> UploadKeys:
    return UploadKeys(cluster.root / "uploads", cluster.clock)


def begin(cluster: Cluster, path: Path, **options: Any) -> Outcome:
    """As `zchunk put --encrypt` does, in a new process."""
    encryption_ = keys_of(cluster).begin(path, SECRET, hide_name=options.pop("hide_name", False))
    return cluster.client().put(path, encryption=encryption_, **options)


def put(cluster: Cluster, path: Path, **options: Any) -> dict[str, Any]:
    outcome = begin(cluster, path, **options)
    cluster.run(lambda: outcome.ended, f"the upload of {path.name}")
    done: dict[str, Any] = outcome.expect_done()
    keys_of(cluster).forget(path)
    return done


def stored(cluster: Cluster) -> int:
    return sum(node.store.count for node in cluster.nodes)


# -- what others see --------------------------------------------------------------------------


@pytest.mark.row("S3")
@pytest.mark.parametrize("hide_name", [False, True])
def test_what_lies_on_other_disks_is_no_plaintext_and_no_digest_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, hide_name: bool
) -> None:
    cluster = make_cluster(root, 1, monkeypatch)
    path = cluster.make_file(NAME, 9 * CHUNK + 100)
    done = put(cluster, path, hide_name=hide_name, replicas=2)
    plain = path.read_bytes()
    pieces = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)]
    traces = [piece[:32] for piece in pieces]
    for digest in (hashing.sha256, hashing.blake3):
        traces += [digest(piece) for piece in (*pieces, plain)]
    traces += [trace.hex().encode() for trace in traces]
    if hide_name:
        traces.append(NAME.encode())
    others = [node.folder for node in cluster.nodes] + [root / "tracker", root / "tracker.sqlite"]
    files = [f for top in others for f in ([top] if top.is_file() else top.rglob("*")) if f.is_file()]
    contents = b"".join(file.read_bytes() for file in files)
    assert len(contents) > 2 * len(plain)
    assert not [trace for trace in traces if trace in contents]
    assert (done["name"] == NAME) is not hide_name
    assert done["sha256"] == hashlib.sha256(plain).hexdigest()
    assert cluster.store.list_files("")[0][0].sha256 is None
    assert {node.store.size_of(h) for node in cluster.nodes for h in node.store.hashes()} == {STORED, 116}
    cluster.verify({done["name"]: path})


def test_a_file_put_twice_is_two_that_share_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each put has a fresh key: nobody sees that they are the same."""
    cluster = make_cluster(root, 2, monkeypatch)
    path = cluster.make_file(NAME, 6 * CHUNK)
    first, second = put(cluster, path, hide_name=True), put(cluster, path, hide_name=True)
    assert first["file_id"] != second["file_id"]
    assert first["name"] != second["name"]
    assert second["bytes_sent"] == 6 * STORED
    cluster.verify({first["name"]: path, second["name"]: path})


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 1])
def test_sizes(root: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    cluster = make_cluster(root, 3, monkeypatch)
    path = cluster.make_file(NAME, size)
    put(cluster, path)
    cluster.verify({NAME: path})


# -- an upload that is run again ----------------------------------------------------------------


def interrupted(cluster: Cluster, path: Path) -> None:
    """An upload that is killed in the middle, with whatever its nodes have by then."""
    sealed, chunks = len(SEALED), cluster.rng.randrange(4, 15)
    begin(cluster, path)
    cluster.run(lambda: len(SEALED) >= sealed + chunks, "some chunks encrypted")
    cluster.clients[-1].host.crash()
    cluster.run(lambda: all(cluster.is_quiet(node) for node in cluster.nodes), "the nodes to give up")


@pytest.mark.row("S3")
@pytest.mark.parametrize("seed", range(10))
def test_an_unchanged_file_goes_on_with_its_key_and_sends_only_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, encryptions: Any, seed: int
) -> None:
    cluster = make_cluster(root, seed, monkeypatch)
    path = cluster.make_file(NAME, 24 * CHUNK)
    interrupted(cluster, path)
    there = stored(cluster)
    done = put(cluster, path)
    assert done["bytes_sent"] == (24 - there) * STORED
    assert stored(cluster) == 24
    cluster.verify({NAME: path})


def changed(cluster: Cluster, path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "in each chunk":
        for at in range(0, len(content), CHUNK):
            content[at + cluster.rng.randrange(CHUNK // 2)] ^= 1
    elif how == "grown":
        content += cluster.rng.randbytes(CHUNK)
    elif how == "shorter":  # and so moved by less than a chunk
        del content[: CHUNK // 2]
    else:  # every chunk is that of its neighbour
        content = content[CHUNK:] + content[:CHUNK]
    path.write_bytes(content)


CHANGES = ["in each chunk", "grown", "shorter", "moved"]


@pytest.mark.row("S3")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changed_meanwhile_uses_no_nonce_for_two_plaintexts(
    root: Path, monkeypatch: pytest.MonkeyPatch, encryptions: Any, how: str, seed: int
) -> None:
    """Several times over, with the key that is kept: the fixture compares all that was encrypted."""
    cluster = make_cluster(root, seed, monkeypatch)
    path = cluster.make_file(NAME, 16 * CHUNK)
    for _ in range(3):
        interrupted(cluster, path)
        changed(cluster, path, how)
    put(cluster, path)
    assert len({key for key, _ in encryptions}) == 2, "one key for chunks and one for the body"
    assert len(encryptions) > 17
    cluster.verify({NAME: path})


@pytest.mark.parametrize("how", CHANGES)
def test_the_fixture_notices_nonces_that_are_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What the test above proves: with nonces that are the chunk's number it fails."""
    monkeypatch.setattr(FileKey, "_nonce", lambda self, bound, digest: bound[-8:].ljust(12, b"\0"))
    used: dict[tuple[bytes, bytes], set[bytes]] = defaultdict(set)
    encrypt = ciphers.encrypt

    def watched(key: bytes, nonce: bytes, bound: bytes, plain: memoryview, into: memoryview) -> None:
        used[key, nonce].add(bytes(plain))
        encrypt(key, nonce, bound, plain, into)

    monkeypatch.setattr(ciphers, "encrypt", watched)
    cluster = make_cluster(root, 1, monkeypatch)
    path = cluster.make_file(NAME, 16 * CHUNK)
    for _ in range(2):
        interrupted(cluster, path)
        changed(cluster, path, how)
    begin(cluster, path)
    cluster.run_for(1.0)
    doubled = [nonce for nonce, plains in used.items() if len(plains) > 1]
    assert bool(doubled) is (how != "grown")


def test_a_crash_after_the_commit_is_the_same_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster(root, 4, monkeypatch)
    path = cluster.make_file(NAME, 6 * CHUNK)
    outcome = begin(cluster, path)
    cluster.run(lambda: outcome.ended, "the upload")  # and its key is not forgotten
    again = put(cluster, path)
    assert (again["file_id"], again["already"]) == (outcome.expect_done()["file_id"], True)
    assert again["bytes_sent"] == 0


# -- downloads ------------------------------------------------------------------------------------


@pytest.mark.row("S3")
@pytest.mark.parametrize("seed", range(12))
def test_on_a_faulty_network_with_a_reader_that_is_killed(
    root: Path, monkeypatch: pytest.MonkeyPatch, encryptions: Any, seed: int
) -> None:
    """The next run keeps what is whole on the disk, by the sealed digests (SPEC D7)."""
    cluster = make_cluster(root, seed, monkeypatch, faults=FAULTS)
    path = cluster.make_file(NAME, 20 * CHUNK + 9)
    put(cluster, path)
    cluster.nodes[seed % 3].crash()
    reader = cluster.client()
    target = root / "copy"
    got = reader.get(NAME, target)
    cluster.run(lambda: got.part is not None and len(got.part.completed) >= 3, "some chunks kept")
    reader.host.crash()
    got.part.keep()  # what ends with a process: its lock
    kept = len(got.part.completed)
    assert b"sha256" not in (root / "copy.zjob").read_bytes()
    assert path.read_bytes()[:32].hex() not in (root / "copy.zjob").read_text()
    cluster.nodes[seed % 3].start()
    again = cluster.client().get(NAME, target)
    cluster.run(lambda: again.ended, "the download")
    done = again.expect_done()
    plan = next(event for event in again.events if event["event"] == "plan")
    assert plan["chunks_kept"] >= kept
    assert done["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert target.read_bytes() == path.read_bytes()
    cluster.verify({NAME: path})


def test_bad_bytes_on_our_own_disk_are_found_by_sealing_them_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: the whole is wrong although every chunk was right when it was written."""
    cluster = make_cluster(root, 5, monkeypatch)
    path = cluster.make_file(NAME, 12 * CHUNK + 5)
    put(cluster, path)
    got = cluster.client().get(NAME, root / "copy")
    cluster.run(lambda: got.part is not None, "the part file")
    write, damaged = got.part.write_chunk, set()

    def write_chunk(index: int, view: memoryview) -> None:
        write(index, view)
        if index in (4, 12) and index not in damaged:
            damaged.add(index)
            flipped = bytearray(view)
            flipped[3] ^= 1
            write(index, flipped)
            view[3] ^= 1  # and so the running digest sees it

    got.part.write_chunk = write_chunk
    got.part.mark = lambda index: got.part._completed.add(index)
    cluster.run(lambda: got.ended, "the download")
    assert got.expect_done()["bytes_received"] == path.stat().st_size + 13 * 16 + STORED + 5 + 16
    assert (root / "copy").read_bytes() == path.read_bytes()


def test_a_chunk_that_its_maker_spoiled_is_never_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SHA-256 is that of the manifest, and yet it does not open: no node is to blame."""
    cluster = make_cluster(root, 6, monkeypatch)
    path = cluster.make_file(NAME, 5 * CHUNK)
    encrypt_chunk = FileKey.encrypt_chunk

    def spoiled(self: FileKey, index: int, *args: Any) -> Any:
        stored, digest = encrypt_chunk(self, index, *args)
        stored[7] ^= index == 2
        return stored, digest

    monkeypatch.setattr(FileKey, "encrypt_chunk", spoiled)
    put(cluster, path)
    got = cluster.client().get(NAME, root / "copy")
    cluster.run(lambda: got.ended, "the end of it")
    assert isinstance(got.error, ChunkCorrupt)
    assert got.error.exit_code == 5
    assert not (root / "copy").exists()
    assert not [event for event in got.events if event["event"] == "corrupt"], "no peer is accused"


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["put", "get"])
def test_many_small_chunks_in_memory_fit_the_budget(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A tag makes each chunk a page longer, and a put has it twice."""
    transfer = {**SETTINGS["transfer"], "receive_budget": 40 * CHUNK}
    cluster = make_cluster(root, 7, monkeypatch, settings={**SETTINGS, "transfer": transfer})
    path = cluster.make_file(NAME, 200 * CHUNK)
    most = 0
    outcome = begin(cluster, path)
    if way == "get":
        cluster.run(lambda: outcome.ended, "the upload")
        outcome = cluster.client().get(NAME, root / "copy")
    bulk = cluster.clients[-1].bulk

    def ended() -> bool:
        nonlocal most
        jobs = [getattr(job, "_pass", job) for job in bulk.loop._timed]
        pools = [job._pool.reserved for job in jobs if hasattr(job, "_pool")]
        most = max(most, *pools, 0)
        return outcome.ended

    cluster.run(ended, "the end")
    outcome.expect_done()
    assert 20 * CHUNK < most <= 41 * (CHUNK + 4096)


def test_passphrases_do_as_well(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster(root, 8, monkeypatch)
    path = cluster.make_file(NAME, 3 * CHUNK)
    cluster.secret = Passphrase("pale blue dot")
    outcome = cluster.client().put(path, encryption=keys_of(cluster).begin(path, cluster.secret))
    cluster.run(lambda: outcome.ended, "the upload")
    outcome.expect_done()
    cluster.verify({NAME: path})
