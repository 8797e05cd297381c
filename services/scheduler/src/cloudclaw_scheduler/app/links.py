"""The leader's links to the nodes: one `Connect` stream each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from cloudclaw.errors import CloudClawError, FencedError, UnavailableError
from cloudclaw.v1.scheduler_pb2 import ConnectResponse, Hello, PoolCapacity, RunningAttempt, RuntimeStatus
from cloudclaw_scheduler.app.outbox import Outbox

_log = structlog.get_logger()

CACHED_LIMIT: Final = 4096
"""Cached trees remembered for each node, the latest."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Slots of one pool as a node reports them; `readiness`: what the probes of its runtimes found."""

    slots: int
    idle: int
    runtimes: frozenset[str]
    backend: str
    readiness: tuple[RuntimeStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What a stream carried to an attempt: the last input, and whether its conversation closes."""

    inputs: int = 0
    closing: bool = False


class NodeLink:
    """One connected node. `term` is stamped on all that is sent.

    Attributes:
        running: what it said last that it runs, by token.
        asked: the latest checkpoint that each of those was asked for on this stream, by token.
        told: what each of those was told of its conversation on this stream, by token.
    """

    def __init__(self, hello: Hello, term: int, now: float) -> None:
        self.node = hello.node
        self.incarnation = hello.incarnation
        self.term = term
        self.outbox: Outbox[ConnectResponse] = Outbox()
        self.draining = hello.draining
        self.pools: dict[str, Capacity] = {}
        self.refused: set[str] = set()
        self.seen = now
        self.silent_ticks = 0
        self.missing: dict[int, int] = {}
        self.running: dict[int, RunningAttempt] = {}
        self.asked: dict[int, int] = {}
        self.told: dict[int, Told] = {}
        self._cached: dict[tuple[str, str], None] = {}
        self.report_pools(hello.pools)
        self.report_attempts(hello.attempts)
        for tree in hello.cached:
            self.caches(tree.tenant, tree.snapshot_id)

    def send(self, message: ConnectResponse) -> None:
        """Queue `message` for the node, stamped with the term."""
        message.term = self.term
        self.outbox.put(message)

    def heard(self, now: float) -> None:
        """A heartbeat arrived: the node is alive, and what it refused before may be offered again."""
        self.seen = now
        self.silent_ticks = 0
        self.refused.clear()

    def report_pools(self, pools: Iterable[PoolCapacity]) -> bool:
        """Take its pools over; answers whether they changed."""
        fresh = {
            p.pool: Capacity(p.slots, p.idle, frozenset(p.runtimes), p.backend, tuple(p.runtime_status)) for p in pools
        }
        changed = fresh != self.pools
        self.pools = fresh
        return changed

    def report_attempts(self, attempts: Iterable[RunningAttempt]) -> None:
        """Take over what it runs."""
        self.running = {running.token: running for running in attempts}
        self.asked = {token: request for token, request in self.asked.items() if token in self.running}
        self.told = {token: told for token, told in self.told.items() if token in self.running}

    def caches(self, tenant: str, snapshot: str) -> None:
        """The node's host holds the tree of this snapshot ready."""
        self._cached.pop((tenant, snapshot), None)
        self._cached[tenant, snapshot] = None
        if len(self._cached) > CACHED_LIMIT:
            del self._cached[next(iter(self._cached))]

    def takes(self, tenant: str, snapshot: str) -> None:
        """An attempt begins with the ready tree of this snapshot, if there is one: it is ready no more (rule 11)."""
        self._cached.pop((tenant, snapshot), None)

    def cached_tenants(self) -> set[str]:
        """Whose trees it holds ready."""
        return {tenant for tenant, _ in self._cached}

    def has_cached(self, tenant: str, snapshot: str) -> bool:
        """Whether its host holds the tree of a snapshot ready."""
        return (tenant, snapshot) in self._cached

    def forget(self, tenant: str) -> None:
        """The node removes what it has of a tenant."""
        self._cached = {tree: None for tree in self._cached if tree[0] != tenant}


class Links:
    """All links of this term, by node."""

    def __init__(self) -> None:
        self._links: dict[str, NodeLink] = {}
        self._closed: CloudClawError | None = None

    def __iter__(self) -> Iterator[NodeLink]:
        return iter(tuple(self._links.values()))

    def __len__(self) -> int:
        return len(self._links)

    def get(self, node: str) -> NodeLink | None:
        """The link of a node, None while it is not connected."""
        return self._links.get(node)

    def join(self, link: NodeLink) -> None:
        """Take a node's new link; its older one ends. `FencedError` for an older incarnation of a connected node.

        Once closed, raises what it was closed with: a node that joined a term that is over would be known to nobody.
        """
        if self._closed is not None:
            raise self._closed
        old = self._links.get(link.node)
        if old is not None:
            if link.incarnation < old.incarnation:
                raise FencedError(
                    f"node {link.node} is connected with incarnation {old.incarnation}, this is {link.incarnation}"
                )
            old.outbox.close(UnavailableError("the node connected again", reason="REPLACED"))
        self._links[link.node] = link
        _log.info("node connected", node=link.node, incarnation=link.incarnation, pools=sorted(link.pools))

    def leave(self, link: NodeLink, error: CloudClawError | None = None) -> bool:
        """End a link. True when it was the node's current one."""
        link.outbox.close(error)
        if self._links.get(link.node) is not link:
            return False
        del self._links[link.node]
        return True

    def close(self, error: CloudClawError) -> None:
        """End all, and take no more."""
        self._closed = error
        for link in self:
            self.leave(link, error)
