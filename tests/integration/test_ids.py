"""What a file id means: 64 hex digits are an id, whatever files are named so (SPEC D1). Whoever
asks by an id gets that file or an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zchunk
from tests.integration import idnames
from tests.integration.cluster import Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL
from zchunk.config import Settings
from zchunk.errors import IntegrityError


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
        assert "64 hex digits always mean a file id; choose another name with --name" in result.stderr
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


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose tracker looks for a name first, and takes any."""
    cluster = Cluster(tmp_path_factory.mktemp("earlier"), SMALL)
    cluster.tracker_prefix = (sys.executable, idnames.__file__)
    with cluster:
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.mark.parametrize("change", [str, str.upper])
def test_an_answer_with_another_file_is_refused_by_whoever_asked(
    earlier: Cluster, folder: Path, change: Callable[[str], str]
) -> None:
    """The tracker answers with a file that is named so: each command says so and does nothing."""
    file_id, _ = victim(earlier, folder)
    other = make_file(folder / "other.bin", 300_000)
    careless = earlier.join(f"careless-{change.__name__}", prefix=(sys.executable, idnames.__file__))
    other_id = careless.put(other.path, "--name", change(file_id)).last["file_id"]
    client, asked = earlier.client, change(file_id)
    for command in ("get", "info", "rm"):
        options = ("-o", folder / "copy") if command == "get" else ("--yes",) if command == "rm" else ()
        result = client.run(command, *options, asked, code=5)
        assert result.last["code"] == "integrity"
        assert other_id in result.stderr
    shown = client.run("cat", asked, json=False, code=5)
    assert shown.lines == []
    assert sorted(path.name for path in folder.iterdir()) == ["other.bin", "victim.bin"]
    with zchunk.Client(client.home, Settings()) as api, pytest.raises(IntegrityError):
        api.open(asked)
    assert {file_id, other_id} <= {row["file_id"] for row in client.ls()}
    client.get(other_id, folder / "copy")
    assert sha256_of(folder / "copy") == other.sha256
