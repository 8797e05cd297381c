"""Counts and times of calls, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from cloudclaw.clock import Clock
from cloudclaw.rpc.call import Call

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)

HANDLED: Final = Counter("cloudclaw_rpc_handled", "Calls that ended, by status code.", ["service", "method", "code"])
SECONDS: Final = Histogram(
    "cloudclaw_rpc_seconds", "Time from a call's begin to its end.", ["service", "method"], buckets=_BUCKETS
)
RUNNING: Final = Gauge("cloudclaw_rpc_running", "Calls that run now.", ["service", "method"])


class _Method:
    """The series of one method, looked up once."""

    __slots__ = ("handled", "name", "running", "seconds", "service")

    def __init__(self, method: str):
        _, self.service, self.name = method.split("/", 2)
        self.running = RUNNING.labels(self.service, self.name)
        self.seconds = SECONDS.labels(self.service, self.name)
        self.handled: dict[str, Counter] = {}

    def count(self, code: str) -> None:
        series = self.handled.get(code)
        if series is None:
            series = self.handled[code] = HANDLED.labels(self.service, self.name, code)
        series.inc()


class CallMetrics:
    """Keeps `cloudclaw_rpc_handled_total`, `cloudclaw_rpc_seconds` and `cloudclaw_rpc_running`.

    Only methods that are served get here, so a client cannot make up label values.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._methods: dict[str, _Method] = {}

    def enter(self, call: Call) -> None:
        method = self._methods.get(call.method)
        if method is None:
            method = self._methods[call.method] = _Method(call.method)
        method.running.inc()

    def leave(self, call: Call, error: BaseException | None) -> None:
        method = self._methods[call.method]
        method.running.dec()
        method.seconds.observe(self._clock.boottime() - call.started)
        method.count(call.code)
