"""How a file may ask to be laid out; `placement.py` carries it out. Apart from that, since each
process checks what it is asked for and only a few plan."""

from __future__ import annotations

from typing import Literal, get_args

Strategy = Literal["round_robin", "contiguous", "balanced"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
#: Most copies of a chunk, and most peers, that a file may ask for.
MAX_COPIES = 10_000
