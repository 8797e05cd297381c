"""Attempts' way to models: the gateway is told whose connections come out of which sandbox, and tells what they use."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, Protocol

import structlog

from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.app.agent import Agent
from cloudclaw_pool_manager.app.timing import cancel
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.models import ModelUse
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError
from cloudclaw_pool_manager.ports.gateway import (
    Egress,
    GatewayConnected,
    GatewayLimit,
    GatewayLost,
    GatewayUse,
    ModelGateway,
)

_log = structlog.get_logger()

ADDRESS: Final = "http://127.0.0.1:8787"
"""Where a sandbox finds its gateway."""


class Caller(Protocol):
    """An attempt whose agent may call models."""

    assignment: Assignment
    agent: Agent

    @property
    def egress_slot(self) -> Slot | None:
        """Its slot, while its program may call models; None otherwise, and for programs that are no agents."""
        ...


class ModelAccess:
    """One node's connection to its gateway, for all attempts.

    A gateway that is away holds nobody up: calls wait in the backlog of their sandbox's listener until it is back, and
    then everything that runs is attached again.
    """

    def __init__(self, gateway: ModelGateway, callers: Callable[[], Iterable[Caller]]):
        self._gateway = gateway
        self._callers = callers

    async def run(self) -> None:
        """Until cancelled. Raises `FencedError` when a newer process of this node speaks to the gateway."""
        async for event in self._gateway.events():
            match event:
                case GatewayConnected():
                    await self._attach_all()
                case GatewayLost():
                    _log.warning("the gateway is away; calls to models wait")
                case GatewayUse(uid=uid, use=use):
                    for caller in self._named(uid):
                        caller.agent.counted(use)
                case GatewayLimit(uid=uid, kind=kind, message=message):
                    _log.info("a limit on models was reached", attempt=uid, kind=kind.value, message=message)
                    for caller in self._named(uid):
                        caller.agent.limit(kind)

    async def attach(self, caller: Caller) -> None:
        """Let it through from now on. When the gateway is away, it is attached once that is back. Raises as
        `Slot.egress` does, but for a slot without a way out: then there is none."""
        slot, given = caller.egress_slot, caller.assignment
        if slot is None:
            return
        attempt = given.attempt
        try:
            listener = await slot.egress(attempt.uid)
        except PreconditionError as error:
            _log.warning("an agent has no way to models", attempt=attempt.uid, error=error.message)
            return
        egress = Egress(
            attempt.uid,
            attempt.tenant,
            attempt.task,
            attempt.number,
            keys=given.model_keys,
            limits=given.model_limits,
            used=caller.agent.use or given.model_used,  # a gateway that died has forgotten what this attempt used
        )
        try:
            await self._gateway.attach(egress, listener)
        except UnavailableError as error:
            _log.warning("the gateway is away; an agent waits for it", attempt=attempt.uid, error=error.message)
        except InvalidArgumentError as error:
            _log.error("the gateway refuses an agent", attempt=attempt.uid, error=error.message)
        finally:
            os.close(listener)

    async def detach(self, uid: str) -> ModelUse | None:
        """Its program is gone: what its task used, None when the gateway does not tell."""
        try:
            return await self._gateway.detach(uid)
        except UnavailableError as error:
            _log.warning("the use of models is known only as of late", attempt=uid, error=error.message)
            return None

    async def _attach_all(self) -> None:
        for caller in list(self._callers()):
            try:
                await self.attach(caller)
            except SlotFailedError as error:  # who watches the slot finds that too
                _log.warning("an agent could not be attached", error=str(error))
        try:
            await self._gateway.sync([caller.assignment.attempt.uid for caller in self._callers()])
        except UnavailableError as error:  # its loss is told next, and then all begins anew
            _log.info("the gateway went away again", error=error.message)

    def _named(self, uid: str) -> list[Caller]:
        return [caller for caller in self._callers() if caller.assignment.attempt.uid == uid]


@contextlib.asynccontextmanager
async def way_out(access: ModelAccess | None, caller: Caller) -> AsyncIterator[None]:
    """The caller's program may call models within, if it is an agent and there is a gateway. What its task used is told
    to its agent at the end. A cancellation leaves it attached: then this process ends, and its program goes on. So an
    adopted program may have ended before: then it is attached still, and only detached."""
    if access is None or caller.agent.adapter is None:
        yield
        return
    attaching = asyncio.ensure_future(access.attach(caller))
    try:
        yield
    except asyncio.CancelledError:
        await cancel(attaching)
        raise
    except BaseException:
        await _leave(access, caller, attaching)
        raise
    await _leave(access, caller, attaching)


async def _leave(access: ModelAccess, caller: Caller, attaching: asyncio.Future[None]) -> None:
    await cancel(attaching)  # or it could be attached when it is gone
    use = await access.detach(caller.assignment.attempt.uid)
    if use is not None:
        caller.agent.counted(use)
