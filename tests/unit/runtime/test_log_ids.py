"""log_ids.py: a log line says which request or job it is about, in whatever thread it is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fuzz.shells import NodeShell, TrackerShell, peer_id
from zchunk.cli import common
from zchunk.protocol.messages import GetBlock, Locate
from zchunk.runtime import log_ids
from zchunk.runtime.log_ids import current, during
from zchunk.runtime.loop import contained

PEER = "3fa9c1e2" + "0" * 24
log = logging.getLogger("zchunk.test")


@pytest.fixture
def logged() -> Iterator[None]:
    common.set_up_logs(1)
    yield
    common.set_up_logs(0)


@pytest.mark.parametrize(
    ("sender", "text"),
    [
        (PEER, "request 12 of 3fa9c1e2: "),
        ("2001:db8::1234:5678:9abc:def0", "request 12 of 2001:db8::1234:5678:9abc:def0: "),
        (None, "request 12 of unknown: "),
    ],
)
def test_a_request_is_named_while_it_is_handled(sender: str | None, text: str) -> None:
    assert during((12, sender), current) == text
    assert current() == ""


def test_a_request_within_another_ends_with_itself() -> None:
    def outer() -> tuple[str, str]:
        return during((2, PEER), current), current()

    assert during((1, PEER), outer) == ("request 2 of 3fa9c1e2: ", "request 1 of 3fa9c1e2: ")


def test_it_ends_with_an_error_too() -> None:
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        during((1, PEER), fail)
    assert current() == ""


@pytest.mark.usefixtures("logged")
def test_a_line_begins_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    during((12, PEER), lambda: log.warning("no space for %s", "it"))
    log.warning("later")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" WARNING zchunk.test: request 12 of 3fa9c1e2: no space for it")
    assert second.endswith(" WARNING zchunk.test: later")


def test_a_line_of_a_job_names_it(caplog: pytest.LogCaptureFixture) -> None:
    log_ids.of(log, "job", "0123456789abcdef").warning("chunk %d is late", 7)
    assert caplog.messages == ["job 01234567: chunk 7 is late"]


def test_work_in_another_thread_is_about_the_request_that_asked_for_it() -> None:
    asked = during((3, PEER), lambda: contained(current))
    by_itself = contained(current)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asked).result() == "request 3 of 3fa9c1e2: "
        assert pool.submit(by_itself).result() == ""


@pytest.mark.usefixtures("logged")
def test_what_a_tracker_refuses_after_work_names_the_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = TrackerShell(tmp_path)
    request_id = shell.ask(Locate(name_or_id="f" * 64, unique=False), b"1", claim=peer_id("client"))
    assert capsys.readouterr().err == "", "the store is asked first"
    shell.work()
    (line,) = capsys.readouterr().err.splitlines()
    assert f": request {request_id} of {peer_id('client')[:8]}: refused not_found to 10.0.0.7: " in line


@pytest.mark.usefixtures("logged")
def test_what_a_node_refuses_names_the_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = NodeShell(tmp_path / "store")
    request_id = shell.ask(GetBlock(sha256=b"1" * 32, offset=0, length=1, received=0), b"1")
    shell.work()
    (line,) = capsys.readouterr().err.splitlines()
    assert f": request {request_id} of 10.0.0.1: refused not_found to 10.0.0.1: " in line
