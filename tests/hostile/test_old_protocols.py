"""Peers that speak ZMTP 1 or 2, whose messages say nothing of where they came from: some sixteen
bytes, at every socket that listens."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.hostile import zmtp
from tests.hostile.rig import EVENTS, Rig

pytestmark = [pytest.mark.alone, pytest.mark.slow]
_PATIENCE_S = 10.0


@pytest.mark.parametrize("victim", ["tracker", EVENTS, "A"])
@pytest.mark.parametrize("transport", ["curve", "plain"])
def test_they_end_their_own_connection_and_nothing_else(
    request: pytest.FixtureRequest, transport: str, victim: str
) -> None:
    made: Rig = request.getfixturevalue(transport)
    host, _, port = made.endpoint(victim).rpartition(":")
    for said in zmtp.OLD:
        with zmtp.connect((host, int(port)), _PATIENCE_S) as line, suppress(ConnectionResetError):
            line.sendall(said)
            while line.recv(64):  # a greeting; then the end
                pass
    assert made.process(victim).alive
    assert made.get() > 0
