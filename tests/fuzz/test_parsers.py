"""Every parser, with anything (SPEC S4, T23): a value or the parser's typed error, and in no
time. `scripts/fuzz` goes on where these end, and its findings lie in `cases/`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, TREES
from tests.strategies import ODD, ODD_BYTES, ODD_JSON, damaged, deep, replaced

#: their trees are msgpack; the others' JSON
BINARY = {"wire", "tables", "manifest", "sealed", "token"}
CASES = sorted((Path(__file__).parent / "cases").glob("*/*"))
#: Processor time of this thread for one input of a few kilobytes; most take a millisecond.
_MOST_S = 1.0

each = pytest.mark.parametrize("name", sorted(TARGETS))
many = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(name: str, data: bytes) -> bool:
    began = time.thread_time()
    taken = TARGETS[name].check(data)
    assert time.thread_time() - began < _MOST_S
    return taken


@each
def test_what_we_write_ourselves_is_taken(name: str) -> None:
    seeds = TARGETS[name].seeds()
    assert seeds
    for seed in seeds:
        assert check(name, seed)


@each
def test_bytes_at_random(name: str) -> None:
    @many
    @given(data=st.binary(max_size=300))
    def run(data: bytes) -> None:
        check(name, data)

    run()


@pytest.mark.row("S4")
@each
def test_valid_bytes_that_were_damaged(name: str) -> None:
    @many
    @given(data=st.sampled_from(TARGETS[name].seeds()).flatmap(damaged))
    def run(data: bytes) -> None:
        check(name, data)

    run()


@pytest.mark.row("S4")
@pytest.mark.parametrize("name", sorted(TREES))
def test_a_value_that_nobody_expects_in_a_valid_one(name: str) -> None:
    read, write = TREES[name]
    odd = (*ODD, deep(60), *(ODD_BYTES if name in BINARY else ODD_JSON))

    @settings(many, max_examples=250)
    @given(tree=st.sampled_from(TARGETS[name].seeds()).flatmap(lambda seed: replaced(read(seed), odd)))
    def run(tree: object) -> None:
        try:
            data = write(tree)
        except (ValueError, OverflowError, TypeError, LookupError):
            return  # not even the format holds it
        check(name, data)

    run()


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_once_a_finding(path: Path) -> None:
    check(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", sorted(set(TREES) - BINARY))
def test_a_file_nested_without_end(name: str) -> None:
    check(name, b"[" * 100_000)
    check(name, b'{"a":' * 100_000)
