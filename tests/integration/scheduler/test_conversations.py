"""Conversations on a real etcd: many more than slots, with leaders and nodes that go away while people talk."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

from cloudclaw.errors import CloudClawError, PreconditionError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.support.etcd_server import EtcdServer
from tests.unit.scheduler.plane import DEADLINE, Plane, duration, soon, until
from tests.unit.scheduler.talking import COMMITTED, Host, Talker

TALKS = 24
SLOTS = 4
TURNS = 4


class Agents(Host):
    """A node whose agents answer what they are told, and remember it in what they leave.

    `memory`: what was said up to each snapshot, by its id; shared by all nodes, as the store is.
    """

    def __init__(self, plane: Plane, name: str, memory: dict[str, tuple[str, ...]]) -> None:
        super().__init__(plane, name, SLOTS // 2, ttl=2)
        self.memory = memory
        self._given: dict[int, asyncio.Queue[pb.DeliverInput]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._lines: list[asyncio.Task[None]] = []

    async def work(self) -> None:
        """Answer for ever."""
        self._lines = [asyncio.create_task(self._assigned()), asyncio.create_task(self._told())]

    async def die(self) -> None:
        """All of it is gone, as when its machine is."""
        tasks = [*self._lines, *self._work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.running.clear()
        await self.disconnect()

    async def _assigned(self) -> None:
        while True:
            assignment = await self.assignments.get()
            if assignment.token in self._given:
                continue
            self.take(assignment)
            self._given[assignment.token] = asyncio.Queue()
            task = asyncio.create_task(self._answer(assignment))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _told(self) -> None:
        while True:
            delivery = await self.inputs.get()
            if delivery.token in self._given:
                self._given[delivery.token].put_nowait(delivery)

    async def _answer(self, assignment: pb.Assignment) -> None:
        said = list(self.memory[assignment.base.snapshot_id] if assignment.HasField("base") else ("prompt",))
        done, closing = assignment.inputs_done, assignment.closing

        def hear(inputs: Any) -> None:
            nonlocal done
            for given in inputs:
                if given.number == done + 1:
                    said.append(given.text)
                    done += 1
            self.running[assignment.token].inputs = done

        hear(assignment.inputs)
        given = self._given[assignment.token]
        with contextlib.suppress(TimeoutError):
            while not closing:
                async with asyncio.timeout(0.05):
                    delivery = await given.get()
                hear(delivery.inputs)
                closing = closing or delivery.closing
                self.running[assignment.token].closing = closing
        snapshot = f"{assignment.uid}-{done}"
        self.memory[snapshot] = tuple(said)
        ref = task_pb2.SnapshotRef(snapshot_id=snapshot, manifest_digest="d", uid=assignment.uid)
        outcome: dict[str, Any] = {
            "state": task_pb2.ATTEMPT_STATE_FAILED,
            "reason": task_pb2.END_REASON_PARKED,
        }
        if closing:
            outcome = {"state": task_pb2.ATTEMPT_STATE_SUCCEEDED, "reason": task_pb2.END_REASON_COMPLETED}
        while True:
            with contextlib.suppress(Exception):
                await self.report(assignment, snapshot=ref, inputs=done, final_message="|".join(said), **outcome)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._verdict(assignment.uid)
                    self.running.pop(assignment.token, None)
                    return

    async def _verdict(self, uid: str) -> None:
        while True:
            verdict = await self.verdicts.get()
            if verdict.uid == uid and verdict.verdict != pb.ReportVerdict.VERDICT_RETRY:
                return
            if verdict.uid != uid:
                self.verdicts.put_nowait(verdict)
                await asyncio.sleep(0.01)


async def say(talkers: list[Talker], task: str, message: str, **more: Any) -> None:
    """Until it is accepted, on whichever replica is there."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await random.choice(talkers).say(task, message, **more)
                return
            except PreconditionError:
                raise
            except CloudClawError:
                pass
            except asyncio.CancelledError:
                # Of the call alone, when its channel was closed with the replica.
                task_itself = asyncio.current_task()
                if task_itself is None or task_itself.cancelling():
                    raise
            await asyncio.sleep(0.1)


async def test_a_conversation_parks_wakes_and_ends_on_a_real_etcd(plane: Plane) -> None:
    host, talker = Host(plane), Talker(plane)
    await host.connect()
    task = await talker.talk()
    assert await host.park(await host.next(), "c-1", final_message="first") == COMMITTED
    await talker.parked(task)
    await talker.say(task, "later", delay=0.3)
    second = await host.next()
    assert [given.text for given in second.inputs] == ["later"]
    await talker.say(task, "m2", "x" * 20_000)
    assert [len(given.text) for given in (await host.given()).inputs] == [20_000]
    assert await host.park(second, "c-2", inputs=2) == COMMITTED
    await talker.parked(task)
    await talker.say(task, "bye", end=True)
    third = await host.next()
    assert (third.closing, third.inputs_done, len(third.inputs)) == (True, 2, 0)
    await host.finish(third)
    result = await talker.result(task)
    assert (result.state, len(result.attempts)) == (task_pb2.TASK_STATE_SUCCEEDED, 3)


async def test_nothing_said_is_lost_or_answered_twice_while_leaders_and_nodes_die(
    plane: Plane, etcd: EtcdServer, tmp_path: Path
) -> None:
    chance = random.Random(4)
    other_kv = etcd.open()
    follower = Plane(other_kv, FilesystemObjects(tmp_path / "objects"), tmp_path, grace=1.0)
    await follower.start(leads=False)
    await until("it has loaded", follower.scheduler.mirror.loaded.is_set)
    memory: dict[str, tuple[str, ...]] = {}
    nodes = [Agents(plane, f"node-{n}", memory) for n in range(2)]
    for node in nodes:
        await node.connect()
        await node.work()
    talkers = [Talker(plane), Talker(follower)]
    tasks = [
        await talkers[0].talk(retry=task_pb2.RetryPolicy(max_attempts=10, initial_backoff=duration(0.01)))
        for _ in range(TALKS)
    ]
    expected = {task: ["prompt"] for task in tasks}

    async def talk(task: str) -> None:
        for turn in range(TURNS):
            await asyncio.sleep(chance.random() * 0.5)
            expected[task].append(f"{turn}")
            await say(talkers, task, f"m{turn}", text=f"{turn}")
        await say(talkers, task, "bye", end=True)

    talks = asyncio.gather(*map(talk, tasks))
    await asyncio.sleep(0.6)
    # A node dies with all it runs, and comes back as another.
    await nodes[0].die()
    reborn = Agents(plane, "node-2", memory)
    await reborn.connect()
    await reborn.work()
    nodes[0] = reborn
    await asyncio.sleep(0.6)
    # The leader goes, and the nodes find the other.
    talkers.pop(0)
    for node in nodes:
        await node.disconnect()
    await plane.stop()
    await until("the follower leads", lambda: follower.scheduler.leader.term is not None, 30.0)
    for node in nodes:
        node.plane = follower
        await node.connect()
    await soon(talks, 60.0)
    talker = talkers[0]
    for task in tasks:
        await asyncio.wait_for(talker.wait(task), 60.0)
        result = await talker.result(task)
        assert result.state == task_pb2.TASK_STATE_SUCCEEDED, result
        assert result.final_message.split("|") == expected[task]
    for node in nodes:
        await node.die()
    await follower.stop()
    await other_kv.close()
