"""zchunk/system/buffers.py: memory stays within its budget and is never lent twice at a time."""

from __future__ import annotations

import ctypes
import errno
import gc
import random
import threading

import pytest
import zmq

from tests.waiting import wait_for
from zchunk.errors import StorageUnavailable
from zchunk.system import buffers
from zchunk.system.disk import ALIGNMENT as PAGE


def reserved(pool: buffers.BufferPool, size: int) -> buffers.Buffer:
    """Of a pool that has room for it."""
    buffer = pool.try_reserve(size)
    assert buffer is not None
    return buffer


def address(buffer: buffers.Buffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer.view(1)))


def test_buffers_are_page_aligned_and_hold_what_was_asked() -> None:
    pool = buffers.BufferPool(1 << 20)
    for size in (0, 1, PAGE, PAGE + 1, 100_000):
        buffer = reserved(pool, size)
        assert buffer.capacity >= max(size, 1)
        assert buffer.capacity % PAGE == address(buffer) % PAGE == 0
        assert len(buffer.view(size)) == size
        buffer.release()


def test_never_more_than_the_budget_is_reserved() -> None:
    pool = buffers.BufferPool(4 * PAGE)
    first, second = reserved(pool, 3 * PAGE), reserved(pool, PAGE)
    assert pool.reserved == 4 * PAGE
    assert pool.try_reserve(1) is None
    second.release()
    assert pool.try_reserve(2 * PAGE) is None
    first.release()
    assert pool.try_reserve(4 * PAGE) is not None


def test_one_buffer_larger_than_the_budget_may_stand_alone() -> None:
    pool = buffers.BufferPool(2 * PAGE)
    small = reserved(pool, PAGE)
    assert pool.try_reserve(9 * PAGE) is None
    small.release()
    big = reserved(pool, 9 * PAGE)
    assert big.capacity == 9 * PAGE
    assert pool.kept == 0
    assert pool.try_reserve(1) is None
    big.release()
    assert (pool.reserved, pool.kept) == (0, 0)


def test_memory_is_used_again_for_the_same_capacity() -> None:
    pool = buffers.BufferPool(8 * PAGE)
    first = reserved(pool, 2 * PAGE)
    first.view(5)[:] = b"hello"
    where = address(first)
    first.release()
    assert pool.kept == 2 * PAGE
    other = reserved(pool, 3 * PAGE)
    again = reserved(pool, 2 * PAGE - 1)
    assert address(again) == where
    assert again.view(5) == b"hello"
    assert address(other) != where


def test_kept_and_reserved_memory_stay_within_the_budget() -> None:
    rng = random.Random(5)
    pool = buffers.BufferPool(16 * PAGE)
    out: list[buffers.Buffer] = []
    buffer: buffers.Buffer | None
    for _ in range(2000):
        if out and rng.random() < 0.5:
            back = out.pop(rng.randrange(len(out)))
            rng.choice([back.release, back.release, back.discard])()
        elif (buffer := pool.try_reserve(rng.choice([1, 2, 2, 2, 3, 16, 20]) * PAGE)) is not None:
            out.append(buffer)
        assert pool.reserved == sum(b.capacity for b in out)
        assert pool.reserved + pool.kept <= pool.budget or len(out) == 1
        assert pool.kept <= pool.budget


def test_discarded_memory_is_never_lent_again_while_it_is_read() -> None:
    pool = buffers.BufferPool(2 * PAGE)
    sending = reserved(pool, 2 * PAGE)
    view = sending.view(4)
    view[:] = b"data"
    sending.discard()
    assert (pool.reserved, pool.kept) == (0, 0)
    for _ in range(3):
        other = reserved(pool, 2 * PAGE)
        other.view(4)[:] = b"####"
        other.release()
    gc.collect()
    assert view == b"data"


def test_memory_dropped_for_room_stays_readable_for_who_still_has_a_view() -> None:
    pool = buffers.BufferPool(2 * PAGE)
    buffer = reserved(pool, 2 * PAGE)
    view = buffer.view(4)
    view[:] = b"data"
    buffer.release()
    assert pool.try_reserve(PAGE) is not None
    assert pool.kept == 0
    assert view == b"data"


def test_a_buffer_is_given_back_once_and_not_used_after() -> None:
    pool = buffers.BufferPool(2 * PAGE)
    buffer = reserved(pool, PAGE)
    with pytest.raises(ValueError, match="do not fit"):
        buffer.view(PAGE + 1)
    buffer.release()
    buffer.release()
    buffer.discard()
    assert (pool.reserved, pool.kept) == (0, PAGE)
    with pytest.raises(RuntimeError):
        buffer.view(1)


def test_threads_never_share_a_buffer_nor_exceed_the_budget() -> None:
    pool = buffers.BufferPool(4 * PAGE)
    problems: list[str] = []

    def work(mark: int) -> None:
        rng = random.Random(mark)
        for _ in range(500):
            if (buffer := pool.try_reserve(rng.choice([1, 2]) * PAGE)) is None:
                continue
            view = buffer.view(PAGE)
            view[:] = bytes([mark]) * PAGE
            if pool.reserved > pool.budget:
                problems.append("over budget")
            if bytes(view) != bytes([mark]) * PAGE:
                problems.append("shared")
            buffer.release()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert pool.reserved == 0


def test_a_loan_comes_back_when_its_last_view_is_gone() -> None:
    pool = buffers.LoanPool(8 * PAGE)
    view = pool.lend(2 * PAGE)
    view[:4] = b"data"
    part = view[1:3]
    del view
    assert (pool.lent, pool.kept) == (2 * PAGE, 0)
    assert pool.lend(2 * PAGE)[:4] != b"data", "what is still viewed is never lent again"
    assert part == b"at"
    del part
    assert pool.lent == 0
    assert pool.lend(2 * PAGE - 5)[:4] in (b"data", bytes(4))


def test_what_is_lent_and_what_is_kept_stay_within_the_budget_of_loans() -> None:
    rng = random.Random(6)
    pool = buffers.LoanPool(16 * PAGE)
    out: list[memoryview] = []
    for _ in range(2000):
        if out and (rng.random() < 0.5 or pool.lent >= 8 * PAGE):
            out.pop(rng.randrange(len(out)))
        else:
            out.append(pool.lend(rng.choice([0, 1, PAGE, 2 * PAGE, 3 * PAGE])))
        assert pool.lent >= sum(map(len, out))
        assert pool.lent + pool.kept <= 16 * PAGE
    out.clear()
    assert pool.lent == 0
    assert pool.kept > 0


def test_a_block_that_zeromq_still_sends_is_not_lent_again() -> None:
    pool = buffers.LoanPool(64 * PAGE)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        port = push.bind_to_random_port("tcp://127.0.0.1")
        block = pool.lend(40 * PAGE)
        block[:] = b"x" * len(block)
        pull.connect(f"tcp://127.0.0.1:{port}")
        tracker = push.send(block, copy=False, track=True)
        del block
        assert bytes(pull.recv()) == b"x" * 40 * PAGE
        tracker.wait(10)
        del tracker
    wait_for(lambda: pool.lent == 0, 10, "the block comes back")


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()])
def test_where_the_system_has_no_memory_nothing_counts_as_lent(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(capacity: int) -> None:
        raise error

    pool, loans = buffers.BufferPool(8 * PAGE), buffers.LoanPool(8 * PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(buffers, "_fresh", refuse)
        with pytest.raises(StorageUnavailable, match=f"no memory left for a chunk of {2 * PAGE} bytes"):
            pool.try_reserve(2 * PAGE)
        with pytest.raises(type(error)):
            loans.lend(2 * PAGE)
    assert (pool.reserved, loans.lent) == (0, 0)
    assert pool.try_reserve(8 * PAGE) is not None
