"""The model gateway of this node: the only way out of a sandbox."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cloudclaw_pool_manager.domain.models import ModelLimits, ModelUse

__all__ = [
    "Egress",
    "GatewayConnected",
    "GatewayEvent",
    "GatewayLimit",
    "GatewayLost",
    "GatewayUse",
    "LimitKind",
    "ModelGateway",
    "ModelLimits",
    "ModelUse",
]


class LimitKind(enum.StrEnum):
    """Which limit of an attempt's model calls was reached."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SPEND = "spend"


@dataclass(frozen=True, slots=True)
class Egress:
    """One attempt as the gateway has to know it.

    Attributes:
        uid, tenant, task, attempt: whose calls they are.
        keys: the tenant's sealed key (`cloudclaw.sealing`) by upstream; passed on as it came.
        limits: on the task.
        used: by the task's earlier attempts.
    """

    uid: str
    tenant: str
    task: str
    attempt: int
    keys: Mapping[str, str] = field(default_factory=dict)
    limits: ModelLimits = field(default_factory=ModelLimits)
    used: ModelUse = field(default_factory=ModelUse)


@dataclass(frozen=True, slots=True)
class GatewayConnected:
    """The gateway listens to this manager, for the first time or again.

    What it holds may be stale, or gone when it was started anew: attach everything that runs, then `sync`.

    Attributes:
        attempts: uids that it serves already.
    """

    attempts: frozenset[str]


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """The connection is gone and being made again. Attempts that were attached go on meanwhile, unless the gateway
    itself is gone: then their connections wait in the backlog of their listeners."""


@dataclass(frozen=True, slots=True)
class GatewayUse:
    """An attempt's use so far, earlier attempts of its task included. At most two a second for each attempt."""

    uid: str
    use: ModelUse


@dataclass(frozen=True, slots=True)
class GatewayLimit:
    """A limit was reached: that request and all later ones are refused. Told once for each kind and attachment."""

    uid: str
    kind: LimitKind
    message: str


GatewayEvent = GatewayConnected | GatewayLost | GatewayUse | GatewayLimit


class ModelGateway(Protocol):
    """The manager's connection to its node's gateway.

    The connection lives while `events` is iterated, and is made again whenever it breaks. Every other method waits
    for it, a few seconds at most. All raise `UnavailableError` when the gateway cannot be reached or does not answer,
    and `FencedError` when it obeys a newer incarnation of the manager: then this one must not go on.
    """

    def events(self) -> AsyncIterator[GatewayEvent]:
        """Connect, and tell what happens; begins with `GatewayConnected`, and does so again after each `GatewayLost`.

        Ends by `FencedError` or by `close`. One iteration at a time.
        """
        ...

    async def attach(self, egress: Egress, listener: int) -> None:
        """Serve what connects to `listener`, a listening TCP socket made inside the attempt's sandbox, as `egress`.

        The descriptor stays the caller's; the gateway gets a duplicate. Idempotent: for a uid that is attached, keys
        and limits are replaced, the use counted so far stays, and `used` raises it at most.

        Raises `InvalidArgumentError` when the gateway refuses it.
        """
        ...

    async def detach(self, uid: str) -> ModelUse:
        """Stop serving it, break its connections, forget it; answers its last use. All zeros for an unknown uid."""
        ...

    async def use(self, uid: str) -> ModelUse:
        """Its use so far; all zeros for an unknown uid."""
        ...

    async def sync(self, uids: Collection[str]) -> None:
        """Nothing but `uids` runs here: whatever else the gateway holds is detached."""
        ...

    async def close(self) -> None:
        """Disconnect; the gateway goes on."""
        ...
