"""What a home has held, so that a part which is lost is not taken for a first start.

Responsible for one question, for every part of every home (key, list of members, database,
membership, options): it is not there; may it be made, or was it lost? What was made stands
in `home.json` of the role's folder. Not responsible for the parts themselves: who owns one
asks here before it makes it, and notes it here once it is durable.

A home that an earlier release made has no `home.json`: there other files tell that a part
was there, the `traces` of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from zchunk.errors import StateLost
from zchunk.system import disk, json_files

RECORD = "home.json"
_FORMAT = 1


class HomeState:
    """That of HOME/tracker, HOME/node or HOME/client, which need not exist yet."""

    def __init__(self, folder: Path, traces: Mapping[str, Sequence[str]]) -> None:
        """`traces`: part -> files of the folder that are there only where that part was made."""
        self.folder = folder
        self._traces = traces

    def was_made(self, part: str) -> bool:
        """Raises as `disk.storage_errors` does, where that cannot be found out."""
        noted = self._noted()
        if noted is not None:
            return part in noted
        return any(is_there(self.folder / name) for name in self._traces[part])

    def check_first(self, part: str, loss: str) -> None:
        """To be asked for a part that is not there, before it is made. Raises StateLost with
        `loss`, what is missing and what to do, where it was there once."""
        if self.was_made(part):
            raise StateLost(loss, path=str(self.folder / part))

    def note(self, *parts: str) -> None:
        """These are there now. Durable on return. Called without any before the first part is
        made, so that a first start that is cut short leaves no loss behind."""
        self._write(self._known().union(parts))

    def forget(self, *parts: str) -> None:
        """These were lost, and whoever the home belongs to wants them made anew. Durable on return."""
        self._write(self._known().difference(parts))

    def _known(self) -> set[str]:
        noted = self._noted()
        return noted if noted is not None else {part for part in self._traces if self.was_made(part)}

    def _write(self, parts: set[str]) -> None:
        if parts != self._noted():
            disk.private_folder(self.folder)
            content = {"format": _FORMAT, "has": sorted(parts)}
            disk.write_durable(self.folder / RECORD, json.dumps(content).encode(), mode=0o600)

    def _noted(self) -> set[str] | None:
        """None where there is no record, or one that is damaged: then the traces tell."""
        path = self.folder / RECORD
        try:
            with disk.storage_errors(path, "reading"):
                return set(json_files.texts(json_files.record(_read(path))["has"]))
        except (ValueError, KeyError):
            return None


def _read(path: Path) -> object:
    try:
        return json_files.read(path)
    except FileNotFoundError:
        raise ValueError("no file") from None


def is_there(path: Path) -> bool:
    """Raises as `disk.storage_errors` does where it cannot be found out: that is no absence."""
    with disk.storage_errors(path, "checking"):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True
