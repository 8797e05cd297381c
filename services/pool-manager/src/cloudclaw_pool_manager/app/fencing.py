"""Self-fencing (design rule 3): how long a sandbox may run without news from those who may have given it away.

All times are boot times of this machine. Nothing here compares clocks of two machines.
"""

from __future__ import annotations

from typing import Final

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
