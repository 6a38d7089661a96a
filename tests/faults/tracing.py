"""strace on a running process: it kills at a system call, or makes calls fail.

Attached to one that is ready, so that calls are counted from there; counts are per thread.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.cluster import PATIENCE_S, Process
from tests.waiting import wait_for

_LETS_GO_S = 10.0

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@contextmanager
def tampered(process: Process, log: Path, *inject: str, only: Iterable[Path] = ()) -> Iterator[None]:
    """`inject` as in strace's manual ("fsync:error=EIO"), from now to the end of the block; `only`
    calls on these paths, if there are any. What was done stands in `log`, a call a line."""
    calls = ",".join(one.partition(":")[0] for one in inject)
    options = [f"--inject={one}" for one in inject] + [f"--trace-path={path}" for path in only]
    command = ["strace", "-f", "-q", "-y", "-o", str(log), "-e", f"trace={calls}", *options]
    strace = subprocess.Popen([*command, "-p", str(process.pid)], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: _attached(process) or strace.poll() is not None, PATIENCE_S, "strace is attached")
        assert strace.poll() is None or not process.alive, strace.stderr and strace.stderr.read()
        yield
    finally:
        with suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)  # it lets go of the process, and ends
        _await_end(strace)


def _await_end(strace: subprocess.Popen[bytes]) -> None:
    """One that lets go of a process which its own signal ends meanwhile waits for ever."""
    try:
        strace.communicate(timeout=_LETS_GO_S)
    except subprocess.TimeoutExpired:
        strace.kill()
        strace.communicate(timeout=PATIENCE_S)


def _attached(process: Process) -> bool:
    """Whether every thread is traced."""
    try:
        states = [task.read_text() for task in Path(f"/proc/{process.pid}/task").glob("*/status")]
    except OSError:  # a thread, or the process, ended
        return False
    return bool(states) and not any("TracerPid:\t0\n" in state for state in states)


def has_killed(log: Path) -> bool:
    """Whether the process was killed: its end may not be seen yet."""
    return log.exists() and "killed by SIGKILL" in log.read_text(errors="replace")


def injected(log: Path) -> int:
    """How many calls failed so far."""
    return log.read_text(errors="replace").count("INJECTED") if log.exists() else 0
