"""node/home/options.py: a node's options are given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zchunk.errors import NotAllowed, StateLost, StorageFailure
from zchunk.node.home import membership, options
from zchunk.system import json_files

NONE: dict[str, Any] = {"bind": None, "capacity": None, "advertise": ()}


def test_what_was_given_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert options.load(folder, NONE) == {}
    options.keep(folder, {}, {"bind": None, "capacity": 20, "advertise": ["10.0.0.1"]})
    assert options.load(folder, NONE) == {"capacity": 20, "advertise": ["10.0.0.1"]}


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    options.keep(tmp_path, {}, NONE)
    assert list(tmp_path.iterdir()) == []
    options.keep(tmp_path, {"capacity": 20}, {**NONE, "capacity": 20})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(StorageFailure, match="give again the ones"):
        options.load(tmp_path, NONE)


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(json_files, "read", refuse)
    with pytest.raises(NotAllowed, match="not permitted") as caught:
        options.load(tmp_path, NONE)
    assert "damaged" not in caught.value.message


def test_options_that_were_kept_and_are_lost_are_not_the_defaults(tmp_path: Path) -> None:
    options.keep(tmp_path, {}, {**NONE, "capacity": 20})
    membership.note_parts(tmp_path)
    (tmp_path / "options.json").unlink()
    with pytest.raises(StateLost, match=r"options\.json is missing.*--capacity"):
        options.load(tmp_path, NONE)
    assert options.load(tmp_path, {**NONE, "capacity": 30}) == {}, "given again"


def test_a_home_that_never_kept_any_has_lost_none(tmp_path: Path) -> None:
    membership.note_parts(tmp_path)
    assert options.load(tmp_path, NONE) == {}
