"""Where sandboxes come in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from cloudclaw_gateway.domain.refusal import Kind, Refusal
from cloudclaw_gateway.ports.upstreams import Body


class Exchange(Protocol):
    """One request of a sandbox, and the way to answer it.

    Attributes:
        method: as it was sent.
        target: path and query as they were sent, neither decoded nor normalised.
        headers: as they were sent.
        body: None for none. Raises `Refusal` when it is too large or too slow.
        begun: an answer was begun.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: Body | None
    begun: bool

    async def begin(self, status: int, reason: str, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        """Send the head of the answer, at once."""
        ...

    async def write(self, piece: bytes) -> None:
        """Send a piece of the answer's body, at once."""
        ...

    async def end(self) -> None:
        """The answer is whole."""
        ...

    async def refuse(self, refusal: Refusal, kind: Kind) -> None:
        """The whole answer is `refusal`."""
        ...

    def abort(self) -> None:
        """Break the connection, so that half an answer is not taken for a whole one."""
        ...


Handler = Callable[[Exchange], Awaitable[None]]
"""Serves one request. It is cancelled when the sandbox hangs up."""


class Door(Protocol):
    """An open listener of one sandbox."""

    inode: int
    """Of the listening socket; the same for every duplicate of its descriptor."""

    async def drain(self) -> None:
        """Accept nothing more, close idle connections, and return when the busy ones are done."""
        ...

    async def close(self) -> None:
        """Accept nothing more and break every connection."""
        ...


class Doors(Protocol):
    """Opens doors."""

    def open(self, listener: int, handler: Handler) -> Door:
        """Serve whatever connects to the listening descriptor, which becomes the door's, also when this raises.

        Raises `InvalidArgumentError` when it is no listening TCP socket.
        """
        ...
