"""Small disks that can be full: an ext4 image on a loop device, or a tmpfs. Root only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster

_PIECE = 64 * 1024


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A disk at `folder` inside the block. Skips where mounting is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs to mount a small disk ({done.stderr.strip() or 'not root'})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Path]:
    # -m 0: nothing is kept back for root, whom the nodes of the tests run as.
    with loop(folder, size, "mkfs.ext4", "-q", "-m", "0") as disk:
        yield disk


@contextmanager
def loop(folder: Path, size: int, *make: str) -> Iterator[Path]:
    """A disk in a file beside `folder`; `make` is the command that makes a file system in it."""
    image = folder.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([*make, str(image)], check=True)
    with mounted(folder, "-o", "loop", str(image)) as disk:
        yield disk


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "none") as disk:
        yield disk


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all but `leave` bytes; removing it makes space."""
    ballast = disk / "ballast"
    info = os.statvfs(disk)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(info.f_bavail * info.f_frsize - leave, _PIECE))
    return ballast


class SmallDisks(Cluster):
    """Nodes named in `homes` have those folders as their homes."""

    def __init__(self, root: Path, settings: Mapping[str, object], homes: Mapping[str, Path]) -> None:
        super().__init__(root, settings)
        self._homes = homes

    def node_home(self, name: str) -> Path:
        return self._homes[name] if name in self._homes else super().node_home(name)
