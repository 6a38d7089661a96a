"""The journal beside a part file: which file and job it is of, and which chunks it claims.

A journal that cannot be understood is none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zchunk.content.manifest import MAX_BYTES, Manifest, parse
from zchunk.errors import (
    ManifestInvalid,
)
from zchunk.system import json_files

JOB_VERSION = 1
#: It becomes the name of a file, and a journal may lie in a folder that others write to.
_JOB_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
#: Bytes of a .zjob: the largest manifest in base64, and every other chunk of it in place.
_MAX_JOURNAL = 2 * MAX_BYTES


@dataclass(frozen=True)
class JobInfo:
    """What a .zjob says. `completed` is a hint; the manifest is checked against `file_id`."""

    job_id: str
    file_id: str
    name: str
    size: int
    chunk_size: int
    target: str
    state: str
    created_at: str
    completed: frozenset[int]
    manifest: Manifest


# -- the job's journal ----------------------------------------------------------------


def load_job(path: Path) -> JobInfo | None:
    """The job of a .zjob file; None where there is none or it cannot be trusted."""
    try:
        return _job_of(json_files.read(path, _MAX_JOURNAL, follow=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ManifestInvalid):
        return None


def _job_of(raw: Any) -> JobInfo:
    """Raises ValueError, KeyError, TypeError or ManifestInvalid for anything but a job."""
    if raw["version"] != JOB_VERSION:
        raise ValueError("a job of another version")
    texts = {key: raw[key] for key in ("job_id", "file_id", "name", "target", "state", "created_at")}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise TypeError("a job's texts")
    if not _JOB_ID.fullmatch(texts["job_id"]):
        raise ValueError("a job's id")
    json_files.text(texts["created_at"])
    json_files.text(texts["state"])
    manifest = parse(_decode(raw["manifest"]), raw["file_id"])
    if (raw["size"], raw["chunk_size"], raw["name"]) != (manifest.size, manifest.chunk_size, manifest.name):
        raise ValueError("a job of another manifest")
    completed = frozenset(_indexes(raw["completed"], len(manifest.chunks)))
    return JobInfo(
        size=manifest.size, chunk_size=manifest.chunk_size, completed=completed, manifest=manifest, **texts
    )


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a job's manifest") from error


def as_ranges(indexes: Iterable[int]) -> list[list[int]]:
    """`{0, 1, 2, 7}` -> `[[0, 2], [7, 7]]`: both ends belong to it."""
    found: list[list[int]] = []
    for index in sorted(indexes):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return found


def _indexes(ranges: Any, count: int) -> Iterator[int]:
    last = -1
    for first, end in ranges:
        if not (isinstance(first, int) and isinstance(end, int) and last < first <= end < count):
            raise ValueError("a job's ranges")
        last = end
        yield from range(first, end + 1)
