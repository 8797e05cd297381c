"""Commands on tasks: what they print, and how they end."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services


def test_submit_prints_the_id_and_sends_the_whole_spec(claw: Claw, services: Services) -> None:
    ran = claw(
        "submit", "--runtime", "command", "--workspace", "ws", "--workspace-mode", "fork",
        "--pool", "p", "--priority", "-5", "--request-id", "r1", "--max-attempts", "4", "--timeout", "10m",
        "--queue-timeout", "1h30m", "--silence-timeout", "500ms", "--checkpoint-every", "30", "--env", "A=1=2",
        "--env", "B=", "--artifact", "*.txt", "--label", "k=v", "--memory", "64", "--cpu", "1.5",
        "--", "sh", "-c", "echo $A", "--output", "json",
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "task-0000000000000000\n"), ran.err
    (request,) = services.scheduler.submitted
    spec = request.spec
    assert request.request_id == "r1"
    assert list(spec.argv) == ["sh", "-c", "echo $A", "--output", "json"]
    assert (spec.workspace.name, spec.workspace.mode) == ("ws", task_pb2.WORKSPACE_MODE_FORK)
    assert (spec.pool, spec.priority, spec.retry.max_attempts) == ("p", -5, 4)
    assert spec.timeouts.run.seconds == 600
    assert spec.timeouts.queue.seconds == 5400
    assert spec.timeouts.silence.ToMilliseconds() == 500
    assert spec.checkpoint_interval.seconds == 30
    assert (dict(spec.env), dict(spec.labels), list(spec.artifacts)) == ({"A": "1=2", "B": ""}, {"k": "v"}, ["*.txt"])
    assert (spec.resources.memory_bytes, spec.resources.cpu_millis) == (64 << 20, 1500)


def test_a_prompt_comes_from_the_option_a_file_or_standard_input(
    claw: Claw, services: Services, tmp_path: Path
) -> None:
    file = tmp_path / "prompt"
    file.write_text("from a file")
    claw("submit", "--runtime", "claude-code", "--prompt", "inline")
    claw("submit", "--runtime", "claude-code", "--prompt-file", str(file))
    claw("submit", "--runtime", "claude-code", "--prompt-file", "-", stdin="from stdin")
    assert [r.spec.prompt for r in services.scheduler.submitted] == ["inline", "from a file", "from stdin"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "--exit-code", "--", "true"),
        ("submit", "--timeout", "soon", "--", "true"),
        ("submit", "--env", "NOVALUE", "--", "true"),
        ("submit", "--workspace-mode", "shared", "--", "true"),
        ("submit", "--prompt", "a", "--prompt-file", "b"),
        ("submit", "--prompt-file", "/nonexistent"),
        ("submit", "--no-such-option", "--", "true"),
        ("submit", "--priority", "high", "--", "true"),
        ("ls", "--state", "sleeping"),
        ("ls", "--limit", "-1"),
        ("ls", "--output", "yaml"),
        ("logs", "task-1", "--offset", "-1"),
        ("get",),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_exit_code_two_and_says_what(claw: Claw, services: Services, arguments: tuple[str, ...]) -> None:
    ran = claw(*arguments)
    assert ran.code == 2
    assert ran.err.strip()
    assert "Traceback" not in ran.err
    assert not services.scheduler.submitted


def test_an_interrupted_submit_is_sent_again_and_submits_once(claw: Claw, services: Services) -> None:
    services.scheduler.unavailable = 2
    ran = claw("submit", "--", "echo", "hi")
    assert (ran.code, ran.out) == (0, "task-0000000000000000\n"), ran.err
    assert len(services.scheduler.submitted) == 3
    assert len({r.request_id for r in services.scheduler.submitted}) == 1
    assert len(services.scheduler.tasks) == 1


def test_wait_streams_the_log_and_tells_success_from_failure(claw: Claw) -> None:
    ran = claw("submit", "--wait", "--", "echo", "hello", "world")
    assert (ran.code, ran.out) == (0, "task-0000000000000000\necho hello world\n")
    ran = claw("submit", "--wait", "--", "exit", "7")
    assert ran.code == 1
    assert "failed: nonzero-exit: exit code 7" in ran.err
    ran = claw("submit", "--wait", "--exit-code", "--", "exit", "7")
    assert ran.code == 7
    assert claw("submit", "--wait", "--exit-code", "--", "true").code == 0


def test_wait_with_json_prints_task_log_and_result(claw: Claw) -> None:
    ran = claw("submit", "--wait", "--output", "json", "--", "echo", "hi")
    first, *pieces, last = ran.objects
    assert first["task_id"] == last["task_id"] == "task-0000000000000000"
    data = b"".join(base64.b64decode(p["chunk"]["data"]) for p in pieces if "chunk" in p)
    assert data == b"echo hi\n"
    assert (last["state"], last["exit_code"]) == ("TASK_STATE_SUCCEEDED", 0)


def test_ls_goes_through_all_pages_newest_first(claw: Claw) -> None:
    for i in range(5):
        claw("submit", "--label", f"n={i % 2}", "--", "true")
    ran = claw("ls", "--output", "json")
    assert [task["task_id"][-1] for task in ran.objects] == list("43210")
    assert [t["task_id"][-1] for t in claw("ls", "-o", "json", "--label", "n=1").objects] == ["3", "1"]
    assert [t["task_id"][-1] for t in claw("-o", "json", "ls", "--limit", "2").objects] == ["4", "3"]
    assert claw("ls", "--state", "failed", "-o", "json").objects == []
    table = claw("ls", "--limit", "3")
    assert len(table.out.splitlines()) == 4
    assert "there are more" in table.err
    assert table.out.splitlines()[0].split()[:2] == ["TASK", "STATE"]


def test_an_empty_list_says_what_to_do(claw: Claw) -> None:
    ran = claw("ls")
    assert (ran.code, ran.out) == (0, "")
    assert "claw submit" in ran.err


def test_get_result_and_explain_show_a_task(claw: Claw) -> None:
    claw("submit", "--", "echo", "hi")
    task = "task-0000000000000000"
    (found,) = claw("get", task, "--output", "json").objects
    assert (found["state"], found["spec"]["argv"]) == ("TASK_STATE_SUCCEEDED", ["echo", "hi"])
    assert "succeeded" in claw("get", task).out
    (result,) = claw("result", task, "-o", "json").objects
    assert result["reason"] == "END_REASON_COMPLETED"
    assert "completed" in claw("result", task).out
    assert "attempt 1 ended" in claw("explain", task).out
    assert "succeeded" in claw("cancel", task).out


def test_logs_are_byte_exact_from_any_offset(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    blob = bytes(range(256))
    services.scheduler.logs["task-0000000000000000", 1] = blob
    task = "task-0000000000000000"
    for offset in (0, 1, 255, 256):
        ran = claw("logs", task, "--offset", str(offset))
        assert ran.out.encode(errors="surrogateescape") == blob[offset:]
    past = claw("logs", task, "--offset", "257")
    assert past.code == 2
    assert "256 bytes" in past.err


def test_a_broken_tail_goes_on_where_it_was(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    task = services.scheduler.tasks["task-0000000000000000"]
    task.attempts.add(number=2)
    services.scheduler.logs[task.task_id, 1] = b"0123456789"
    services.scheduler.logs[task.task_id, 2] = b"abcdefghij"
    for breaks in range(7):
        services.scheduler.breaks = breaks
        services.scheduler.tails.clear()
        ran = claw("logs", task.task_id, "--follow")
        assert ran.out == "0123456789abcdefghij", f"{breaks} breaks"
    # Resumed, not begun anew: the last run's second request starts behind what its first had read.
    assert (services.scheduler.tails[1].attempt, services.scheduler.tails[1].offset) == (1, 4)


def test_a_resumed_tail_survives_that_its_last_bytes_were_taken_back(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    task = services.scheduler.tasks["task-0000000000000000"]
    services.scheduler.logs[task.task_id, 1] = b"01234567"

    def lose_the_node() -> None:
        # What was not durable goes with it; the second attempt writes its own log.
        services.scheduler.logs[task.task_id, 1] = b"01"
        services.scheduler.logs[task.task_id, 2] = b"again"
        task.attempts.add(number=2)

    services.scheduler.breaks = 1
    services.scheduler.on_break = lose_the_node
    ran = claw("logs", task.task_id, "--follow")
    assert (ran.code, ran.out) == (0, "0123again"), ran.err


def test_watch_resumes_at_its_revision_and_ends_with_its_task(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    task = services.scheduler.tasks["task-0000000000000000"]
    task.state = task_pb2.TASK_STATE_QUEUED
    states = (task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_SUCCEEDED)
    for revision, state in enumerate(states, start=10):
        change = task_pb2.Task(task_id=task.task_id, state=state, revision=revision)
        services.scheduler.changes.append(change)
    services.scheduler.breaks = 2
    ran = claw("watch", task.task_id, "--output", "json")
    assert ran.code == 0, ran.err
    assert [o["task"]["state"] for o in ran.objects] == [
        "TASK_STATE_QUEUED", "TASK_STATE_RUNNING", "TASK_STATE_QUEUED", "TASK_STATE_SUCCEEDED",
    ]  # fmt: skip
    assert [w.after_revision for w in services.scheduler.watches] == [1, 10, 11]


def test_top_shows_the_cluster_once_when_nobody_watches(claw: Claw, operator: Claw) -> None:
    ran = operator("top")
    assert ran.code == 0, ran.err
    assert "leader 127.0.0.1:7401 (term 7)" in ran.out
    assert "node-2" in ran.out
    (status,) = operator("top", "-o", "json").objects
    assert status["term"] == "7"


def test_what_tenants_wrote_cannot_move_the_cursor(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    task = services.scheduler.tasks["task-0000000000000000"]
    task.events.add(state=task_pb2.TASK_STATE_FAILED, message="\x1b[2J\x1b[31mowned\r\u202eevil [bold]x[/bold]")
    task.workspace.name = "\x1b]0;title\x07"
    for command in (("get", task.task_id), ("ls",)):
        ran = claw(*command)
        assert not {"\x1b", "\r", "\x07", "\u202e"} & set(ran.out)
    assert "[bold]x[/bold]" in claw("get", task.task_id).out
