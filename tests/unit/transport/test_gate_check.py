"""transport/gate_check.py: a process whose sockets let a stranger in does not run. And that both
servers try themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zchunk import config
from zchunk.cli import servers
from zchunk.cli.common import Invocation
from zchunk.clock import SystemClock
from zchunk.errors import OpenDoor
from zchunk.node.home.membership import Membership
from zchunk.node.process import NodeProcess
from zchunk.runtime.loop import Loop, LoopThread
from zchunk.tracker.process import Tracker
from zchunk.transport import gate_check as transport_gate_check
from zchunk.transport.auth import new_key_pair
from zchunk.transport.base import Knock, SocketOptions
from zchunk.transport.gate_check import Door, prove_closed
from zchunk.transport.keys import CurveServer
from zchunk.transport.zap import ZapGate
from zchunk.transport.zeromq import ZmqTransport

OPTIONS = SocketOptions(max_frame_bytes=1024, linger_ms=0)
SERVER = new_key_pair()

Answer = Callable[[ZapGate, Knock], None]


def refuse(gate: ZapGate, knock: Knock) -> None:
    gate.answer(knock, None)


def let_in(gate: ZapGate, knock: Knock) -> None:
    gate.answer(knock, "a" * 32)


def keep_waiting(gate: ZapGate, knock: Knock) -> None:
    pass


@contextmanager
def doors(answer: Answer, bind: str = "127.0.0.1") -> Iterator[list[Door]]:
    """A ROUTER and a PUB whose gate answers so, in a loop of their own."""
    transport = ZmqTransport()
    loop = Loop(transport.poller(), SystemClock(), "server")
    gate = transport.gate()
    router = transport.router(f"tcp://{bind}:0", OPTIONS, CurveServer(SERVER, "router"))
    publisher = transport.publisher(f"tcp://{bind}:0", OPTIONS, CurveServer(SERVER, "publisher"))
    loop.add_socket(gate, lambda knock: answer(gate, knock))  # type: ignore[arg-type]
    for socket in (router, publisher):
        loop.add_socket(socket, lambda received: None)
    failures: list[BaseException] = []
    thread = LoopThread(loop, failures.append)
    thread.start()
    try:
        yield [Door(router.endpoint, SERVER.public), Door(publisher.endpoint, SERVER.public, publishes=True)]
    finally:
        thread.stop()
        transport.close()
    assert failures == []


@pytest.mark.parametrize("bind", ["127.0.0.1", "*"])
def test_doors_that_refuse_a_stranger_are_closed(bind: str) -> None:
    with doors(refuse, bind) as both:
        prove_closed(both)


@pytest.mark.parametrize("which", [0, 1], ids=["router", "publisher"])
def test_a_door_that_lets_a_stranger_in_is_found(which: int) -> None:
    with doors(let_in) as both, pytest.raises(OpenDoor, match="accepts an unknown key"):
        prove_closed([both[which]])


def test_one_open_door_among_closed_ones_is_found() -> None:
    with doors(refuse) as closed, doors(let_in) as open_ones, pytest.raises(OpenDoor):
        prove_closed([*closed, open_ones[1]])


def test_a_gate_that_never_answers_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_gate_check, "_PATIENCE_S", 0.5)
    with doors(keep_waiting) as both, pytest.raises(OpenDoor, match="could not check that"):
        prove_closed(both[:1])


def test_nobody_there_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_gate_check, "_PATIENCE_S", 0.5)
    with doors(refuse) as both:
        gone = both[0]
    with pytest.raises(OpenDoor, match=gone.endpoint):
        prove_closed([gone])


# -- the servers ------------------------------------------------------------------------------


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server decides about a key, it comes in."""
    answer = ZapGate.answer
    monkeypatch.setattr(ZapGate, "answer", lambda self, knock, peer_id: answer(self, knock, "a" * 32))


def settings(**sections: Any) -> Any:
    return config.load(None, sections, environ={})


@contextmanager
def tracker(home: Path) -> Iterator[Tracker]:
    transport = ZmqTransport()
    running = Tracker(home, settings(tracker={"bind": "127.0.0.1:0"}), SystemClock(), transport)
    thread = LoopThread(running.loop, lambda error: None)
    thread.start()
    try:
        yield running
    finally:
        thread.stop()
        running.close()
        transport.close()


def node(home: Path) -> NodeProcess:
    membership = Membership(
        peer_id="b" * 32,
        name="N",
        role="node",
        store_id="s",
        tracker=("tcp://127.0.0.1:9",),
        tracker_key=SERVER.public.hex(),
        events=("tcp://127.0.0.1:9",),
        transport="curve",
    )
    return NodeProcess(home, membership, settings(node={"bind": "127.0.0.1:0"}))


def test_a_tracker_whose_gate_is_right_runs(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as running:
        running.prove_closed()


@pytest.mark.usefixtures("open_gate")
def test_a_tracker_whose_gate_lets_all_in_does_not_run(tmp_path: Path) -> None:
    with tracker(tmp_path / "tracker") as running, pytest.raises(OpenDoor):
        running.prove_closed()


@pytest.mark.usefixtures("open_gate")
def test_the_command_says_so_instead_of_getting_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Stopped as soon as it is ready: which it must not be.
    monkeypatch.setattr(servers, "StopSignal", lambda *events: [event.set() for event in events])
    transport = ZmqTransport()
    given = settings(tracker={"bind": "127.0.0.1:0"})
    running = Tracker(tmp_path / "tracker", given, SystemClock(), transport)
    try:
        with pytest.raises(OpenDoor):
            servers._serve_tracker(running, Invocation(home_given=tmp_path))
    finally:
        running.close()
        transport.close()
    assert capsys.readouterr().out == ""


def test_a_node_whose_gate_is_right_runs(tmp_path: Path) -> None:
    process = node(tmp_path / "node")
    try:
        process.start()
    finally:
        process.stop()


@pytest.mark.usefixtures("open_gate")
def test_a_node_whose_gate_lets_all_in_does_not_run_and_nobody_hears_of_it(tmp_path: Path) -> None:
    process = node(tmp_path / "node")
    try:
        with pytest.raises(OpenDoor):
            process.start()
        names = {thread.name for thread in threading.enumerate()}
        assert "node-control" not in names, "it has not turned to the tracker"
    finally:
        process.stop()
