"""What tasks leave behind, from the command line and from programs: results, checkpoints, artifacts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudclaw.client import AsyncClient, Client
from cloudclaw.errors import NotFoundError, PreconditionError, UnavailableError
from cloudclaw.rpc.auth import Minter
from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services


@pytest.fixture
def tasks(claw: Claw, services: Services) -> list[str]:
    """One that succeeded, one that failed, and one of somebody else."""
    claw("submit", "--artifact", "a.txt", "--", "echo", "hi")
    claw("submit", "--", "exit", "3")
    services.scheduler.add("task-other", "stranger", task_pb2.TaskSpec(argv=["x"]))
    return ["task-0000000000000000", "task-0000000000000001"]


@pytest.fixture
async def aclient(services: Services) -> AsyncIterator[AsyncClient]:
    token = Minter(services.key).mint("acme", ["user"])
    async with AsyncClient(services.address, token, workspace_endpoint=services.address, patience=5.0) as client:
        yield client


def test_results_are_printed_and_acknowledged_one_by_one(claw: Claw, services: Services, tasks: list[str]) -> None:
    ran = claw("results", "c", "--ack", "--drain", "--from-oldest", "--visibility", "2m", "--output", "json")
    assert ran.code == 0, ran.err
    assert [line["result"]["task_id"] for line in ran.objects] == tasks
    assert [line["receipt"] for line in ran.objects] == [f"receipt-{task}" for task in tasks]
    assert services.scheduler.acked["c"] == [f"receipt-{task}" for task in tasks]
    (request,) = services.scheduler.streams
    assert (request.from_oldest, request.drain, request.visibility_timeout.seconds) == (True, True, 120)
    assert claw("results", "c", "--ack", "--drain").out == ""


def test_results_that_are_not_acknowledged_come_again(claw: Claw, services: Services, tasks: list[str]) -> None:
    for _ in range(2):
        ran = claw("results", "c", "--drain")
        lines = ran.out.splitlines()
        assert [line.split()[:3] for line in lines] == [
            [tasks[0], "succeeded", "completed"],
            [tasks[1], "failed", "nonzero-exit"],
        ]
        assert "exit 3" in lines[1]
    assert services.scheduler.acked["c"] == []


def test_a_receipt_that_came_too_late_is_told(claw: Claw, services: Services, tasks: list[str]) -> None:
    services.scheduler.late.add(f"receipt-{tasks[0]}")
    ran = claw("results", "c", "--ack", "--drain")
    assert ran.code == 0
    assert f"{tasks[0]}: acknowledged too late" in ran.err
    ran = claw("consumers", "ack", "c", f"receipt-{tasks[0]}", "receipt-x")
    assert (ran.code, ran.err) == (6, f"too late: receipt-{tasks[0]}\n")
    assert claw("consumers", "ack", "c", "receipt-y", "--output", "json").objects == [{"expired": []}]


def test_a_break_of_the_stream_goes_on(claw: Claw, services: Services, tasks: list[str]) -> None:
    services.scheduler.breaks = 1
    ran = claw("results", "c", "--ack", "--drain", "--output", "json")
    assert [line["result"]["task_id"] for line in ran.objects] == tasks


def test_consumers_are_listed_and_forgotten(claw: Claw, services: Services, tasks: list[str]) -> None:
    assert claw("consumers", "ls").code == 0
    claw("results", "c", "--ack", "--drain")
    (consumer,) = claw("consumers", "ls", "--output", "json").objects
    assert (consumer["name"], consumer["backlog"]) == ("c", 1)
    assert claw("consumers", "ls").out.splitlines()[1].split()[:2] == ["c", "1"]
    assert claw("consumers", "rm", "c").code == 0
    assert claw("consumers", "rm", "c").code == 3


def test_a_checkpoint_is_taken_and_shown(claw: Claw, services: Services, tasks: list[str]) -> None:
    ran = claw("checkpoint", tasks[0])
    assert (ran.code, "does not run" in ran.err) == (6, True)
    services.scheduler.tasks[tasks[0]].state = task_pb2.TASK_STATE_RUNNING
    assert claw("checkpoint", tasks[0]).out == "snap-1: 3 files, 2.0 KiB; stood still for 12ms\n"
    (said,) = claw("checkpoint", tasks[0], "--output", "json").objects
    assert said["checkpoint"]["snapshot_id"] == "snap-1"
    services.scheduler.tasks[tasks[0]].attempts[0].resumed = True
    services.scheduler.tasks[tasks[0]].archived = True
    shown = claw("get", tasks[0]).out
    assert "snap-1, " in shown
    assert "(resumed)" in shown
    assert "archived" in shown


def test_lists_are_cut_to_a_time(claw: Claw, services: Services, tasks: list[str]) -> None:
    before = datetime.now(UTC)
    assert claw("ls", "--since", "2h", "--until", "2026-01-31T12:00+01:00").code == 0
    request = services.scheduler.lists[-1]
    since = request.create_after.ToDatetime(UTC)
    assert before - timedelta(hours=2, seconds=1) < since < datetime.now(UTC) - timedelta(hours=1, minutes=59)
    assert request.create_before.ToDatetime(UTC) == datetime(2026, 1, 31, 11, tzinfo=UTC)
    assert claw("ls").code == 0
    assert not services.scheduler.lists[-1].HasField("create_after")
    for wrong in ("yesterday", "2026-13-01", "99999999999d"):
        ran = claw("ls", "--since", wrong)
        assert (ran.code, "--since" in ran.err) == (2, True)


def test_artifacts_are_listed_and_fetched_whole(
    claw: Claw, services: Services, tasks: list[str], tmp_path: Path
) -> None:
    services.workspaces.artifacts[tasks[0], "a.txt"] = b"\x00\xff\n12"
    assert "artifact a.txt" in claw("result", tasks[0]).out
    (listed,) = claw("artifact", "ls", tasks[0], "--output", "json").objects
    assert (listed["path"], listed["size"]) == ("a.txt", "5")
    assert "a.txt" in claw("artifact", "ls", tasks[0]).out
    assert claw("artifact", "get", tasks[0], "a.txt").out.encode(errors="surrogateescape") == b"\x00\xff\n12"
    target = tmp_path / "out" / "a.txt"
    ran = claw("artifact", "get", tasks[0], "a.txt", "--to", str(target))
    assert (ran.code, "cannot write" in ran.err) == (2, True)
    target.parent.mkdir()
    assert claw("artifact", "get", tasks[0], "a.txt", "--to", str(target)).code == 0
    assert target.read_bytes() == b"\x00\xff\n12"
    assert claw("artifact", "get", tasks[0], "b.txt", "--to", str(target)).code == 3
    services.workspaces.breaks = 1
    services.workspaces.artifacts[tasks[0], "a.txt"] = b"something else"
    assert claw("artifact", "get", tasks[0], "a.txt", "--to", str(target)).code == 5
    assert target.read_bytes() == b"\x00\xff\n12"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_node_is_drained_with_a_hand_over(operator: Claw, services: Services) -> None:
    assert operator("pool", "drain", "node-1", "--hand-over").out == "draining; 1 attempt to hand over\n"
    assert operator("pool", "drain", "node-1").code == 0
    assert services.pool.history == ["hand over", "drain"]


def test_a_program_consumes_results(services: Services) -> None:
    token = Minter(services.key).mint("acme", ["user", "operator"])
    with Client(services.address, token, workspace_endpoint=services.address, patience=5.0) as client:
        task = client.submit(["echo", "hi"])
        (delivery,) = client.results("c", drain=True, visibility=timedelta(seconds=30))
        assert delivery.result.task_id == task.task_id
        assert not client.ack("c", delivery.receipt)
        assert list(client.results("c", drain=True)) == []
        assert [consumer.name for consumer in client.consumers()] == ["c"]
        client.delete_consumer("c")
        with pytest.raises(NotFoundError):
            client.ack("c", delivery.receipt)
        with pytest.raises(PreconditionError):
            client.checkpoint(task.task_id)
        assert client.drain(services.address, hand_over=True) == 1


async def test_many_receipts_are_sent_in_pieces(aclient: AsyncClient, services: Services) -> None:
    services.scheduler.acked["c"] = []
    services.scheduler.late.add("r2100")
    assert await aclient.ack("c", *(f"r{n}" for n in range(2500))) == ["r2100"]
    assert len(services.scheduler.acked["c"]) == 2499


async def test_a_time_without_a_zone_is_refused(aclient: AsyncClient) -> None:
    with pytest.raises(ValueError, match="time zone"):
        async for _ in aclient.list(create_after=datetime(2026, 1, 1)):  # noqa: DTZ001 - that is the point
            pass


async def test_a_stream_gives_up_when_patience_ends(services: Services) -> None:
    token = Minter(services.key).mint("acme", ["user"])
    async with AsyncClient(services.address, token, patience=0.0) as hasty:
        await hasty.submit(["x"])
        services.scheduler.breaks = 1
        with pytest.raises(UnavailableError):
            async for _ in hasty.results("c"):
                pass
