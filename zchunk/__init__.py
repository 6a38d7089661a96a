"""zchunk keeps big files on the PCs of a LAN: chunks on several peers, verified, resumed by events."""

from __future__ import annotations

from zchunk.version import __version__

# Instead of `typing`: until these lines are over, Ctrl-C ends the command with a traceback
# (startup.py).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from zchunk.client import Client
    from zchunk.content.encryption import KeyFile, Passphrase
    from zchunk.errors import ZchunkError
    from zchunk.node.manager import PutOptions

__all__ = ["Client", "KeyFile", "Passphrase", "PutOptions", "ZchunkError", "__version__"]


_LAZY = {
    "Client": "zchunk.client",
    "KeyFile": "zchunk.content.encryption",
    "Passphrase": "zchunk.content.encryption",
    "PutOptions": "zchunk.node.manager",
    "ZchunkError": "zchunk.errors",
}


def __getattr__(name: str) -> Any:
    """The engine is imported when it is asked for: `zchunk --help` does without it."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
