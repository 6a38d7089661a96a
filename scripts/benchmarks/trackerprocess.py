"""`zchunk tracker` as a process on one CPU, which tells how its control loop fares.

Run as a program it is the tracker itself, unchanged, but that on SIGUSR1 it writes a line of
JSON to the file named by its first argument: the longest turn of its loop since the last
such line, its CPU seconds and its memory. Imported, `TrackerProcess` starts and asks it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from servers import Failed, wait_for

#: The tracker has the first CPU to itself, whoever asks it the others.
TRACKER_CPU = 0


def stay_off_the_trackers_cpu() -> None:
    others = os.sched_getaffinity(0) - {TRACKER_CPU}
    if others:
        os.sched_setaffinity(0, others)


class TrackerProcess:
    """Ready when the constructor returns."""

    def __init__(self, home: Path, transport: str) -> None:
        self._notes = home / "notes.jsonl"
        self._notes.unlink(missing_ok=True)
        self._read = 0
        self._log = (home / "tracker.log").open("ab")
        words = ["tracker", "--home", str(home), "--bind", "127.0.0.1:0"]
        environment = {**os.environ, "ZCHUNK_SECURITY__TRANSPORT": transport}
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.trackerprocess", str(self._notes), *words],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        #: seconds from the start of the process until it served
        self.start_s = time.monotonic() - started
        if not line.startswith("ready "):
            self._process.wait()
            raise Failed(f"the tracker did not start:\n{(home / 'tracker.log').read_text()}")
        self.ready: dict[str, Any] = json.loads(line.removeprefix("ready "))

    def note(self) -> dict[str, float]:
        """`longest_turn_ms` since the last note, `cpu_s` so far, `peak_mb` (VmHWM) and `rss_mb` now."""
        self._process.send_signal(signal.SIGUSR1)
        lines = wait_for(self._new_lines, "a note of the tracker")
        self._read += len(lines)
        found: dict[str, float] = json.loads(lines[-1])
        return {**found, **self._memory()}

    def _new_lines(self) -> list[str]:
        if not self._notes.exists():
            return []
        return self._notes.read_text().splitlines()[self._read :]

    def _memory(self) -> dict[str, float]:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        told = dict(line.split(":", 1) for line in status.splitlines())
        names = {"peak_mb": "VmHWM", "rss_mb": "VmRSS"}
        return {name: int(told[key].split()[0]) * 1024 / 1e6 for name, key in names.items()}

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
        self._log.close()


def main() -> None:
    os.sched_setaffinity(0, {TRACKER_CPU})
    notes, sys.argv = Path(sys.argv[1]), ["zchunk", *sys.argv[2:]]
    from zchunk import cli
    from zchunk.runtime.loop import Loop

    loops: list[Loop] = []
    made = Loop.__init__

    def remember(self: Loop, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        loops.append(self)

    def tell(_: int, __: FrameType | None) -> None:
        longest = max(loop.longest_turn_s for loop in loops)
        for loop in loops:
            loop.longest_turn_s = 0.0
        with notes.open("a") as file:
            line = {"longest_turn_ms": round(1000 * longest, 2), "cpu_s": time.process_time()}
            file.write(json.dumps(line) + "\n")

    Loop.__init__ = remember  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, tell)
    cli.main()


if __name__ == "__main__":
    main()
