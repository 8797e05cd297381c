"""The way to the endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class UpstreamError(Exception):
    """The upstream could not be asked, or its answer broke off; the message says how, for people.

    Attributes:
        timed_out: it was silent for too long.
        asked: the request may have reached it.
    """

    def __init__(self, message: str, *, timed_out: bool = False, asked: bool = True) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.asked = asked


class Body(Protocol):
    """A request's body as it comes in.

    Attributes:
        length: bytes of it, None when only its end will tell.
    """

    length: int | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its pieces, once."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an upstream.

    Attributes:
        url: whole, and passed on as it stands.
        headers: all but length, host and those of the connection.
        body: None for none.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: Body | None


class Answer(Protocol):
    """An upstream's answer whose headers are there.

    Attributes:
        headers: as they came; the body is not decompressed.
        length: bytes of the body, None when only its end will tell.
    """

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]
    length: int | None

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes in, each piece as soon as it is there. Raises `UpstreamError`."""
        ...


class Upstreams(Protocol):
    """Asks upstreams over connections that are kept warm. Follows no redirect, and asks once."""

    def ask(self, question: Question) -> AbstractAsyncContextManager[Answer]:
        """Send the request and wait for the answer's headers. Leaving early breaks the call off.

        Raises `UpstreamError`; and what `question.body` raised, when that ended it.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
