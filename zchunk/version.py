"""The release; `zchunk --version` prints it."""

__version__ = "0.1.0"
