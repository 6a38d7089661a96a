"""Wakes one thread once this process has worked: for a guard that has nothing to do at rest.

Whatever others do to a process costs it processor time. So who watches for that may sleep until
some was used: the system's profiling timer counts it for all threads, libzmq's too. Its signal
(SIGPROF) is blocked in all of them and taken by the one that waits for it, so that no handler runs
and no call of another thread is interrupted.

The timer counts by the system's ticks, and may miss what takes less than one some times in a
row. Loops therefore tell of their turns (`turned`), and there the time is known exactly.
"""

from __future__ import annotations

import signal
import threading
import time

#: CPU seconds of the process after which the thread is woken. A guard that is awake looks no sooner
#: (connections.py), so no more is missed while it sleeps; and at rest a process works as much in 20 s.
_WORKED_S = 0.02


class CpuTimer:
    """One for the process. Works only once it was `arranged`; else whoever waits must look at
    the clock instead."""

    def __init__(self) -> None:
        self.is_arranged = False
        #: the thread that may wait
        self._owner: int | None = None
        #: CPU seconds of the process when it fell asleep; None while it is awake
        self._asleep_at: float | None = None
        self._lock = threading.Lock()

    def arrange(self) -> None:
        """To be called in the main thread, before it makes others: they block the signal as it does."""
        if not hasattr(signal, "sigwaitinfo"):
            return
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # in a thread that does not block it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
        self.is_arranged = True

    def claim(self) -> bool:
        """Whether the calling thread may wait: the first that asks."""
        with self._lock:
            if self.is_arranged and self._owner is None:
                self._owner = threading.get_ident()
            return self._owner == threading.get_ident()

    def release(self) -> None:
        """By whoever claimed it, when it waits no more; by others it does nothing."""
        with self._lock:
            if self._owner == threading.get_ident():
                self._owner = None

    def wait(self) -> None:
        """Returns when the process has worked since, or was woken."""
        self._asleep_at = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, _WORKED_S)
        signal.sigwaitinfo({signal.SIGPROF})
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self._asleep_at = None

    def wake(self) -> None:
        """From any thread."""
        with self._lock:
            if self._owner is not None:
                signal.pthread_kill(self._owner, signal.SIGPROF)

    def turned(self) -> None:
        """A loop has had a turn. From any thread, often."""
        asleep_at = self._asleep_at
        if asleep_at is not None and time.process_time() - asleep_at >= _WORKED_S:
            self._asleep_at = None
            self.wake()


#: of this process
timer = CpuTimer()
