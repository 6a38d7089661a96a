"""runtime/loop.py and clock.py: order of a turn, posted calls, deadlines, the end."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from zchunk.clock import ManualClock, Now, SystemClock, iso_utc, read
from zchunk.errors import NotFound, StorageFailure, StorageUnavailable, ZchunkError
from zchunk.runtime.loop import Loop, LoopThread, ThreadWorkers, contained
from zchunk.transport.base import Arrival, Delivery, Link, Received

PATIENCE_S = 10.0


class FakeSocket:
    endpoint = ""

    def __init__(self, *waiting: Received | Link) -> None:
        self.waiting = deque(waiting)
        self.rejected: list[Arrival] = []
        self.closed = 0

    def receive(self) -> Received | Link | None:
        return self.waiting.popleft() if self.waiting else None

    def send(self, frames: Sequence[Any], connection: bytes = b"") -> Delivery:
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        self.rejected.append(arrival)

    def close(self) -> None:
        self.closed += 1


class FakePoller:
    """`wait` returns at once while a socket has something, else until it is woken."""

    def __init__(self) -> None:
        self.sockets: list[FakeSocket] = []
        self.timeouts: list[float | None] = []
        self.closed = False
        self._woken = threading.Event()

    def register(self, socket: Any) -> None:
        self.sockets.append(socket)

    def unregister(self, socket: Any) -> None:
        self.sockets.remove(socket)

    def wait(self, timeout_s: float | None) -> list[Any]:
        self.timeouts.append(timeout_s)
        ready = [socket for socket in self.sockets if socket.waiting]
        if not ready and timeout_s != 0.0:
            assert self._woken.wait(PATIENCE_S if timeout_s is None else min(timeout_s, PATIENCE_S))
        self._woken.clear()
        return ready

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self.closed = True


class Alarm:
    """Wants to be woken at `at`, then at each of `further`."""

    def __init__(self, log: list[Any], at: float | None, *further: float) -> None:
        self.log, self.at, self.further = log, at, list(further)

    def deadline(self) -> float | None:
        return self.at

    def on_time(self, now: float) -> None:
        self.log.append(("time", now))
        self.at = self.further.pop(0) if self.further else None


@pytest.fixture
def poller() -> FakePoller:
    return FakePoller()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(monotonic=100.0)


@pytest.fixture
def loop(poller: FakePoller, clock: ManualClock) -> Loop:
    return Loop(poller, clock, "test")


@pytest.fixture
def log() -> list[Any]:
    return []


@pytest.fixture
def running(loop: Loop) -> Iterator[LoopThread]:
    failures: list[BaseException] = []
    thread = LoopThread(loop, failures.append)
    thread.start()
    yield thread
    thread.stop(PATIENCE_S)
    assert failures == []


def message(number: int) -> Received:
    return Received([b"%d" % number])


# -- a turn ------------------------------------------------------------------------------


def test_a_turn_reads_sockets_then_runs_calls_then_deadlines(loop: Loop, log: list[Any]) -> None:
    """A lease must not end while its heartbeat waits unread."""
    loop.add_timed(Alarm(log, 99.0))
    loop.post(lambda: log.append("call"))
    loop.add_socket(FakeSocket(message(1)), log.append)
    loop.turn()
    assert log == [message(1), "call", ("time", 100.0)]


def test_sockets_take_turns_in_bursts(loop: Loop, log: list[Any]) -> None:
    busy = FakeSocket(*[message(i) for i in range(1000)])
    loop.add_socket(busy, lambda _: None)
    loop.add_socket(FakeSocket(message(7)), log.append)
    loop.turn()
    assert log == [message(7)]
    assert 0 < len(busy.waiting) < 1000


def test_a_call_posted_by_a_call_waits_for_the_next_turn(loop: Loop, log: list[Any]) -> None:
    """Else two calls that post each other would keep the sockets unread for ever."""

    def again() -> None:
        log.append("call")
        loop.post(again)

    loop.post(again)
    loop.turn()
    assert log == ["call"]
    assert loop.timeout() == 0.0
    loop.turn()
    assert log == ["call", "call"]


def test_a_deadline_is_met_once_and_not_before_its_time(
    loop: Loop, log: list[Any], clock: ManualClock
) -> None:
    loop.add_timed(Alarm(log, 101.5, 103.0))
    loop.turn()
    assert log == []
    assert loop.timeout() == 1.5
    clock.advance(1.5)
    assert loop.timeout() == 0.0
    loop.turn()
    loop.turn()
    assert log == [("time", 101.5)]
    assert loop.next_deadline() == 103.0


@pytest.mark.parametrize("soonest", [0, 1, 2])
def test_a_turn_knows_the_next_deadline(loop: Loop, log: list[Any], clock: ManualClock, soonest: int) -> None:
    for at in range(3):
        loop.add_timed(Alarm(log, 101.0 if at == soonest else 110.0, 120.0))
    assert loop.turn() == 101.0
    clock.advance(1.0)
    assert loop.turn() == 110.0
    assert log == [("time", 101.0)]


def test_a_turn_knows_a_deadline_that_came_while_another_was_met(
    loop: Loop, log: list[Any], clock: ManualClock
) -> None:
    first = Alarm(log, None)

    class Setting(Alarm):
        def on_time(self, now: float) -> None:
            super().on_time(now)
            first.at = 105.0

    loop.add_timed(first)
    loop.add_timed(Setting(log, 100.0))
    assert loop.turn() == 105.0
    assert log == [("time", 100.0)]


def test_in_a_turn_in_which_nothing_is_due_each_is_asked_once(loop: Loop, poller: FakePoller) -> None:
    asked: list[int] = []

    class Asked(Alarm):
        def deadline(self) -> float | None:
            asked.append(len(poller.timeouts))
            return super().deadline()

    loop.add_timed(Asked([], 1000.0))
    busy = FakeSocket(*[message(number) for number in range(70)])
    loop.add_socket(busy, lambda _: loop.stop() if poller.timeouts[3:] else None)
    loop.run()
    turns = len(poller.timeouts)
    assert turns >= 4
    assert asked == list(range(turns + 1))  # once before them all


# -- a message that cannot be handled -----------------------------------------------------------


def broken(received: Arrival) -> None:
    raise KeyError("nobody thought of it")


def test_a_message_that_cannot_be_handled_ends_its_connection_and_no_loop(
    loop: Loop, log: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    bad = Received([b"bad"], b"\0\1", "a" * 32, "10.0.0.7")
    socket, other = FakeSocket(bad, message(1)), FakeSocket(message(2))
    loop.add_socket(socket, lambda received: broken(received) if received is bad else log.append(received))
    loop.add_socket(other, log.append)
    loop.turn()
    assert socket.rejected == [bad]
    assert log == [message(1), message(2)]
    (line,) = caplog.messages
    assert "10.0.0.7" in line
    assert "a" * 32 in line
    assert "0001" in line
    assert "KeyError" in line


def test_many_such_messages_are_few_lines(
    loop: Loop, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    socket = FakeSocket(*[message(number) for number in range(1000)])
    loop.add_socket(socket, broken)
    while socket.waiting:
        loop.turn()
    assert len(socket.rejected) == 1000
    assert len(caplog.messages) == 1
    clock.advance(61)
    socket.waiting.append(message(1))
    loop.turn()
    assert "999 times" in caplog.messages[1]


def test_a_handler_that_closed_its_socket_and_fails_ends_nothing_more(loop: Loop) -> None:
    socket = FakeSocket(message(1))

    def handler(received: Arrival) -> None:
        loop.remove_socket(socket)
        broken(received)

    loop.add_socket(socket, handler)
    loop.turn()
    assert (socket.closed, socket.rejected) == (1, [])


def test_a_bug_in_work_that_was_asked_for_is_an_error_of_who_asked(
    loop: Loop, running: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    workers, told = ThreadWorkers(loop, 1, "work"), queue.SimpleQueue[Any]()
    workers.submit(contained(lambda: {"something": 1}["nothing"]), lambda value, error: told.put(error))
    error = told.get(timeout=PATIENCE_S)
    assert type(error) is ZchunkError
    assert "KeyError" in error.message
    workers.submit(contained(lambda: 7), lambda value, error: told.put(value))
    assert told.get(timeout=PATIENCE_S) == 7
    workers.close()
    assert "could not be handled" in caplog.text


# -- the longest turn ------------------------------------------------------------------------


def turn_of(seconds: float, loop: Loop, clock: ManualClock) -> None:
    loop.post(lambda: clock.advance(seconds))
    loop.turn()


def test_the_longest_turn_is_known_and_what_was_waited_is_no_part_of_it(
    loop: Loop, poller: FakePoller, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_of(0.02, loop, clock)
    turn_of(0.01, loop, clock)

    def wait(timeout_s: float | None) -> list[Any]:
        clock.advance(3.0)
        return []

    monkeypatch.setattr(poller, "wait", wait)
    loop.turn()
    assert loop.longest_turn_s == pytest.approx(0.02)


def test_a_turn_that_blocks_is_told_in_the_log_and_again_only_when_it_gets_worse(
    loop: Loop, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for seconds in (0.04, 0.06, 0.06, 0.07, 0.1, 0.05):
        turn_of(seconds, loop, clock)
    assert caplog.messages == [
        "the test loop was busy for 60 ms, longer than before",
        "the test loop was busy for 100 ms, longer than before",
    ]


# -- waiting -----------------------------------------------------------------------------------


def test_without_anything_to_do_it_waits_until_woken(loop: Loop, log: list[Any]) -> None:
    assert loop.timeout() is None
    loop.add_timed(Alarm(log, None))
    assert loop.timeout() is None
    alarm = Alarm(log, 50.0)
    loop.add_timed(alarm)
    assert loop.timeout() == 0.0
    loop.remove_timed(alarm)
    assert loop.timeout() is None


def test_a_timed_object_may_remove_itself_and_others_when_woken(loop: Loop, log: list[Any]) -> None:
    class Once(Alarm):
        def on_time(self, now: float) -> None:
            super().on_time(now)
            loop.remove_timed(self)

    for _ in range(3):
        loop.add_timed(Once(log, 99.0, 99.0))
    loop.turn()
    loop.turn()
    assert log == [("time", 100.0)] * 3


def test_a_handler_may_remove_its_own_socket(loop: Loop, log: list[Any], poller: FakePoller) -> None:
    socket = FakeSocket(message(1), message(2))

    def handler(received: Arrival) -> None:
        log.append(received)
        loop.remove_socket(socket)

    loop.add_socket(socket, handler)
    loop.turn()
    assert log == [message(1)]
    assert socket.closed == 1
    assert poller.sockets == []


def test_a_handler_may_remove_another_socket_that_was_ready(loop: Loop, log: list[Any]) -> None:
    other = FakeSocket(message(2))
    loop.add_socket(FakeSocket(message(1)), lambda _: loop.remove_socket(other))
    loop.add_socket(other, log.append)
    loop.turn()
    assert log == []
    assert other.closed == 1
    loop.remove_socket(other)
    assert other.closed == 1


# -- the end --------------------------------------------------------------------------------


def test_the_end_calls_the_closers_before_the_sockets_close(
    loop: Loop, log: list[Any], poller: FakePoller
) -> None:
    socket = FakeSocket()
    loop.add_socket(socket, log.append)
    loop.on_close(lambda: log.append(("closer", socket.closed)))
    loop.stop()
    loop.run()
    assert log == [("closer", 0)]
    assert socket.closed == 1
    assert poller.closed
    assert loop.failure is None


def test_a_bug_ends_the_loop_and_is_kept(loop: Loop, poller: FakePoller) -> None:
    loop.post(lambda: 1 / 0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert isinstance(loop.failure, ZeroDivisionError)
    assert poller.closed


def test_a_handler_may_end_the_loop_with_an_error_of_the_system(loop: Loop, poller: FakePoller) -> None:
    """Which what it raises does not: that costs the sender its connection."""
    socket, error = FakeSocket(message(1)), StorageUnavailable("no descriptors")
    loop.add_socket(socket, lambda received: loop.fail(error))
    with pytest.raises(StorageUnavailable, match="no descriptors"):
        loop.run()
    assert loop.failure is error
    assert socket.rejected == []


# -- other threads -----------------------------------------------------------------------------


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "it did not happen in time"


def test_a_call_from_another_thread_wakes_the_loop_and_runs_in_it(loop: Loop, running: LoopThread) -> None:
    names: list[str] = []
    done = threading.Event()

    def call() -> None:
        names.append(threading.current_thread().name)
        done.set()

    loop.post(call)
    wait_for(done)
    assert names == ["test"]


def test_calls_of_one_thread_keep_their_order(loop: Loop, running: LoopThread, log: list[Any]) -> None:
    done = threading.Event()
    for number in range(1000):
        loop.post(lambda number=number: log.append(number))  # type: ignore[misc]
    loop.post(done.set)
    wait_for(done)
    assert log == list(range(1000))


def test_a_bug_in_the_thread_is_told_to_its_owner(loop: Loop, poller: FakePoller) -> None:
    failures: list[BaseException] = []
    told = threading.Event()

    def on_failure(error: BaseException) -> None:
        failures.append(error)
        told.set()

    LoopThread(loop, on_failure).start()
    loop.post(lambda: [].pop())
    wait_for(told)
    assert [type(error) for error in failures] == [IndexError]
    assert poller.closed


def outcome(
    loop: Loop, work: Callable[[], Any], threads: int = 2
) -> tuple[list[tuple[Any, Any]], list[str], threading.Event]:
    """Submit `work`; what came back, in which threads each half ran, and when it came."""
    results: list[tuple[Any, Any]] = []
    names: list[str] = []
    came = threading.Event()
    workers = ThreadWorkers(loop, threads, "worker")
    loop.on_close(workers.close)

    def counted() -> Any:
        names.append(threading.current_thread().name)
        return work()

    def done(value: Any, error: Any) -> None:
        names.append(threading.current_thread().name)
        results.append((value, error))
        came.set()

    workers.submit(counted, done)
    return results, names, came


def test_work_runs_elsewhere_and_its_value_comes_back_into_the_loop(loop: Loop, running: LoopThread) -> None:
    results, names, came = outcome(loop, lambda: 42)
    wait_for(came)
    assert results == [(42, None)]
    assert names[0].startswith("worker")
    assert names[1] == "test"


def test_an_error_of_ours_comes_back_as_an_outcome(loop: Loop, running: LoopThread) -> None:
    error = NotFound("gone")

    def work() -> None:
        raise error

    results, _, came = outcome(loop, work)
    wait_for(came)
    assert results == [(None, error)]
    assert loop.failure is None


@pytest.mark.parametrize("asked_for", [True, False])
@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (OSError(errno.EMFILE, "no"), StorageUnavailable),
        (OSError(errno.EIO, "no", "/data/x"), StorageFailure),
        (MemoryError(), StorageUnavailable),
    ],
    ids=["descriptors", "disk", "memory"],
)
def test_what_the_system_refuses_to_work_is_its_outcome_and_ends_nothing(
    loop: Loop, running: LoopThread, refusal: BaseException, kind: type[ZchunkError], asked_for: bool
) -> None:
    """Also where nobody had words for it."""

    def work() -> None:
        raise refusal

    results, _, came = outcome(loop, contained(work) if asked_for else work)
    wait_for(came)
    ((value, error),) = results
    assert (value, type(error)) == (None, kind)
    assert loop.failure is None


def test_a_bug_in_work_ends_the_loop(loop: Loop) -> None:
    told = threading.Event()
    thread = LoopThread(loop, lambda _: told.set())
    thread.start()
    results, _, _ = outcome(loop, lambda: [].pop())
    wait_for(told)
    thread.stop(PATIENCE_S)
    assert isinstance(loop.failure, IndexError)
    assert results == []


def test_one_worker_thread_keeps_the_order(loop: Loop, running: LoopThread, log: list[Any]) -> None:
    workers = ThreadWorkers(loop, 1, "worker")
    loop.on_close(workers.close)
    came = threading.Event()
    for number in range(100):
        workers.submit(lambda number=number: number, lambda value, _: log.append(value))  # type: ignore[misc]
    workers.submit(lambda: None, lambda *_: came.set())
    wait_for(came)
    assert log == list(range(100))


# -- clocks ---------------------------------------------------------------------------------------


def test_a_manual_clock_moves_only_when_told(clock: ManualClock) -> None:
    before = read(clock)
    assert read(clock) == before
    clock.advance(1.5)
    assert read(clock) == Now(before.mono + 1.5, before.wall_ms + 1500)
    clock.jump_wall(-60.0)
    assert read(clock) == Now(before.mono + 1.5, before.wall_ms - 58_500)


def test_monotonic_time_cannot_go_back(clock: ManualClock) -> None:
    before = clock.monotonic()
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1.0)
    assert clock.monotonic() == before


def test_the_systems_clock_runs_forward() -> None:
    clock = SystemClock()
    first, second = clock.monotonic(), clock.monotonic()
    assert second >= first
    before = time.time()
    assert before <= clock.wall() <= time.time()


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.123, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000.9996, "2023-11-14T22:13:20.999Z"),
    ],
)
def test_times_are_iso_8601_in_utc(wall: float, text: str) -> None:
    assert iso_utc(wall) == text
