"""What Prometheus is told; the table is in the service's README."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_LATENCY: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """All metrics of the scheduler, in one registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.submitted = Counter("cloudclaw_tasks_submitted", "Tasks accepted", ["tenant"], registry=registry)
        self.ended = Counter("cloudclaw_tasks_ended", "Tasks ended by this leader", ["state"], registry=registry)
        self.attempts = Counter(
            "cloudclaw_attempts_ended", "Attempts ended by this leader", ["state", "reason"], registry=registry
        )
        self.requeued = Counter("cloudclaw_requeues", "Tasks taken back to the queue", ["cause"], registry=registry)
        self.claim_seconds = Histogram(
            "cloudclaw_claim_seconds", "Time of a claim's transaction", registry=registry, buckets=_LATENCY
        )
        self.wait_seconds = Histogram(
            "cloudclaw_queue_wait_seconds",
            "Time from entering the queue to the claim",
            registry=registry,
            buckets=(*_LATENCY, 10.0, 60.0, 600.0, 3600.0),
        )
        self.finish_seconds = Histogram(
            "cloudclaw_finish_seconds", "Time from a report to its verdict", registry=registry, buckets=_LATENCY
        )
        self.claims_lost = Counter("cloudclaw_claims_aborted", "Claims that lost a race", registry=registry)
        self.fenced = Counter("cloudclaw_reports_fenced", "Reports refused because of their token", registry=registry)
        self.checkpoints = Counter(
            "cloudclaw_checkpoints", "Checkpoints that nodes reported to this leader", ["outcome"], registry=registry
        )
        self.freeze_seconds = Histogram(
            "cloudclaw_checkpoint_freeze_seconds",
            "Time that a task's processes stood still for a checkpoint",
            registry=registry,
            buckets=_LATENCY,
        )
        self.queued = Gauge("cloudclaw_queued_tasks", "Tasks in the queue", ["pool"], registry=registry)
        self.tenant_queued = Gauge(
            "cloudclaw_tenant_queued_tasks", "Tasks in the queue by tenant", ["pool", "tenant"], registry=registry
        )
        self.delayed = Gauge("cloudclaw_delayed_tasks", "Tasks that wait for their backoff", registry=registry)
        self.waiting_for_input = Gauge(
            "cloudclaw_parked_conversations", "Conversations that wait for input", registry=registry
        )
        self.parked = Gauge("cloudclaw_parked_tasks", "Tasks that wait for a workspace's writer", registry=registry)
        self.running = Gauge("cloudclaw_running_tasks", "Tasks that run", registry=registry)
        self.nodes = Gauge("cloudclaw_connected_nodes", "Nodes connected to this leader", registry=registry)
        self.term = Gauge("cloudclaw_leader_term", "Term that this replica leads, 0 when it follows", registry=registry)
        self.log_bytes = Counter("cloudclaw_log_bytes", "Bytes of log received", registry=registry)
        self.log_pending = Gauge(
            "cloudclaw_log_pending_bytes", "Bytes of log that are not durable yet", registry=registry
        )
        self.log_stalls = Counter(
            "cloudclaw_log_stalls", "Log segments that could not be stored at once", registry=registry
        )
        self.event_streams = Gauge("cloudclaw_event_streams", "Streams of events being served", registry=registry)
        self.tails = Gauge("cloudclaw_tails", "Log tails being served", registry=registry)
        self.deliveries = Counter(
            "cloudclaw_result_deliveries",
            "Results delivered to consumers by this replica",
            ["delivery"],
            registry=registry,
        )
        self.acks = Counter(
            "cloudclaw_result_acks", "Receipts given back to this replica", ["outcome"], registry=registry
        )
        self.result_streams = Gauge("cloudclaw_result_streams", "Streams of results being served", registry=registry)
        self.archived = Counter("cloudclaw_tasks_archived", "Ended tasks moved to the object store", registry=registry)
        self.bundle_bytes = Counter("cloudclaw_archive_bytes", "Bytes of bundles of archived tasks", registry=registry)
        self.etcd_bytes = Gauge("cloudclaw_etcd_bytes", "Bytes of etcd's database", registry=registry)
        self.mirror_revision = Gauge("cloudclaw_mirror_revision", "Revision that the mirror shows", registry=registry)
