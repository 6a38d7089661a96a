"""What a node's start was given on the command line, so that `zchunk node` alone is enough
the next time. A JSON file in HOME/node; the configuration file and the environment win
over it. `zchunk node` reads and writes it, nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zchunk.errors import NotFound, StorageFailure
from zchunk.node.home.membership import state_of
from zchunk.system import disk, json_files

_FILE = "options.json"
_AGAIN = "give again the ones that this node was started with"


def load(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of section node that were kept; none where none ever were.

    Raises StorageFailure for a file that is damaged, StateLost for one that is lost unless
    options are `given` in its place; else as `disk.storage_errors` does."""
    path = folder / _FILE
    try:
        with disk.storage_errors(path, "reading"):
            return json_files.record(json_files.read(path))
    except NotFound:
        if not any(given.values()):
            loss = f"{path} is missing; it kept --bind, --capacity and --advertise: {_AGAIN}"
            state_of(folder).check_first("options", loss)
        return {}
    except ValueError:
        raise StorageFailure(
            f"{path} is damaged; it kept --bind, --capacity and --advertise: delete it, and {_AGAIN}"
        ) from None


def keep(folder: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """`kept` with what was `given` now. Durable on return; writes nothing where nothing changed."""
    options = {**kept, **{key: value for key, value in given.items() if value}}
    if options != kept:
        disk.private_folder(folder)
        disk.write_durable(folder / _FILE, json.dumps(options).encode())
