"""A node's own key (rules 2 to 4), and what a node finds that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Put
from cloudclaw.coordination.records import NodeRecord, decode, encode
from cloudclaw.coordination.transactions import Token
from cloudclaw.errors import AbortedError, FencedError, PreconditionError, UnavailableError
from tests.support.coordination import BOTH_STORES, EPHEMERAL, NODE, TENANT, Scene, scene_on
from tests.support.etcd_server import running_etcd

etcd_server = pytest.fixture(scope="module")(running_etcd)

RECORD = NodeRecord(node="n", address="127.0.0.1:1", incarnation=0)


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def test_a_node_registers_on_its_lease(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    answer = await scene.tx.register_node(RECORD, lease)
    entry = await scene.entry(keys.node("n"))
    assert decode(entry.value, NodeRecord) == answer.record == replace(RECORD, incarnation=1)
    assert entry.lease == lease
    assert (answer.create_revision, answer.mod_revision) == (entry.create_revision, entry.mod_revision)


async def test_every_registration_raises_the_incarnation_and_keeps_the_create_revision(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    first = await scene.tx.register_node(RECORD, lease)
    second = await scene.tx.register_node(RECORD, lease)
    assert second.record.incarnation == first.record.incarnation + 1
    assert second.create_revision == first.create_revision
    assert second.mod_revision > first.mod_revision


async def test_a_new_lease_goes_on_above_the_remembered_incarnation(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    await scene.kv.revoke(lease)
    answer = await scene.tx.register_node(replace(RECORD, incarnation=7), await scene.kv.grant(60))
    assert answer.record.incarnation == 8


async def test_a_second_manager_with_the_same_node_id_is_refused(scene: Scene) -> None:
    await scene.tx.register_node(RECORD, await scene.kv.grant(60))
    stored = await scene.dump()
    with pytest.raises(PreconditionError) as refused:
        await scene.tx.register_node(RECORD, await scene.kv.grant(60))
    assert refused.value.reason == "NODE_ID_TAKEN"
    assert await scene.dump() == stored


async def test_of_two_managers_that_start_at_once_one_is_refused(scene: Scene) -> None:
    leases = [await scene.kv.grant(60) for _ in range(2)]
    answers = await asyncio.gather(*(scene.tx.register_node(RECORD, lease) for lease in leases), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, PreconditionError)]
    assert len(refused) == 1


async def test_a_registration_meanwhile_is_a_conflict(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    await scene.tx.register_node(RECORD, lease)

    async def touched() -> None:
        await scene.kv.inner.txn([], [Put(keys.node("n"), (await scene.entry(keys.node("n"))).value, lease)])

    scene.kv.before_txn = touched
    with pytest.raises(AbortedError):
        await scene.tx.register_node(RECORD, lease)


async def test_a_lease_that_is_gone_registers_nothing(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    await scene.kv.revoke(lease)
    with pytest.raises(FencedError):
        await scene.tx.register_node(RECORD, lease)
    assert keys.node("n") not in await scene.dump()


async def test_lost_answers_of_a_registration(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.register_node(RECORD, lease)
    assert keys.node("n") not in await scene.dump()
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.register_node(RECORD, lease)).record.incarnation == 1


async def test_a_touch_moves_the_key_and_keeps_who_it_is(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    node = await scene.tx.register_node(RECORD, lease)
    touched = await scene.tx.touch_node(replace(node.record, touched=1.0), lease, node.create_revision)
    entry = await scene.entry(keys.node("n"))
    assert entry.mod_revision == touched.mod_revision > node.mod_revision
    assert entry.create_revision == touched.create_revision == node.create_revision
    assert entry.lease == lease
    assert decode(entry.value, NodeRecord).touched == 1.0


async def test_an_older_incarnation_cannot_touch(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    old = await scene.tx.register_node(RECORD, lease)
    await scene.tx.register_node(RECORD, lease)
    stored = await scene.dump()
    with pytest.raises(FencedError):
        await scene.tx.touch_node(old.record, lease, old.create_revision)
    assert await scene.dump() == stored


async def test_a_newer_incarnation_at_the_last_moment_wins_over_a_touch(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    old = await scene.tx.register_node(RECORD, lease)

    async def restarted() -> None:
        record = replace(old.record, incarnation=old.record.incarnation + 1)
        await scene.kv.inner.txn([], [Put(keys.node("n"), encode(record), lease)])

    scene.kv.before_txn = restarted
    with pytest.raises(FencedError):
        await scene.tx.touch_node(old.record, lease, old.create_revision)
    assert decode((await scene.entry(keys.node("n"))).value, NodeRecord).incarnation == 2


async def test_a_node_whose_lease_ended_cannot_touch(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    node = await scene.tx.register_node(RECORD, lease)
    await scene.kv.revoke(lease)
    with pytest.raises(FencedError):
        await scene.tx.touch_node(node.record, lease, node.create_revision)
    assert keys.node("n") not in await scene.dump()


async def test_a_node_that_came_back_on_another_lease_fences_the_one_before(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    old = await scene.tx.register_node(RECORD, lease)
    await scene.kv.revoke(lease)
    await scene.tx.register_node(old.record, await scene.kv.grant(60))
    with pytest.raises(FencedError):
        await scene.tx.touch_node(old.record, lease, old.create_revision)


async def test_lost_answers_of_a_touch(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    node = await scene.tx.register_node(RECORD, lease)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.touch_node(replace(node.record, touched=1.0), lease, node.create_revision)
    scene.kv.fail_next("txn", applied=True)
    touched = await scene.tx.touch_node(replace(node.record, touched=2.0), lease, node.create_revision)
    assert touched.record.touched == 2.0


async def test_a_node_finds_exactly_the_attempts_it_holds(scene: Scene) -> None:
    held = [await scene.running(EPHEMERAL) for _ in range(3)]
    await scene.place(keys.attempt(NODE + "0", TENANT, "task-x"), b'{"number":1,"uid":"other"}')
    found = await scene.tx.attempts_of(NODE)
    assert [(token, end.number, end.uid) for token, end in found] == [
        (token, 1, task.record.uid) for token, task in sorted(held, key=lambda pair: pair[0].task)
    ]


async def test_a_token_is_valid_until_its_key_goes(scene: Scene) -> None:
    token, task = await scene.running()
    assert await scene.tx.token_valid(token, task.record.uid)
    assert not await scene.tx.token_valid(token, "another uid")
    assert not await scene.tx.token_valid(Token(NODE, TENANT, token.task, token.revision + 1), task.record.uid)
    await scene.kv.revoke(scene.node_lease)
    assert not await scene.tx.token_valid(token, task.record.uid)
