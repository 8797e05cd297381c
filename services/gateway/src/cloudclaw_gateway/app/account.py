"""One task's use of models, counted against its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloudclaw_gateway.domain.prices import Price
from cloudclaw_gateway.domain.refusal import Mark, Refusal
from cloudclaw_gateway.domain.use import LimitKind, Limits, Tokens, Use


class Account:
    """Counts, and says when enough is enough.

    A request counts from the moment it is let through, so that many at once cannot pass a limit on requests together.
    Tokens and spend count as the upstream tells them. Requests that are under way when one of these limits is reached
    go on to their end: what they cost is mostly spent, and the manager ends the attempt when the next one is refused.

    Args:
        changed: called when the use changed.
        reached: called with each limit, the first time a request is refused because of it.
    """

    def __init__(
        self,
        limits: Limits,
        used: Use,
        *,
        changed: Callable[[], None],
        reached: Callable[[LimitKind, str], None],
    ) -> None:
        self.use = used
        self.limits = limits
        self.reached: dict[LimitKind, str] = {}
        self.holding = asyncio.Lock()
        """One request at a time is held whole, so that a sandbox holds no more memory here than one body has."""
        self._changed = changed
        self._tell_reached = reached

    def renew(self, limits: Limits, used: Use) -> None:
        """New limits; what was used is at least `used`. Limits that are still reached are told again."""
        self.limits = limits
        self.use = self.use.most(used)
        told, self.reached = self.reached, {}
        still = limits.reached(self.use)
        if still is not None and still[0] in told:
            self._tell(*still)

    def check(self) -> None:
        """Raise `Refusal` when a limit is reached."""
        if (limit := self.limits.reached(self.use)) is not None:
            self._tell(*limit)
            raise Refusal(403, Mark.LIMIT, limit[1])

    def begin(self) -> Charge:
        """Count one more request. Raises `Refusal` when a limit is reached."""
        self.check()
        charge = Charge(self)
        charge.settle(Tokens(), None)
        return charge

    def add(self, use: Use) -> None:
        """Add to the use; negative when something is taken back."""
        self.use += use
        self._changed()

    def _tell(self, kind: LimitKind, message: str) -> None:
        if kind not in self.reached:
            self.reached[kind] = message
            self._tell_reached(kind, message)


class Charge:
    """What one request added to an account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.use = Use()

    def settle(self, tokens: Tokens, price: Price | None) -> None:
        """The request's tokens so far; this replaces what was said before."""
        use = Use.of(tokens, price.cost(tokens) if price else 0.0)
        if use != self.use:
            difference, self.use = use - self.use, use
            self._account.add(difference)

    def undo(self) -> None:
        """The request never reached the upstream."""
        if self.use != Use():
            difference, self.use = Use() - self.use, Use()
            self._account.add(difference)
