"""system/file_locks.py: one process, or thread, at a time; also on file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.node.store.stores import replaced
from zchunk.errors import NotAllowed
from zchunk.system.file_locks import Timeout, locked

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


@contextmanager
def without_locks(folder: Path, number: int) -> Iterator[None]:
    """Nothing below the folder can be locked."""
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder)):
            raise OSError(number, os.strerror(number))
        real(fd, how)

    with replaced(fcntl, "flock", flock):
        yield


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / "lock"


def test_one_at_a_time(path: Path) -> None:
    lock = locked(path)
    with pytest.raises(Timeout):
        locked(path)
    lock.release()
    locked(path).release()


def test_it_waits_so_long_and_a_thread_may_let_go(path: Path) -> None:
    lock = locked(path)
    releasing = threading.Timer(0.1, lock.release)
    releasing.start()
    locked(path, timeout_s=10.0).release()
    releasing.join()


def test_a_folder_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locked(path.parent / "none" / "lock")


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_without_locks_there_processes_of_this_pc_exclude_each_other(
    path: Path, runtime: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with without_locks(path.parent, number):
        with caplog.at_level(logging.WARNING):
            lock = locked(path)
        assert "has no locks: another PC could use it" in caplog.text
        (path.parent.parent / "by another name").symlink_to(path.parent)
        for name in (path, path.parent.parent / "by another name" / "lock"):
            with pytest.raises(Timeout):
                locked(name)
        locked(path.with_name("other")).release()
        lock.release()
        locked(path).release()
    assert (runtime / "zchunk-locks").stat().st_mode & 0o777 == 0o700


def test_the_end_of_a_process_ends_its_lock(path: Path) -> None:
    """However it ends, also where the lock lies elsewhere."""
    script = (
        "import fcntl, os, signal, pathlib, zchunk.system.file_locks as locks\n"
        "real = fcntl.flock\n"
        "def flock(fd, how):\n"
        f"    if os.readlink(f'/proc/self/fd/{{fd}}').startswith({str(path.parent)!r}):\n"
        "        raise OSError(95, 'no locks')\n"
        "    real(fd, how)\n"
        "fcntl.flock = flock\n"
        f"locks.locked(pathlib.Path({str(path)!r}))\n"
        "print('held', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "held\n", done.stderr
    with without_locks(path.parent, errno.EOPNOTSUPP):
        locked(path).release()


def test_another_users_folder_is_not_used(
    path: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (runtime / "zchunk-locks").symlink_to(tmp_path / "elsewhere")
    with without_locks(path.parent, errno.ENOLCK), pytest.raises(NotAllowed, match="belongs to another user"):
        locked(path)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_other_refusals_are_told(path: Path, number: int) -> None:
    with without_locks(path.parent, number), pytest.raises(OSError, match="Errno") as caught:
        locked(path)
    assert caught.value.errno == number
