"""One seed's history, message by message: `python -m tests.sim.replay SEED [--trace]`.

Prints what the network did and the digest of its trace, so that two runs can be compared;
with `--trace` every delivered message too, to find where they part.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.sim.cluster import simulated_disk
from tests.sim.test_scenarios import History
from zchunk.transport.memory import Connection, Network


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every message delivered from now on: when, between whom, its type, its frames' sizes.

    Not its content: ids that are random in every run (epoch, store id) are as long each time.
    """
    trace: list[str] = []
    deliver = Network._deliver

    def recorded(self: Network, connection: Connection, up: bool, number: int, frames: list[bytes]) -> None:
        arrow = ">" if up else "<"
        ends = f"{connection.client.host} {arrow} {connection.server.host}"
        sizes = [len(frame) for frame in frames]
        trace.append(f"{self.clock.monotonic()!r} {ends} {_kind(frames)} {sizes}")
        deliver(self, connection, up, number, frames)

    monkeypatch.setattr(Network, "_deliver", recorded)
    return trace


def _kind(frames: list[bytes]) -> str:
    for frame in frames[:2]:  # an event has its topic before its header
        try:
            header: Any = msgpack.unpackb(frame)
        except (ValueError, msgpack.UnpackException):
            continue
        if isinstance(header, dict):
            return str(header["t"])
    return "?"


def replay(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """What a seed came to, and its trace."""
    simulated_disk(monkeypatch)
    trace = record(monkeypatch)
    history = History(root, seed)
    history.run()
    cluster = history.cluster
    summary = {
        "seed": seed,
        "counts": dict(sorted(cluster.network.counts.items())),
        "steps": cluster.steps,
        "messages": len(trace),
        "trace": hashlib.sha256("\n".join(trace).encode()).hexdigest(),
    }
    return summary, trace


def main() -> None:
    monkeypatch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory(prefix="zchunk-sim-") as folder, monkeypatch.context() as patched:
        summary, trace = replay(Path(folder), int(sys.argv[1]), patched)
    if "--trace" in sys.argv:
        print("\n".join(trace))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
