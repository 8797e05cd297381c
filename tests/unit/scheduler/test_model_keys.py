"""Keys for models: sealed when they are set, shown by their end, given to agents, and gone with the tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import InvalidArgumentError, NotFoundError, PreconditionError, QuotaExceededError
from cloudclaw.sealing import Sealer, SealingSettings, write_sealing_key
from cloudclaw.v1 import scheduler_pb2 as pb
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.plane import Plane, User
from tests.unit.scheduler.talking import Host, Talker

KEY = "sk-ant-0123456789-abcd"


@pytest.fixture
def sealing_key(tmp_path: Path) -> Path:
    write_sealing_key(tmp_path / "sealing.key")
    return tmp_path / "sealing.key"


@pytest_asyncio.fixture
async def sealing(tmp_path: Path, sealing_key: Path) -> AsyncIterator[Plane]:
    settings = SealingSettings(keys=[sealing_key])
    plane = Plane(MemoryKeyValue(SystemClock()), FailingObjects(), tmp_path, sealing=settings)
    await plane.start()
    yield plane
    await plane.stop()


async def keep(user: User, upstream: str = "anthropic", key: str = KEY) -> None:
    await user.stub.SetModelKey(pb.SetModelKeyRequest(upstream=upstream, key=key))


async def listed(user: User) -> list[tuple[str, str]]:
    found = await user.stub.ListModelKeys(pb.ListModelKeysRequest())
    assert all(key.HasField("update_time") for key in found.keys)
    return [(key.upstream, key.hint) for key in found.keys]


async def test_a_key_is_sealed_and_only_its_end_is_shown(sealing: Plane, sealing_key: Path) -> None:
    user = User(sealing)
    await keep(user)
    await keep(user, "openai", "short")
    assert await listed(user) == [("anthropic", "abcd"), ("openai", "")]
    assert await listed(User(sealing, "other")) == []
    stored = (await sealing.kv.range(keys.MODEL_KEYS)).entries
    assert not any(KEY.encode() in entry.value for entry in stored)
    record = (await sealing.transactions.model_keys("acme"))["anthropic"]
    assert Sealer([sealing_key]).open("acme", "anthropic", record.sealed) == KEY


async def test_a_key_takes_the_place_of_the_one_before_and_can_be_forgotten(sealing: Plane) -> None:
    user = User(sealing)
    await keep(user)
    await keep(user, key=KEY + "-later")
    assert await listed(user) == [("anthropic", "ater")]
    await user.stub.DeleteModelKey(pb.DeleteModelKeyRequest(upstream="anthropic"))
    assert await listed(user) == []
    with pytest.raises(NotFoundError):
        await user.stub.DeleteModelKey(pb.DeleteModelKeyRequest(upstream="anthropic"))


async def test_agents_are_given_the_tenant_s_keys_and_commands_are_not(sealing: Plane) -> None:
    talker = Talker(sealing)
    host = Host(sealing, slots=2)
    await host.connect()
    await keep(talker)
    await keep(User(sealing, "other"), "openai")
    await talker.talk()
    assignment = await host.next()
    assert list(assignment.model_keys) == ["anthropic"]
    assert assignment.model_keys["anthropic"] != KEY
    await talker.submit()
    assert not (await host.next()).model_keys


@pytest.mark.parametrize(
    ("field", "upstream", "key"),
    [("upstream", "", KEY), ("upstream", "a/b", KEY), ("key", "openai", ""), ("key", "openai", "with space")],
)
async def test_a_bad_key_names_its_field(sealing: Plane, field: str, upstream: str, key: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await keep(User(sealing), upstream, key)
    assert refused.value.field == field


async def test_a_tenant_has_at_most_32_keys(sealing: Plane) -> None:
    user = User(sealing)
    for number in range(32):
        await keep(user, f"up-{number}")
    with pytest.raises(QuotaExceededError) as refused:
        await keep(user, "one-more")
    assert refused.value.reason == "TOO_MANY_MODEL_KEYS"
    await keep(user, "up-0", KEY + "x")


async def test_without_a_sealing_key_nothing_is_kept(plane: Plane, user: User) -> None:
    with pytest.raises(PreconditionError) as refused:
        await keep(user)
    assert refused.value.reason == "NO_SEALING_KEY"
    assert await listed(user) == []


async def test_keys_go_with_their_tenant_and_none_is_set_while_it_is_deleted(sealing: Plane) -> None:
    user = User(sealing)
    await keep(user)
    await keep(User(sealing, "acme-2"))
    tombstone = await sealing.transactions.bury("acme")
    with pytest.raises(PreconditionError) as refused:
        await keep(user, "openai")
    assert refused.value.reason == "TENANT_DELETED"
    assert "acme" in await sealing.transactions.tenants()
    await sealing.transactions.delete_tenant_keys("acme", tombstone)
    assert await listed(user) == []
    assert await sealing.transactions.tenants() == ["acme-2"]
