"""Where a download goes: the file that a path means, the names of what lies beside it, and the
step that gives a finished part its name.

What may not happen here: anything but a regular file replaced; a link followed that somebody
else has made, who would choose so which of the user's files is overwritten; a file replaced
that came about while the download ran, unless replacing was asked for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from zchunk.errors import TargetExists
from zchunk.system import disk, syscalls
from zchunk.system.file_owners import own_uid, owner_name

#: Bytes of a file's name; some file systems take fewer.
_NAME_MAX = 255
_MAX_LINKS = 40
#: What a file system, a kernel or a network says that has no such call.
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


# -- which file -----------------------------------------------------------------------


def followed(path: Path) -> Path:
    """`path`, or the end of the user's own links there, which need not exist. A link of root's is
    followed to a folder. Raises TargetExists for a link of somebody else, and for what is
    neither a regular file nor a folder; OSError."""
    at = path
    for _ in range(_MAX_LINKS):
        try:
            found = os.lstat(at)
        except FileNotFoundError:
            _check_unnamed(path)
            return _plain(at, path)
        if not stat.S_ISLNK(found.st_mode):
            if not stat.S_ISDIR(found.st_mode):
                check_regular(at, found)
            return _plain(at, path)
        if not (found.st_uid == own_uid() or (found.st_uid == 0 and at.is_dir())):
            raise TargetExists(
                f"{at} is a link of {owner_name(found.st_uid)}, not followed: choose another target (-o)",
                target=str(path),
            )
        at = at.parent / os.readlink(at)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check_unnamed(path: Path) -> None:
    """A link in /proc (/dev/stderr is one) may lead to what has no name, whatever its text says.
    Raises TargetExists."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    check_regular(path, found)
    raise TargetExists(
        f"{path} leads to a file that has no name: choose another target (-o)", target=str(path)
    )


def _plain(end: Path, path: Path) -> Path:
    """Without the steps back that a link may name; a path without a link stays as it was given."""
    return path if end == path else Path(os.path.realpath(end.parent)) / end.name


def check_regular(path: Path, found: os.stat_result) -> None:
    """Raises TargetExists for what is no regular file: it is not replaced, whatever was asked for."""
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is not None:
        how = "choose another target, or `-o -` for stdout"
        raise TargetExists(f"{path} is {kind}, not a file: {how}", target=str(path))


def mode_of(target: Path) -> int | None:
    """The permissions of the file at `target`; None where there is none."""
    try:
        return stat.S_IMODE(os.lstat(target).st_mode) & 0o777
    except FileNotFoundError:
        return None


# -- names beside it ------------------------------------------------------------------


def beside(target: Path, suffix: str) -> Path:
    """The target's name with `suffix`. Of a name that is too long for that as much as there is
    room for, and a digest of all of it."""
    name = target.name + suffix
    limit = _name_limit(target.parent)
    if len(os.fsencode(name)) <= limit:
        return target.with_name(name)
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    end = f".{digest}{suffix}"
    begin = os.fsencode(target.name)[: max(0, limit - len(end))]
    return target.with_name(begin.decode("utf-8", "ignore") + end)


def _name_limit(folder: Path) -> int:
    try:
        return min(_NAME_MAX, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError, AttributeError):
        return _NAME_MAX


# -- the last step --------------------------------------------------------------------


def put_in_place(part: Path, target: Path, replace: bool) -> None:
    """`part` becomes `target`, in one step; with `replace` also where a file is there. Not durable
    by itself. Raises TargetExists (`part` stays), OSError."""
    if replace:
        found = _found(target)
        if found is not None:
            check_regular(target, found)
        os.replace(part, target)
        return
    try:
        _rename_new(part, target)
    except FileExistsError:
        raise TargetExists(
            f"{target} was created by another program during the download, and is not replaced: move it away"
            " and run the same command again (the downloaded data is kept), or use --force",
            target=str(target),
        ) from None


def _found(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _rename_new(part: Path, target: Path) -> None:
    """Raises FileExistsError where something has the name."""
    try:
        syscalls.rename_new(part, target)
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    try:
        os.link(part, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        os.unlink(part)
        return
    # A file system with neither: who makes the file within this moment loses it.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(part, target)


def chosen_target(target: str | Path | None, name: str) -> Path:
    """The file to write; `name` is its name where the target is a folder, or was not given."""
    path = Path(name if target is None else target)
    with disk.storage_errors(path, "checking"):
        path = followed(path)
        return followed(path / name) if path.is_dir() else path
