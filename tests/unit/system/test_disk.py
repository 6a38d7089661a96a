"""zchunk/system/disk.py: what is durable when, what each refusal of the system becomes."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from tests.descriptors import open_descriptors
from zchunk.errors import InvalidUsage, NoSpace, NotFound, StorageFailure, ZchunkError
from zchunk.system import buffers, disk, syscalls

PAGE = disk.ALIGNMENT


def oserror(number: int) -> Callable[..., NoReturn]:
    def fail(*_args: object, **_kwargs: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order of the calls that decide about durability."""
    calls: list[str] = []

    def spy(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("pwrite", "replace", "unlink"):
        spy(os, name)
    for name in ("sync_file", "sync_folder"):
        spy(disk, name)
    return calls


# -- errors ---------------------------------------------------------------------------


def test_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(NotFound, match="mine"), disk.storage_errors(Path("/d"), "writing"):
        raise NotFound("mine")


# -- write_durable --------------------------------------------------------------------


def test_write_durable_syncs_the_file_renames_and_syncs_the_folder(tmp_path: Path, trace: list[str]) -> None:
    disk.write_durable(tmp_path / "a", b"one")
    assert trace == ["unlink", "pwrite", "sync_file", "replace", "sync_folder"]
    disk.write_durable(tmp_path / "a", memoryview(b"two"))
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_write_durable_writes_nothing_at_all_too(tmp_path: Path) -> None:
    disk.write_durable(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b""


def test_write_durable_gives_the_mode_from_the_first_moment(tmp_path: Path) -> None:
    disk.write_durable(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["pwrite", "replace"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, StorageFailure)])
def test_a_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, kind: type[ZchunkError]
) -> None:
    disk.write_durable(tmp_path / "a", b"old")
    monkeypatch.setattr(os, step, oserror(number))
    with pytest.raises(kind):
        disk.write_durable(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_failed_sync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_durable(tmp_path / "a", b"old")
    calls = []
    monkeypatch.setattr(disk, "sync_file", lambda fd: (calls.append(fd), oserror(errno.EIO)()))
    with pytest.raises(StorageFailure):
        disk.write_durable(tmp_path / "a", b"new")
    assert len(calls) == 1
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_that_syncs_no_folders_keeps_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", oserror(number))
    disk.write_durable(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_whether_something_is_there_is_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert [disk.is_there(tmp_path / name) for name in ("link", "none", "link/below")] == [True, False, False]
    (tmp_path / "file").write_bytes(b"")
    assert not disk.is_there(tmp_path / "file" / "below")
    for number in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP):
        monkeypatch.setattr(os, "lstat", oserror(number))
        with pytest.raises(OSError, match="Errno"):
            disk.is_there(tmp_path / "file")


def test_a_failed_folder_sync_is_a_storage_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync_folder", oserror(errno.EIO))
    with pytest.raises(StorageFailure):
        disk.write_durable(tmp_path / "a", b"new")


def test_a_named_temporary_of_a_killed_write_is_replaced(tmp_path: Path) -> None:
    temp = tmp_path / "a.tmp"
    temp.write_bytes(b"half of something longer")
    disk.write_durable(tmp_path / "a", b"new", temp=temp)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_remove_temporaries_takes_what_a_killed_write_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(_fd: int) -> None:
        raise Killed

    (tmp_path / "mine.tmp").write_bytes(b"x")
    (tmp_path / ".zchunk-config").write_bytes(b"x")
    monkeypatch.setattr(disk, "sync_file", kill)
    with pytest.raises(Killed):
        disk.write_durable(tmp_path / "a", b"new")
    assert len(os.listdir(tmp_path)) == 3
    disk.remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".zchunk-config", "mine.tmp"]


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        disk.write_durable(tmp_path / "gone" / "a", b"x")


def test_without_fdatasync_a_file_is_synced_by_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(os, "fsync", calls.append)
    disk.sync_file(7)
    assert calls == [7]


# -- space ----------------------------------------------------------------------------


def test_free_bytes_are_what_the_disk_has(tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    assert abs(disk.free_bytes(tmp_path) - stats.f_bavail * stats.f_frsize) < 1 << 30
    with pytest.raises(NotFound):
        disk.free_bytes(tmp_path / "gone")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    yield fd, path
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, PAGE, 3 * PAGE + 5])
def test_preallocate_sets_the_length_and_takes_the_space(file: tuple[int, Path], size: int) -> None:
    fd, path = file
    disk.preallocate(fd, size, path)
    stats = os.fstat(fd)
    assert stats.st_size == size
    assert stats.st_blocks * 512 >= size


def test_preallocate_keeps_what_is_there_and_never_shortens(file: tuple[int, Path]) -> None:
    fd, path = file
    os.pwrite(fd, b"x" * 100, 0)
    disk.preallocate(fd, 50, path)
    disk.preallocate(fd, 200, path)
    assert path.read_bytes() == b"x" * 100 + bytes(100)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_preallocate_without_support_sets_the_length(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fd, path = file
    monkeypatch.setattr(syscalls, "fallocate", oserror(number))
    disk.preallocate(fd, 12_345_678, path)
    assert os.fstat(fd).st_size == 12_345_678
    assert os.fstat(fd).st_blocks == 0, "nothing is written for it"


def test_preallocate_on_another_system_sets_the_length(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, path = file
    monkeypatch.setattr(syscalls, "_library", lambda: None)
    disk.preallocate(fd, 12345, path)
    assert os.fstat(fd).st_size == 12345


def test_preallocate_without_support_looks_whether_there_is_room(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, path = file
    os.pwrite(fd, b"x" * 16 * PAGE, 0)
    os.fsync(fd)
    room = 100 * PAGE
    monkeypatch.setattr(syscalls, "fallocate", oserror(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=room // PAGE, f_frsize=PAGE))
    disk.preallocate(fd, 116 * PAGE, path)
    os.ftruncate(fd, 16 * PAGE)
    with pytest.raises(NoSpace):
        disk.preallocate(fd, 116 * PAGE + 1, path)
    assert path.read_bytes() == b"x" * 16 * PAGE


def test_preallocate_takes_the_space(file: tuple[int, Path]) -> None:
    fd, path = file
    disk.preallocate(fd, 100 * PAGE, path)
    assert os.fstat(fd).st_blocks * 512 >= 100 * PAGE


def test_an_interrupted_preallocation_is_gone_on_with(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, path = file
    real, calls = syscalls._call, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) < 3:
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(*args, **kwargs)

    monkeypatch.setattr(syscalls, "_call", interrupted)
    disk.preallocate(fd, PAGE, path)
    assert (len(calls), os.fstat(fd).st_size) == (3, PAGE)


def test_preallocate_on_a_full_disk_gives_back_what_it_took(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, path = file
    os.pwrite(fd, b"kept", 0)

    def half(fd: int, _offset: int, size: int) -> None:
        os.ftruncate(fd, size // 2)
        oserror(errno.ENOSPC)()

    monkeypatch.setattr(syscalls, "fallocate", half)
    with pytest.raises(NoSpace, match="1000000 bytes"):
        disk.preallocate(fd, 1_000_000, path)
    assert path.read_bytes() == b"kept"


def test_a_hole_reads_as_zeros_and_takes_no_disk(file: tuple[int, Path]) -> None:
    fd, path = file
    os.pwrite(fd, b"x" * 64 * PAGE, 0)
    disk.preallocate(fd, 128 * PAGE, path)
    assert disk.make_hole(fd, 16 * PAGE, 16 * PAGE)
    assert disk.make_hole(fd, 64 * PAGE, 64 * PAGE), "of what was promised only, too"
    assert os.fstat(fd).st_size == 128 * PAGE
    assert os.fstat(fd).st_blocks * 512 == 48 * PAGE
    assert path.read_bytes() == b"x" * 16 * PAGE + bytes(16 * PAGE) + b"x" * 32 * PAGE + bytes(64 * PAGE)


def test_where_no_holes_can_be_made_one_may_be_there_all_the_same(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, _ = file
    os.pwrite(fd, b"x" * PAGE, 0)
    os.ftruncate(fd, 64 * PAGE)
    monkeypatch.setattr(syscalls, "punch_hole", oserror(errno.EOPNOTSUPP))
    assert disk.make_hole(fd, 32 * PAGE, PAGE)
    assert not disk.make_hole(fd, 0, PAGE)


def test_has_data_is_false_only_for_what_was_never_written(file: tuple[int, Path]) -> None:
    fd, _ = file
    os.ftruncate(fd, 64 * PAGE)
    os.pwrite(fd, b"x" * PAGE, 16 * PAGE)
    assert disk.has_data(fd, 16 * PAGE, PAGE)
    assert disk.has_data(fd, 0, 64 * PAGE)
    assert not disk.has_data(fd, 32 * PAGE, 32 * PAGE)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_has_data_is_true_where_nobody_knows(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fd, _ = file
    monkeypatch.setattr(os, "lseek", oserror(number))
    assert disk.has_data(fd, 0, 1)
    monkeypatch.delattr(os, "SEEK_DATA")
    assert disk.has_data(fd, 0, 1)


def test_drop_cache_is_only_advice(file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fd, _ = file
    disk.drop_cache(fd)
    monkeypatch.setattr(os, "posix_fadvise", oserror(errno.EINVAL))
    disk.drop_cache(fd)
    monkeypatch.delattr(os, "posix_fadvise")
    disk.drop_cache(fd)


# -- write_at -------------------------------------------------------------------------


@pytest.fixture
def two_fds(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    """Two descriptors of one file, to see which one takes what."""
    path = tmp_path / "file"
    direct = os.open(path, os.O_RDWR | os.O_CREAT)
    cached = os.open(path, os.O_RDWR)
    yield direct, cached, path
    os.close(direct)
    os.close(cached)


@pytest.fixture
def pwrites(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    calls: list[tuple[int, int, int]] = []
    real = os.pwrite

    def spy(fd: int, data: memoryview, offset: int) -> int:
        calls.append((fd, len(data), offset))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    return calls


@pytest.mark.parametrize(
    ("length", "offset", "direct"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (PAGE - 1, 0, 0),
        (PAGE, 0, PAGE),
        (PAGE + 1, PAGE, PAGE),
        (5 * PAGE + 77, 2 * PAGE, 5 * PAGE),
        (5 * PAGE, 512, 0),
        (5 * PAGE, 1, 0),
    ],
)
def test_the_aligned_part_goes_direct_and_the_tail_through_the_cache(
    two_fds: tuple[int, int, Path], pwrites: list[tuple[int, int, int]], length: int, offset: int, direct: int
) -> None:
    fd_direct, fd_cached, path = two_fds
    data = random.Random(length).randbytes(length)
    assert disk.write_at(fd_direct, fd_cached, data, offset) == direct
    assert path.read_bytes()[offset:] == data
    for fd, size, at in pwrites:
        if fd == fd_direct:
            assert size % PAGE == at % PAGE == 0
    assert sum(size for fd, size, _ in pwrites if fd == fd_direct) == direct


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("refused_after", [0, PAGE, 2 * PAGE])
def test_a_refused_direct_write_goes_on_through_the_cache(
    two_fds: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch, number: int, refused_after: int
) -> None:
    fd_direct, fd_cached, path = two_fds
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd == fd_direct and offset >= refused_after:
            oserror(number)()
        return real(fd, data[:PAGE] if fd == fd_direct else data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = random.Random(1).randbytes(5 * PAGE + 9)
    assert disk.write_at(fd_direct, fd_cached, data, 0) == refused_after
    assert path.read_bytes() == data


@pytest.mark.parametrize("short", [0, 100, PAGE, PAGE + 1, 2 * PAGE - 1])
def test_a_short_direct_write_is_completed(
    two_fds: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    fd_direct, fd_cached, path = two_fds
    real, cut = os.pwrite, iter([short])

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd != fd_direct:
            return real(fd, data, offset)
        assert offset % PAGE == len(data) % PAGE == 0
        return real(fd, data[: next(cut, len(data))], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = random.Random(2).randbytes(4 * PAGE + 9)
    disk.write_at(fd_direct, fd_cached, data, 0)
    assert path.read_bytes() == data


def test_short_cached_writes_are_completed_and_none_at_all_is_an_error(
    two_fds: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fd_cached, path = two_fds
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    disk.write_at(None, fd_cached, b"a long enough text", 0)
    assert path.read_bytes() == b"a long enough text"
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="no more bytes"):
        disk.write_at(None, fd_cached, b"x", 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_is_not_taken_for_a_missing_o_direct(
    two_fds: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fd_direct, fd_cached, _ = two_fds
    monkeypatch.setattr(os, "pwrite", oserror(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        disk.write_at(fd_direct, fd_cached, bytes(PAGE), 0)
    assert caught.value.errno == number


def test_the_kernel_takes_any_memory_any_offset_any_length(tmp_path: Path) -> None:
    """On whatever file system the tests run, with its real O_DIRECT if it has one."""
    rng = random.Random(3)
    memory = buffers.BufferPool(1 << 20).try_reserve(1 << 20)
    assert memory is not None
    model = bytearray()
    writer = disk.DirectWriter(tmp_path / "file")
    for _ in range(60):
        offset = rng.choice([rng.randrange(0, 40) * PAGE, rng.randrange(0, 40 * PAGE)])
        data = rng.randbytes(rng.choice([rng.randrange(0, 9) * PAGE, rng.randrange(0, 9 * PAGE)]))
        view = memory.view(1 << 20)[(start := rng.choice([0, 1, 512])) : start + len(data)]
        view[:] = data
        writer.write_at(view if rng.random() < 0.7 else data, offset)
        if data:
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data
    writer.sync()
    back = bytearray(len(model))
    assert disk.read_into(writer.fd, memoryview(back), 0) == len(model)
    writer.close()
    assert back == model == (tmp_path / "file").read_bytes()


def test_read_into_stops_at_the_end_and_joins_short_reads(
    file: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, _ = file
    os.pwrite(fd, b"0123456789", 0)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [v[:3] for v in views], at))
    into = bytearray(20)
    assert disk.read_into(fd, memoryview(into), 2) == 8
    assert into[:8] == b"23456789"


# -- DirectWriter ---------------------------------------------------------------------


def test_direct_writer_has_one_descriptor_per_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = []
    real = os.open

    def spy(path: Any, flag: Any, *args: Any) -> Any:
        flags.append(flag)
        return real(path, flag, *args)

    monkeypatch.setattr(os, "open", spy)
    writer = disk.DirectWriter(tmp_path / "file")
    writer.close()
    writer.close()
    assert [bool(flag & os.O_DIRECT) for flag in flags] == [False, True]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EMFILE])
def test_direct_writer_without_o_direct_uses_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def no_direct(path: Any, flags: Any, *args: Any) -> Any:
        return oserror(number)() if flags & os.O_DIRECT else real(path, flags, *args)

    monkeypatch.setattr(os, "open", no_direct)
    assert _written(tmp_path / "file") == 0


def test_direct_writer_that_cannot_look_at_its_descriptors_uses_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", oserror(errno.ENOMEM))
        writer = disk.DirectWriter(tmp_path / "file")
    assert writer.write_at(bytes(PAGE), 0) == 0
    writer.close()
    assert not open_descriptors(tmp_path)


def test_direct_writer_on_a_system_without_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    assert _written(tmp_path / "file") == 0


def _written(path: Path) -> int:
    data = random.Random(4).randbytes(3 * PAGE + 1)
    writer = disk.DirectWriter(path)
    direct = writer.write_at(data, 0)
    writer.sync()
    writer.close()
    assert path.read_bytes() == data
    return direct


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, StorageFailure)])
def test_direct_writer_names_the_file_it_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ZchunkError]
) -> None:
    writer = disk.DirectWriter(tmp_path / "file")
    monkeypatch.setattr(os, "pwrite", oserror(number))
    with pytest.raises(kind, match="file"):
        writer.write_at(b"x", 0)
    monkeypatch.setattr(disk, "sync_file", oserror(number))
    with pytest.raises(kind, match="file"):
        writer.sync()
    writer.close()


def test_direct_writer_never_opens_an_existing_file_by_default(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InvalidUsage, match="File exists"):
        disk.DirectWriter(tmp_path / "file")


# -- folders for their owner alone -----------------------------------------------------------


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("no_umask")
def test_a_private_folder_is_private_with_all_that_is_made_above_it(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    made = tmp_path / "a" / "b" / "c"
    disk.private_folder(made)
    assert [mode(p) for p in (made, made.parent, made.parent.parent, tmp_path)] == [
        0o700,
        0o700,
        0o700,
        0o755,
    ]


@pytest.mark.usefixtures("no_umask")
def test_one_that_is_open_is_closed_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = tmp_path / "home" / "node"
    made.mkdir(parents=True)
    for _ in range(2):
        disk.private_folder(made)
    assert (mode(made), mode(made.parent)) == (0o700, 0o777), "what is above it may hold more"
    assert len([r for r in caplog.records if "was open to other users" in r.message]) == 1
    disk.make_private(made.parent)
    assert mode(made.parent) == 0o777


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        disk.private_folder(tmp_path / "file")


@pytest.mark.usefixtures("no_umask")
def test_what_is_written_durably_is_for_its_owner_alone(tmp_path: Path) -> None:
    disk.write_durable(tmp_path / "x", b"1")
    assert mode(tmp_path / "x") == 0o600
