"""A pool-manager in memory: fake slots, a fake leader, a memory store, and a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cloudclaw.coordination import keys
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import AttemptRecord, NodeRecord, PoolSlots, encode
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.fencing import Contact
from cloudclaw_pool_manager.app.manager import Behaviour, Equipment, PoolManager
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.node import Node
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotPool
from cloudclaw_pool_manager.domain.attempt import Limits
from cloudclaw_pool_manager.ports.runtime import RuntimeAdapter
from cloudclaw_pool_manager.runtimes.command import CommandRuntime
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_node import FakeState, FakeWorkspaces
from tests.support.fake_slots import FakeHost, FakePool, FakeSupervisor
from tests.support.kv import ManualClock
from tests.unit.pool_manager.fake_leader import LEADER, FakeLeader

NODE = "n1"
TENANT = "acme"
WITHIN = 60.0
"""Seconds of the test's clock within which what must happen happens."""


async def settle() -> None:
    """Let everything run that can run without time."""
    for _ in range(60):
        await asyncio.sleep(0)


_OF_AGENTS = ("inputs", "inputs_done", "answered", "closing", "model_keys", "model_use")
"""Fields of an assignment beside its spec. The session that its base holds is `session`: the spec has one too."""


class Rig:
    """One node whose manager can be started, crashed and started again."""

    def __init__(self, *, slots: int = 2, max_slots: int = 0, behaviour: Behaviour | None = None):
        self.clock = ManualClock(10_000.0)
        self.kv = MemoryKeyValue(self.clock)
        self.transactions = Transactions(self.kv)
        self.state = FakeState()
        self.host = FakeHost(self.clock, max_slots or slots)
        self.workspaces = FakeWorkspaces()
        self.leader = FakeLeader()
        self.endpoints = [LEADER]
        self.serving: list[bool] = []
        self.behaviour = behaviour or Behaviour(slot_wait=2.0)
        self.slots = slots
        self.limits = Limits()
        self.runtimes: dict[str, RuntimeAdapter] = {"command": CommandRuntime()}
        self.warm = ""
        self.single_use = False
        self.models: FakeGateway | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self._adapter = FakePool(self.host, 0)
        self.manager: PoolManager
        self.node: Node
        self.contact: Contact
        self.metrics: NodeMetrics

    # -- the process --

    def launch(self, node: str = NODE) -> asyncio.Task[None]:
        """Start a manager and do not wait."""
        metrics = self.metrics = NodeMetrics(None)
        self.contact = Contact(grace=3.0, ttl=10, now=self.clock.boottime())
        self.node = Node(
            NodeRecord(node=node, address="127.0.0.1:1", incarnation=0, pools=(PoolSlots(pool="default", slots=2),)),
            lease=NodeLease(self.kv, self.clock, 10),
            kv=self.kv,
            transactions=self.transactions,
            state=self.state,
            contact=self.contact,
            clock=self.clock,
            metrics=metrics,
        )
        self.manager = PoolManager(
            node=self.node,
            contact=self.contact,
            state=self.state,
            gateway=self.leader,
            endpoints=self.endpoints,
            clock=self.clock,
            metrics=metrics,
            behaviour=self.behaviour,
            serving=self.serving.append,
        )

        async def equip(generation: int) -> Equipment:
            adapter = self._adapter = FakePool(self.host, generation)
            pool = SlotPool(
                "default",
                adapter,
                self.clock,
                slots=self.slots,
                hard_cap=self.host.cap,
                metrics=metrics,
                single_use=self.single_use,
            )
            template = Template(pool, self.limits, self.runtimes, warm=self.warm)
            return Equipment({"default": template}, self.workspaces, self.models)

        self._stop = asyncio.Event()
        self._task = asyncio.ensure_future(self.manager.run(self._stop, equip))
        return self._task

    async def start(self) -> None:
        """Start a manager and wait until it is connected and its slots are warm."""
        task = self.launch()
        await self.until(lambda: task.done() or (self.leader.connected and self.manager.ready.is_set()))
        if task.done():
            task.result()
        await settle()

    async def crash(self) -> None:
        """Kill the manager: nothing is cleaned up, and none of its calls reaches a slot any more."""
        assert self._task is not None
        self._adapter.cut()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def stop(self) -> None:
        """SIGTERM."""
        assert self._task is not None
        self._stop.set()
        await self.until(self._task.done)
        await self._task

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            await self.crash()

    # -- time --

    async def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Let `seconds` pass for everybody."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            await self.clock.advance(min(step, end - self.clock.now))
            self.host.look()
            await settle()

    async def until(self, holds: Callable[[], bool], within: float = WITHIN) -> None:
        """Let time pass until `holds`, at most `within` seconds of it."""
        end = self.clock.now + within
        await settle()
        while not holds():
            assert self.clock.now < end, "it did not happen in time"
            await self.pass_time(0.05)

    # -- attempts --

    async def claim(self, task: str = "", uid: str = "", number: int = 1) -> tuple[str, str, int]:
        """Make an attempt key on the node's lease, as a claim does; answers task, uid and token."""
        self._number += 1
        task, uid = task or f"task-{self._number}", uid or f"att-{self._number:04d}"
        record = encode(AttemptRecord(number=number, uid=uid))
        lease = self.state.lease_id
        assert lease
        result = await self.kv.txn([], [Put(keys.attempt(NODE, TENANT, task), record, lease)])
        return task, uid, result.revision

    async def unclaim(self, task: str) -> None:
        """Take the attempt away, as an early requeue does."""
        await self.kv.txn([], [Delete(keys.attempt(NODE, TENANT, task))])

    async def assign(
        self, *argv: str, number: int = 1, task: str = "", say: bool = True, **spec: object
    ) -> pb.Assignment:
        """Claim and assign a task; answers the assignment."""
        cancel = bool(spec.pop("cancel_requested", False))
        base, head = spec.pop("base", None), spec.pop("head", None)
        resumes = bool(spec.pop("resumes", False))
        more = {name: spec.pop(name) for name in _OF_AGENTS if name in spec}
        session = str(spec.pop("session", ""))
        task, uid, token = await self.claim(task, number=number)
        assignment = pb.Assignment(
            tenant=TENANT,
            task_id=task,
            attempt=number,
            uid=uid,
            token=token,
            spec=task_pb2.TaskSpec(argv=argv or (() if "prompt" in spec else ("true",)), **spec),  # type: ignore[arg-type]
            cancel_requested=cancel,
            base=base,  # type: ignore[arg-type]
            head=head,  # type: ignore[arg-type]
            resumes=resumes,
            session_id=session,
            **more,  # type: ignore[arg-type]
        )
        if say:
            self.leader.say(assignment=assignment)
            await settle()
        return assignment

    async def running(self, *argv: str, **spec: object) -> tuple[pb.Assignment, FakeSupervisor]:
        """Assign a task and wait until it runs."""
        assignment = await self.assign(*argv, **spec)  # type: ignore[arg-type]
        await self.until(lambda: assignment.uid in self.host.running())
        return assignment, self.host.of(assignment.uid)

    def report_of(self, assignment: pb.Assignment) -> pb.AttemptOutcome:
        """The outcome last reported."""
        return [r for r in self.leader.reports if r.uid == assignment.uid][-1].outcome

    async def gone(self, assignment: pb.Assignment) -> None:
        """Wait until the node has forgotten the attempt."""
        await self.until(lambda: assignment.uid not in [r.attempt.uid for r in self.manager.table.runners()])
        await settle()
