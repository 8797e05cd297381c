"""`python -m tests.bench.gateway_child`: an endpoint that answers every POST with a short stream, for the benchmark.

Prints its port. `?events=N&pause=SECONDS` in the target sets how long the stream is and how slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
NEXT = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word "}}\n\n'


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, kept alive."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            asked = re.search(rb"events=(\d+)&pause=([0-9.]+)", head)
            writer.write(HEAD + chunk(FIRST))
            for _ in range(int(asked[1]) if asked else 0):
                await asyncio.sleep(float(asked[2]) if asked else 0)
                writer.write(chunk(NEXT))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    writer.close()


def chunk(data: bytes) -> bytes:
    """As chunked encoding has it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
