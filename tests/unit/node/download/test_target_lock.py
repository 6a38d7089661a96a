"""node/download/target_lock.py, and what a download does with files that somebody else has put beside its
target, in a folder that others may write to."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.descriptors import open_descriptors
from tests.unit.node.download.files import JOB_ID, OTHER_JOB, SIZE, File, names, write
from zchunk.errors import AlreadyRunning, NotAllowed, ZchunkError
from zchunk.node.download import target_lock
from zchunk.node.download.job_info import load_job
from zchunk.node.download.part_file import open_part
from zchunk.node.download.target_lock import Held, acquire

PRECIOUS = b"precious, and none of their business"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_bytes(PRECIOUS)
    path = tmp_path / "shared"
    path.mkdir(mode=0o777)
    return path


@pytest.fixture
def precious(folder: Path) -> Path:
    return folder.parent / "mine" / "precious"


@pytest.fixture
def lock_path(folder: Path) -> Path:
    return folder / "film.mkv.zlock"


@pytest.fixture
def as_another(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What is there by then is, to the lock, somebody else's, and what is made later is not."""

    def change() -> None:
        mine = os.geteuid()
        monkeypatch.setattr(target_lock, "own_uid", lambda: mine + 1)

    return change


# -- the lock -----------------------------------------------------------------------------------


def test_one_holds_it_at_a_time_and_it_leaves_no_file(lock_path: Path) -> None:
    first = acquire(lock_path, 0.0)
    with pytest.raises(Held) as caught:
        acquire(lock_path, 0.0)
    assert caught.value.owner is None
    first.release()
    assert not lock_path.exists()
    first.release()
    acquire(lock_path, 0.0).release()


def test_who_waits_gets_it_in_the_end(lock_path: Path) -> None:
    first = acquire(lock_path, 0.0)
    timer = threading.Timer(0.1, first.release)
    timer.start()
    second = acquire(lock_path, 30.0)
    timer.join()
    assert lock_path.stat().st_ino == os.fstat(second._fd).st_ino, "its file is the one that others see"
    second.release()


def test_it_ends_with_its_process(lock_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            acquire(lock_path, 0.0)
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 1) == b"x"
    with pytest.raises(Held):
        acquire(lock_path, 0.0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    acquire(lock_path, 0.0).release()


def test_a_process_that_is_started_from_here_does_not_inherit_it(lock_path: Path) -> None:
    lock = acquire(lock_path, 0.0)
    assert not os.get_inheritable(lock._fd)
    lock.release()


def test_a_lock_of_somebody_else_is_told_as_his(lock_path: Path, as_another: Callable[[], None]) -> None:
    theirs = acquire(lock_path, 0.0)
    as_another()
    with pytest.raises(Held) as caught:
        acquire(lock_path, 0.0)
    assert caught.value.owner == os.geteuid()
    theirs.release()


def test_what_somebody_else_left_is_taken_away(lock_path: Path, as_another: Callable[[], None]) -> None:
    """Also where every file has one owner, whoever makes it: what we make then is ours."""
    acquire(lock_path, 0.0).drop()
    before = lock_path.stat().st_ino
    kept = os.open(lock_path, os.O_RDONLY)  # so that the number is not given out again
    as_another()
    lock = acquire(lock_path, 0.0)
    assert lock_path.stat().st_ino != before
    assert lock.owner == os.geteuid()
    (lock_path.parent / "new").touch()
    assert lock.owns(os.lstat(lock_path.parent / "new"))
    lock.release()
    os.close(kept)


def test_what_may_not_be_taken_away_is_said(
    lock_path: Path, as_another: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /tmp."""
    acquire(lock_path, 0.0).drop()
    as_another()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(NotAllowed, match=r"belongs to the user .*choose another target"):
        acquire(lock_path, 0.0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_used_all_the_same(
    lock_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    acquire(lock_path, 0.0).release()
    assert "has no locks" in caplog.text
    assert not lock_path.exists()


@pytest.mark.parametrize(("of", "call"), [(fcntl, "flock"), (os, "lstat"), (os, "fstat")])
def test_where_a_disk_fails_nothing_is_left(
    lock_path: Path, of: ModuleType, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first call alone, so that what was made can be taken away again."""
    real, before = getattr(of, call), open_descriptors()
    failures = iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def fail_once(*args: Any) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        return real(*args)

    monkeypatch.setattr(of, call, fail_once)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        acquire(lock_path, 0.0)
    assert not lock_path.exists()
    assert open_descriptors() <= before
    acquire(lock_path, 0.0).release()


def test_what_was_there_stays_where_a_disk_fails(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_path.touch()
    for call in ("flock", "fstat"):
        before = open_descriptors()

        def fail(*args: Any) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patched:
            patched.setattr(fcntl if call == "flock" else os, call, fail)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                acquire(lock_path, 0.0)
        assert lock_path.exists()
        assert open_descriptors() <= before


# -- what was put there ---------------------------------------------------------------------------


def link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def dangling(path: Path, precious: Path) -> None:
    path.symlink_to(precious.with_name("new"))


def second_name(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


def below(path: Path, precious: Path) -> None:
    path.mkdir()


PLANTS = [link, dangling, second_name, pipe, below]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("suffix", [".zpart", ".zjob", ".zlock", ".zjob.tmp"])
def test_nothing_that_was_put_beside_a_target_is_written_through(
    folder: Path, precious: Path, suffix: str, plant: Callable[[Path, Path], None]
) -> None:
    """The download goes on beside it, or says what is in its way."""
    file, target = File(3 * SIZE), folder / "film.mkv"
    before = precious.stat().st_mode
    plant(folder / f"film.mkv{suffix}", precious)
    if (suffix == ".zlock" and plant is not second_name) or (plant is below and suffix == ".zjob.tmp"):
        with pytest.raises(ZchunkError, match=r"film\.mkv\.(zlock|zjob)"):
            open_part(target, file.manifest, JOB_ID)
    else:
        part = open_part(target, file.manifest, JOB_ID)
        write(part, file, *range(file.count))
        part.save()
        part.finish()
        assert target.read_bytes() == file.data
    assert precious.read_bytes() == PRECIOUS
    assert names(precious.parent) == ["precious"]
    assert precious.stat().st_mode == before


@pytest.mark.parametrize("plant", [link, second_name, pipe])
@pytest.mark.parametrize("suffix", [".zpart", ".zjob"])
def test_what_was_put_in_place_of_a_kept_part_is_moved_aside(
    folder: Path, precious: Path, suffix: str, plant: Callable[[Path, Path], None]
) -> None:
    file, target = File(3 * SIZE), folder / "film.mkv"
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 0)
        part.save()
    (folder / f"film.mkv{suffix}").unlink()
    plant(folder / f"film.mkv{suffix}", precious)
    with open_part(target, file.manifest, OTHER_JOB) as part:
        write(part, file, *range(file.count))
        part.finish()
    assert target.read_bytes() == file.data
    assert precious.read_bytes() == PRECIOUS
    assert f"film.mkv{suffix}.aside-1" in names(folder)


@pytest.mark.parametrize("suffix", [".zpart", ".zjob"])
def test_a_part_of_somebody_else_is_not_gone_on_with(
    folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He may have it open, and change it once it was verified."""
    file, target = File(3 * SIZE), folder / "film.mkv"
    with open_part(target, file.manifest, JOB_ID) as part:
        write(part, file, 0)
        part.save()
    theirs = (folder / f"film.mkv{suffix}").stat().st_ino
    real = target_lock.TargetLock.owns
    monkeypatch.setattr(
        target_lock.TargetLock, "owns", lambda lock, found: found.st_ino != theirs and real(lock, found)
    )
    with open_part(target, file.manifest, OTHER_JOB) as part:
        assert part.scan() == set()
    assert (folder / f"film.mkv{suffix}.aside-1").stat().st_ino == theirs


@pytest.mark.parametrize("plant", [link, dangling, second_name])
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_put_there_in_the_moment_of_opening_is_not_opened(
    folder: Path,
    precious: Path,
    kept: bool,
    plant: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Instead of a kept part, or where there was none."""
    file, target = File(3 * SIZE), folder / "film.mkv"
    part_path, real = folder / "film.mkv.zpart", os.open
    planted: list[bool] = []
    if kept:
        open_part(target, file.manifest, JOB_ID).keep()

    def planting(path: Path, flags: int, *rest: int) -> int:
        if Path(path) == part_path and not planted:
            planted.append(True)
            part_path.unlink(missing_ok=True)
            plant(part_path, precious)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", planting)
    with pytest.raises(Exception, match="zpart"):
        open_part(target, file.manifest, JOB_ID)
    assert planted
    assert precious.read_bytes() == PRECIOUS
    assert names(precious.parent) == ["precious"]


def test_what_is_put_there_between_the_two_openings_is_not_written_to(
    folder: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is past the page cache."""
    file, target = File(3 * SIZE), folder / "film.mkv"
    part_path, real = folder / "film.mkv.zpart", os.open
    other = precious.with_name("other")
    other.write_bytes(PRECIOUS)

    def planting(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            part_path.rename(folder / "away")
            other.rename(part_path)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", planting)
    part = open_part(target, file.manifest, JOB_ID)
    monkeypatch.undo()
    write(part, file, *range(file.count))
    part.keep()
    assert part_path.read_bytes() == PRECIOUS
    assert (folder / "away").read_bytes() == file.data


def test_a_download_of_another_user_is_told_as_his(
    folder: Path, as_another: Callable[[], None], lock_path: Path
) -> None:
    theirs = acquire(lock_path, 0.0)
    as_another()
    with pytest.raises(AlreadyRunning, match=r"the user .* is downloading to .*film.mkv") as caught:
        open_part(folder / "film.mkv", File(SIZE).manifest, JOB_ID)
    assert caught.value.details["job_id"] is None
    theirs.release()


def test_a_journal_that_is_a_link_says_nothing(folder: Path) -> None:
    file, target = File(SIZE), folder / "film.mkv"
    open_part(target, file.manifest, JOB_ID).keep()
    journal = folder / "film.mkv.zjob"
    assert load_job(journal) is not None
    journal.rename(folder / "elsewhere")
    journal.symlink_to(folder / "elsewhere")
    assert load_job(journal) is None


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before
