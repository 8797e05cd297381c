"""A TCP proxy that resets its connections, as a bad network does."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class BreakingProxy:
    """Forwards to `target` (host:port).

    The n-th connection is reset after `budgets[n]` bytes of answers, those beyond the list never. `shut` resets all
    of them and refuses new ones until `open`.
    """

    def __init__(self, target: str, budgets: Iterable[int] = ()) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._budgets = itertools.chain(budgets, itertools.repeat(1 << 60))
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._shut = False
        self.resets = 0
        """Connections whose budget was used up."""
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.shut()

    async def shut(self) -> None:
        """Reset every connection, and every new one at once."""
        self._shut = True
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def open(self) -> None:
        """Let connections through again."""
        self._shut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        if self._shut or current is None:
            writer.transport.abort()
            return
        self._connections.add(current)
        upstream: asyncio.StreamWriter | None = None
        try:
            upstream_reader, upstream = await asyncio.open_connection(self._host, self._port)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, upstream, 1 << 60))
                await _pump(upstream_reader, writer, next(self._budgets))
                self.resets += 1
                raise ConnectionResetError
        except* OSError:
            pass
        except* asyncio.CancelledError:
            pass  # shut
        finally:
            writer.transport.abort()
            if upstream is not None:
                upstream.transport.abort()
            self._connections.discard(current)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, budget: int) -> None:
    while budget > 0 and (data := await source.read(min(budget, 65536))):
        budget -= len(data)
        sink.write(data)
        await sink.drain()
