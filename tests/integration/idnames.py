"""A client that puts a file under any name, or a tracker as it was before names of the form of an
id were refused: a name goes first. Its arguments are the command that it stands for: an
interpreter, `-m zchunk`, and the words behind."""

from __future__ import annotations

import sys
from typing import Any

from zchunk.cli import main


def anything(name: Any) -> None:
    """No problem."""


if __name__ == "__main__":
    from zchunk.node import manager
    from zchunk.tracker.store import commits, listing

    manager.new_name_problem = commits.new_name_problem = anything  # type: ignore[attr-defined]
    listing.is_file_id = lambda text: False  # type: ignore[attr-defined]
    sys.argv = ["zchunk", *sys.argv[4:]]
    main()
