"""What a node's start was given on the command line, so that `zchunk node` alone is enough
the next time. A JSON file in HOME/node; the configuration file and the environment win
over it. `zchunk node` reads and writes it, nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zchunk import disk, jsonfiles
from zchunk.errors import StorageFailure

_FILE = "options.json"


def load(folder: Path) -> dict[str, Any]:
    """The options of section node that were kept; none where there is no such file.

    Raises StorageFailure for a file that is damaged."""
    path = folder / _FILE
    try:
        kept = jsonfiles.read(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict):
        raise StorageFailure(f"{path} is damaged; delete it, and give the options again")
    return kept


def keep(folder: Path, options: Mapping[str, Any]) -> None:
    """Durable on return; writes nothing where nothing changed."""
    if dict(options) != load(folder):
        disk.private_folder(folder)
        disk.write_durable(folder / _FILE, json.dumps(options).encode())
