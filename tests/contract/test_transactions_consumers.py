"""Consumers of results: one delivery at a time, acknowledged once, forgotten with all they have out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import ConsumerRecord, encode
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.coordination.transactions.consumers import MAX_CONSUMERS
from cloudclaw.errors import (
    FencedError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    UnavailableError,
)
from tests.support.coordination import BOTH_STORES, NOW, TENANT, Scene, scene_on
from tests.support.etcd_server import running_etcd

etcd_server = pytest.fixture(scope="module")(running_etcd)

CONSUMER = keys.consumer(TENANT, "bot")


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        await scene.tx.register_consumer(TENANT, "bot", fresh(scene))
        yield scene


def fresh(scene: Scene, cursor: int = 10) -> ConsumerRecord:
    return ConsumerRecord(created=NOW, updated=NOW, op_id=scene.op(), cursor=cursor)


def settled(record: ConsumerRecord, revisions: Sequence[int]) -> ConsumerRecord:
    """Notes them, and never moves the cursor."""
    return replace(record, acked=tuple(sorted({*record.acked, *revisions})))


async def consumer(scene: Scene, name: str = "bot") -> Versioned[ConsumerRecord]:
    there = await scene.tx.get_consumer(TENANT, name)
    assert there is not None
    return there


async def out(scene: Scene, count: int, lease: int = 0) -> list[tuple[str, int]]:
    """Receipts of `count` deliveries: `task-0` ended at 20, `task-1` at 21, and so on."""
    lease = lease or await scene.kv.grant(60)
    receipts = []
    for n in range(count):
        created = await scene.tx.deliver(TENANT, "bot", f"task-{n}", 20 + n, lease)
        assert created is not None
        receipts.append((f"task-{n}", created))
    return receipts


# -- register --


async def test_a_consumer_is_made_once_and_then_answered(scene: Scene) -> None:
    record = fresh(scene)
    made = await scene.tx.register_consumer(TENANT, "new", record)
    assert made == await scene.tx.get_consumer(TENANT, "new")
    assert made.record == record
    assert await scene.tx.register_consumer(TENANT, "new", fresh(scene, 99)) == made
    assert await scene.tx.get_consumer("other", "new") is None


async def test_many_that_register_at_once_are_one_consumer(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.tx.register_consumer(TENANT, "new", fresh(scene, n)) for n in range(8)))
    assert len({answer.record for answer in answers}) == 1


async def test_a_consumer_that_another_makes_in_that_moment_is_answered(scene: Scene) -> None:
    first = fresh(scene)

    async def another() -> None:
        await scene.tx.register_consumer(TENANT, "new", first)

    scene.kv.before_txn = another
    assert (await scene.tx.register_consumer(TENANT, "new", fresh(scene, 99))).record == first


async def test_a_tenant_has_so_many_consumers_and_no_more(scene: Scene) -> None:
    for n in range(MAX_CONSUMERS - 1):
        await scene.place(keys.consumer(TENANT, f"c{n}"), encode(fresh(scene)))
    with pytest.raises(QuotaExceededError):
        await scene.tx.register_consumer(TENANT, "one-more", fresh(scene))
    await scene.tx.register_consumer(TENANT, "bot", fresh(scene))
    await scene.tx.register_consumer("other", "one-more", fresh(scene))
    await scene.tx.delete_consumer(TENANT, "c7")
    await scene.tx.register_consumer(TENANT, "one-more", fresh(scene))


async def test_lost_answers_of_a_registration(scene: Scene) -> None:
    record = fresh(scene)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.register_consumer(TENANT, "new", record)
    assert await scene.tx.get_consumer(TENANT, "new") is None
    scene.kv.fail_next("txn", applied=True)
    assert (await scene.tx.register_consumer(TENANT, "new", record)).record == record


async def test_a_tenant_that_is_being_deleted_gets_no_consumer(scene: Scene) -> None:
    await scene.tx.bury(TENANT)
    with pytest.raises(PreconditionError) as refused:
        await scene.tx.register_consumer(TENANT, "new", fresh(scene))
    assert refused.value.reason == "TENANT_DELETED"
    assert await scene.tx.get_consumer(TENANT, "new") is None


async def test_consumers_are_listed_by_name(scene: Scene) -> None:
    await scene.tx.register_consumer(TENANT, "ant", fresh(scene))
    await scene.tx.register_consumer("acme-2", "else", fresh(scene))
    assert list(await scene.tx.list_consumers(TENANT)) == ["ant", "bot"]
    assert (await scene.tx.list_consumers(TENANT))["bot"] == await consumer(scene)


# -- deliver --


async def test_a_result_is_out_once_until_its_lease_ends(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    receipt = await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease)
    entry = await scene.entry(keys.delivery(TENANT, "bot", "task-1"))
    assert (entry.create_revision, entry.lease) == (receipt, lease)
    assert await scene.tx.delivered(TENANT, "bot") == {"task-1": (20, receipt)}
    other = await scene.kv.grant(60)
    assert await scene.tx.deliver(TENANT, "bot", "task-1", 20, other) is None
    await scene.kv.revoke(lease)
    assert await scene.tx.delivered(TENANT, "bot") == {}
    again = await scene.tx.deliver(TENANT, "bot", "task-1", 20, other)
    assert again is not None
    assert receipt is not None
    assert again > receipt


async def test_streams_side_by_side_never_deliver_one_result_twice(scene: Scene) -> None:
    leases = [await scene.kv.grant(60) for _ in range(6)]
    receipts = await asyncio.gather(*(scene.tx.deliver(TENANT, "bot", "task-1", 20, lease) for lease in leases))
    assert [receipt is not None for receipt in receipts].count(True) == 1


@pytest.mark.parametrize("state", [{"cursor": 20}, {"cursor": 25}, {"acked": (15, 20)}])
async def test_an_acknowledged_result_is_not_delivered(scene: Scene, state: dict[str, object]) -> None:
    record = replace((await consumer(scene)).record, **state)
    lease = await scene.kv.grant(60)
    scene.kv.before_txn = lambda: scene.place(CONSUMER, encode(record))
    assert await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease) is None
    assert await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease) is None
    assert await scene.tx.delivered(TENANT, "bot") == {}
    assert await scene.tx.deliver(TENANT, "bot", "task-2", 30, lease) is not None


async def test_nothing_is_delivered_to_a_consumer_that_is_gone(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    scene.kv.before_txn = lambda: scene.remove(CONSUMER)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease)
    assert await scene.tx.delivered(TENANT, "bot") == {}


async def test_a_delivery_on_a_lease_that_is_gone_is_none(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    await scene.kv.revoke(lease)
    with pytest.raises(FencedError):
        await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease)


async def test_lost_answers_of_a_delivery(scene: Scene) -> None:
    lease, other = await scene.kv.grant(60), await scene.kv.grant(60)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease)
    scene.kv.fail_next("txn", applied=True)
    receipt = await scene.tx.deliver(TENANT, "bot", "task-1", 20, lease)
    assert receipt == (await scene.tx.delivered(TENANT, "bot"))["task-1"][1]
    scene.kv.fail_next("txn")
    assert await scene.tx.deliver(TENANT, "bot", "task-1", 20, other) is None


# -- acknowledge --


async def test_an_acknowledgement_settles_the_consumer_and_takes_the_deliveries(scene: Scene) -> None:
    receipts = await out(scene, 3)
    before = await consumer(scene)
    assert await scene.tx.ack(TENANT, "bot", [receipts[2], receipts[0]], settled) == []
    after = await consumer(scene)
    assert after.record.acked == (20, 22)
    assert after.record.op_id != before.record.op_id
    assert list(await scene.tx.delivered(TENANT, "bot")) == ["task-1"]


async def test_receipts_that_came_too_late_acknowledge_nothing(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    [late] = await out(scene, 1, lease)
    await scene.kv.revoke(lease)
    before = await consumer(scene)
    assert await scene.tx.ack(TENANT, "bot", [late, ("task-x", 3)], settled) == [late, ("task-x", 3)]
    assert await consumer(scene) == before
    again = await out(scene, 2)
    assert await scene.tx.ack(TENANT, "bot", [late, again[1]], settled) == [late]
    assert (await consumer(scene)).record.acked == (21,)
    assert list(await scene.tx.delivered(TENANT, "bot")) == ["task-0"]


async def test_a_delivery_that_expires_in_that_moment_is_not_acknowledged(scene: Scene) -> None:
    lease = await scene.kv.grant(60)
    [late] = await out(scene, 1, lease)

    async def redelivered() -> None:
        await scene.kv.inner.revoke(lease)
        await scene.tx.deliver(TENANT, "bot", "task-0", 20, await scene.kv.inner.grant(60))

    scene.kv.before_txn = redelivered
    assert await scene.tx.ack(TENANT, "bot", [late], settled) == [late]
    assert (await consumer(scene)).record.acked == ()
    assert list(await scene.tx.delivered(TENANT, "bot")) == ["task-0"]


async def test_acknowledgements_side_by_side_lose_none(scene: Scene) -> None:
    receipts = await out(scene, 6)
    expired = await asyncio.gather(*(scene.tx.ack(TENANT, "bot", [receipt], settled) for receipt in receipts))
    assert expired == [[]] * 6
    assert (await consumer(scene)).record.acked == tuple(range(20, 26))


async def test_an_acknowledgement_in_between_is_not_written_over(scene: Scene) -> None:
    receipts = await out(scene, 2)

    async def another() -> None:
        assert await scene.tx.ack(TENANT, "bot", receipts[1:], settled) == []

    scene.kv.before_txn = another
    assert await scene.tx.ack(TENANT, "bot", receipts[:1], settled) == []
    assert (await consumer(scene)).record.acked == (20, 21)


async def test_more_receipts_than_one_transaction_takes(scene: Scene) -> None:
    receipts = await out(scene, 130)
    assert await scene.tx.ack(TENANT, "bot", [*receipts, receipts[0]], settled) == []
    assert len((await consumer(scene)).record.acked) == 130
    assert await scene.tx.delivered(TENANT, "bot") == {}


async def test_an_unknown_consumer_acknowledges_nothing(scene: Scene) -> None:
    with pytest.raises(NotFoundError):
        await scene.tx.ack(TENANT, "nobody", [("task-1", 5)], settled)


async def test_lost_answers_of_an_acknowledgement(scene: Scene) -> None:
    receipts = await out(scene, 2)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.ack(TENANT, "bot", receipts[:1], settled)
    assert (await consumer(scene)).record.acked == ()
    scene.kv.fail_next("txn", applied=True)
    sent = scene.kv.sent["txn"]
    assert await scene.tx.ack(TENANT, "bot", receipts[:1], settled) == []
    assert scene.kv.sent["txn"] == sent + 1


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("cursor", [10, 20])
async def test_a_lost_answer_after_which_another_acknowledged_is_no_late_receipt(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, cursor: int, applied: bool
) -> None:
    receipts = await out(scene, 2)
    get = scene.kv.get
    meanwhile = [receipts[1]]

    async def another_first(key: str) -> Entry | None:
        if scene.kv.sent["txn"] > sent and meanwhile:
            await scene.tx.ack(TENANT, "bot", [meanwhile.pop()], lambda r, new: replace(settled(r, new), cursor=cursor))
        return await get(key)

    scene.kv.fail_next("txn", applied=applied)
    sent = scene.kv.sent["txn"]
    monkeypatch.setattr(scene.kv, "get", another_first)
    assert await scene.tx.ack(TENANT, "bot", receipts[:1], settled) == []
    assert (await consumer(scene)).record.acked == (20, 21)


# -- forget --


async def test_a_deleted_consumer_takes_along_what_it_has_out(scene: Scene) -> None:
    await scene.tx.register_consumer(TENANT, "bot-2", fresh(scene))
    lease = await scene.kv.grant(60)
    await scene.tx.deliver(TENANT, "bot-2", "task-1", 20, lease)
    await out(scene, 130, lease)
    await scene.tx.delete_consumer(TENANT, "bot")
    stored = await scene.dump()
    mine = [key for key in stored if key.startswith((keys.CONSUMERS, keys.DELIVERIES))]
    assert mine == [keys.consumer(TENANT, "bot-2"), keys.delivery(TENANT, "bot-2", "task-1")]
    with pytest.raises(NotFoundError):
        await scene.tx.delete_consumer(TENANT, "bot")


async def test_a_consumer_made_anew_keeps_what_it_has_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await out(scene, 1)
    look = scene.tx.delivered

    async def made_anew(tenant: str, name: str) -> dict[str, tuple[int, int]]:
        await scene.place(CONSUMER, encode(fresh(scene)))
        return await look(tenant, name)

    monkeypatch.setattr(scene.tx, "delivered", made_anew)
    await scene.tx.delete_consumer(TENANT, "bot")
    assert keys.delivery(TENANT, "bot", "task-0") in await scene.dump()


async def test_a_deletion_that_comes_late_spares_the_consumer_made_anew(scene: Scene) -> None:
    scene.kv.before_txn = lambda: scene.remake(CONSUMER)
    await scene.tx.delete_consumer(TENANT, "bot")
    assert CONSUMER in await scene.dump()


async def test_lost_answers_of_a_deletion(scene: Scene) -> None:
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.delete_consumer(TENANT, "bot")
    assert CONSUMER in await scene.dump()
    await out(scene, 1)
    scene.kv.fail_next("txn", applied=True)
    await scene.tx.delete_consumer(TENANT, "bot")
    assert not [key for key in await scene.dump() if key.startswith((keys.CONSUMERS, keys.DELIVERIES))]
