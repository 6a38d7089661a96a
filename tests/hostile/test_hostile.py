"""A hostile peer at the size that a test has time for: the victim stays small, and others are
served. The full size is `python -m tests.hostile.rig` (docs/reports/hostile.md)."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
import zmq

from tests.hostile import zmtp
from tests.hostile.rig import EVENTS, MEMBERS, OF_EVENTS, STRANGERS, Rig, peak_since
from tests.integration.cluster import MIB
from tests.integration.raw import Line, keys_of

pytestmark = [pytest.mark.alone, pytest.mark.slow]
_GROWTH = 64 * MIB
_SECONDS = 2.0


def attacked(made: Rig, attack: str, victim: str) -> dict[str, int]:
    watched = {name: made.process(name) for name in ("tracker", "A")}
    before = {name: peak_since(process, reset=True) for name, process in watched.items()}
    with made.under(attack, made.endpoint(victim), victim, _SECONDS) as attacker:
        assert made.get() > 0
        done = attacker.finish()
    for name, process in watched.items():
        assert process.alive, str(process)
        grown = peak_since(process) - before[name]
        assert grown <= _GROWTH, f"{name} grew by {grown / MIB:.1f} MiB under {attack}: {done}"
    assert made.get() > 0
    made.cluster.await_all_up()
    return done


@pytest.mark.row("S4")
@pytest.mark.parametrize("victim", ["tracker", "A"])
@pytest.mark.parametrize("attack", STRANGERS)
def test_a_stranger_costs_little(curve: Rig, attack: str, victim: str) -> None:
    done = attacked(curve, attack, victim)
    assert done.get("acts", 0) + done.get("opened", 0) > 100, done


@pytest.mark.row("S4")
@pytest.mark.parametrize("victim", ["tracker", "A"])
@pytest.mark.parametrize("attack", MEMBERS)
def test_a_member_costs_little(curve: Rig, attack: str, victim: str) -> None:
    assert attacked(curve, attack, victim)["acts"]


@pytest.mark.parametrize("attack", OF_EVENTS)
def test_a_subscriber_costs_little(curve: Rig, attack: str) -> None:
    assert attacked(curve, attack, EVENTS)["acts"]


@pytest.mark.parametrize("victim", ["tracker", "A"])
def test_large_frames_that_never_come_whole_cost_little(plain: Rig, victim: str) -> None:
    assert attacked(plain, "trickle", victim).get("ended", 0)


@pytest.mark.parametrize("victim", ["tracker", "A"])
def test_a_message_without_an_end_costs_little(plain: Rig, victim: str) -> None:
    assert attacked(plain, "endless", victim)["ended"]


@pytest.mark.parametrize("victim", ["tracker", "A"])
def test_a_message_without_an_end_that_comes_slowly_costs_little(plain: Rig, victim: str) -> None:
    """Nobody else has the victim do anything: its guard sleeps."""
    process = plain.process(victim)
    before = peak_since(process, reset=True)
    with plain.under("bursts", plain.endpoint(victim), victim, 3 * _SECONDS) as attacker:
        done = attacker.finish()
    grown = peak_since(process) - before
    assert grown <= _GROWTH, f"{grown / MIB:.1f} MiB: {done}"
    assert done["ended"]
    assert plain.get() > 0


@pytest.mark.row("S4")
def test_a_recorded_session_is_good_for_nothing(curve: Rig) -> None:
    endpoint = curve.cluster.tracker.endpoint
    host, _, port = endpoint.rpartition(":")
    client = curve.cluster.client.home / "client"
    tracker = keys_of(curve.cluster.tracker.home / "tracker")
    with (
        _Recorder((host, int(port))) as recorder,
        Line(zmq.DEALER, recorder.endpoint, keys_of(client), tracker.public) as line,
    ):
        assert line.ask("locate", name_or_id=curve.source.path.name, unique=False)["t"] == "located"
    answers = _replayed((host, int(port)), bytes(recorder.heard))
    # A greeting and a WELCOME: the INITIATE after it is for another's cookie.
    assert len(answers) <= 64 + 2 + 168, len(answers)
    assert len(answers) < len(recorder.answered)


def _replayed(at: zmtp.At, recorded: bytes) -> bytes:
    answers = bytearray()
    with zmtp.connect(at, 20.0) as line, suppress(OSError):
        line.sendall(recorded)
        while piece := line.recv(65536):
            answers += piece
    return bytes(answers)


class _Recorder:
    """In the path of one connection, which it passes on."""

    def __init__(self, at: zmtp.At) -> None:
        self.heard, self.answered = bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "{}:{}".format(*self._listener.getsockname())
        self._far = zmtp.connect(at, 20.0)
        self._threads = [threading.Thread(target=self._run)]
        self._near: socket.socket | None = None

    def __enter__(self) -> _Recorder:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for line in (self._near, self._far):
            if line is not None:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for line in (self._near, self._far):
            if line is not None:
                line.close()

    def _run(self) -> None:
        self._near, _ = self._listener.accept()
        back = threading.Thread(target=self._pass, args=(self._far, self._near, self.answered))
        self._threads.append(back)
        back.start()
        self._pass(self._near, self._far, self.heard)

    @staticmethod
    def _pass(source: socket.socket, to: socket.socket, noted: bytearray) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                noted += piece
                to.sendall(piece)
