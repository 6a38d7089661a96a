"""Reads of ranges by real processes (SPEC D11, I2): `zchunk cat` and `zchunk.Client.open`."""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import zchunk
from tests.integration.cluster import MIB, Client, Cluster, Source, make_file
from tests.waiting import wait_for
from zchunk.config import Settings, load
from zchunk.errors import IntegrityError, NotFound, PartialDownload, WrongKey
from zchunk.node.reading.file_object import RangeFile

CHUNK = 64 * 1024
SIZE = 3 * MIB + 777


@pytest.fixture(scope="module")
def source(bench_cluster: Cluster, sources: Path) -> Source:
    source = make_file(sources / "ranges.bin", SIZE)
    bench_cluster.client.put(source.path)
    return source


@pytest.fixture
def api(bench: Cluster) -> Iterator[zchunk.Client]:
    chunking = {"chunk_size": CHUNK, "min_file_size_for_distribution": MIB}
    with zchunk.Client(bench.client.home, load(None, {"chunking": chunking}, environ={})) as client:
        yield client


def words(client: Client, *args: str | Path) -> list[str]:
    command = [*client.prefix, sys.executable, "-m", "zchunk", "cat", "--home", str(client.home)]
    return [*command, *map(str, args)]


def cat(
    client: Client, *args: str | Path, code: int = 0, env: Mapping[str, str] | None = None
) -> tuple[bytes, str]:
    """(stdout, stderr)."""
    done = subprocess.run(
        words(client, *args), capture_output=True, timeout=60, env={**os.environ, **(env or {})}
    )
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return done.stdout, said


def received(file: io.BufferedReader) -> int:
    """Payload bytes that came over the wire for it."""
    assert isinstance(file.raw, RangeFile)
    return file.raw.bytes_received


# -- zchunk cat --------------------------------------------------------------------------


@pytest.mark.row("D11")
def test_cat_is_the_slice(bench: Cluster, source: Source) -> None:
    plain, rng = source.path.read_bytes(), random.Random(11)
    ranges = [(CHUNK - 1, 2), *((rng.randrange(SIZE), rng.randrange(1, MIB)) for _ in range(2))]
    for offset, length in ranges:
        args = ("--offset", str(offset), "--length", str(length))
        data, said = cat(bench.client, *args, "--", source.path.name)
        assert data == plain[offset : offset + length], (offset, length)
        assert said == ""
    assert cat(bench.client, "--offset", "10GB", source.path.name) == (b"", "")


def test_cat_into_a_pipe_that_closes_ends_without_a_word(bench: Cluster, source: Source) -> None:
    line = f"set -o pipefail; {shlex.join(words(bench.client, source.path.name))} | head -c 100000"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == source.piece(0, 100000)


def test_cat_without_a_holder(bench: Cluster, api: zchunk.Client, source: Source, folder: Path) -> None:
    """What comes before the missing chunk is written; with patience the rest comes too."""
    holders = api.locate(source.path.name).distribution_map()
    missing = bench.node_of(holders["2"])
    first = min(int(i) for i, peer in holders.items() if peer == missing.peer_id)
    bench.kill(missing.name)
    data, said = cat(bench.client, "--no-wait", source.path.name, code=4)
    assert data == source.piece(0, first * CHUNK)
    assert said.count("\n") == 1
    assert missing.name in said
    out = folder / "out"
    command = words(bench.client, source.path.name)
    with out.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE) as waiting:
        assert waiting.stderr is not None
        try:
            assert f"for {missing.name}" in waiting.stderr.readline().decode()
            bench.restart(missing.name)
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
        assert waiting.stderr.read().decode() == f"{missing.name} is back: continuing\n"
    assert out.read_bytes() == source.path.read_bytes()


# -- zchunk.Client.open ------------------------------------------------------------------


@pytest.mark.row("D11")
def test_a_file_object_reads_what_is_asked_for_and_fetches_no_more(
    api: zchunk.Client, source: Source
) -> None:
    plain, rng = source.path.read_bytes(), random.Random(5)
    with api.open(source.path.name) as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert (file.name, file.mode) == (source.path.name, "rb")
        assert file.read(0) == b""
        assert received(file) == 0
        file.seek(-100, os.SEEK_END)
        assert file.read() == plain[-100:]
        assert received(file) == SIZE % CHUNK
        file.seek(5 * CHUNK - 10)
        assert file.read(20) == plain[5 * CHUNK - 10 : 5 * CHUNK + 10]
        assert received(file) == SIZE % CHUNK + 2 * CHUNK
        for _ in range(200):
            at, length = rng.randrange(SIZE + 1000), rng.choice([0, 1, 5000, CHUNK, 5 * CHUNK])
            assert file.seek(at) == at
            assert file.read(length) == plain[at : at + length]
            assert file.tell() == min(at + length, max(at, SIZE))
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


@pytest.mark.row("I2")
def test_a_file_object_is_copied_whole_each_chunk_once(
    api: zchunk.Client, source: Source, folder: Path
) -> None:
    with api.open(source.path.name) as file, (folder / "copy").open("wb") as copy:
        shutil.copyfileobj(file, copy)
        assert received(file) == SIZE
    assert (folder / "copy").read_bytes() == source.path.read_bytes()
    with api.open(source.path.name) as file:
        assert file.read() == source.path.read_bytes()


@pytest.mark.row("D11")
def test_a_zip_file_is_read_in_place(api: zchunk.Client, folder: Path) -> None:
    path = folder / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.bin", os.urandom(CHUNK))
        archive.writestr("words.txt", b"pale blue dot")
    api.put(path)
    with api.open(path.name) as file, zipfile.ZipFile(file) as archive:
        assert archive.read("words.txt") == b"pale blue dot"
        assert received(file) <= 2 * CHUNK, "the directory at the end, and one entry before it"
        assert archive.testzip() is None


def test_an_encrypted_file(bench: Cluster, api: zchunk.Client, folder: Path) -> None:
    source, secret = make_file(folder / "sealed.bin", 2 * MIB + 5), zchunk.Passphrase("pale blue dot")
    api.put(source.path, zchunk.PutOptions(encrypt=secret))
    args = ("--offset", "100000", "--length", "200000", source.path.name)
    data, _ = cat(bench.client, *args, env={"ZCHUNK_PASSPHRASE": secret.text})
    assert data == source.piece(100000, 200000)
    with api.open(source.path.name, unlock=secret) as file:
        file.seek(MIB)
        assert file.read(10) == source.piece(MIB, 10)
        assert received(file) == CHUNK + 16
    with pytest.raises(WrongKey):
        api.open(source.path.name, unlock=zchunk.Passphrase("pale blue dog"))


def test_a_missing_holder_is_an_error_of_that_read_alone(
    bench: Cluster, api: zchunk.Client, source: Source
) -> None:
    holders = api.locate(source.path.name).distribution_map()
    node = bench.node_of(holders["3"])
    other = next(int(i) for i, peer in holders.items() if peer != node.peer_id)
    with api.open(source.path.name, wait=False) as file:
        bench.kill(node.name)
        wait_for(lambda: node.peer_id not in api.bulk.up(), 20, "the news")
        for _ in range(2):
            file.seek(3 * CHUNK)
            with pytest.raises(PartialDownload, match=node.name):
                file.read(10)
            file.seek(other * CHUNK)
            assert file.read(10) == source.piece(other * CHUNK, 10)
        bench.restart(node.name)
        wait_for(lambda: api.bulk.up().get(node.peer_id), 20, "the news")
        file.seek(3 * CHUNK)
        assert file.read(10) == source.piece(3 * CHUNK, 10)


def test_a_wrong_chunk_is_never_handed_out(bench: Cluster, api: zchunk.Client, folder: Path) -> None:
    source = make_file(folder / "spoilt.bin", 2 * MIB)
    api.put(source.path)
    where = api.locate(source.path.name)
    node = bench.node_of(where.distribution_map()["1"])
    path = node.chunk_path(where.manifest.chunks[1].sha256.hex())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with api.open(source.path.name) as file:
        file.seek(CHUNK)
        with pytest.raises(IntegrityError, match=node.name):
            file.read(10)
        file.seek(0)
        assert file.read(10) == source.piece(0, 10)


def test_the_end_of_the_client_closes_its_files(bench: Cluster, source: Source) -> None:
    client = zchunk.Client(bench.client.home, Settings())
    file = client.open(source.path.name)
    assert file.read(10) == source.piece(0, 10)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        file.seek(2 * MIB)
    file.close()
    with zchunk.Client(bench.client.home, Settings()) as again, pytest.raises(NotFound):
        again.open("no such file")
