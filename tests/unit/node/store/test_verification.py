"""node/store/verification.py and what a store does with its verdicts: what cannot be read now is neither
damaged nor lost, stays where it is, and counts again as soon as it can be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.store.stores import (
    BIG,
    UPLOAD,
    Chunk,
    Stores,
    bring,
    chunk_path,
    files_below,
    flip_a_bit,
    keep,
    manifest_of,
    oserror,
    put,
    replaced,
)
from zchunk.errors import NotFound, StorageFailure, StoreOffline, Unreadable, ZchunkError
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.verification import Judged, Verdict, judge
from zchunk.system import disk

#: What an operating system says that lets nobody look: it is no news of the bytes.
REFUSALS = (
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ENXIO,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.ELOOP,
    errno.ENODEV,
)
CALLS = ("open", "preadv", "fstat")
CORRUPT = "trash/corrupt"
TODAY = "2023-11-14"


@contextmanager
def unreadable(number: int = errno.EIO, call: str = "preadv", only: Path | None = None) -> Iterator[None]:
    """Reads are refused inside the block; with `only`, those of files that are opened by this name."""
    fail, real = oserror(number), getattr(os, call)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **kwargs) if only is not None and args[0] != only else fail()

    with replaced(os, call, refuse):
        yield


def memory_short(_fd: int) -> None:
    raise MemoryError


# -- the verdict ---------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "chunk"
    found.write_bytes(Chunk(1).data)
    return found


@pytest.mark.parametrize("blake3", [None, Chunk(1).blake3, bytes(32)], ids=["unknown", "right", "wrong"])
def test_a_whole_file_is_whole_whatever_was_known_of_it(path: Path, blake3: bytes | None) -> None:
    assert judge(path, Chunk(1).sha256, blake3) == Judged(Verdict.WHOLE, 9000, Chunk(1).blake3)


@pytest.mark.parametrize("blake3", [None, Chunk(1).blake3], ids=["unknown", "known"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_other_bytes_are_damage(path: Path, damage: str, blake3: bytes | None) -> None:
    if damage == "flip":
        flip_a_bit(path, 5)
    else:
        data = Chunk(1).data
        path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"x"}[damage])
    assert judge(path, Chunk(1).sha256, blake3).verdict is Verdict.DAMAGED


def test_no_file_is_gone(tmp_path: Path) -> None:
    assert judge(tmp_path / "none", bytes(32)).verdict is Verdict.GONE


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_refusal_is_no_verdict(path: Path, number: int, call: str) -> None:
    flip_a_bit(path, 5)
    with unreadable(number, call), pytest.raises(OSError) as caught:  # noqa: PT011 - the number says it
        judge(path, Chunk(1).sha256)
    assert caught.value.errno == number


def test_no_memory_is_no_verdict(path: Path) -> None:
    with replaced(disk, "drop_cache", memory_short), pytest.raises(OSError, match="Cannot allocate memory"):
        judge(path, Chunk(1).sha256)


def test_a_read_that_ends_before_the_file_does_is_no_verdict(path: Path) -> None:
    """Also where every read does so: nobody has seen the rest."""
    real = os.preadv

    def early(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, buffers, offset) if offset == 0 else 0

    with open(path, "ab") as file:
        file.write(bytes(2 << 20))
    with replaced(os, "preadv", early), pytest.raises(OSError, match="shorter than its size says"):
        judge(path, Chunk(1).sha256)


def test_short_reads_are_put_together(path: Path) -> None:
    real = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:7]], offset)

    with replaced(os, "preadv", short):
        assert judge(path, Chunk(1).sha256).verdict is Verdict.WHOLE


def wrong_reads(bits: Iterator[int]) -> Callable[..., int]:
    """Each read's first byte is changed by the next of `bits`."""
    real = os.preadv

    def wrong(fd: int, buffers: list[memoryview], offset: int) -> int:
        got = real(fd, buffers, offset)
        if got:
            buffers[0][0] ^= next(bits)
        return got

    return wrong


def test_bytes_that_were_wrong_once_are_looked_at_again(path: Path) -> None:
    with replaced(os, "preadv", wrong_reads(iter([1, 0]))):
        assert judge(path, Chunk(1).sha256).verdict is Verdict.WHOLE


def test_bytes_that_are_wrong_in_another_way_each_time_are_no_verdict(path: Path) -> None:
    with (
        replaced(os, "preadv", wrong_reads(iter([1, 2]))),
        pytest.raises(OSError, match="different bytes"),
    ):
        judge(path, Chunk(1).sha256)


# -- a chunk that is held --------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "preadv"])
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_chunk_that_cannot_be_read_stays_and_is_held(
    stores: Stores, store: ChunkStore, number: int, call: str
) -> None:
    chunk, reason = Chunk(1), os.strerror(number)
    put(store, chunk)
    looks = (store.verify, store.drop_corrupt, lambda sha256: store.read_block(sha256, 0, 9000))
    with unreadable(number, call):
        for look in looks:
            with pytest.raises(Unreadable, match=f"chunk {chunk.hex[:12]} cannot be read now .{reason}"):
                look(chunk.sha256)
    assert store.hashes() == [chunk.sha256]
    assert files_below(stores.root / "trash") == []
    assert store.verify(chunk.sha256)
    assert not store.drop_corrupt(chunk.sha256)
    assert store.read_block(chunk.sha256, 0, 9000) == chunk.data


def test_no_memory_for_a_block_is_a_refusal_too(store: ChunkStore) -> None:
    put(store, Chunk(1))
    for error in (OSError(errno.ENOMEM, "none"), MemoryError()):

        def lend(_length: int, error: BaseException = error) -> memoryview:
            raise error

        with pytest.raises(Unreadable):
            store.read_block(Chunk(1).sha256, 0, 10, lend)


def test_a_damaged_chunk_is_looked_at_twice_before_it_goes(stores: Stores, store: ChunkStore) -> None:
    """The first look may have been wrong, and it may be the last copy."""
    put(store, Chunk(1))
    with replaced(os, "preadv", wrong_reads(iter([1, 1, 1]))):
        assert not store.verify(Chunk(1).sha256)
    assert not store.drop_corrupt(Chunk(1).sha256)
    assert store.has(Chunk(1).sha256)
    assert files_below(stores.root / "trash") == []


def test_an_unplugged_disk_is_offline_not_unreadable(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))

    def unplug(*_args: object) -> None:
        os.rename(stores.root / "zchunk-store.json", stores.root / "aside")
        oserror(errno.EIO)()

    with replaced(os, "preadv", unplug), pytest.raises(StoreOffline):
        store.verify(Chunk(1).sha256)
    os.rename(stores.root / "aside", stores.root / "zchunk-store.json")


@pytest.mark.parametrize("look", ["verify", "drop_corrupt"])
def test_what_is_missing_under_a_mount_that_went_is_not_gone(
    stores: Stores, store: ChunkStore, look: str
) -> None:
    """The marker is there: only the folder of the chunks was on another disk."""
    put(store, Chunk(1))
    chunks = stores.root / "chunks"
    chunks.rename(stores.root / "away")
    chunk_path(stores.root, Chunk(1)).parent.mkdir(parents=True)
    with pytest.raises(StoreOffline, match="mounted"):
        getattr(store, look)(Chunk(1).sha256)
    assert store.has(Chunk(1).sha256)
    chunk_path(stores.root, Chunk(1)).parent.rmdir()
    chunks.rmdir()
    (stores.root / "away").rename(chunks)


# -- ... and that is sent again -----------------------------------------------------------------


def test_a_chunk_that_cannot_be_read_is_stored_anew_in_one_step(stores: Stores, store: ChunkStore) -> None:
    chunk, path = Chunk(1), chunk_path(stores.root, Chunk(1))
    put(store, chunk)
    before = path.stat().st_ino
    put(store, chunk)
    assert path.stat().st_ino == before, "nothing was wrong"
    with unreadable(), pytest.raises(Unreadable):
        store.read_block(chunk.sha256, 0, 10)
    store.reserve_space(9000)
    store.put(chunk.sha256, chunk.blake3, chunk.data, UPLOAD, 9000)
    assert path.stat().st_ino != before
    assert store.read_block(chunk.sha256, 0, 9000) == chunk.data
    assert (store.count, store.used, store.parts.held._reserved) == (1, 9000, 0)
    put(store, chunk)
    assert path.stat().st_ino not in (0, before)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("failing", ["open", "pwrite", "fdatasync", "replace", "fsync"])
def test_where_that_fails_what_was_there_stays(stores: Stores, failing: str, held: bool) -> None:
    """Held, or found at the start and not readable yet: the last copy of a chunk, perhaps."""
    store, chunk = stores.create(), Chunk(1)
    path = chunk_path(stores.root, chunk)
    put(store, chunk)
    if held:
        with unreadable(), pytest.raises(Unreadable):
            store.verify(chunk.sha256)
    else:
        stores.crash(store)
        os.unlink(stores.root / "index.sqlite")
        with unreadable(only=None):
            store = stores.reopen()
    with replaced(os, failing, oserror(errno.ENOSPC)), pytest.raises(ZchunkError):
        put(store, chunk)
    assert store.has(chunk.sha256) is held
    assert path.read_bytes() == chunk.data
    put(store, chunk)
    assert store.has(chunk.sha256)


# -- at the start ------------------------------------------------------------------------------


def without_index(stores: Stores, store: ChunkStore, *, crash: bool = True) -> None:
    stores.crash(store) if crash else store.close()
    os.unlink(stores.root / "index.sqlite")


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_what_cannot_be_read_at_the_start_stays_and_is_looked_at_later(
    stores: Stores, store: ChunkStore, number: int
) -> None:
    put(store, Chunk(1), Chunk(2))
    without_index(stores, store)
    path = chunk_path(stores.root, Chunk(1))
    with unreadable(number, "open", path):
        again = stores.reopen()
        assert again.hashes() == [Chunk(2).sha256]
        assert again.unsettled() == [path]
        with pytest.raises(Unreadable):
            again.take_back(path)
    assert files_below(stores.root / "trash") == []
    assert again.unsettled() == [path]
    assert again.take_back(path) == Chunk(1).sha256
    assert again.unsettled() == []
    assert again.hashes() == sorted([Chunk(1).sha256, Chunk(2).sha256])
    assert again.garbage(0.0) == [], "its lease was lost with the index: it has one of a day"


def test_what_turns_out_damaged_later_goes_then(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1))
    without_index(stores, store)
    with unreadable():
        again = stores.reopen()
    flip_a_bit(chunk_path(stores.root, Chunk(1)), 1)
    assert again.take_back(again.unsettled()[0]) is None
    assert files_below(stores.root / "trash") == [f"corrupt/{TODAY}-{Chunk(1).hex}"]
    assert (again.count, again.unsettled()) == (0, [])


@pytest.mark.parametrize("end", ["close", "crash"])
def test_what_could_never_be_read_is_found_at_the_next_start(
    stores: Stores, store: ChunkStore, end: str
) -> None:
    put(store, Chunk(1))
    without_index(stores, store)
    with unreadable():
        again = stores.reopen()
    again.close() if end == "close" else stores.crash(again)
    assert stores.reopen().hashes() == [Chunk(1).sha256]


def test_a_put_that_was_cut_off_and_cannot_be_read_yet_is_not_forgotten(
    stores: Stores, store: ChunkStore
) -> None:
    with replaced(store._storing, "_record", oserror(errno.EIO)), pytest.raises(OSError):  # noqa: PT011
        put(store, Chunk(1))
    stores.crash(store)
    with unreadable(errno.EMFILE, "open", chunk_path(stores.root, Chunk(1))):
        stores.crash(stores.reopen())
    assert stores.reopen().hashes() == [Chunk(1).sha256]


# -- manifests ---------------------------------------------------------------------------------


def test_while_a_manifest_cannot_be_read_nothing_is_freed(stores: Stores, store: ChunkStore) -> None:
    put(store, Chunk(1), Chunk(2))
    file_id = keep(store, Chunk(1))
    without_index(stores, store, crash=False)
    path = stores.root / "manifests" / file_id
    with unreadable(errno.EIO, "open", path):
        again = stores.reopen()
        assert again.manifests() == []
        assert again.garbage(BIG) == [], "it may name them"
    assert path.exists()
    assert again.garbage(BIG) == [Chunk(2).sha256]
    assert again.manifests() == [file_id]
    assert files_below(stores.root / "trash") == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_kept_manifest_that_cannot_be_read_is_written_anew(store: ChunkStore, number: int) -> None:
    made = manifest_of(Chunk(1))
    bring(store, made)
    with replaced(Path, "read_bytes", oserror(number)):
        bring(store, made)
    assert store.manifest(made.file_id) == made.canonical


# -- trash/corrupt --------------------------------------------------------------------------------


def set_apart(stores: Stores, name: str, data: bytes) -> Path:
    folder = stores.root / CORRUPT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def test_what_an_earlier_run_set_apart_is_looked_at_and_taken_back(stores: Stores, store: ChunkStore) -> None:
    sound, bad, held = Chunk(1), Chunk(2), Chunk(3)
    put(store, held)
    store.close()
    set_apart(stores, f"2023-11-01-{sound.hex}", sound.data)
    set_apart(stores, f"2023-11-02-{bad.hex}", bad.data[:-1])
    set_apart(stores, f"2023-11-03-{held.hex}", held.data)
    again = stores.reopen()
    assert [again.take_back(path) for path in again.unsettled()] == [sound.sha256, None, None]
    assert again.unsettled() == []
    assert again.hashes() == sorted([sound.sha256, held.sha256])
    assert again.read_block(sound.sha256, 0, 9000) == sound.data
    assert files_below(stores.root / "trash") == sorted(
        [f"corrupt/2023-11-02-{bad.hex}", f"corrupt/2023-11-03-{held.hex}"]
    )
    stores.crash(again)
    assert stores.reopen().hashes() == sorted([sound.sha256, held.sha256])


@pytest.mark.parametrize("suffix", ["", ".manifest"])
def test_a_manifest_is_taken_back_as_one(stores: Stores, store: ChunkStore, suffix: str) -> None:
    made = manifest_of(Chunk(1))
    put(store, Chunk(1))
    store.close()
    set_apart(stores, f"2023-11-01-{made.file_id}{suffix}", made.canonical)
    again = stores.reopen()
    assert [again.take_back(path) for path in again.unsettled()] == [None]
    assert again.manifests() == [made.file_id]
    assert again.manifest(made.file_id) == made.canonical
    assert again.garbage(BIG) == []
    assert again.hashes() == [Chunk(1).sha256]


def test_nothing_is_purged_from_there_before_it_was_looked_at(stores: Stores, store: ChunkStore) -> None:
    sound, bad = Chunk(1), Chunk(2)
    store.close()
    set_apart(stores, f"2023-10-01-{sound.hex}", sound.data)
    set_apart(stores, f"2023-10-01-{bad.hex}", bad.data[1:])
    again = stores.reopen()
    now = stores.clock.wall()
    with replaced(disk, "free_bytes", lambda _path: 100):
        assert not again.reserve_space(5000)
    assert again.purge_trash(now) == 0
    with unreadable():
        for path in again.unsettled():
            with pytest.raises(Unreadable):
                again.take_back(path)
        assert again.purge_trash(now) == 0
    assert {again.take_back(path) for path in again.unsettled()} == {sound.sha256, None}
    assert again.purge_trash(now) == 8999


def test_what_is_set_apart_overwrites_nothing_that_was_not_looked_at(
    stores: Stores, store: ChunkStore
) -> None:
    put(store, Chunk(1))
    flip_a_bit(chunk_path(stores.root, Chunk(1)), 2)
    store.close()
    sound = set_apart(stores, f"{TODAY}-{Chunk(1).hex}", Chunk(1).data)
    again = stores.reopen()
    assert again.drop_corrupt(Chunk(1).sha256)
    assert again.unsettled() == [sound]
    assert again.take_back(sound) == Chunk(1).sha256
    assert again.read_block(Chunk(1).sha256, 0, 9000) == Chunk(1).data


def test_offline_nothing_is_taken_back(stores: Stores, store: ChunkStore) -> None:
    store.close()
    path = set_apart(stores, f"2023-11-01-{Chunk(1).hex}", Chunk(1).data)
    again = stores.reopen()
    marker = stores.root / "zchunk-store.json"
    marker.rename(stores.root / "aside")
    for call in (again.unsettled, lambda: again.take_back(path)):
        with pytest.raises(StoreOffline):
            call()
    (stores.root / "aside").rename(marker)
    with pytest.raises(NotFound):
        again.size_of(Chunk(1).sha256)


def test_a_take_back_that_fails_leaves_it_where_it_was(stores: Stores, store: ChunkStore) -> None:
    store.close()
    path = set_apart(stores, f"2023-11-01-{Chunk(1).hex}", Chunk(1).data)
    again = stores.reopen()
    with replaced(os, "replace", oserror(errno.EIO)), pytest.raises(StorageFailure):
        again.take_back(path)
    assert path.read_bytes() == Chunk(1).data
    assert again.take_back(path) == Chunk(1).sha256
