"""The node's place in the cluster: its lease, its key, and its life signs (design rules 2 and 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from msgspec.structs import replace

from cloudclaw.clock import Clock
from cloudclaw.coordination import keys
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.records import AttemptEnd, NodeRecord, PoolSlots
from cloudclaw.coordination.transactions import Token, Transactions, Versioned
from cloudclaw.errors import AbortedError, FencedError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.app.fencing import TOUCH_AFTER, Contact
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.timing import cancel
from cloudclaw_pool_manager.ports.lease import Lease
from cloudclaw_pool_manager.ports.state import NodeState

_log = structlog.get_logger()

RETRY: Final = 0.5
_LOOK: Final = 0.25
_TOUCH_TRIES: Final = 3


class Node:
    """This node, as etcd knows it.

    `join` once (again while it raises `UnavailableError`), then `run` for as long as the node serves.

    Attributes:
        incarnation: of the node's key; a Hello carries it.
        generation: of this process; the slots' supervisors and the gateway obey the highest. Rises with every process,
            also across leases and without etcd; once the node is registered it is above those of all registrations
            before, also when the node's directory, which remembers it, was removed meanwhile.
    """

    def __init__(
        self,
        record: NodeRecord,
        *,
        lease: Lease,
        kv: KeyValue,
        transactions: Transactions,
        state: NodeState,
        contact: Contact,
        clock: Clock,
        metrics: NodeMetrics,
    ):
        self.generation = 0
        self._record = record
        self._lease = lease
        self._kv = kv
        self._transactions = transactions
        self._state = state
        self._contact = contact
        self._clock = clock
        self._metrics = metrics
        self._key: Versioned[NodeRecord] | None = None
        self._acquired: bool | None = None
        self._dirty = False

    @property
    def name(self) -> str:
        """The node's id."""
        return self._record.node

    @property
    def incarnation(self) -> int:
        return self._record.incarnation

    @property
    def registered(self) -> bool:
        """The node's key is there, on our lease."""
        return self._key is not None

    def deadline(self) -> float:
        """Boot time until which sandboxes may run (rule 3)."""
        self._contact.renewed(self._lease.last_renewal_sent)
        return self._contact.deadline()

    def describe(self, *, address: str | None = None, pools: tuple[PoolSlots, ...] | None = None) -> None:
        """Change what the node's key says; written with the next touch."""
        changed = replace(
            self._record,
            address=self._record.address if address is None else address,
            pools=self._record.pools if pools is None else pools,
        )
        self._dirty = self._dirty or changed != self._record
        self._record = changed

    async def begin(self) -> None:
        """Raise the generation. Before anything else, and without etcd."""
        self.generation = await self._state.incarnation() + 1
        await self._state.remember_lease(await self._state.lease() or 0, self.generation)
        self._record = replace(self._record, incarnation=self.generation - 1)

    async def join(self) -> bool:
        """Keep the remembered lease and register: True; the attempts on it are ours to adopt.

        False when it is gone and a new one was taken: kill what runs, then `register`. Raises `UnavailableError`
        (call again) and `PreconditionError(reason="NODE_ID_TAKEN")`.
        """
        if self._acquired is None:
            remembered = await self._state.lease()
            self._acquired = await self._lease.acquire(remembered)
            if not self._acquired:
                await self._refuse_if_taken()
                await self._state.remember_lease(self._lease.lease_id, self.generation)
        if self._acquired and self._key is None:
            await self.register()
        return self._acquired

    async def register(self) -> None:
        """Put the node's key on our lease. Raises as `join` does."""
        while True:
            sent = self._clock.boottime()
            try:
                self._key = await self._transactions.register_node(
                    replace(self._record, touched=self._clock.wall()), self._lease.lease_id
                )
            except AbortedError:
                continue
            except FencedError as error:
                self._acquired = None
                raise UnavailableError(f"the lease ended while the node was registered: {error.message}") from error
            break
        self._record = self._key.record
        self._contact.touched(sent)
        # Revisions only rise, whatever the node's directory still knows.
        self.generation = max(self.generation, self._record.incarnation, self._key.create_revision)
        await self._state.remember_lease(self._lease.lease_id, self.generation)
        _log.info("node registered", incarnation=self.incarnation, lease=f"{self._lease.lease_id:x}")

    async def attempts(self) -> list[tuple[Token, AttemptEnd]]:
        """What `attempts/{n}/` holds. `UnavailableError`."""
        return await self._transactions.attempts_of(self.name)

    async def owns(self, token: Token, uid: str) -> bool:
        """Linearizable: the token is still valid. `UnavailableError`."""
        return await self._transactions.token_valid(token, uid)

    async def run(self, lost: Callable[[], Awaitable[None]], back: Callable[[], None]) -> None:
        """Renew and touch until cancelled. When the lease is lost: `lost()`, which returns once nothing runs any
        more; then a new lease, a new registration, and `back()`. Raises `PreconditionError(reason="NODE_ID_TAKEN")`.
        """
        while True:
            renewals = asyncio.ensure_future(self._lease.run())
            touches = asyncio.ensure_future(self._touch())
            try:
                await asyncio.wait((renewals, touches), return_when=asyncio.FIRST_COMPLETED)
                for ended in (renewals, touches):
                    if ended.done():
                        ended.result()
            finally:
                await cancel(renewals, touches)
            _log.error("the node lost its lease; killing what runs on it")
            self._key = None
            await lost()
            await self._start_anew()
            back()

    async def leave(self) -> None:
        """End the lease; for a node whose work is over."""
        self._key = None
        if self._lease.lease_id:
            await self._lease.release()

    async def _refuse_if_taken(self) -> None:
        """Before anything is touched: registering would refuse too, and only after what runs was killed."""
        try:
            there = await self._kv.get(keys.node(self.name))
        except UnavailableError:
            self._acquired = None
            raise
        if there is not None and there.lease != self._lease.lease_id:
            await self._lease.release()
            raise PreconditionError(
                f"another pool-manager runs as node {self.name!r}: its lease is alive. Give this one an id of its own;"
                " if the other was stopped a moment ago, its id is free when its lease ends",
                subject=self.name,
                reason="NODE_ID_TAKEN",
            )

    async def _start_anew(self) -> None:
        while True:
            try:
                # Whoever replaced our key may have left the lease alive; its attempts are to be given away at once.
                await self._lease.release()
                since = self._clock.boottime()
                await self._lease.acquire(None)
                await self._state.remember_lease(self._lease.lease_id, self.generation)
                self._contact.lease_replaced(since)
                await self.register()
                return
            except UnavailableError as error:
                _log.warning("no new lease yet", error=error.message)
                await self._clock.sleep(RETRY)

    async def _touch(self) -> None:
        """Touch the node's key while no acks come, and when what it says has changed. Returns when the key is not
        ours any more."""
        last = 0.0
        failing = False
        while True:
            now = self._clock.boottime()
            self._metrics.contact_age.set(self._contact.age(now))
            wanted = self._dirty or self._contact.needs_touch(now)
            if self._key is not None and wanted and now - last >= TOUCH_AFTER:
                last = now
                try:
                    if not await self._touch_once(self._key):
                        return
                except UnavailableError as error:
                    if not failing:
                        _log.warning("the node's key cannot be touched", error=error.message)
                    failing = True
                else:
                    if failing:
                        _log.info("the node's key can be touched again")
                    failing = False
            await self._clock.sleep(_LOOK)

    async def _touch_once(self, key: Versioned[NodeRecord]) -> bool:
        for _ in range(_TOUCH_TRIES):
            self._dirty = False
            sent = self._clock.boottime()
            record = replace(self._record, touched=self._clock.wall())
            try:
                await self._transactions.touch_node(record, self._lease.lease_id, key.create_revision)
            except FencedError as error:
                # An earlier touch whose answer was lost may have come in between, so once is not enough.
                _log.warning("a touch of the node's key was refused", error=error.message)
                continue
            except UnavailableError:
                self._dirty = True
                raise
            self._contact.touched(sent)
            return True
        return False
