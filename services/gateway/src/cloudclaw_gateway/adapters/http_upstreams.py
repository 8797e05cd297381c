"""Upstreams over HTTP/1.1."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp.resolver import ThreadedResolver
from multidict import CIMultiDict
from yarl import URL

from cloudclaw_gateway.domain.refusal import Refusal
from cloudclaw_gateway.ports.upstreams import Answer, Body, Question, UpstreamError


class HttpUpstreams:
    """One pool of connections to all upstreams. TLS is always verified.

    Args:
        ca: PEM certificates that are believed beside the system's.
        connect_timeout: seconds to connect, TLS included.
        idle_timeout: seconds that an answer may be silent, at its start and between two pieces. Streams may last as
            long as they like.
        keep_warm: seconds that an unused connection is kept.
    """

    def __init__(
        self, *, connect_timeout: float, idle_timeout: float, keep_warm: float, ca: Path | None = None
    ) -> None:
        tls = ssl.create_default_context()
        if ca is not None:
            tls.load_verify_locations(ca)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls,
                limit=0,
                keepalive_timeout=keep_warm,
                ttl_dns_cache=60,
                resolver=ThreadedResolver(),
                enable_cleanup_closed=False,
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=idle_timeout),
            # What the sandbox sees is what was sent, and the environment's proxies and .netrc are not meant for it.
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Content-Type", "Accept-Encoding"),
            read_bufsize=1 << 16,
        )

    @asynccontextmanager
    async def ask(self, question: Question) -> AsyncIterator[Answer]:
        headers = CIMultiDict(question.headers)
        body = _Sending(question.body) if question.body is not None else None
        if question.body is not None and question.body.length is not None:
            headers["Content-Length"] = str(question.body.length)
        try:
            response = await self._session.request(
                question.method,
                URL(question.url, encoded=True),
                headers=headers,
                data=body.pieces() if body is not None else None,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if body is not None and body.failure is not None:
                raise body.failure from error
            raise _failure(error) from error
        try:
            yield _HttpAnswer(response, body)
        finally:
            # What is not read to its end is broken off: the model need not go on.
            response.close()

    async def close(self) -> None:
        await self._session.close()


class _Sending:
    """A body on its way; remembers why it ended, which aiohttp wraps."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.failure: Refusal | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except Refusal as refusal:
            self.failure = refusal
            raise


class _HttpAnswer:
    """An `Answer`."""

    def __init__(self, response: aiohttp.ClientResponse, body: _Sending | None) -> None:
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: Sequence[tuple[str, str]] = list(response.headers.items())
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        self.length = None if chunked else response.content_length
        self._response = response
        self._body = body

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._body is not None and self._body.failure is not None:
                raise self._body.failure from error
            raise _failure(error) from error


def _failure(error: Exception) -> UpstreamError:
    """Says what happened, without URL and host: those are the operator's."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamError("no connection in time", timed_out=True, asked=False)
        case TimeoutError():
            return UpstreamError("no answer in time", timed_out=True)
        case aiohttp.ClientConnectorDNSError():
            return UpstreamError("its name does not resolve", asked=False)
        case aiohttp.ClientSSLError():
            return UpstreamError("its certificate or TLS is not accepted", asked=False)
        case aiohttp.ClientConnectorError():
            return UpstreamError("connection refused or unreachable", asked=False)
        case aiohttp.ClientPayloadError():
            return UpstreamError("its answer broke off")
        case _:
            return UpstreamError(f"the connection broke ({type(error).__name__})")
