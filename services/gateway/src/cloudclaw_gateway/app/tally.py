"""What one request uses: its answer is read on the side, priced, and charged."""

from __future__ import annotations

from collections.abc import Callable

from cloudclaw_gateway.app.account import Charge
from cloudclaw_gateway.app.metrics import GatewayMetrics
from cloudclaw_gateway.domain.meter import ResponseMeter
from cloudclaw_gateway.domain.prices import Price
from cloudclaw_gateway.domain.upstream import Upstream
from cloudclaw_gateway.ports.upstreams import Answer


class Tally:
    """Of a request that was let through. `end` it, whatever became of it.

    Args:
        price: of the model that the request names, for answers that name none with a price.
        asked: bytes of the request that have passed so far.
    """

    def __init__(
        self,
        charge: Charge,
        upstream: Upstream,
        tenant: str,
        price: Price | None,
        metrics: GatewayMetrics,
        asked: Callable[[], int],
    ) -> None:
        self._charge = charge
        self._upstream = upstream
        self._tenant = tenant
        self._price = price
        self._metrics = metrics
        self._asked = asked
        # Until it is answered, what the upstream read of it is all that may count.
        self._meter: ResponseMeter | None = ResponseMeter(streamed=True)
        self._answered = False
        self._ended = False
        charge.leave = self.end

    def answered(self, answer: Answer) -> None:
        """The head of the answer is there. Errors use no tokens."""
        self._answered = True
        headers = {name.lower(): value.strip().lower() for name, value in answer.headers}
        self._meter = None
        if 200 <= answer.status < 300:
            self._meter = ResponseMeter(
                streamed=headers.get("content-type", "").startswith("text/event-stream"),
                readable=headers.get("content-encoding", "identity") in ("", "identity"),
            )

    def feed(self, piece: bytes) -> None:
        """The next piece of the answer has passed."""
        if self._meter is not None and not self._ended and self._meter.feed(piece):
            self._settle(self._meter)

    def failed(self, *, asked: bool) -> None:
        """It broke off. The upstream may have been `asked`, or surely never was, and then nothing counts."""
        if self._ended:
            return
        if not asked:
            self._charge.undo()
        if not self._answered:
            self._meter = None

    def end(self) -> None:
        """Nothing more comes. What the upstream did not tell is estimated."""
        if self._ended:
            return
        self._ended = True
        if self._meter is not None:
            self._finish(self._meter)
        self._charge.done()

    def _settle(self, meter: ResponseMeter) -> None:
        self._charge.settle(meter.tokens, self._upstream.prices.find(meter.model) or self._price)

    def _finish(self, meter: ResponseMeter) -> None:
        tokens, estimated = meter.finish(request_bytes=self._asked())
        self._settle(meter)
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
        if self._charge.use.spend_usd:
            self._metrics.spend.labels(name, tenant).inc(self._charge.use.spend_usd)
