"""The tenants' keys for models: what arrives late undoes nothing, and what was done is known."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudclaw.coordination.records import ModelKeyRecord
from cloudclaw.errors import AbortedError, NotFoundError, PreconditionError, UnavailableError
from tests.support.coordination import BOTH_STORES, TENANT, Scene, scene_on
from tests.support.etcd_server import running_etcd

etcd_server = pytest.fixture(scope="module")(running_etcd)

ONE, TWO, THREE = (ModelKeyRecord(sealed=f"sealed-{n}", hint="abcd", updated=float(n)) for n in range(3))
UP = "anthropic"


@pytest.fixture(params=BOTH_STORES)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene_on(request) as scene:
        yield scene


async def keep(scene: Scene, record: ModelKeyRecord) -> None:
    await scene.tx.set_model_key(TENANT, UP, record)


async def kept(scene: Scene) -> ModelKeyRecord | None:
    return (await scene.tx.model_keys(TENANT)).get(UP)


@pytest.mark.parametrize("before", [None, ONE])
async def test_of_two_that_set_a_key_at_once_one_is_told_to_look_again(
    scene: Scene, before: ModelKeyRecord | None
) -> None:
    if before is not None:
        await keep(scene, before)
    scene.kv.before_txn = lambda: keep(scene, TWO)
    with pytest.raises(AbortedError):
        await keep(scene, THREE)
    assert await kept(scene) == TWO


async def test_a_late_deletion_leaves_the_key_that_was_set_meanwhile(scene: Scene) -> None:
    await keep(scene, ONE)
    scene.kv.before_txn = lambda: keep(scene, TWO)
    with pytest.raises(AbortedError):
        await scene.tx.delete_model_key(TENANT, UP)
    assert await kept(scene) == TWO


async def test_a_late_key_does_not_come_back_after_its_deletion(scene: Scene) -> None:
    await keep(scene, ONE)

    async def meanwhile() -> None:
        await scene.tx.delete_model_key(TENANT, UP)

    scene.kv.before_txn = meanwhile
    with pytest.raises(AbortedError):
        await keep(scene, TWO)
    assert await kept(scene) is None


@pytest.mark.parametrize("before", [None, ONE])
async def test_a_key_whose_answer_was_lost_is_read_back(scene: Scene, before: ModelKeyRecord | None) -> None:
    if before is not None:
        await keep(scene, before)
    scene.kv.fail_next("txn", applied=True)
    await keep(scene, TWO)
    assert await kept(scene) == TWO
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await keep(scene, THREE)
    assert await kept(scene) == TWO


async def test_a_deletion_whose_answer_was_lost_is_read_back(scene: Scene) -> None:
    await keep(scene, ONE)
    scene.kv.fail_next("txn")
    with pytest.raises(UnavailableError):
        await scene.tx.delete_model_key(TENANT, UP)
    assert await kept(scene) == ONE
    scene.kv.fail_next("txn", applied=True)
    await scene.tx.delete_model_key(TENANT, UP)
    assert await kept(scene) is None
    with pytest.raises(NotFoundError):
        await scene.tx.delete_model_key(TENANT, UP)


async def test_a_key_that_comes_in_the_moment_of_its_tenant_s_deletion_is_refused(scene: Scene) -> None:
    async def meanwhile() -> None:
        await scene.tx.bury(TENANT)

    scene.kv.before_txn = meanwhile
    with pytest.raises(PreconditionError) as refused:
        await keep(scene, ONE)
    assert refused.value.reason == "TENANT_DELETED"
    assert await kept(scene) is None
