"""Real processes of a small cluster: etcd, a scheduler, and pool-managers that tests start and kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from cloudclaw.coordination import keys
from cloudclaw.coordination.etcd import EtcdKeyValue
from cloudclaw.coordination.records import NodeRecord, decode
from cloudclaw.rpc.auth import Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import pool_manager_pb2, scheduler_pb2, task_pb2
from cloudclaw.v1.pool_manager_pb2_grpc import PoolManagerServiceStub
from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceStub
from cloudclaw_pool_manager.backends import mounts
from cloudclaw_pool_manager.backends.limits import hierarchies, node_group
from tests.support.etcd_server import EtcdServer
from tests.support.processes import alive, eventually, kill

_V1_STATE, _V2_STATE = "slot-*/freezer.state", "slot-*/box/cgroup.events"
ENDED = (task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELED)


class Cluster:
    """etcd and one scheduler, and as many nodes as a test starts. Everything is gone afterwards. All of its processes
    find what is installed in `packages`."""

    def __init__(self, etcd: EtcdServer, *, packages: Path | None = None):
        self.etcd = etcd
        self._packages = packages
        self.folder = Path(tempfile.mkdtemp(prefix="claw-cluster-"))
        self.folder.chmod(0o711)
        self.kv: EtcdKeyValue
        self.scheduler: Any
        self._key = self.folder / "key"
        self._key.write_bytes(os.urandom(32).hex().encode())
        self._minter = Minter(self._key)
        (self.folder / "node.token").write_text(self._minter.mint("system", ["node"]))
        self._address = ""
        self._channels: list[Any] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._supervisors: set[int] = set()

    async def __aenter__(self) -> Self:
        self.kv = self.etcd.open()
        process = self._spawn("scheduler", "cloudclaw_scheduler", "CLAW_SCHEDULER_", SERVER__LISTEN="127.0.0.1:0")
        await eventually("the scheduler serves", lambda: self._find(r'"address": "([^"]+)", "event": "serving"') != "")
        assert process.poll() is None
        self._address = self._find(r'"address": "([^"]+)", "event": "serving"')
        self.scheduler = SchedulerServiceStub(self._channel(self._address, "user"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()
        await self.kv.close()
        await asyncio.to_thread(self._end)

    # -- nodes --

    def node(self, name: str = "node-1", *, directory: str = "", path: str = "", **settings: str) -> Node:
        """A pool-manager; not started yet."""
        environment = {
            "NODE_ID": name,
            "NODE_DIR": str(self.folder / (directory or name)),
            "SCHEDULER_ENDPOINTS": self._address,
            "TOKEN_FILE": str(self.folder / "node.token"),
            "SERVER__LISTEN": "127.0.0.1:0",
            "POOLS": '[{"slots": 2}]',
            **settings,
        }
        return Node(self, name, environment, path)

    async def record(self, node: str) -> NodeRecord | None:
        """What etcd has of a node."""
        entry = await self.kv.get(keys.node(node))
        return decode(entry.value, NodeRecord) if entry else None

    # -- tasks --

    async def submit(self, script: str, **spec: Any) -> str:
        request = scheduler_pb2.SubmitTaskRequest(spec=task_pb2.TaskSpec(argv=["sh", "-c", script], **spec))
        return str((await self.scheduler.SubmitTask(request)).task.task_id)

    async def get(self, task: str) -> task_pb2.Task:
        answer: scheduler_pb2.GetTaskResponse = await self.scheduler.GetTask(scheduler_pb2.GetTaskRequest(task_id=task))
        return answer.task

    async def wait(self, task: str) -> task_pb2.Task:
        """The task once it has ended."""

        async def ended() -> bool:
            return (await self.get(task)).state in ENDED

        await eventually(f"{task} has ended", ended, 60)
        return await self.get(task)

    async def log(self, task: str, *, until: bytes = b"") -> bytes:
        """The log, to its end or until it holds `until`."""
        seen = b""
        request = scheduler_pb2.TailLogsRequest(task_id=task, follow=True)
        async with asyncio.timeout(60):
            async for response in self.scheduler.TailLogs(request):
                seen += response.chunk.data
                if until and until in seen:
                    break
        return seen

    # -- parts --

    def _channel(self, address: str, *roles: str) -> Any:
        channel = open_channel(address, None, self._minter.mint("acme", roles))
        self._channels.append(channel)
        return channel

    def _spawn(self, log: str, module: str, prefix: str, *, path: str = "", **settings: str) -> subprocess.Popen[bytes]:
        common = {
            "ETCD__ENDPOINTS": self.etcd.endpoint,
            "AUTH__KEYS": str(self._key),
            "OBJECTS__URL": f"file://{self.folder}/objects",
        }
        environment = {"PATH": path or os.environ["PATH"], "HOME": str(self.folder)}
        environment |= {"PYTHONPATH": str(self._packages)} if self._packages else {}
        environment |= {prefix + name: value for name, value in (common | settings).items()}
        with (self.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=out, stderr=out)
        self._processes.append(process)
        return process

    def _find(self, pattern: str, log: str = "scheduler") -> str:
        found = re.findall(pattern, self.read(log))
        return str(found[-1]) if found else ""

    def read(self, log: str) -> str:
        """What a process wrote."""
        path = self.folder / f"{log}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        kill(*self._supervisors)
        for slots in self.folder.glob("*/pools/*/slots"):
            with contextlib.suppress(OSError):
                mounts.detach(slots)
        shutil.rmtree(self.folder, ignore_errors=True)


class Node:
    """One node's pool-manager, started as often as a test likes."""

    def __init__(self, cluster: Cluster, name: str, settings: dict[str, str], path: str):
        self.name = name
        self._cluster = cluster
        self._settings = settings
        self._path = path
        self._log = f"{name}-{Path(settings['NODE_DIR']).name}"
        self.process: subprocess.Popen[bytes]

    def launch(self) -> None:
        """Start the process."""
        self.process = self._cluster._spawn(
            self._log, "cloudclaw_pool_manager", "CLAW_POOL_MANAGER_", path=self._path, **self._settings
        )

    async def start(self) -> None:
        """Start it and wait until the leader knows its slots."""
        before = await self._cluster.record(self.name)
        self.launch()

        async def ready() -> bool:
            assert self.process.poll() is None, self.log()[-3000:]
            record = await self._cluster.record(self.name)
            if record is None or (before and record.incarnation <= before.incarnation) or record.address.endswith(":0"):
                return False
            slots = await self.slots()
            return bool(slots) and all(s.pid for s in slots)

        await eventually(f"{self.name} is ready", ready, 30)
        self._cluster._supervisors |= {slot.pid for slot in await self.slots() if slot.pid}

    async def operator(self) -> Any:
        """A stub of its service, for an operator."""
        record = await self._cluster.record(self.name)
        assert record is not None
        return PoolManagerServiceStub(self._cluster._channel(record.address, "operator"))

    async def slots(self) -> list[pool_manager_pb2.Slot]:
        stub = await self.operator()
        answer: pool_manager_pb2.ListSlotsResponse = await stub.ListSlots(pool_manager_pb2.ListSlotsRequest())
        return list(answer.slots)

    async def slot_of(self, task: str) -> pool_manager_pb2.Slot:
        """The slot that runs a task."""
        return next(slot for slot in await self.slots() if slot.task_id == task)

    async def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the process; answers its exit code."""
        self.process.send_signal(signum)
        return await asyncio.to_thread(self.process.wait, 30)

    def paused(self) -> bool:
        """The freezer of one of its slots holds a sandbox. Of a node with cgroups."""
        node = node_group(Path(self._settings["NODE_DIR"]) / "pools/default")
        v1, v2 = hierarchies()
        files = [*(v2 / node).glob(_V2_STATE)] if v2 else []
        files += [*(v1["freezer"] / node).glob(_V1_STATE)] if "freezer" in v1 else []
        return any(word in path.read_text() for path in files for word in ("frozen 1", "FROZEN"))

    async def kill_in_a_pause(self) -> bool:
        """SIGKILL the process at the next moment at which it holds a sandbox still; False when it was too quick."""

        def watch() -> bool:
            end = time.monotonic() + 20
            while not self.paused():
                assert time.monotonic() < end, "no pause"
                time.sleep(0.0005)
            self.process.kill()
            self.process.wait()
            return self.paused()

        return await asyncio.to_thread(watch)

    async def refused(self) -> int:
        """Start it, and answer the exit code of a process that is to end by itself."""
        self.launch()
        return await asyncio.to_thread(self.process.wait, 30)

    def log(self) -> str:
        """What all its processes wrote."""
        return self._cluster.read(self._log)

    def supervisors(self) -> list[int]:
        """Supervisors seen so far that are alive."""
        return [pid for pid in self._cluster._supervisors if alive(pid)]
