"""One request's way from a sandbox to an upstream and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError
from cloudclaw_gateway.app.account import Account, Charge
from cloudclaw_gateway.app.bodies import Counted, Whole, whole
from cloudclaw_gateway.app.metrics import GatewayMetrics
from cloudclaw_gateway.app.tally import Tally
from cloudclaw_gateway.domain.forecast import Forecast, foresee
from cloudclaw_gateway.domain.headers import incoming, outgoing
from cloudclaw_gateway.domain.prices import Price
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.domain.upstream import Route, Upstream, parse_target
from cloudclaw_gateway.domain.use import Use
from cloudclaw_gateway.ports.doors import Exchange
from cloudclaw_gateway.ports.keys import KeyOpener
from cloudclaw_gateway.ports.upstreams import Answer, Body, Question, UpstreamError, Upstreams

_log = structlog.get_logger()

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Patience:
    """How requests under a limit on tokens or spend are treated.

    Attributes:
        turn: seconds that one waits for those before it.
        unnamed_output: tokens that an answer may have when its request names no most.
    """

    turn: float
    unnamed_output: int


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
        patience: Patience,
    ) -> None:
        self._upstreams = upstreams
        self._ways = ways
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._patience = patience

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
            headers = outgoing(exchange.headers, upstream.kind, key, upstream.headers)
            passage = _Passage(exchange, upstream, route, headers, tenant, account, self._metrics, self._clock, begin)
            with self._metrics.streams.labels(upstream.name).track_inprogress():
                await passage.through(self._ways, self._patience)
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
        headers: list[tuple[str, str]],
        tenant: str,
        account: Account,
        metrics: GatewayMetrics,
        clock: Clock,
        begin: float,
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._route = route
        self._headers = headers
        self._tenant = tenant
        self._account = account
        self._metrics = metrics
        self._clock = clock
        self._begin = begin
        self._held = 0.0
        self._body = Counted(exchange.body) if exchange.body is not None else None

    async def through(self, ways: Upstreams, patience: Patience) -> None:
        """Ask, and stream the answer back. Raises `Refusal`."""
        if not self._route.metered:
            await self._ask(ways, self._body, None)
        elif self._account.limits.measured:
            await self._in_turn(ways, patience)
        else:
            await self._ask(ways, self._body, self._tally(await self._account.begin()))

    async def _in_turn(self, ways: Upstreams, patience: Patience) -> None:
        """Held until its body is read and what it may use fits beside what is under way, in the order of coming."""
        account = self._account
        # A limit that is reached already is told before anything is read or waited for.
        account.check()
        arrived = self._clock.boottime()
        with ExitStack() as holding:
            try:
                with self._metrics.waiting.labels(self._upstream.name).track_inprogress():
                    body, tally = await self._turn(holding, patience)
            except TimeoutError:
                raise Refusal(
                    429,
                    Mark.TURN,
                    "near its limit a task's requests go one after the other, and this one waited for too long",
                    retry=True,
                ) from None
            self._held = self._clock.boottime() - arrived
            await self._ask(ways, body, tally)

    async def _turn(self, holding: ExitStack, patience: Patience) -> tuple[Body | None, Tally]:
        """The body, and the account's leave to send it. Raises `Refusal` and `TimeoutError`."""
        account, loop = self._account, asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.timeout(patience.turn) as waiting:
            await account.holding.acquire()
            holding.callback(account.holding.release)
            account.check()
            # Who sends slowly is cut off by the door.
            waited = loop.time() - begin
            waiting.reschedule(None)
            data = await whole(self._body)
            price, most = self._foreseen(data, patience)
            waiting.reschedule(loop.time() + patience.turn - waited)
            tally = self._tally(await account.begin(most), price)
        # Once it is sent, the next one may be held.
        return Whole(data, holding.close) if self._body is not None else None, tally

    async def _ask(self, ways: Upstreams, body: Body | None, tally: Tally | None) -> None:
        question = Question(self._exchange.method, self._route.url, self._headers, body)
        asked = self._clock.boottime()
        try:
            async with ways.ask(question) as answer:
                await self._stream(answer, tally, asked)
        except UpstreamError as error:
            if tally is not None:
                tally.failed(asked=error.asked)
            self._failed(error)
        except Refusal:
            if tally is not None:
                tally.failed(asked=True)
            raise
        finally:
            if tally is not None:
                tally.end()

    def _tally(self, charge: Charge, price: Price | None = None) -> Tally:
        return Tally(
            charge, self._upstream, self._tenant, price, self._metrics, lambda: self._body.bytes if self._body else 0
        )

    def _foreseen(self, data: bytearray, patience: Patience) -> tuple[Price | None, Use | None]:
        """The price of the model that is asked for, and what the request may use at most; None when nobody knows.

        Under a limit on spend a model must have a price: without one the limit could not be kept. Raises `Refusal`;
        never with the status of a refused key, which agents would tell their user to look at.
        """
        compressed = any(name.lower() == "content-encoding" for name, _ in self._exchange.headers)
        writes = self._route.writes
        forecast = None if compressed else foresee(data, writes=writes, unnamed_output=patience.unnamed_output)
        price = None
        if self._account.limits.spend_usd:
            price = self._priced(self._model(forecast, compressed=compressed), forecast.dearer if forecast else "")
        if forecast is None or forecast.tokens is None:
            return price, None
        return price, Use.of(forecast.tokens, price.most(forecast.tokens) if price else 0.0)

    def _model(self, forecast: Forecast | None, *, compressed: bool) -> str:
        if self._route.model:
            return self._route.model
        if compressed:
            raise Refusal(415, Mark.BAD_REQUEST, "under a limit on spend requests must not be compressed")
        if forecast is None:
            raise Refusal(400, Mark.BAD_REQUEST, "the body is no JSON object")
        if not forecast.model:
            raise Refusal(400, Mark.BAD_REQUEST, "the body names no model")
        return forecast.model

    def _priced(self, model: str, dearer: str) -> Price:
        price = self._upstream.prices.find(model)
        what = f"model {model[:100]!r} of upstream {self._upstream.name}"
        if price is None:
            raise Refusal(
                400,
                Mark.NO_PRICE,
                f"the task has a limit on spend, and {what} has no price: the operator sets prices in"
                " CLAW_GATEWAY_UPSTREAMS",
            )
        if dearer:
            raise Refusal(
                400, Mark.NO_PRICE, f"the task has a limit on spend, and {what} costs more than its price at {dearer}"
            )
        return price

    async def _stream(self, answer: Answer, tally: Tally | None, asked: float) -> None:
        answered = self._clock.boottime()
        if tally is not None:
            tally.answered(answer)
        if answer.status in _REDIRECTS:
            raise Refusal(
                502,
                Mark.REDIRECT,
                f"upstream {self._upstream.name} answers with a redirect ({answer.status}), and none is followed",
            )
        self._metrics.requests.labels(self._upstream.name, str(answer.status), self._tenant).inc()
        exchange = self._exchange
        first = True
        await exchange.begin(answer.status, answer.reason, incoming(answer.headers), answer.length)
        # Waiting for its turn is no work of the gateway's.
        overhead = asked - self._begin - self._held + self._clock.boottime() - answered
        async for piece in answer.pieces():
            arrived = self._clock.boottime()
            try:
                await exchange.write(piece)
            finally:
                # On the side: the bytes are on their way already, also when the sandbox hangs up at them.
                if tally is not None:
                    tally.feed(piece)
            if first:
                first = False
                now = self._clock.boottime()
                self._metrics.first_byte.labels(self._upstream.name).observe(now - self._begin)
                self._metrics.overhead.observe(overhead + now - arrived)
        await exchange.end()

    def _failed(self, error: UpstreamError) -> None:
        name = self._upstream.name
        _log.warning("upstream failed", upstream=name, error=str(error), begun=self._exchange.begun)
        if error.timed_out:
            raise Refusal(504, Mark.TIMEOUT, f"upstream {name} is silent for too long: {error}", retry=True) from error
        mark = Mark.BROKEN if error.asked else Mark.UNREACHABLE
        raise Refusal(502, mark, f"upstream {name} cannot be reached: {error}", retry=True) from error
