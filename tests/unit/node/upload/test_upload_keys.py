"""node/upload/upload_keys.py: an interrupted upload goes on with its key; nothing else ever does."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from zchunk.clock import ManualClock
from zchunk.content import encryption
from zchunk.content.encryption import Cost, KeyFile, Passphrase, Secret
from zchunk.node.upload.upload_keys import KEEP_S, UploadKeys

SECRET, KEY = Passphrase("pale blue dot"), KeyFile(b"k" * 32)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption.new_key, "__defaults__", (Cost(10, 8, 1),))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "film.mov"


@pytest.fixture
def keys(tmp_path: Path) -> UploadKeys:
    return UploadKeys(tmp_path / "uploads")


def key_of(keys: UploadKeys, source: Path, secret: Secret) -> bytes:
    return keys.begin(source, secret).key._key


def kept(keys: UploadKeys) -> list[Path]:
    return list(keys._folder.iterdir())


@pytest.mark.parametrize("secret", [SECRET, KEY])
def test_a_second_try_has_the_key_of_the_first(keys: UploadKeys, source: Path, secret: Secret) -> None:
    first = key_of(keys, source, secret)
    assert key_of(keys, source, secret) == first
    assert key_of(UploadKeys(keys._folder), source, secret) == first


@pytest.mark.parametrize("other", [Passphrase("another"), KEY])
def test_another_secret_gets_another_key(keys: UploadKeys, source: Path, other: Secret) -> None:
    first = key_of(keys, source, SECRET)
    second = key_of(keys, source, other)
    assert second != first
    assert key_of(keys, source, other) == second
    assert key_of(keys, source, SECRET) not in (first, second)


def test_another_file_has_another_key(keys: UploadKeys, source: Path) -> None:
    assert key_of(keys, source, SECRET) != key_of(keys, source.with_name("other"), SECRET)


def test_a_file_that_is_published_gets_a_new_key_the_next_time(keys: UploadKeys, source: Path) -> None:
    first = key_of(keys, source, SECRET)
    keys.forget(source)
    assert kept(keys) == []
    assert key_of(keys, source, SECRET) != first


@pytest.mark.row("S3")
def test_what_is_kept_is_no_key(keys: UploadKeys, source: Path) -> None:
    key = key_of(keys, source, SECRET)
    (path,) = kept(keys)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    text = path.read_text()
    assert key.hex() not in text
    assert "pale blue dot" not in text
    assert set(json.loads(text)) == {"version", "source", "head"}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace("film", "gilm"),
        lambda text: json.dumps(json.loads(text) | {"head": "AAAA"}),
        lambda text: json.dumps(json.loads(text) | {"head": "no base64!"}),
        lambda text: json.dumps(json.loads(text) | {"head": 7}),
    ],
)
def test_a_damaged_one_begins_anew(keys: UploadKeys, source: Path, change: Callable[[str], str]) -> None:
    first = key_of(keys, source, SECRET)
    (path,) = kept(keys)
    path.write_text(change(path.read_text()))
    second = key_of(keys, source, SECRET)
    assert second != first
    assert key_of(keys, source, SECRET) == second


def test_uploads_that_nobody_runs_again_are_forgotten(tmp_path: Path, source: Path) -> None:
    clock = ManualClock()
    keys = UploadKeys(tmp_path / "uploads", clock)
    key_of(keys, source, SECRET)
    other = source.with_name("other")
    key_of(keys, other, SECRET)
    (old, new) = (keys._path(source), keys._path(other))
    os.utime(old, (clock.wall() - KEEP_S - 1,) * 2)
    os.utime(new, (clock.wall() - KEEP_S + 60,) * 2)
    keys.forget(source.with_name("third"))
    assert kept(keys) == [new]
