"""What the pool-manager measures of itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_START = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_FREEZE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 2.0)
_SNAPSHOT = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class NodeMetrics:
    """Metrics of one node; `registry` None keeps them to themselves, for tests."""

    def __init__(self, registry: CollectorRegistry | None = None):
        self.slots = Gauge(
            "cloudclaw_pool_manager_slots", "Slots by pool and state.", ["pool", "state"], registry=registry
        )
        self.attempts = Counter(
            "cloudclaw_pool_manager_attempts",
            "Attempts that ended here, by pool and end reason.",
            ["pool", "reason"],
            registry=registry,
        )
        self.start_seconds = Histogram(
            "cloudclaw_pool_manager_start_seconds",
            "From the arrival of an assignment to the start of its program, restoring a workspace included.",
            ["pool"],
            buckets=_START,
            registry=registry,
        )
        self.sandbox_seconds = Histogram(
            "cloudclaw_pool_manager_sandbox_start_seconds",
            "To hand a waiting sandbox to a task.",
            ["pool"],
            buckets=_START,
            registry=registry,
        )
        self.snapshot_seconds = Histogram(
            "cloudclaw_pool_manager_snapshot_seconds",
            "To take and store a snapshot.",
            buckets=_SNAPSHOT,
            registry=registry,
        )
        self.checkpoints = Counter(
            "cloudclaw_pool_manager_checkpoints",
            "Checkpoints by pool and outcome: committed, failed, fenced, or abandoned when the attempt ended first.",
            ["pool", "outcome"],
            registry=registry,
        )
        self.freeze_seconds = Histogram(
            "cloudclaw_pool_manager_checkpoint_freeze_seconds",
            "How long an attempt stood still for a checkpoint.",
            ["pool"],
            buckets=_FREEZE,
            registry=registry,
        )
        self.checkpoint_seconds = Histogram(
            "cloudclaw_pool_manager_checkpoint_seconds",
            "To take and store a checkpoint.",
            ["pool"],
            buckets=_SNAPSHOT,
            registry=registry,
        )
        self.checkpoint_bytes = Counter(
            "cloudclaw_pool_manager_checkpoint_stored_bytes",
            "Bytes that checkpoints added to the object store.",
            ["pool"],
            registry=registry,
        )
        self.store_retries = Counter(
            "cloudclaw_pool_manager_store_retries",
            "Times that a step of an attempt (checkout, artifacts, snapshot) was tried again, because the object store"
            " was away or full.",
            ["step"],
            registry=registry,
        )
        self.agent_starts = Counter(
            "cloudclaw_pool_manager_agent_starts",
            "Agents started by pool and how: warm (it waited in the slot) or cold.",
            ["pool", "how"],
            registry=registry,
        )
        self.log_shipped = Counter(
            "cloudclaw_pool_manager_log_shipped_bytes",
            "Bytes of log sent to the leader, repeats included.",
            registry=registry,
        )
        self.log_acked = Counter(
            "cloudclaw_pool_manager_log_acked_bytes", "Bytes of log acknowledged as durable.", registry=registry
        )
        self.contact_age = Gauge(
            "cloudclaw_pool_manager_contact_age_seconds",
            "Seconds since the last contact (design rule 3).",
            registry=registry,
        )
        self.freezes = Counter(
            "cloudclaw_pool_manager_freezes", "Sandboxes frozen for want of contact.", ["pool"], registry=registry
        )
        self.slot_failures = Counter(
            "cloudclaw_pool_manager_slot_failures",
            "Slots replaced because they were sick.",
            ["pool"],
            registry=registry,
        )
        self.reconnects = Counter(
            "cloudclaw_pool_manager_reconnects", "Connections made to a leader.", registry=registry
        )
