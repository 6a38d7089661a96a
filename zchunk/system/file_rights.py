"""Who may not do what to which file: what a refusal for want of rights is told by.

The system says no more than that something is forbidden; which folder on the way, or whose file,
is found out here. May not happen here: a path changed, or opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zchunk.system.file_owners import own_uid, owner_name

_HOW = {"effective_ids": True} if os.access in os.supports_effective_ids else {}


def missing(path: Path, *, of_name: bool = False) -> str | None:
    """What this process may not do to `path`, or to a folder that leads there, and what to do about
    it. `of_name`: the name was to be made or taken away, not the file read or written. None where
    the permissions forbid nothing: something else does (SELinux, a file server)."""
    found = _forbidden(Path(os.path.abspath(path)), of_name)
    if found is None:
        return None
    what, at = found
    return (
        f"{owner_name(own_uid())} may not {what} {at}{_owned(at)}: have its owner or mode changed"
        " (chown, chmod), or run this as its owner"
    )


def _forbidden(path: Path, of_name: bool) -> tuple[str, Path] | None:
    for folder in reversed(path.parents):
        if not _may(folder, os.X_OK):
            return "enter", folder
    rights = (("read", os.R_OK), ("write to", os.W_OK))
    verbs = [verb for verb, right in rights if not of_name and not _may(path, right)]
    if verbs:
        return " or ".join(verbs), path
    return None if _may(path.parent, os.W_OK) else ("make or remove files in", path.parent)


def _may(path: Path, right: int) -> bool:
    """What is not there forbids nothing."""
    return os.access(path, right, **_HOW) or not os.access(path, os.F_OK, **_HOW)


def _owned(path: Path) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f" (of {owner_name(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o})"
