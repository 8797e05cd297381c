"""A task from submit to result, over real streams."""

from __future__ import annotations

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.node import Node
from tests.unit.scheduler.plane import Plane, User


async def test_a_task_runs_and_leaves_its_log_and_result(plane: Plane, user: User) -> None:
    node = await Node(plane).connect()
    task_id = await user.submit("echo", "hi", labels={"k": "v"})
    assignment = await node.next()
    assert (assignment.task_id, assignment.attempt, list(assignment.spec.argv)) == (task_id, 1, ["echo", "hi"])
    await node.write(assignment, 0, b"hi\n")
    await node.write(assignment, 3, b"", end=True)
    verdict = await node.finish(assignment, log_end=3, final_message="done")
    assert verdict == pb.ReportVerdict.VERDICT_COMMITTED
    task = await user.get(task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
    assert [e.state for e in task.events] == [1, 2, 3]
    assert task.attempts[0].token == assignment.token
    assert task.attempts[0].log_end == 3
    assert await user.log(task_id) == b"hi\n"
    result = await user.result(task_id)
    assert (result.state, result.exit_code, result.final_message) == (task.state, 0, "done")
    assert result.reason == task_pb2.END_REASON_COMPLETED
