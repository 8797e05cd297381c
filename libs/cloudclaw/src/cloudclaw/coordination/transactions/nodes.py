"""Transactions on a node's own key."""

from __future__ import annotations

from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import CreateIs, Entry, LeaseLostError, ModIs, Put
from cloudclaw.coordination.records import NodeRecord, decode, encode
from cloudclaw.coordination.transactions.store import Store
from cloudclaw.coordination.transactions.types import Versioned
from cloudclaw.errors import AbortedError, FencedError, PreconditionError, UnavailableError


class NodeTransactions(Store):
    """Register and touch (rules 2 to 4)."""

    async def register_node(self, record: NodeRecord, lease: int) -> Versioned[NodeRecord]:
        """Put `nodes/{n}` on `lease` with incarnation + 1 of what is there.

        A key on another, living lease raises `PreconditionError(reason="NODE_ID_TAKEN")`: two pool-managers with
        one node id. A key on the same lease is our own, from before a restart. `record.incarnation` is the highest
        that the node remembers (0: none); the new one is above that too, so that incarnations rise across leases.
        `FencedError` when `lease` is gone; `AbortedError` when the key changed meanwhile: register again.
        """
        key = keys.node(record.node)
        there = await self._kv.get(key)
        _check_ours(record.node, there, lease)
        known = decode(there.value, NodeRecord).incarnation if there is not None else 0
        raised = replace(record, incarnation=max(known, record.incarnation) + 1)
        value = encode(raised)
        try:
            result = await self._kv.txn(
                [ModIs(key, there.mod_revision if there is not None else 0)],
                [Put(key, value, lease)],
                read_on_failure=[key],
            )
        except LeaseLostError as error:
            raise FencedError(f"the lease of node {record.node!r} is gone", reason="LEASE_LOST") from error
        except UnavailableError:
            now = await self._kv.get(key)
            if now is None or now.value != value or now.lease != lease:
                raise
            return Versioned(raised, now.create_revision, now.mod_revision)
        if result.succeeded:
            return Versioned(raised, there.create_revision if there is not None else result.revision, result.revision)
        _check_ours(record.node, result.read[0] if result.read else None, lease)
        raise AbortedError(f"the key of node {record.node!r} changed meanwhile; register again")

    async def touch_node(self, record: NodeRecord, lease: int, create_revision: int) -> Versioned[NodeRecord]:
        """Put the node's record again so that its mod_revision moves (rule 3 contact, rule 4). Guards: still our
        key (create revision) and incarnation; else `FencedError`. The caller changes `touched`."""
        key = keys.node(record.node)
        there = await self._kv.get(key)
        if (
            there is None
            or there.create_revision != create_revision
            or there.lease != lease
            or decode(there.value, NodeRecord).incarnation != record.incarnation
        ):
            raise _replaced(record)
        value = encode(record)
        try:
            # The value is read to compare the incarnation, so the same value must still be there when it is replaced.
            result = await self._kv.txn(
                [CreateIs(key, create_revision), ModIs(key, there.mod_revision)], [Put(key, value, lease)]
            )
        except LeaseLostError as error:
            raise _replaced(record) from error
        except UnavailableError:
            now = await self._kv.get(key)
            if now is None or now.value != value or now.create_revision != create_revision:
                raise
            return Versioned(record, now.create_revision, now.mod_revision)
        if not result.succeeded:
            # Only an incarnation of this very node writes this key, and this one has one touch at a time.
            raise _replaced(record)
        return Versioned(record, create_revision, result.revision)


def _check_ours(node: str, there: Entry | None, lease: int) -> None:
    if there is not None and there.lease != lease:
        raise PreconditionError(
            f"another pool-manager runs as node {node!r} (its lease is alive); give this one an id of its own,"
            " or wait for the lease to end if it was stopped a moment ago",
            subject=node,
            reason="NODE_ID_TAKEN",
        )


def _replaced(record: NodeRecord) -> FencedError:
    return FencedError(
        f"incarnation {record.incarnation} of node {record.node!r} is not the current one",
        metadata={"node": record.node},
    )
