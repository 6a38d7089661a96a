"""Which security mechanism the other side speaks, by its own greeting (ZMTP 3, RFC 23).

libzmq tells a mismatch by chance: whose greeting is complete first ends the connection, and
then the other sees a line that broke. So where handshakes fail without a word, we ask
ourselves: who is greeted with a version says what it speaks before it hears what we do.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from zchunk.system import addresses

#: Signature and major version, after which the other side sends the rest of its greeting.
_OURS = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03"
_LENGTH = 64
_MECHANISM = slice(12, 32)
#: To connect, and then for each piece.
_PATIENCE_S = 1.0


class Greeting:
    """Asks `address` (`tcp://host:port`) in a thread of its own, which ends by itself."""

    def __init__(self, address: str) -> None:
        self._address = address
        #: in the other side's words, `NULL` or `CURVE`; None while, and where, it says none
        self.mechanism: str | None = None
        self._thread = threading.Thread(target=self._ask, name="greeting", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _ask(self) -> None:
        at = addresses.parse(self._address)
        with suppress(OSError), socket.create_connection((at.host, at.port), _PATIENCE_S) as line:
            line.sendall(_OURS)
            heard = b""
            while len(heard) < _LENGTH and (piece := line.recv(_LENGTH - len(heard))):
                heard += piece
            if len(heard) == _LENGTH and heard[:1] == _OURS[:1]:
                self.mechanism = heard[_MECHANISM].rstrip(b"\0").decode(errors="replace")
