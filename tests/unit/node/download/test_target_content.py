"""What is under the target's name, and which names it may have."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.download.files import SIZE, File, names, oserror, replaced
from zchunk.content import hashing
from zchunk.content.manifest import Manifest
from zchunk.errors import (
    NotAllowed,
)
from zchunk.node.download.target_content import safe_target_name, target_has_content

# -- the target -------------------------------------------------------------------------------


def test_target_has_content_compares_size_then_hash(target: Path, file: File) -> None:
    assert not target_has_content(target, file.manifest)
    target.write_bytes(file.data)
    assert target_has_content(target, file.manifest)
    before = hashing.counts["sha256"]
    target.write_bytes(file.data + b"x")
    assert not target_has_content(target, file.manifest)
    assert hashing.counts["sha256"] == before


def test_target_has_content_tells_how_far_it_is_and_can_be_broken_off(target: Path) -> None:
    large = File(40 * SIZE)
    target.write_bytes(large.data)
    seen: list[int] = []
    assert target_has_content(target, large.manifest, seen.append)
    assert seen[-1] == len(large.data)
    assert len(seen) >= 2

    def stop(done: Any) -> None:
        raise KeyboardInterrupt

    before = hashing.counts["sha256"]
    with pytest.raises(KeyboardInterrupt):
        target_has_content(target, large.manifest, stop)
    assert hashing.counts["sha256"] < before + len(large.data)


@pytest.mark.parametrize("seed", range(5))
def test_target_has_content_finds_a_flipped_bit(target: Path, file: File, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(file.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    target.write_bytes(data)
    assert not target_has_content(target, file.manifest)


def test_target_has_content_of_an_empty_file(target: Path) -> None:
    empty = File(0).manifest
    assert not target_has_content(target, empty)
    target.touch()
    assert target_has_content(target, empty)


def test_what_is_no_file_has_no_content(tmp_path: Path, target: Path, file: File) -> None:
    assert not target_has_content(tmp_path, file.manifest)
    os.mkfifo(target)
    assert not target_has_content(target, file.manifest)
    assert not target_has_content(target / "below", file.manifest)


def test_a_sealed_file_cannot_be_recognised(target: Path, file: File) -> None:
    target.write_bytes(file.data)
    sealed = Manifest("x", len(file.data), None, SIZE, file.manifest.chunks, b"secret")
    assert not target_has_content(target, sealed)


def test_a_target_that_may_not_be_read_is_said(target: Path, file: File) -> None:
    target.write_bytes(file.data)
    with replaced(os, "open", oserror(errno.EACCES)), pytest.raises(NotAllowed):
        target_has_content(target, file.manifest)


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("film.mkv", "film.mkv"),
        ("a/b/film.mkv", "film.mkv"),
        ("a\\b\\film.mkv", "film.mkv"),
        ("C:\\x\\..\\film.mkv", "film.mkv"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("folder/", "folder"),
        ("..", "download"),
        (".", "download"),
        ("...", "download"),
        ("/", "download"),
        ("a/..", "download"),
        ("a/.. ", "download"),
        ("", "download"),
        ("  ", "download"),
        ("\0\n\r\t\x1b\x7f\x85", "download"),
        ("a\0b\nc\x1b[31m", "abc[31m"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("bad\ud800name", "badname"),
        ("x.", "x"),
        ("x. . ", "x"),
        ("ä\u202f.", "ä"),
        (f"{'x' * 196}\u3000{'y' * 50}", "x" * 196),
        (" x", "x"),
        (".bashrc", ".bashrc"),
        ("CON", "_CON"),
        ("con.txt", "_con.txt"),
        ("nul.tar.gz", "_nul.tar.gz"),
        ("Com1 .x", "_Com1 .x"),
        ("LPT³", "_LPT³"),
        ("aux.", "_aux"),
        ("console", "console"),
        ("com10", "com10"),
        ("film.mkv.zjob", "film.mkv.zjob_"),
        ("film.mkv.ZPART", "film.mkv.ZPART_"),
        (".zlock", ".zlock_"),
        ("naïve – 日本語 🎬.mkv", "naïve – 日本語 🎬.mkv"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_target_name(name) == safe


@pytest.mark.row("S4")
@pytest.mark.parametrize("seed", range(300))
def test_any_name_becomes_one_that_can_be_a_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    alphabet = "ab./\\ \0\n:äß日🎬\u202e\ud800CON1" + "".join(chr(rng.randrange(0x11000)) for _ in range(9))
    name = "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 3, 20, 300, 5000])))
    safe = safe_target_name(name)
    assert safe
    assert len(safe.encode()) <= 200
    assert not set(safe) & set("/\\\0\n\u202e\ud800")
    assert safe.strip(".") != ""
    assert safe_target_name(safe) == safe
    (tmp_path / safe).write_bytes(b"x")
    assert names(tmp_path) == [safe]


def test_a_long_name_keeps_its_suffix() -> None:
    safe = safe_target_name("ä" * 300 + ".tar.gz")
    assert safe.endswith("ä.gz") or safe.endswith("ä.tar.gz")
    assert len(safe.encode()) <= 200
    assert len(safe_target_name("x" * 150 + "." + "y" * 150).encode()) <= 200
    assert len(safe_target_name("x" * 300 + ".zjob").encode()) <= 200
