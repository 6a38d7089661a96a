"""What a file id means: 64 hex digits are an id, whatever files are named so (SPEC D1). Whoever
asks by an id gets that file or an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration import idnames
from tests.integration.cluster import Cluster, make_file, sha256_of


def victim(bench: Cluster, folder: Path) -> tuple[str, str]:
    """The id and SHA-256 of a file that somebody put."""
    source = make_file(folder / "victim.bin", 200_000)
    return bench.client.put(source.path).last["file_id"], source.sha256


@pytest.mark.parametrize("change", [str, str.upper])
def test_no_file_can_be_put_under_the_form_of_an_id(
    bench: Cluster, folder: Path, change: Callable[[str], str]
) -> None:
    file_id, sha256 = victim(bench, folder)
    other = make_file(folder / change(file_id), 300_000)
    for options in ((), ("--name", change(file_id))):
        result = bench.client.put(other.path, *options, code=2)
        assert result.last["code"] == "usage"
        assert "64 hex digits are always a file id; choose another with --name" in result.stderr
    result = bench.client.get(change(file_id), folder / "copy")
    assert result.last["file_id"] == file_id
    assert sha256_of(folder / "copy") == sha256
    bench.client.put(other.path, "--name", "another name")


def test_nor_by_a_client_that_does_not_look_at_the_name(bench: Cluster, folder: Path) -> None:
    file_id, sha256 = victim(bench, folder)
    other = make_file(folder / "other.bin", 300_000)
    careless = bench.join("careless", prefix=(sys.executable, idnames.__file__))
    result = careless.put(other.path, "--name", file_id, code=2)
    assert result.last["code"] == "usage"
    assert file_id in result.stderr
    assert file_id not in bench.client.names()
    bench.client.get(file_id, folder / "copy")
    assert sha256_of(folder / "copy") == sha256
