"""A client that names a wrong SHA-256 of the whole in the manifest of what it puts. Its arguments
are the command that it stands for: an interpreter, `-m zchunk`, and the words behind."""

from __future__ import annotations

import hashlib
import sys

from zchunk.cli import main
from zchunk.content.hashing import FileDigest

if __name__ == "__main__":
    FileDigest.digest = lambda self: hashlib.sha256(b"another file").digest()  # type: ignore[method-assign]
    sys.argv = ["zchunk", *sys.argv[4:]]
    main()
