"""What zchunk makes in its homes is for their owner alone, whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, make_file
from tests.integration.conftest import SMALL

#: Runs what follows under that umask.
OPEN, CLOSED = (("sh", "-c", f'umask {mask}; exec "$@"', "sh") for mask in ("000", "777"))


def made(home: Path) -> list[Path]:
    return [home, *(home / name for name in sorted(p.relative_to(home) for p in home.rglob("*")))]


def too_open(home: Path) -> dict[str, str]:
    """What others may do anything with, and with what mode."""
    modes = {str(path): path.lstat().st_mode for path in made(home)}
    return {path: oct(stat.S_IMODE(mode)) for path, mode in modes.items() if mode & 0o077}


class Umask(Cluster):
    """All its processes run under one umask, and make their homes themselves."""

    prefix: tuple[str, ...] = OPEN

    def place(self, name: str) -> tuple[tuple[str, ...], str]:
        return self.prefix, "127.0.0.1"

    def node_home(self, name: str) -> Path:
        return self.root / "deep" / f"node-{name}"


@pytest.fixture
def cluster(folder: Path) -> Iterator[Umask]:
    with Umask(folder / "cluster", SMALL) as made:
        yield made


def test_nothing_in_a_home_is_open_to_others(cluster: Umask, folder: Path) -> None:
    cluster.start_nodes("A", "B")
    source = make_file(folder / "source.bin", 2 * 1024**2)
    home = folder / "a" / "client"
    words = ["--home", str(home)]
    phrase = folder / "phrase"
    phrase.write_text("a passphrase of some length\n")
    sealed = ["--encrypt", "--passphrase-file", str(phrase), "--name", "sealed"]
    for command in (
        ["join", cluster.token("client"), "--name", "c", *words],
        ["put", "--yes", str(source.path), *words],
        ["put", "--yes", str(source.path), *sealed, *words],
        ["get", "source.bin", "-o", str(folder / "copy"), *words],
        ["jobs", *words],
    ):
        cluster.spawn(command, prefix=OPEN).result().expect(0)
    homes = [cluster.tracker.home, *(node.home for node in cluster.nodes.values()), home, home.parent]
    homes.append(cluster.root / "deep")
    for at in homes:
        assert too_open(at) == {}
        assert len(made(at)) > 3
    assert any(path.is_socket() for path in made(cluster.tracker.home))
    # What a user asked for is as the umask says.
    assert stat.S_IMODE((folder / "copy").stat().st_mode) == 0o666


def test_a_umask_that_forbids_everything_keeps_nobody_out_of_his_own_home(folder: Path) -> None:
    with Umask(folder / "cluster", SMALL) as cluster:
        cluster.prefix = CLOSED
        (node,) = cluster.start_nodes("A")
        for path in made(node.home):
            if path.is_dir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_home_that_is_too_open_is_closed_and_said(cluster: Umask) -> None:
    """Of an earlier release. The home itself may hold more than is ours: others' writing is said."""
    (node,) = cluster.start_nodes("A")
    cluster.stop("A")
    for path in (node.home, node.home / "node", node.store):
        os.chmod(path, 0o777)
    cluster.restart("A")
    assert too_open(node.home / "node") == {}
    assert f"{node.home / 'node'} was open to other users" in node.process.stderr
    assert f"chmod go-w {node.home}" in node.process.stderr
    assert stat.S_IMODE(node.home.stat().st_mode) == 0o777
    os.chmod(node.home, 0o755)
    cluster.stop("A")
    cluster.restart("A")
    assert "chmod" not in node.process.stderr
    assert "was open" not in node.process.stderr
