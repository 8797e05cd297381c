"""How an attempt's program is started: by itself, or in an agent that waits warm in its slot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.app.agent import Agent
from cloudclaw_pool_manager.app.egress import ADDRESS
from cloudclaw_pool_manager.app.runner import Surroundings, Template, join_of, launch_of, limits_of
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.backend import Slot

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started. `joins`: how it goes on in the agent that waits, where that is possible."""

    launch: Launch
    joins: Launch | None
    assignment: Assignment
    template: Template
    around: Surroundings

    @property
    def warm_key(self) -> str:
        """What it wants to find in its slot, empty for nothing."""
        return self.joins.warm_key if self.joins is not None else ""

    async def hand(self, slot: Slot, waits: str, agent: Agent, tree: Path) -> None:
        """Start it in `slot`, in which `waits` was warm when it was taken. Raises as `Slot.start` does."""
        if agent.adapter is None:
            await self._give(slot, self.launch, tree)
            return
        note, starts, pool = agent.note(), self.around.metrics.agent_starts, self.assignment.pool
        if self.joins is not None and waits == self.joins.warm_key:
            try:
                await self._give(slot, replace(self.joins, note=note), tree)
            except PreconditionError as error:
                if error.reason != "NOT_WARM":
                    raise
                _log.info("the agent does not wait warm any more; it starts cold", error=error.message)
            else:
                agent.started(self.joins)
                starts.labels(pool, "warm").inc()
                return
        await self._give(slot, replace(self.launch, note=note), tree)
        agent.started(self.launch)
        starts.labels(pool, "cold").inc()

    async def _give(self, slot: Slot, launch: Launch, tree: Path) -> None:
        limits = limits_of(self.assignment, self.template.limits)
        await slot.start(self.assignment.attempt, launch, limits, tree, self.around.deadline())


def plan(template: Template, assignment: Assignment, around: Surroundings) -> Start:
    """Raises `InvalidArgumentError` when the pool or the runtime cannot run it."""
    egress = ADDRESS if around.access is not None else ""
    launch, joins = launch_of(template, assignment, egress), join_of(template, assignment, egress)
    return Start(launch, joins, assignment, template, around)
