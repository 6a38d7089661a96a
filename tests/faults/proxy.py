"""A TCP proxy on loopback that withholds, slows down or ends what passes through it.

What a closed direction withholds arrives when it opens again, as on a line that lost
packets for a while: TCP sends them again. Both ends keep their connections meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

_PIECE = 64 * 1024


class _Direction:
    """Lives in the proxy's event loop."""

    def __init__(self) -> None:
        self.passes = asyncio.Event()
        self.passes.set()
        self.carried = 0


class Proxy:
    """Listens on 127.0.0.1 and connects to `target` (host:port) for each connection it gets.
    Directions are seen from the one who connects: `up` to the target, `down` from it."""

    def __init__(self, target: str, *, port: int = 0) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        self._seconds_per_byte = 0.0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        try:
            self._call(self._listen(port))
        except BaseException:
            self._end_loop()
            raise

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for any thread -----------------------------------------------------------------

    def close_way(self, *, up: bool = False, down: bool = False) -> None:
        """From now on nothing passes in these directions, on any connection."""
        self._switch(lambda way: way.passes.clear(), up, down)

    def open_way(self, *, up: bool = True, down: bool = True) -> None:
        self._switch(lambda way: way.passes.set(), up, down)

    def slow_down(self, bytes_per_second: float) -> None:
        """From now on each connection carries no more, in each direction."""
        self._seconds_per_byte = 1.0 / bytes_per_second

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        self._call(self._cut())

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that went up and down."""
        return self._up.carried, self._down.carried

    def close(self) -> None:
        self._call(self._close())
        self._end_loop()

    # -- in the loop --------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    def _switch(self, change: Callable[[_Direction], None], up: bool, down: bool) -> None:
        async def work() -> None:
            for way, wanted in ((self._up, up), (self._down, down)):
                if wanted:
                    change(way)

        self._call(work())

    async def _listen(self, port: int) -> None:
        self._up, self._down = _Direction(), _Direction()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_PIECE)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_PIECE)
        except OSError:  # nobody listens there: as if nobody listened here
            await self._drop(writer)
            return
        self._writers.add(far_writer)
        await asyncio.gather(
            self._carry(reader, far_writer, self._up), self._carry(far_reader, writer, self._down)
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Direction
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await way.passes.wait()
                way.carried += len(piece)
                writer.write(piece)
                await writer.drain()
                if self._seconds_per_byte:
                    await asyncio.sleep(len(piece) * self._seconds_per_byte)
        await self._drop(writer)

    async def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()
