"""What processes cost: a command from its start to its end, and servers meanwhile.

CPU seconds are those of a process and of the children it has waited for. A command's come
from the kernel when it ends; what servers and memory need is read in /proc, so Linux it is.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from servers import Failed

_SAMPLE_S = 0.04
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Use:
    """CPU seconds in one job; VmHWM in bytes, of the largest where there are several."""

    cpu_s: float
    peak: int


@dataclass(frozen=True)
class Ended:
    """A command that ended with 0: wall seconds from before its process was made."""

    seconds: float
    use: Use
    output: str


def vm_hwm(pid: int) -> int:
    """The most memory the process ever had, bytes; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Command:
    """A command that runs; several may at a time. `result` or `wait` is called once."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._words = words
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_read`
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_read`
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._cpu_s = 0.0
        self.ended_at = 0.0
        #: before its process was made; both by time.perf_counter
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(words, stdout=self._output, stderr=self._errors, env=env)
        self._thread.start()

    def _wait(self) -> None:
        _, status, usage = os.wait4(self._process.pid, 0)
        self.ended_at = time.perf_counter()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_s = usage.ru_utime + usage.ru_stime
        self._ended.set()

    def kill(self) -> None:
        if not self._ended.is_set():
            self._process.kill()
            self._thread.join()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self) -> Ended:
        """Samples the memory until the command ends. Raises Failed."""
        return wait_all([self])[0]

    def result(self) -> Ended:
        """Of a command that has ended. Raises Failed."""
        output, errors = _read(self._output), _read(self._errors)
        if code := self._process.returncode:
            raise Failed(f"{' '.join(self._words)} ended with {code}: {(errors + output)[-2000:]}")
        return Ended(self.ended_at - self.started_at, Use(self._cpu_s, self._peak), output)

    def sample(self) -> None:
        pids = [self._process.pid, *children(self._process.pid)]
        self._peak = max(self._peak, *map(vm_hwm, pids))


def wait_all(commands: Sequence[Command]) -> list[Ended]:
    """Samples the memory of all of them until the last one ends; they are killed if this is
    interrupted. Raises Failed."""
    try:
        while running := [command for command in commands if not command.ended]:
            for command in running:
                command.sample()
            time.sleep(_SAMPLE_S)
    except BaseException:
        for command in commands:
            command.kill()
        raise
    return [command.result() for command in commands]


def _read(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


class Servers:
    """Processes that serve a command: what they used between `begin` and `end`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def end(self) -> dict[str, Use]:
        """By name. VmHWM is that of the process's whole life."""
        return {
            name: Use(cpu_seconds(pid) - self._before[name], vm_hwm(pid)) for name, pid in self._pids.items()
        }


def run(
    words: Sequence[str], servers: Servers, env: Mapping[str, str] | None = None
) -> tuple[Ended, dict[str, Use]]:
    """One command, and what its servers used meanwhile."""
    servers.begin()
    ended = Command(words, env).wait()
    return ended, servers.end()
