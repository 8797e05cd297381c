"""The command line and grpcurl, as people and scripts use them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.require import require_binary
from tests.support.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(*argv: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 90)
    return process.returncode or 0, out.decode(), err.decode()


class Claw:
    """The `claw` command with a tenant's environment."""

    def __init__(self, stack: Stack, tenant: str, *roles: str):
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "CLAW_ENDPOINT": stack.endpoints["scheduler"],
            "CLAW_WORKSPACE_ENDPOINT": stack.endpoints["workspace"],
            "CLAW_TOKEN": stack.mint(tenant, *roles),
        }

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return await run(sys.executable, "-m", "cloudclaw.cli", *arguments, env=self._env)


async def test_submit_wait_streams_the_log_and_passes_the_exit_code(stack: Stack) -> None:
    claw = Claw(stack, "cli")
    code, out, err = await claw("submit", "--wait", "--exit-code", "--", "sh", "-c", "echo hello; exit 7")
    assert code == 7, err
    assert "hello" in out
    code, out, err = await claw("submit", "--wait", "--", "sh", "-c", "exit 7")
    assert code == 1, err


async def test_ctrl_c_ends_what_is_shown_and_says_how_to_come_back(stack: Stack) -> None:
    claw = Claw(stack, "cli-interrupted")
    command = (
        sys.executable,
        "-m",
        "cloudclaw.cli",
        "submit",
        "--wait",
        "--",
        "sh",
        "-c",
        "echo begun; tail -f /dev/null",
    )
    shown = await asyncio.create_subprocess_exec(
        *command, env=claw._env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert shown.stdout is not None
    task_id = (await asyncio.wait_for(shown.stdout.readline(), 60)).decode().strip()
    assert await asyncio.wait_for(shown.stdout.readline(), 60) == b"begun\n"
    shown.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(shown.communicate(), 60)
    assert shown.returncode == 130
    assert f"`claw logs {task_id} --follow` shows it again" in err.decode()
    assert "Traceback" not in err.decode()
    assert "running" in (await claw("get", task_id))[1]
    assert (await claw("cancel", task_id))[0] == 0
    code, out, err_text = await claw("logs", task_id, "--follow")
    assert (code, out) == (0, "begun\n"), err_text


async def test_json_output_is_one_object_a_line(stack: Stack) -> None:
    claw = Claw(stack, "cli-json")
    code, out, err = await claw("submit", "--output", "json", "--label", "a=b", "--", "true")
    assert code == 0, err
    task_id = json.loads(out.splitlines()[0])["task_id"]
    code, out, err = await claw("submit", "--wait", "--", "true")
    assert code == 0, err
    code, out, err = await claw("ls", "--output", "json")
    assert code == 0, err
    assert task_id in {json.loads(line)["task_id"] for line in out.splitlines()}
    code, out, err = await claw("get", task_id, "--output", "json")
    assert json.loads(out)["labels"] == {"a": "b"}
    code, out, err = await claw("result", task_id, "--output", "json")
    assert json.loads(out)["state"] == "TASK_STATE_SUCCEEDED"


async def test_exit_codes_tell_kinds_of_failure_apart(stack: Stack) -> None:
    claw = Claw(stack, "cli-codes")
    assert (await claw("get", "task-0000000000000000"))[0] == 3
    assert (await claw("submit", "--no-such-flag"))[0] == 2
    assert (await claw("submit", "--pool", "no-such-pool", "--", "true"))[0] == 6
    denied = await run(
        sys.executable, "-m", "cloudclaw.cli", "ls",
        env={**claw._env, "CLAW_TOKEN": "garbage"},
    )  # fmt: skip
    assert denied[0] == 4
    nowhere = await run(sys.executable, "-m", "cloudclaw.cli", "ls", env={**claw._env, "CLAW_ENDPOINT": "127.0.0.1:1"})
    assert nowhere[0] == 5
    assert "Traceback" not in nowhere[2]


async def test_files_go_up_and_come_down(stack: Stack, tmp_path: Path) -> None:
    claw = Claw(stack, "cli-files")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "data").write_bytes(bytes(range(256)))
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    assert (await claw("ws", "create", "up"))[0] == 0
    code, _, err = await claw("ws", "put", str(source), "up")
    assert code == 0, err
    code, out, err = await claw("ws", "files", "up")
    assert code == 0, err
    assert "run.sh" in out
    code, out, err = await claw(
        "submit", "--workspace", "up", "--wait", "--", "sh", "-c", "find . -name run.sh -exec {} \\; ; echo made > new"
    )
    assert (code, "ran" in out) == (0, True), err
    code, _, err = await claw("ws", "get", "up", str(tmp_path / "down"))
    assert code == 0, err
    assert [p.read_bytes() for p in (tmp_path / "down").rglob("data")] == [bytes(range(256))]
    assert [p.read_text() for p in (tmp_path / "down").rglob("new")] == ["made\n"]
    code, out, err = await claw("ws", "cat", "up", "new")
    assert (code, out) == (0, "made\n"), err
    code, out, err = await claw("ws", "snapshots", "up")
    assert code == 0, err


async def test_operators_see_and_drain_nodes(stack: Stack) -> None:
    operator = Claw(stack, "ops", "operator")
    operator._env["CLAW_ENDPOINT"] = stack.endpoints["scheduler"]
    node = stack.endpoints["pool-manager@node-2"]
    code, out, err = await operator("pool", "slots", "--endpoint", node, "--output", "json")
    assert code == 0, err
    slots = [json.loads(line) for line in out.splitlines()]
    assert len(slots) == 2
    assert all(int(slot["uid"]) != 0 for slot in slots)
    code, _, err = await operator("pool", "drain", "--endpoint", node)
    assert code == 0, err
    tenant = stack.tenant("ops")
    tasks = [await tenant.wait(await tenant.shell("true")) for _ in range(6)]
    assert {t.attempts[0].node for t in tasks} == {"node-1"}
    code, _, err = await operator("pool", "undrain", "--endpoint", node)
    assert code == 0, err


async def test_grpcurl_lists_describes_and_calls(stack: Stack) -> None:
    grpcurl = str(require_binary("grpcurl"))
    endpoint = stack.endpoints["scheduler"]
    code, out, err = await run(grpcurl, "-plaintext", endpoint, "list")
    assert code == 0, err
    assert "cloudclaw.v1.SchedulerService" in out
    assert "grpc.health.v1.Health" in out
    code, out, err = await run(
        grpcurl,
        "-plaintext",
        "-d",
        '{"service":"cloudclaw.v1.SchedulerService"}',
        endpoint,
        "grpc.health.v1.Health/Check",
    )
    assert "SERVING" in out, err
    code, out, err = await run(
        grpcurl, "-plaintext", "-H", f"authorization: Bearer {stack.mint('curl')}",
        "-d", '{"spec":{"argv":["echo","from grpcurl"]}}', endpoint, "cloudclaw.v1.SchedulerService/SubmitTask",
    )  # fmt: skip
    assert code == 0, err
    task = json.loads(out)["task"]
    task_id = task.get("taskId") or task["task_id"]
    tenant = stack.tenant("curl")
    await tenant.wait(task_id)
    code, out, err = await run(
        grpcurl, "-plaintext", "-H", f"authorization: Bearer {stack.mint('curl')}",
        "-d", json.dumps({"task_id": task_id}), endpoint, "cloudclaw.v1.SchedulerService/TailLogs",
    )  # fmt: skip
    assert "ZnJvbSBncnBjdXJs" in out, err


async def test_every_service_exposes_its_metrics(stack: Stack) -> None:
    tenant = stack.tenant("metrics")
    await tenant.wait(await tenant.shell("echo counted"))
    addresses = json.loads((stack.directory / "ready.json").read_text())["metrics"]
    wanted = {
        "scheduler": "cloudclaw_tasks_ended_total",
        "workspace": "cloudclaw_workspace_cached_trees",
        "pool-manager@node-1": "cloudclaw_pool_manager_slots",
        "gateway@node-1": "cloudclaw_gateway_attempts",
    }
    for name, metric in wanted.items():
        text = await asyncio.to_thread(fetch, f"http://{addresses[name]}/metrics")
        assert f"\n{metric}" in text, name


async def test_logs_are_json_lines_that_say_whom_they_concern(stack: Stack) -> None:
    tenant = stack.tenant("logged")
    task_id = await tenant.shell("exit 3")
    await tenant.wait(task_id)
    seen: set[str] = set()
    for name in ("scheduler", "workspace", "pool-manager@node-1", "pool-manager@node-2"):
        lines = (stack.directory / "log" / f"{name}.log").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert records, f"{name} logs JSON lines, and nothing else"
        assert all({"event", "timestamp", "level", "service"} <= r.keys() for r in records)
        seen |= {key for r in records for key in r}
    assert {"tenant", "node", "request_id"} <= seen


def fetch(url: str) -> str:
    """The body of a page on loopback."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()
