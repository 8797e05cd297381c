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

    @property
    def warm_key(self) -> str:
        """What it wants to find in its slot, empty for nothing."""
        return self.joins.warm_key if self.joins is not None else ""


def plan(template: Template, assignment: Assignment, around: Surroundings) -> Start:
    """Raises `InvalidArgumentError` when the pool or the runtime cannot run it."""
    egress = ADDRESS if around.access is not None else ""
    return Start(launch_of(template, assignment, egress), join_of(template, assignment, egress))


async def hand(
    start: Start,
    slot: Slot,
    waits: str,
    *,
    assignment: Assignment,
    template: Template,
    around: Surroundings,
    agent: Agent,
    tree: Path,
) -> None:
    """Start it in `slot`, in which `waits` was warm when it was taken. Raises as `Slot.start` does."""
    attempt, limits = assignment.attempt, limits_of(assignment, template.limits)
    if agent.adapter is None:
        await slot.start(attempt, start.launch, limits, tree, around.deadline())
        return
    note, starts = agent.note(), around.metrics.agent_starts
    if start.joins is not None and waits == start.joins.warm_key:
        try:
            await slot.start(attempt, replace(start.joins, note=note), limits, tree, around.deadline())
        except PreconditionError as error:
            if error.reason != "NOT_WARM":
                raise
            _log.info("the agent does not wait warm any more; it starts cold", error=error.message)
        else:
            agent.started(start.joins)
            starts.labels(assignment.pool, "warm").inc()
            return
    await slot.start(attempt, replace(start.launch, note=note), limits, tree, around.deadline())
    agent.started(start.launch)
    starts.labels(assignment.pool, "cold").inc()
