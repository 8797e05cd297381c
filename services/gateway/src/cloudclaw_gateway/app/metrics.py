"""Figures of the gateway."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1)


class GatewayMetrics:
    """Registered once a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "cloudclaw_gateway"
        self.requests = Counter(
            f"{prefix}_requests",
            "Requests of sandboxes, by the status they were answered with",
            ["upstream", "status", "tenant"],
            registry=registry,
        )
        self.refusals = Counter(
            f"{prefix}_refusals", "Requests that the gateway answered itself", ["upstream", "mark"], registry=registry
        )
        self.tokens = Counter(f"{prefix}_tokens", "Tokens used", ["upstream", "tenant", "kind"], registry=registry)
        self.spend = Counter(f"{prefix}_spend_usd", "US dollars spent", ["upstream", "tenant"], registry=registry)
        self.estimated = Counter(
            f"{prefix}_estimated", "Responses whose tokens had to be estimated", ["upstream"], registry=registry
        )
        self.streams = Gauge(f"{prefix}_active_streams", "Requests under way", ["upstream"], registry=registry)
        self.waiting = Gauge(
            f"{prefix}_waiting",
            "Requests under a limit that are read or wait for their turn",
            ["upstream"],
            registry=registry,
        )
        self.attempts = Gauge(f"{prefix}_attempts", "Attempts served", registry=registry)
        self.first_byte = Histogram(
            f"{prefix}_first_byte_seconds",
            "From a request's head to the first byte of its answer",
            ["upstream"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.overhead = Histogram(
            f"{prefix}_overhead_seconds",
            "What the gateway added to that: without the time in which the upstream was waited for",
            buckets=_OVERHEAD,
            registry=registry,
        )
