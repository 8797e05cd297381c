"""One request's way from a sandbox to an upstream and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw_gateway.app.account import Account, Charge
from cloudclaw_gateway.app.metrics import GatewayMetrics
from cloudclaw_gateway.domain.headers import incoming, outgoing
from cloudclaw_gateway.domain.meter import ResponseMeter
from cloudclaw_gateway.domain.prices import Price
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.domain.upstream import Route, Upstream, parse_target
from cloudclaw_gateway.ports.doors import Exchange
from cloudclaw_gateway.ports.keys import KeyOpener
from cloudclaw_gateway.ports.upstreams import Answer, Body, Question, UpstreamError, Upstreams

_log = structlog.get_logger()

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class _Head(msgspec.Struct):
    """What is read of a request that is held."""

    model: Any = None


_HEAD: Final = msgspec.json.Decoder(_Head)


class Relay:
    """Lets requests through to `upstreams`, by name, and streams their answers back.

    It asks once: trying again is the agent's, which knows what it can afford.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        ways: Upstreams,
        keys: KeyOpener,
        metrics: GatewayMetrics,
        clock: Clock,
    ) -> None:
        self._upstreams = upstreams
        self._ways = ways
        self._keys = keys
        self._metrics = metrics
        self._clock = clock

    async def serve(self, exchange: Exchange, tenant: str, keys: Mapping[str, str], account: Account) -> None:
        """Answer one request. Cancelled when the sandbox hangs up."""
        begin = self._clock.boottime()
        upstream: Upstream | None = None
        try:
            target = parse_target(exchange.target)
            upstream = self._upstreams.get(target.upstream)
            if upstream is None:
                raise Refusal(404, Mark.NO_UPSTREAM, f"no such upstream; there are {', '.join(self._upstreams)}")
            route = upstream.route(exchange.method, target)
            key = self._key(upstream, tenant, keys)
            passage = _Passage(exchange, upstream, route, tenant, account, self._metrics, self._clock, begin)
            with self._metrics.streams.labels(upstream.name).track_inprogress():
                await passage.through(self._ways, outgoing(exchange.headers, upstream.kind, key, upstream.headers))
        except Refusal as refusal:
            await self._refuse(exchange, refusal, upstream, tenant)
        except ConnectionError:
            # The sandbox hung up while it was answered.
            raise
        except Exception:  # noqa: BLE001 - one request's fault must end neither the connection nor the gateway
            _log.exception("request failed")
            fault = Refusal(500, Mark.FAULT, "the gateway failed at this request; its log says how")
            await self._refuse(exchange, fault, upstream, tenant)

    async def _refuse(self, exchange: Exchange, refusal: Refusal, upstream: Upstream | None, tenant: str) -> None:
        name = upstream.name if upstream else ""
        self._metrics.refusals.labels(name, refusal.mark).inc()
        if exchange.begun:
            exchange.abort()
            return
        self._metrics.requests.labels(name, str(refusal.status), tenant).inc()
        _log.debug("refused", upstream=name, mark=refusal.mark, status=refusal.status)
        await exchange.refuse(refusal, upstream.kind if upstream else Kind.ANTHROPIC)

    def _key(self, upstream: Upstream, tenant: str, keys: Mapping[str, str]) -> str | None:
        if upstream.anonymous:
            return None
        sealed = keys.get(upstream.name)
        if not sealed:
            raise Refusal(
                401,
                Mark.NO_KEY,
                f"no key for upstream {upstream.name}: set one with claw tenant set-key {upstream.name}",
            )
        try:
            return self._keys.open(tenant, upstream.name, sealed)
        except CloudClawError as error:
            _log.error("a key does not open", upstream=upstream.name, error=error.message)
            raise Refusal(
                401,
                Mark.BAD_KEY,
                f"the key for upstream {upstream.name} does not open on this node: set it again with claw tenant"
                f" set-key {upstream.name}, or ask the operator to compare the sealing keys",
            ) from error


class _Passage:
    """One request that may pass."""

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        route: Route,
        tenant: str,
        account: Account,
        metrics: GatewayMetrics,
        clock: Clock,
        begin: float,
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._route = route
        self._tenant = tenant
        self._account = account
        self._metrics = metrics
        self._clock = clock
        self._begin = begin
        self._price: Price | None = None
        self._body = _Counted(exchange.body) if exchange.body is not None else None

    async def through(self, ways: Upstreams, headers: list[tuple[str, str]]) -> None:
        """Ask, and stream the answer back. Raises `Refusal`."""
        if not self._route.metered:
            await self._ask(ways, headers, self._body, None)
            return
        if not self._account.limits.spend_usd:
            await self._ask(ways, headers, self._body, self._account.begin())
            return
        # A limit that is reached already is told before anything is read.
        self._account.check()
        if self._route.model:
            self._price = self._priced(self._route.model)
            await self._ask(ways, headers, self._body, self._account.begin())
            return
        async with AsyncExitStack() as holding:
            await holding.enter_async_context(self._account.holding)
            held = await self._held(holding)
            await self._ask(ways, headers, held, self._account.begin())

    async def _ask(
        self, ways: Upstreams, headers: list[tuple[str, str]], body: Body | None, charge: Charge | None
    ) -> None:
        question = Question(self._exchange.method, self._route.url, headers, body)
        asked = self._clock.boottime()
        answered = False
        try:
            async with ways.ask(question) as answer:
                answered = True
                await self._stream(answer, charge, asked)
        except UpstreamError as error:
            if charge is not None and not error.asked:
                charge.undo()
            self._failed(error)
        except asyncio.CancelledError:
            if charge is not None and not answered:
                # The sandbox hung up before the answer began; the upstream may have read it all the same.
                self._finish(charge, ResponseMeter(streamed=True))
            raise

    async def _held(self, holding: AsyncExitStack) -> Body:
        """The whole body, once its model is known to have a price: without one a limit on spend could not be kept.

        Raises `Refusal`.
        """
        if self._body is None:
            raise Refusal(400, Mark.BAD_REQUEST, "this request needs a body")
        if any(name.lower() == "content-encoding" for name, _ in self._exchange.headers):
            raise Refusal(415, Mark.BAD_REQUEST, "under a limit on spend requests must not be compressed")
        data = b"".join([piece async for piece in self._body])
        try:
            model = _HEAD.decode(data).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refusal(400, Mark.BAD_REQUEST, "the body is no JSON object") from None
        if not isinstance(model, str) or not model:
            raise Refusal(400, Mark.BAD_REQUEST, "the body names no model")
        self._price = self._priced(model)
        return _Whole(data, holding)

    def _priced(self, model: str) -> Price:
        price = self._upstream.prices.find(model)
        if price is None:
            raise Refusal(
                403,
                Mark.NO_PRICE,
                f"the task has a limit on spend, and model {model[:100]!r} of upstream {self._upstream.name} has no"
                " price: the operator sets prices in CLAW_GATEWAY_UPSTREAMS",
            )
        return price

    async def _stream(self, answer: Answer, charge: Charge | None, asked: float) -> None:
        answered = self._clock.boottime()
        if answer.status in _REDIRECTS:
            raise Refusal(
                502,
                Mark.REDIRECT,
                f"upstream {self._upstream.name} answers with a redirect ({answer.status}), and none is followed",
            )
        headers = {name.lower(): value for name, value in answer.headers}
        meter = None
        if charge is not None and 200 <= answer.status < 300:
            meter = ResponseMeter(
                streamed=headers.get("content-type", "").startswith("text/event-stream"),
                readable=headers.get("content-encoding", "identity") == "identity",
            )
        self._metrics.requests.labels(self._upstream.name, str(answer.status), self._tenant).inc()
        exchange = self._exchange
        first = True
        try:
            await exchange.begin(answer.status, answer.reason, incoming(answer.headers), answer.length)
            overhead = asked - self._begin + self._clock.boottime() - answered
            async for piece in answer.pieces():
                arrived = self._clock.boottime()
                await exchange.write(piece)
                if first:
                    first = False
                    now = self._clock.boottime()
                    self._metrics.first_byte.labels(self._upstream.name).observe(now - self._begin)
                    self._metrics.overhead.observe(overhead + now - arrived)
                # On the side: the bytes are on their way already.
                if meter is not None and charge is not None and meter.feed(piece):
                    self._settle(charge, meter)
            await exchange.end()
        finally:
            if meter is not None and charge is not None:
                self._finish(charge, meter)

    def _settle(self, charge: Charge, meter: ResponseMeter) -> None:
        charge.settle(meter.tokens, self._upstream.prices.find(meter.model) or self._price)

    def _finish(self, charge: Charge, meter: ResponseMeter) -> None:
        tokens, estimated = meter.finish(request_bytes=self._body.bytes if self._body else 0)
        self._settle(charge, meter)
        name, tenant = self._upstream.name, self._tenant
        if estimated:
            self._metrics.estimated.labels(name).inc()
        for kind, count in (
            ("input", tokens.input),
            ("output", tokens.output),
            ("cache_read", tokens.cache_read),
            ("cache_write", tokens.cache_write),
        ):
            if count:
                self._metrics.tokens.labels(name, tenant, kind).inc(count)
        if charge.use.spend_usd:
            self._metrics.spend.labels(name, tenant).inc(charge.use.spend_usd)

    def _failed(self, error: UpstreamError) -> None:
        name = self._upstream.name
        _log.warning("upstream failed", upstream=name, error=str(error), begun=self._exchange.begun)
        if error.timed_out:
            raise Refusal(504, Mark.TIMEOUT, f"upstream {name} is silent for too long: {error}", retry=True) from error
        mark = Mark.BROKEN if error.asked else Mark.UNREACHABLE
        raise Refusal(502, mark, f"upstream {name} cannot be reached: {error}", retry=True) from error


class _Counted:
    """A body, and how much of it has passed."""

    def __init__(self, body: Body) -> None:
        self.length = body.length
        self.bytes = 0
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            self.bytes += len(piece)
            yield piece


class _Whole:
    """A body that is here already; once sent, the next one may be held."""

    def __init__(self, data: bytes, holding: AsyncExitStack) -> None:
        self.length: int | None = len(data)
        self._data = data
        self._holding = holding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        self._data = b""
        await self._holding.aclose()
