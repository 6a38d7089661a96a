"""transport/guard/cpu_timer.py: who waits sleeps while the process does nothing, and wakes when it works.
In a process of its own, as a server has it: the signal must be blocked before there are threads."""

from __future__ import annotations

import subprocess
import sys
import threading

from tests.integration.cluster import ROOT
from zchunk.transport.guard.cpu_timer import CpuTimer

_BEFORE = """
import signal, subprocess, sys, threading, time
from zchunk.transport.guard.cpu_timer import CpuTimer

timer = CpuTimer()
timer.arrange()
woken, claimed = threading.Semaphore(0), threading.Event()
waiting = threading.Event()

def guard():
    assert timer.claim()
    claimed.set()
    while True:
        waiting.set()
        timer.wait()
        woken.release()

threading.Thread(target=guard, daemon=True).start()
assert claimed.wait(20) and waiting.wait(20)

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def settle():
    while woken.acquire(timeout=0.5):
        pass

settle()
"""


def run(script: str) -> None:
    command = [sys.executable, "-c", _BEFORE + script + "\nprint('whole')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_it_sleeps_while_nothing_is_done() -> None:
    run("assert not woken.acquire(timeout=3)")


def test_it_sleeps_through_what_a_process_does_at_rest() -> None:
    """As much in some seconds. Some ticks of the system meet it."""
    run("work(0.006); timer.turned(); assert not woken.acquire(timeout=1)")


def test_it_wakes_when_any_thread_works() -> None:
    run("threading.Thread(target=work, args=(0.3,)).start(); assert woken.acquire(timeout=20)")


def test_it_wakes_again_and_again_while_the_work_goes_on() -> None:
    run("""
threading.Thread(target=work, args=(1.0,)).start()
for _ in range(10):
    assert woken.acquire(timeout=20)
""")


def test_it_wakes_by_a_turn_of_a_loop_where_no_tick_met_the_work() -> None:
    run("""
signal.setitimer(signal.ITIMER_PROF, 0)  # no tick meets it at all
timer.turned()
assert not woken.acquire(timeout=0.5), "nothing was done"
work(0.02)
assert not woken.acquire(timeout=0.5)
timer.turned()
assert woken.acquire(timeout=20)
""")


def test_it_is_woken() -> None:
    run("""
signal.setitimer(signal.ITIMER_PROF, 0)
timer.wake()
assert woken.acquire(timeout=20)
timer.release()
timer.wake()  # nobody is there: nothing happens
""")


def test_nothing_else_is_disturbed() -> None:
    """Neither calls that wait, nor processes that are started: they have no such timer."""
    run("""
threading.Thread(target=work, args=(0.5,)).start()
began = time.monotonic()
time.sleep(0.5)
assert time.monotonic() - began >= 0.5
child = "import time\\nend = time.process_time() + 0.2\\nwhile time.process_time() < end: pass"
assert subprocess.run([sys.executable, "-c", child]).returncode == 0
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
signal.raise_signal(signal.SIGTERM)
assert stop.wait(20)
""")


def test_a_thread_that_does_not_block_the_signal_survives_it() -> None:
    run("""
def unblocked():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    work(0.3)
thread = threading.Thread(target=unblocked)
thread.start()
thread.join()
""")


def test_a_second_one_looks_at_the_clock_instead() -> None:
    run("assert not timer.claim()")


def test_without_arrangement_nobody_may_wait() -> None:
    timer = CpuTimer()
    assert not timer.claim()
    timer.turned()
    timer.wake()


def test_it_is_given_up_by_its_owner_alone() -> None:
    timer = CpuTimer()
    timer.is_arranged = True
    assert timer.claim()
    other = threading.Thread(target=timer.release)
    other.start()
    other.join()
    claims: list[bool] = []
    another = threading.Thread(target=lambda: claims.append(timer.claim()))
    another.start()
    another.join()
    assert claims == [False]
    timer.release()
    again = threading.Thread(target=lambda: claims.append(timer.claim()))
    again.start()
    again.join()
    assert claims == [False, True]
