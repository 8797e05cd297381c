"""A whole CloudClaw on loopback, started by `claw dev`, for tests through the public API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import duration_pb2

from cloudclaw.rpc.auth import Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import (
    pool_manager_pb2,
    pool_manager_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    task_pb2,
    workspace_pb2,
    workspace_pb2_grpc,
)
from tests.support.processes import alive, eventually, kill, with_marker
from tests.support.require import missing, require_bubblewrap

ENDED = {
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELED,
}


class Tenant:
    """One tenant's view of a stack."""

    def __init__(self, stack: Stack, name: str):
        self.name = name
        self.token = stack.mint(name)
        self.channel = open_channel(stack.endpoints["scheduler"], None, self.token)
        self.scheduler = scheduler_pb2_grpc.SchedulerServiceStub(self.channel)
        self.workspace_channel = open_channel(stack.endpoints["workspace"], None, self.token)
        self.workspaces = workspace_pb2_grpc.WorkspaceServiceStub(self.workspace_channel)

    async def submit(self, *argv: str, request_id: str = "", **spec: Any) -> str:
        """Submit a `command` task; `spec` are fields of `TaskSpec`. Answers its id."""
        request = scheduler_pb2.SubmitTaskRequest(spec=task_pb2.TaskSpec(argv=argv, **spec), request_id=request_id)
        return (await self.scheduler.SubmitTask(request)).task.task_id

    async def shell(self, script: str, *arguments: str, **spec: Any) -> str:
        """Submit a shell script."""
        return await self.submit("sh", "-c", script, *arguments, **spec)

    async def get(self, task_id: str) -> task_pb2.Task:
        return (await self.scheduler.GetTask(scheduler_pb2.GetTaskRequest(task_id=task_id))).task

    async def wait(self, task_id: str, *states: int, timeout: float = 60.0) -> task_pb2.Task:
        """The task once it is in one of `states` (by default: once it has ended)."""
        wanted = set(states) or ENDED
        last: task_pb2.Task | None = None

        async def reached() -> bool:
            nonlocal last
            with contextlib.suppress(Exception):  # the scheduler may be down on purpose
                last = await self.get(task_id)
            return last is not None and last.state in wanted

        try:
            await eventually(f"{task_id} in {wanted}", reached, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {last}") from None
        assert last is not None
        return last

    async def wait_parked(self, task_id: str, timeout: float = 60.0) -> None:
        """Return once the conversation waits for its user and holds no slot."""

        async def parked() -> bool:
            return (await self.get(task_id)).parked

        await eventually(f"{task_id} is parked", parked, timeout)

    async def result(self, task_id: str) -> task_pb2.Result:
        return (await self.scheduler.GetResult(scheduler_pb2.GetResultRequest(task_id=task_id))).result

    async def tail(
        self, task_id: str, *, attempt: int = 0, offset: int = 0, follow: bool = True
    ) -> AsyncGenerator[scheduler_pb2.TailLogsResponse, None]:
        """One tail, until it ends by itself."""
        request = scheduler_pb2.TailLogsRequest(task_id=task_id, attempt=attempt, offset=offset, follow=follow)
        async for response in self.scheduler.TailLogs(request):
            yield response

    async def log(self, task_id: str, *, attempt: int = 0, offset: int = 0) -> bytes:
        """The whole log as it is now."""
        return b"".join([r.chunk.data async for r in self.tail(task_id, attempt=attempt, offset=offset, follow=False)])

    async def wait_output(self, task_id: str, text: bytes, *, attempt: int = 0, timeout: float = 30.0) -> bytes:
        """Follow the log until `text` appears; answers all that was read."""
        seen = b""

        async def follow() -> None:
            nonlocal seen
            async for response in self.tail(task_id, attempt=attempt):
                seen += response.chunk.data
                if text in seen:
                    return

        await asyncio.wait_for(follow(), timeout)
        assert text in seen, f"the log ended without {text!r}: {seen[-500:]!r}"
        return seen

    async def create_workspace(self, name: str) -> None:
        await self.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(name=name))

    async def read_file(self, workspace: str, path: str, snapshot: str = "") -> bytes:
        """One file of a workspace's head, or of a snapshot."""
        request = workspace_pb2.ReadFileRequest(workspace=workspace, path=path, snapshot_id=snapshot)
        return b"".join([r.data async for r in self.workspaces.ReadFile(request)])

    async def close(self) -> None:
        await self.channel.close()
        await self.workspace_channel.close()


class Stack:
    """`claw dev` in a folder of its own. Use as an async context manager."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 2,
        slots: int = 2,
        restart: bool = True,
        objects: str = "filesystem",
        agents: bool = False,
        extra: Sequence[str] = (),
    ):
        self.directory = directory / "dev"
        self._arguments = ["--nodes", str(nodes), "--slots", str(slots), "--objects", objects, *extra]
        if not restart:
            self._arguments.append("--no-restart")
        if not agents:
            # Which agents this machine has must not change what a test of something else sees.
            self._arguments.append("--no-agents")
        self._process: asyncio.subprocess.Process | None = None
        self._tenants: list[Tenant] = []
        self._extra_processes: list[subprocess.Popen[bytes]] = []
        self._replacements: list[subprocess.Popen[bytes]] = []
        self._slot_pids: set[int] = set()
        self.endpoints: dict[str, str] = {}
        self.token = ""

    async def __aenter__(self) -> Self:
        require_bubblewrap()
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for tenant in self._tenants:
            await tenant.close()
        await _terminate(self._extra_processes)
        await self.stop()
        await _terminate(self._replacements)

    async def start(self) -> None:
        """Start `claw dev` and wait until it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        output = (self.directory / "dev.out").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cloudclaw.cli", "dev", "--data-dir", str(self.directory),
            "--base-port", "0", *self._arguments,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        output.close()
        process = self._process
        await eventually("claw dev is ready", lambda: ready.exists() or process.returncode is not None, 60.0)
        if process.returncode is not None:
            missing("claw dev", (self.directory / "dev.out").read_text()[-3000:])
        facts = json.loads(ready.read_text())
        self.endpoints, self.token = facts["endpoints"], facts["token"]
        self.operator_token = facts["operator_token"]

    async def stop(self) -> None:
        """Ctrl-C, and wait; what is left after 60 s is killed and fails the test."""
        process = self._process
        if process is None:
            return
        for name in self.names():
            kill(self.pid(name), signum=signal.SIGCONT)
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), 60.0)
        except TimeoutError:
            kill(process.pid)
            await process.wait()
            raise AssertionError("claw dev did not stop within 60 s") from None
        self._process = None
        left = [pid for pid in self._slot_pids if alive(pid)]
        kill(*left, signum=signal.SIGCONT)
        kill(*left)
        detach_below(self.directory.parent)

    def mint(self, tenant: str, *roles: str) -> str:
        """A token for `tenant`, signed with the stack's development key."""
        return Minter(self.directory / "keys" / "dev.key").mint(
            tenant, roles=roles or ("user",), ttl=3600.0, subject=f"test:{tenant}"
        )

    def tenant(self, name: str) -> Tenant:
        tenant = Tenant(self, name)
        self._tenants.append(tenant)
        return tenant

    def names(self) -> list[str]:
        """Names of the child processes that have run."""
        return sorted(p.name.removesuffix(".pid") for p in (self.directory / "run").glob("*.pid"))

    def pid(self, name: str) -> int:
        """Present process id of a child, such as `scheduler` or `pool-manager@node-1`."""
        return int((self.directory / "run" / f"{name}.pid").read_text())

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Signal a child; answers the id it had."""
        pid = self.pid(name)
        kill(pid, signum=signum)
        return pid

    async def wait_restarted(self, name: str, old_pid: int) -> None:
        """Wait for dev's restart of a child."""
        await eventually(f"{name} restarted", lambda: self.pid(name) != old_pid and alive(self.pid(name)), 30.0)

    async def slots(self, node: str) -> list[pool_manager_pb2.Slot]:
        """The slots of one node, from its own service."""
        channel = open_channel(self.endpoints[f"pool-manager@{node}"], None, self.operator_token)
        try:
            stub = pool_manager_pb2_grpc.PoolManagerServiceStub(channel)
            answer = await stub.ListSlots(pool_manager_pb2.ListSlotsRequest())
        finally:
            await channel.close()
        self._slot_pids.update(slot.pid for slot in answer.slots)
        return list(answer.slots)

    async def node_pids(self, node: str) -> list[int]:
        """The node's gateway and pool-manager, and the supervisors of its slots."""
        services = [self.pid(name) for name in (f"gateway@{node}", f"pool-manager@{node}") if name in self.names()]
        return [*services, *[s.pid for s in await self.slots(node) if s.pid]]

    def supervisors(self, node: str = "") -> list[int]:
        """Process ids of the supervisors of one node, or of all, found without asking its manager."""
        marker = f"{self.directory}/nodes/" + (f"{node}/" if node else "")
        found = []
        for pid in with_marker("cloudclaw_supervisor"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/cwd").startswith(marker):
                    found.append(pid)
        self._slot_pids.update(found)
        return found

    async def drain(self, node: str, *, hand_over: bool = False) -> None:
        """Take no new work on a node."""
        channel = open_channel(self.endpoints[f"pool-manager@{node}"], None, self.operator_token)
        try:
            stub = pool_manager_pb2_grpc.PoolManagerServiceStub(channel)
            await stub.DrainNode(pool_manager_pb2.DrainNodeRequest(hand_over=hand_over))
        finally:
            await channel.close()

    async def kill_node(self, node: str) -> None:
        """What a power cut does to a node: the manager, the gateway and every supervisor die at once."""
        kill(*await self.node_pids(node))

    def environment_of(self, name: str) -> dict[str, str]:
        """The environment a child was started with."""
        raw = Path(f"/proc/{self.pid(name)}/environ").read_bytes()
        return dict(item.split("=", 1) for item in raw.decode().split("\0") if "=" in item)

    def spawn(self, argv: Sequence[str], environment: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        """One more process beside dev's, stopped with the stack."""
        with (self.directory / "log" / log).open("ab") as output:
            process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._extra_processes.append(process)
        return process

    def respawn(self, name: str, *, argv: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start again, by hand, a child of a `restart=False` stack that was killed."""
        process = self.spawn(argv, environment, f"{name}.again.log")
        # The others need it until they have stopped.
        self._extra_processes.remove(process)
        self._replacements.append(process)
        return process

    @contextlib.asynccontextmanager
    async def watching(self, tenant: Tenant, task_id: str) -> AsyncIterator[asyncio.Queue[task_pb2.Task]]:
        """A queue of the task's changes from now on."""
        changes: asyncio.Queue[task_pb2.Task] = asyncio.Queue()

        async def pump() -> None:
            request = scheduler_pb2.WatchTasksRequest(task_id=task_id)
            async for response in tenant.scheduler.WatchTasks(request):
                changes.put_nowait(response.task)

        pumping = asyncio.create_task(pump())
        try:
            yield changes
        finally:
            pumping.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                await pumping


async def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            await asyncio.to_thread(process.wait, 20)


def detach_below(directory: Path) -> None:
    """Unmount what nodes that were killed for good left mounted; a reboot would."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([m for m in mounts if m.startswith(f"{directory}/")]):
        subprocess.run(["umount", "--lazy", mount], check=True)


def seconds(value: float) -> duration_pb2.Duration:
    """A protobuf duration."""
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


def now() -> float:
    """A clock for measuring how long things took."""
    return time.monotonic()


def command_of(pid: int) -> list[str]:
    """The argument vector of a process."""
    return [a.decode() for a in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if a]


def has_environment(pid: int, name: str, value: str) -> bool:
    """The process has this variable; for finding a task's processes on the host."""
    try:
        return f"{name}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def task_pids(task_id: str) -> list[int]:
    """Host process ids of everything that runs for a task."""
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and has_environment(int(entry), "CLAW_TASK_ID", task_id) and alive(int(entry))
    ]
