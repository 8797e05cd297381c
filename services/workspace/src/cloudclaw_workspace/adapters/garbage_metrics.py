"""What rounds of garbage collection did, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from cloudclaw.clock import Clock
from cloudclaw_workspace.domain.garbage import Report


class GarbageMetrics:
    """The metrics of rounds; the table is in the service's README.

    Not by tenant: there may be many, and the log has a line for each.
    """

    def __init__(self, clock: Clock, registry: CollectorRegistry = REGISTRY) -> None:
        self._clock = clock
        self._snapshots = Counter(
            "cloudclaw_workspace_gc_snapshots", "Snapshots removed by retention", registry=registry
        )
        self._objects = Counter("cloudclaw_workspace_gc_objects", "Objects removed as garbage", registry=registry)
        self._bytes = Counter("cloudclaw_workspace_gc_bytes", "Bytes removed as garbage", registry=registry)
        self._uploads = Counter("cloudclaw_workspace_gc_uploads", "Unfinished uploads given up", registry=registry)
        self._failures = Counter(
            "cloudclaw_workspace_gc_failures", "Tenants whose garbage could not be collected", registry=registry
        )
        self._kept_objects = Gauge(
            "cloudclaw_workspace_gc_kept_objects", "Objects in use, at the last round", registry=registry
        )
        self._kept_bytes = Gauge(
            "cloudclaw_workspace_gc_kept_bytes", "Bytes in use, at the last round", registry=registry
        )
        self._waiting_objects = Gauge(
            "cloudclaw_workspace_gc_waiting_objects", "Garbage within its grace, at the last round", registry=registry
        )
        self._waiting_bytes = Gauge(
            "cloudclaw_workspace_gc_waiting_bytes", "Its bytes, at the last round", registry=registry
        )
        self._seconds = Gauge("cloudclaw_workspace_gc_seconds", "Duration of the last round", registry=registry)
        self._success = Gauge(
            "cloudclaw_workspace_gc_last_success_timestamp_seconds",
            "When a round over all tenants last ended without a failure",
            registry=registry,
        )

    def collected(self, reports: Sequence[Report], failed: int, seconds: float) -> None:
        self._seconds.set(seconds)
        self._failures.inc(failed)
        if failed:
            return  # sums over some of the tenants would look like a drop
        self._kept_objects.set(sum(report.kept - report.waiting for report in reports))
        self._kept_bytes.set(sum(report.kept_bytes - report.waiting_bytes for report in reports))
        self._waiting_objects.set(sum(report.waiting for report in reports))
        self._waiting_bytes.set(sum(report.waiting_bytes for report in reports))
        self._success.set(self._clock.wall())

    def removed(self, report: Report) -> None:
        self._snapshots.inc(report.snapshots)
        self._objects.inc(report.removed)
        self._bytes.inc(report.removed_bytes)

    def uploads_aborted(self, count: int) -> None:
        self._uploads.inc(count)
