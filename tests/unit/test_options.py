"""node/options.py: a node's options are given once."""

from __future__ import annotations

from pathlib import Path

import pytest

from zchunk.errors import StorageFailure
from zchunk.node import options


def test_what_was_given_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert options.load(folder) == {}
    options.keep(folder, {"capacity": 20, "advertise": ["10.0.0.1"]})
    assert options.load(folder) == {"capacity": 20, "advertise": ["10.0.0.1"]}


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    options.keep(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(StorageFailure, match="give the options again"):
        options.load(tmp_path)
