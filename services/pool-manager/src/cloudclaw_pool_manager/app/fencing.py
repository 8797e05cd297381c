"""Self-fencing (design rule 3): how long a sandbox may run without news from those who may have given it away.

All times are boot times of this machine. Nothing here compares clocks of two machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.transactions import Token
from cloudclaw.errors import UnavailableError
from cloudclaw_pool_manager.app.attempts import AttemptRunner
from cloudclaw_pool_manager.domain.outcome import Phase
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError

_log = structlog.get_logger()

TICK: Final = 0.1
"""Seconds between two looks at run and silence timeouts."""
PUSH_EVERY: Final = 5
"""Ticks between two pushes of the deadline: 500 ms, of a grace of 3 s."""
USAGE_EVERY: Final = 4
"""Pushes from one measurement of an attempt's resources to the next."""
GRACE_MARGIN: Final = 0.5
"""A sandbox stops this much before the leader's grace ends."""
TTL_MARGIN: Final = 1.0
"""… and this much before the lease can have expired."""
TOUCH_AFTER: Final = 1.0
"""Without an ack for so long, the node touches its key, and as often again."""
_REMEMBERED: Final = 256


class Contact:
    """When this node was last known to be alive, by the leader and by etcd.

    *Contact* is the sending time of a heartbeat that the newest term acked, or of a touch of `nodes/{n}` that
    succeeded; *renewal* the sending time of the last renewal of the lease that succeeded. Sending times, since
    the other side's wait can have begun no earlier than that.
    """

    def __init__(self, *, grace: float, ttl: float, now: float):
        self.grace = grace
        self.ttl = ttl
        self._since = now
        self._contact = 0.0
        self._renewal = 0.0
        self._acked = 0.0
        self._sent: dict[int, float] = {}

    def heartbeat_sent(self, sequence: int, at: float) -> None:
        """A heartbeat goes out."""
        self._sent[sequence] = at
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]

    def heartbeat_acked(self, sequence: int) -> None:
        """The leader of the newest term has it; so it has all before it, and their acks say nothing new."""
        at = self._sent.get(sequence)
        if at is None:
            return
        for earlier in [s for s in self._sent if s <= sequence]:
            del self._sent[earlier]
        self._acked = max(self._acked, at)
        self._contact = max(self._contact, at)

    def session_ended(self) -> None:
        """The stream broke; no more acks come for what was sent on it."""
        self._sent.clear()

    def touched(self, at: float) -> None:
        """A touch of the node's key, sent at `at`, succeeded."""
        self._contact = max(self._contact, at)

    def renewed(self, at: float) -> None:
        """A renewal of the lease, sent at `at`, succeeded."""
        self._renewal = max(self._renewal, at)

    def lease_replaced(self, at: float) -> None:
        """A new lease was granted after `at`; what was known of the old one counts no more."""
        self._contact = 0.0
        self._renewal = at
        self._sent.clear()

    def age(self, now: float) -> float:
        """Seconds since the last contact (since the start when there was none)."""
        return now - (self._contact or self._since)

    def needs_touch(self, now: float) -> bool:
        """No ack came for a second."""
        return now - self._acked >= TOUCH_AFTER

    def deadline(self) -> float:
        """Boot time until which sandboxes may run; in the past when contact was lost."""
        return min(self._contact + self.grace - GRACE_MARGIN, self._renewal + self.ttl - TTL_MARGIN)


class Fencing:
    """Keeps every supervisor's deadline at what `Contact` allows, and thaws what froze for want of it.

    Speaking to a supervisor also tells it that a manager is there, so while etcd is away frozen sandboxes wait
    instead of being killed as orphans.
    """

    def __init__(
        self,
        node: str,
        *,
        clock: Clock,
        runners: Callable[[], list[AttemptRunner]],
        deadline: Callable[[], float],
        owns: Callable[[Token, str], Awaitable[bool]],
    ):
        self._node = node
        self._clock = clock
        self._runners = runners
        self._deadline = deadline
        self._owns = owns
        self._busy: set[str] = set()
        self._round = 0

    async def run(self) -> None:
        """Until cancelled. One supervisor that answers late holds up no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                now = self._clock.boottime()
                push = self._round % PUSH_EVERY == 0
                for runner in self._runners():
                    runner.tick(now)
                    if not push:
                        continue
                    slot = runner.live_slot
                    if slot is not None and runner.attempt.uid not in self._busy:
                        self._busy.add(runner.attempt.uid)
                        group.create_task(self._guide(runner, slot))
                self._round += 1
                await self._clock.sleep(TICK)

    async def _guide(self, runner: AttemptRunner, slot: Slot) -> None:
        try:
            await self.guide(runner, slot)
        except SlotFailedError as error:
            runner.sick(slot, str(error))
        finally:
            self._busy.discard(runner.attempt.uid)

    async def guide(self, runner: AttemptRunner, slot: Slot) -> None:
        """Push the deadline to one attempt; thaw or kill it when it is frozen and contact is back."""
        uid = runner.attempt.uid
        thawable = runner.phase is Phase.FROZEN and runner.checkpoints.moving.is_set() and runner.ending.may_go_on
        if thawable and self._deadline() > self._clock.boottime() + TICK * PUSH_EVERY:
            attempt = runner.attempt
            try:
                owned = await self._owns(Token(self._node, attempt.tenant, attempt.task, attempt.token), uid)
            except UnavailableError as error:
                _log.info("a frozen attempt waits: its token cannot be read", attempt=uid, error=error.message)
            else:
                if owned:
                    await slot.thaw(uid, self._deadline())
                    return
                runner.fence("its lease key is gone")
                return
        await slot.set_deadline(uid, self._deadline())
        if self._round // PUSH_EVERY % USAGE_EVERY == 0:
            runner.usage = await slot.usage(uid)
