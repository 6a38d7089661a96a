"""`zchunk put --encrypt` and what becomes of it (SPEC S3): what lies on the nodes' disks, who can
read it, and how it goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import zchunk
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Source, sha256_of
from tests.integration.test_edges import CHUNK, fresh
from tests.waiting import wait_for
from zchunk.config import Settings
from zchunk.errors import KeyNeeded, WrongKey

SIZE = 4 * MIB + 1000
COUNT = SIZE // CHUNK + 1
STORED = SIZE + 16 * COUNT
WORDS = "pale blue dot"
#: ZCHUNK_PASSPHRASE
IN_ENVIRONMENT = {"PASSPHRASE": WORDS}


@pytest.fixture
def words(folder: Path) -> Path:
    return secret_file(folder, WORDS + "\n")


def secret_file(folder: Path, text: str) -> Path:
    path = folder / f"words {len(os.listdir(folder))}"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def key(bench: Cluster, folder: Path) -> Path:
    path = folder / "team.key"
    make_key(bench, path)
    return path


def make_key(cluster: Cluster, path: Path) -> str:
    result = cluster.spawn(["key", "new", str(path), "--json"]).result().expect(0)
    key_id: str = result.last["key_id"]
    return key_id


def traces(source: Source) -> list[bytes]:
    """What must not be found with others: plain bytes, and plain digests in any form."""
    data = source.path.read_bytes()
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    digests = [digest(piece).digest() for piece in (*pieces, data) for digest in (hashlib.sha256, blake3)]
    return [*(piece[1000:1032] for piece in pieces if len(piece) > 2000), *digests] + [
        digest.hex().encode() for digest in digests
    ]


def disks(cluster: Cluster) -> bytes:
    """All that the nodes and the tracker keep."""
    homes = [*(node.home for node in cluster.nodes.values()), cluster.tracker.home]
    return b"".join(path.read_bytes() for home in homes for path in home.rglob("*") if path.is_file())


# -- with a passphrase ---------------------------------------------------------------------------


@pytest.mark.row("S3")
def test_only_the_passphrase_reads_it(bench: Cluster, folder: Path, words: Path) -> None:
    source, client = fresh(folder, SIZE), bench.client
    done = client.put(source.path, "--encrypt", "--passphrase-file", str(words), "--replicas", "2").last
    assert (done["bytes_sent"], done["sha256"], done["encrypted"]) == (2 * STORED, source.sha256, True)
    found = disks(bench)
    assert not [trace for trace in traces(source) if trace in found]
    assert source.path.name.encode() in found
    info = client.info(source.path.name)
    assert (info["size"], info["sha256"], info["health"]) == (SIZE, None, "complete")
    assert info["encryption"] == {"cipher": "AES-256-GCM", "by": "passphrase"}
    assert [row["sha256"] for row in client.ls() if row["name"] == source.path.name] == [None]

    target = folder / "copy"
    wrong = client.get(source.path.name, target, settings={"PASSPHRASE": "pale blue dog"}, code=7)
    assert wrong.last["code"] == "wrong_key"
    assert "wrong passphrase" in wrong.stderr
    absent = client.get(source.path.name, target, code=2)
    assert absent.last["code"] == "key_needed"
    assert "--passphrase-file" in absent.stderr
    assert not list(folder.glob("copy*"))

    got = client.get(source.path.name, target, "--passphrase-file", str(words)).last
    assert (got["bytes_received"], got["sha256"]) == (STORED, source.sha256)
    assert target.read_bytes() == source.path.read_bytes()
    again = client.get(source.path.name, target, settings=IN_ENVIRONMENT).last
    assert (again["bytes_received"], again["already"]) == (0, True)
    client.get(source.path.name, folder / "by stdin", "--passphrase-file", "-", text=WORDS)
    assert sha256_of(folder / "by stdin") == source.sha256
    known = client.run("info", "--passphrase-file", words, "--", source.path.name).last
    assert known["sha256"] == source.sha256


def test_without_a_secret_or_a_terminal_nothing_is_put(bench: Cluster, folder: Path, words: Path) -> None:
    source, client = fresh(folder, SIZE), bench.client
    assert client.put(source.path, "--encrypt", code=2).last["code"] == "key_needed"
    empty = client.put(source.path, "--encrypt", "--passphrase-file", str(secret_file(folder, "")), code=2)
    assert "empty" in empty.stderr
    forgotten = client.put(source.path, "--passphrase-file", str(words), code=2)
    assert "--encrypt" in forgotten.stderr
    client.put(source.path, "--hide-name", code=2)
    both = ("--key-file", str(words), "--passphrase-file", str(words))
    client.put(source.path, "--encrypt", *both, code=2)
    assert source.path.name not in client.names()


def test_a_terminal_is_asked_twice_and_once(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, SIZE), bench.join(f"asked {folder.name}", prefix=("setsid",))

    def ask(*words: Any, answers: dict[str, str]) -> Any:
        process = client.start(*words, terminal=True, json=False)
        for question, answer in answers.items():
            wait_for(lambda q=question: q in process.stderr, PATIENCE_S, question)  # type: ignore[misc]
            process.answer(f"{answer}\n")
        return process.result()

    asked = {"Passphrase for the file": WORDS, "Repeat": WORDS, "Continue?": "y"}
    put = ask("put", "--encrypt", source.path, answers=asked).expect(0)
    assert "with a passphrase; others see its size and name" in put.stderr
    assert WORDS not in put.stderr + "".join(put.lines)
    target = folder / "copy"
    ask("get", source.path.name, "-o", target, answers={"Passphrase of the file": "wrong"}).expect(7)
    ask("get", source.path.name, "-o", target, answers={"Passphrase of the file": WORDS}).expect(0)
    assert sha256_of(target) == source.sha256


# -- with a key file, and a hidden name -----------------------------------------------------------


@pytest.mark.row("S3")
def test_a_key_file_and_a_hidden_name(bench: Cluster, folder: Path, key: Path, words: Path) -> None:
    source, client = fresh(folder, SIZE), bench.client
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert bench.spawn(["key", "new", str(key)]).result().code == 2, "never replaced"
    done = client.put(source.path, "--encrypt", "--hide-name", "--key-file", str(key)).last
    name = done["name"]
    assert name.startswith("encrypted-")
    found = disks(bench)
    assert not [trace for trace in [source.path.name.encode(), *traces(source)] if trace in found]
    info = client.info(name)
    assert info["encryption"]["by"] == "key_file"
    assert client.run("info", "--key-file", key, "--", name).last["name"] == source.path.name

    listed = {row["file_id"]: row for row in client.run("ls", "--key-file", key).last}
    assert listed[done["file_id"]]["name"] == source.path.name
    assert listed[done["file_id"]]["sha256"] == source.sha256
    assert name in client.names()

    out = folder / "out"
    out.mkdir()
    got = client.run("get", "--key-file", key, name, cwd=out).last
    assert (got["name"], Path(got["target"]).name) == (source.path.name, source.path.name)
    assert sha256_of(out / source.path.name) == source.sha256
    by_id = client.run("get", "--key-file", key, done["file_id"], "-o", folder).last
    assert (by_id["already"], by_id["target"]) == (True, str(source.path)), "it is known by its content"

    other, lost = folder / "other.key", folder / "lost.key"
    make_key(bench, other)
    wrong = client.get(name, folder / "x", "--key-file", str(other), code=7)
    assert info["encryption"]["key_id"] in wrong.stderr
    assert "does not exist" in client.get(name, folder / "x", "--key-file", str(lost), code=9).stderr
    client.get(name, folder / "x", "--key-file", str(source.path), code=2)
    needed = client.get(name, folder / "x", code=2)
    assert info["encryption"]["key_id"] in needed.stderr
    client.get(name, folder / "x", "--passphrase-file", str(words), code=7)
    assert not list(folder.glob("x*"))


def test_a_hidden_name_is_data_like_any_other(bench: Cluster, folder: Path, key: Path) -> None:
    source, out, client = fresh(folder, 5000), folder / "in" / "here", bench.client
    out.mkdir(parents=True)
    options = ["--name=../../escaped", "--encrypt", "--hide-name", "--key-file", str(key)]
    name = client.put(source.path, *options).last["name"]
    got = client.run("get", "--key-file", key, name, cwd=out).last
    assert (got["name"], Path(got["target"])) == ("../../escaped", out / "escaped")
    assert sha256_of(out / "escaped") == source.sha256
    assert sorted(path.name for path in folder.rglob("*escaped*")) == ["escaped"]


def test_a_secret_is_not_taken_for_a_file_that_is_not_encrypted(
    bench: Cluster, folder: Path, words: Path
) -> None:
    """Else whoever puts another file of that name would have it taken for the one."""
    source, client = fresh(folder, SIZE), bench.client
    client.put(source.path)
    refused = client.get(source.path.name, folder / "copy", "--passphrase-file", str(words), code=2)
    assert "not encrypted" in refused.stderr
    client.get(source.path.name, folder / "copy", settings=IN_ENVIRONMENT)  # it is there for every get


# -- killed in the middle --------------------------------------------------------------------------


@pytest.mark.row("S3")
def test_a_killed_download_goes_on_and_its_job_holds_no_secret(
    bench: Cluster, folder: Path, words: Path
) -> None:
    source, client = fresh(folder, SIZE), bench.client
    client.put(source.path, "--encrypt", "--passphrase-file", str(words))
    bench.kill("B")
    target = folder / "copy"
    get = client.start(
        "get", "--passphrase-file", words, "-o", target, source.path.name, settings={}, json=True
    )
    job_id = get.until("plan")["job_id"]
    waiting = get.until("waiting")
    get.end(signal.SIGKILL)
    assert 0 < waiting["chunks_completed"] < COUNT

    record = next(path for path in client.home.rglob("jobs/*.json") if path.stem == job_id)
    for path in (record, target.with_name("copy.zjob")):
        text = path.read_bytes()
        assert not [trace for trace in [WORDS.encode(), *traces(source)] if trace in text]
    bench.restart("B")
    assert client.run("resume", job_id, code=2).last["code"] == "key_needed"
    client.run("resume", job_id, settings={"PASSPHRASE": "wrong"}, code=7)
    resumed = client.run("resume", "--passphrase-file", words, job_id)
    [plan] = resumed.of("plan")
    assert plan["chunks_kept"] >= waiting["chunks_completed"] - 8
    assert resumed.last["bytes_received"] <= STORED - plan["chunks_kept"] * (CHUNK + 16) + 2 * CHUNK
    assert sha256_of(target) == source.sha256
    assert not list(folder.glob("copy.*"))


def test_an_interrupted_upload_goes_on_even_if_the_file_changed(
    bench: Cluster, folder: Path, words: Path
) -> None:
    source, client = fresh(folder, SIZE), bench.client
    options = ("--encrypt", "--passphrase-file", str(words))
    put = client.start("put", "--yes", *options, source.path)
    plan = put.until("plan")
    with bench.frozen(bench.nodes["B"].process):
        others = sum(p["chunks"] for p in plan["peers"] if p["name"] != "B")
        put.until(lambda e: e.get("event") == "progress" and e["chunks_completed"] >= others // 2)
        put.end(signal.SIGKILL)
    bench.await_all_up()
    [kept] = (client.home / "client" / "uploads").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert set(json.loads(kept.read_text())) == {"version", "source", "head"}
    with open(source.path, "r+b") as file:
        file.write(b"other bytes at its beginning")
    second = client.put(source.path, *options).last
    assert second["bytes_sent"] <= STORED - (others // 2 - 2) * (CHUNK + 16)
    client.get(source.path.name, folder / "copy", *options[1:])
    assert (folder / "copy").read_bytes() == source.path.read_bytes()
    assert not list((client.home / "client" / "uploads").iterdir())


# -- a chunk that a disk damaged --------------------------------------------------------------------


def test_a_damaged_chunk_is_found_by_its_sha256_as_ever(bench: Cluster, folder: Path, words: Path) -> None:
    source, client = fresh(folder, SIZE), bench.client
    options = ("--passphrase-file", str(words))
    client.put(source.path, "--encrypt", *options, "--replicas", "2")
    info = client.info(source.path.name)
    sha256 = info["chunks_hashes"][7]
    node = bench.node_of(info["distribution_map"]["7"])
    with open(node.chunk_path(sha256), "r+b") as file:
        file.seek(CHUNK + 3)  # in the tag
        byte = file.read(1)[0]
        file.seek(CHUNK + 3)
        file.write(bytes([byte ^ 1]))
    client.get(source.path.name, folder / "copy", *options)
    assert sha256_of(folder / "copy") == source.sha256


# -- from Python --------------------------------------------------------------------------------------


def test_from_python(bench: Cluster, folder: Path) -> None:
    source, target = fresh(folder, SIZE), folder / "copy"
    secret = zchunk.Passphrase(WORDS)
    with zchunk.Client(bench.client.home, bench_settings(bench)) as client:
        done = client.put(source.path, zchunk.PutOptions(encrypt=secret, hide_name=True))
        with pytest.raises(KeyNeeded):
            client.get(done["name"], target)
        with pytest.raises(WrongKey):
            client.get(done["name"], target, unlock=zchunk.KeyFile(bytes(32)))
        asked = []
        client.get(done["name"], target, unlock=lambda lock: asked.append(lock.text) or secret)
        assert asked == ["a passphrase"]
    assert sha256_of(target) == source.sha256


def bench_settings(cluster: Cluster) -> Settings:
    from zchunk.config import load

    nested: dict[str, dict[str, Any]] = {}
    for key, value in cluster.settings.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    return load(None, nested, environ={})
