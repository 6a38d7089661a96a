"""A node that is a member like any other and sends wrong bytes for every chunk.

Its arguments are the command that it stands for: an interpreter, `-m zchunk`, and the words
behind. Its disk stays good, so that its own checks find nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from zchunk.cli import main
from zchunk.node.store.chunk_store import ChunkStore


def lying(read: Callable[..., memoryview]) -> Callable[..., memoryview]:
    @wraps(read)
    def read_block(*args: Any, **options: Any) -> memoryview:
        block = read(*args, **options)
        block[0] ^= 0xFF
        return block

    return read_block


if __name__ == "__main__":
    ChunkStore.read_block = lying(ChunkStore.read_block)  # type: ignore[method-assign]
    sys.argv = ["zchunk", *sys.argv[4:]]
    main()
