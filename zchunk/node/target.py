"""Where a download goes: the names of what lies beside its target."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

#: Bytes of a file's name; some file systems take fewer.
_NAME_MAX = 255


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
