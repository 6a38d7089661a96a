"""ZMTP heartbeats are a matter of who connects (see `zeromq._set_heartbeats`)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.cluster import ROOT

#: In a process of its own: where it fails, libzmq ends the process.
_SCRIPT = """
import sys, time, zmq
from zchunk.transport.base import SocketOptions
from zchunk.transport.zeromq import ZmqTransport

transport, context = ZmqTransport(), zmq.Context()
options = SocketOptions(max_frame_bytes=1024, receive_mark=10, heartbeats=True)
bound = getattr(transport, sys.argv[1])("tcp://127.0.0.1:0", options)
flood = context.socket({"router": zmq.DEALER, "publisher": zmq.SUB}[sys.argv[1]])
flood.linger, flood.sndhwm = 0, 0
flood.connect(bound.endpoint)
for number in range(5000):
    if sys.argv[1] == "router":
        flood.send(b"x" * 100)
    else:
        flood.subscribe(b"%d" % number)
end = time.monotonic() + 5
while not bound.raw.poll(10) and time.monotonic() < end:
    bound._bound.answer_gate()
assert bound.raw.poll(0), "the flood has come"
flood.close()
context.term()
# Heartbeats were sent each half second.
time.sleep(1.2)
print("alive")
"""


@pytest.mark.row("S4")
@pytest.mark.parametrize("kind", ["router", "publisher"])
def test_a_flood_that_nobody_reads_and_that_goes_ends_no_server(kind: str) -> None:
    command = [sys.executable, "-c", _SCRIPT, kind]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr
