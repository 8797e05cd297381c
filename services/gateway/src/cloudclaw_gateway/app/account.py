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
    Tokens and spend count as the upstream tells them. Before that, each request under way has its most set aside; one
    that might pass a limit together with those waits until they are done (`begin`), so a task passes a limit on tokens
    or spend by at most what its last request uses. A request under way goes on to its end: what it costs is mostly
    spent.

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
        """One request at a time is held whole, in the order of their coming, so that a sandbox holds no more memory
        here than one body has."""
        self._changed = changed
        self._tell_reached = reached
        self._under_way: dict[Charge, None] = {}
        self._moved = asyncio.Event()
        self._closed = False

    def renew(self, limits: Limits, used: Use) -> None:
        """New limits; what was used is at least `used`. Limits that are still reached are told again."""
        self.limits = limits
        self.use = self.use.most(used)
        told, self.reached = self.reached, {}
        still = limits.reached(self.use)
        if still is not None and still[0] in told:
            self._tell(*still)
        self._moved.set()

    def check(self) -> None:
        """Raise `Refusal` when a limit is reached."""
        if (limit := self.limits.reached(self.use)) is not None:
            self._tell(*limit)
            raise Refusal(403, Mark.LIMIT, limit[1])

    async def begin(self, most: Use | None = None) -> Charge:
        """Count one more request, which may use `most`; None goes alone under a limit on tokens or spend.

        Waits for its turn. Raises `Refusal` when a limit is reached, `ConnectionAbortedError` once it is closed.
        """
        self._admit()
        while not self._fits(most):
            self._moved.clear()
            await self._moved.wait()
            self._admit()
        charge = Charge(self, most)
        self._under_way[charge] = None
        charge.settle(Tokens(), None)
        return charge

    def close(self) -> None:
        """Nothing is waited for any more: what is under way counts as it stands, and no request begins."""
        self._closed = True
        for charge in list(self._under_way):
            charge.leave()

    def add(self, use: Use) -> None:
        """Add to the use; negative when something is taken back."""
        self.use += use
        self._moved.set()
        self._changed()

    def done(self, charge: Charge) -> None:
        """It uses nothing more."""
        self._under_way.pop(charge, None)
        self._moved.set()

    def _admit(self) -> None:
        if self._closed:
            raise ConnectionAbortedError("its attempt is served no more")
        self.check()

    def _fits(self, most: Use | None) -> bool:
        """With everything under way at its most, no limit on tokens or spend is passed; or nothing is under way."""
        if not self._under_way or not self.limits.measured:
            return True
        if most is None:
            return False
        total = self.use + most
        for charge in self._under_way:
            if charge.most is None:
                return False
            total += charge.most.most(charge.use) - charge.use
        return self.limits.holds(total)

    def _tell(self, kind: LimitKind, message: str) -> None:
        if kind not in self.reached:
            self.reached[kind] = message
            self._tell_reached(kind, message)


class Charge:
    """What one request added to an account. It is under way until `done`.

    Attributes:
        most: what was foreseen; None when nothing was.
        leave: called when nobody waits for its end any more; it is to settle and to be done.
    """

    def __init__(self, account: Account, most: Use | None) -> None:
        self._account = account
        self.most = most
        self.use = Use()
        self.leave: Callable[[], None] = self.done

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

    def done(self) -> None:
        """Nothing is added any more."""
        self._account.done(self)
