"""What a node lacks is sent again, but never what has ended without the mirror having seen it."""

from __future__ import annotations

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudclaw_scheduler.app.reconcile import Reconciler


class Assigner:
    """Records what is sent; `alive` is what the store says of the lease."""

    def __init__(self, alive: bool) -> None:
        self.alive = alive
        self.sent: list[str] = []

    async def held(self, attempt: Any) -> bool:
        return self.alive

    async def assign(self, task: Any, attempt: Any) -> None:
        self.sent.append(attempt.uid)


class Spawner:
    """Keeps the work, to be run by the test."""

    def __init__(self) -> None:
        self.work: list[Coroutine[Any, Any, object]] = []

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        self.work.append(work)


@pytest.mark.parametrize(("alive", "sent"), [(True, ["att-1"]), (False, [])])
async def test_an_attempt_is_sent_again_only_while_the_store_says_that_it_lives(alive: bool, sent: list[str]) -> None:
    attempt = SimpleNamespace(tenant="acme", task="task-1", uid="att-1", node="one", revision=7, key=("acme", "task-1"))
    task = SimpleNamespace(record=SimpleNamespace(uid="att-1"))
    state = SimpleNamespace(attempts={"one": {attempt.key: attempt}}, task=lambda *_: task, revision=7)
    assigner, spawner = Assigner(alive), Spawner()
    parts: Any = (SimpleNamespace(state=state), None, assigner, None, spawner)
    reconciler = Reconciler(*parts)
    reconciler.compare(cast("Any", SimpleNamespace(node="one", missing={})), [], greeting=True)
    for work in spawner.work:
        await work
    assert assigner.sent == sent
