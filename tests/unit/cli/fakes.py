"""The three services in memory, served over loopback, for commands to talk to."""

from __future__ import annotations

import asyncio
import io
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from cloudclaw.clock import SystemClock
from cloudclaw.config import ServerSettings
from cloudclaw.errors import (
    AlreadyExistsError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    QuotaExceededError,
    UnavailableError,
)
from cloudclaw.rpc.auth import Authenticator, caller, require_role
from cloudclaw.rpc.server import RpcServer
from cloudclaw.v1 import pool_manager_pb2 as pool_pb
from cloudclaw.v1 import pool_manager_pb2_grpc, scheduler_pb2_grpc, task_pb2, workspace_pb2_grpc
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import workspace_pb2 as ws_pb
from tests.unit.cli.fake_agents import FakeAgents
from tests.unit.cli.fake_results import FakeResults

# The stubs' types call every method abstract; what a servicer leaves out is UNIMPLEMENTED.
_Scheduler: Any = scheduler_pb2_grpc.SchedulerServiceServicer
_Workspace: Any = workspace_pb2_grpc.WorkspaceServiceServicer
_Pool: Any = pool_manager_pb2_grpc.PoolManagerServiceServicer

ENDED = (task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELED)


class FakeScheduler(FakeResults, FakeAgents, _Scheduler):  # type: ignore[misc]
    """Tasks that end as soon as they are submitted; argv decides how.

    `exit N` fails with that code; anything else succeeds with its words as log. A tail breaks after each message as
    often as `breaks` says, and each break forgets the stream, as a restarted scheduler does.
    """

    def __init__(self) -> None:
        FakeResults.__init__(self)
        FakeAgents.__init__(self)
        self.logs: dict[tuple[str, int], bytes] = {}
        self.requests: dict[str, str] = {}
        self.submitted: list[pb.SubmitTaskRequest] = []
        self.tails: list[pb.TailLogsRequest] = []
        self.watches: list[pb.WatchTasksRequest] = []
        self.unavailable = 0
        self.on_break: Callable[[], None] = lambda: None
        self.node_address = ""
        self.changes: list[task_pb2.Task] = []
        self.results: dict[str, task_pb2.Result] = {}
        """What the results of tasks hold beside how they ended."""
        self.lists: list[pb.ListTasksRequest] = []

    def _away(self) -> None:
        if self.unavailable > 0:
            self.unavailable -= 1
            raise UnavailableError("restarting")

    def _find(self, task_id: str) -> task_pb2.Task:
        task = self.tasks.get(task_id)
        if task is None or task.tenant != caller().tenant:
            raise NotFoundError(f"no task {task_id!r}")
        return task

    async def SubmitTask(self, request: pb.SubmitTaskRequest, context: Any) -> pb.SubmitTaskResponse:
        self.submitted.append(request)
        spec = request.spec
        if spec.pool == "missing":
            raise PreconditionError("no pool 'missing'", subject="pool", reason="NO_SUCH_POOL")
        if spec.runtime not in ("", "command", "claude-code", "opencode"):
            raise PreconditionError(
                f"the pool 'default' does not offer the runtime {spec.runtime!r}; it offers: claude-code, command",
                subject=spec.runtime,
                reason="NO_SUCH_RUNTIME",
            )
        if spec.pool == "full":
            raise QuotaExceededError("etcd is nearly full")
        if request.request_id in self.requests:
            response = pb.SubmitTaskResponse(task=self.tasks[self.requests[request.request_id]], created=False)
            self._away()
            return response
        task_id = f"task-{len(self.tasks):016d}"
        self.add(task_id, caller().tenant, spec)
        self.requests[request.request_id] = task_id
        self._away()
        return pb.SubmitTaskResponse(task=self.tasks[task_id], created=True)

    def add(self, task_id: str, tenant: str, spec: task_pb2.TaskSpec) -> task_pb2.Task:
        """A task as a finished run leaves it."""
        code = int(spec.argv[1]) if spec.argv and spec.argv[0] == "exit" else 0
        task = task_pb2.Task(
            task_id=task_id, tenant=tenant, spec=spec, runtime=spec.runtime, pool=spec.pool or "default"
        )
        task.state = task_pb2.TASK_STATE_FAILED if code else task_pb2.TASK_STATE_SUCCEEDED
        if spec.HasField("conversation"):
            task.state = task_pb2.TASK_STATE_RUNNING
        task.labels.update(spec.labels)
        task.workspace.CopyFrom(spec.workspace)
        task.revision = len(self.tasks) + 1
        task.attempts.add(number=1, uid="u1", state=task_pb2.ATTEMPT_STATE_SUCCEEDED, node="node-1", exit_code=code)
        task.events.add(state=task_pb2.TASK_STATE_QUEUED, message="accepted")
        self.tasks[task_id] = task
        self.logs[task_id, 1] = (" ".join(spec.argv or [spec.prompt]) + "\n").encode()
        return task

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.GetTaskResponse:
        self._away()
        return pb.GetTaskResponse(task=self._find(request.task_id))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        self._away()
        self.lists.append(pb.ListTasksRequest.FromString(request.SerializeToString()))
        found = [
            task
            for task in reversed(self.tasks.values())
            if task.tenant == caller().tenant
            and (not request.states or task.state in request.states)
            and all(task.labels.get(key) == value for key, value in request.labels.items())
        ]
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, 2)
        return pb.ListTasksResponse(tasks=found[start:end], next_page_token=str(end) if end < len(found) else "")

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.CancelTaskResponse:
        task = self._find(request.task_id)
        task.cancel_requested = task.state not in ENDED
        return pb.CancelTaskResponse(task=task)

    async def WatchTasks(self, request: pb.WatchTasksRequest, context: Any) -> AsyncIterator[pb.WatchTasksResponse]:
        self.watches.append(pb.WatchTasksRequest.FromString(request.SerializeToString()))
        for change in self.changes:
            if change.revision <= request.after_revision:
                continue
            self.tasks[change.task_id].state = change.state
            yield pb.WatchTasksResponse(task=change, revision=change.revision)
            if self.breaks > 0:
                self.breaks -= 1
                raise UnavailableError("restarting")
        await asyncio.Event().wait()

    async def TailLogs(self, request: pb.TailLogsRequest, context: Any) -> AsyncIterator[pb.TailLogsResponse]:
        self.tails.append(pb.TailLogsRequest.FromString(request.SerializeToString()))
        task = self._find(request.task_id)
        numbers = [request.attempt] if request.attempt else [attempt.number for attempt in task.attempts]
        offset = request.offset
        for number in numbers:
            data = self.logs.get((request.task_id, number), b"")
            if offset > len(data):
                raise OutOfRangeError(f"attempt {number} has {len(data)} bytes")
            for start in range(offset, len(data), 4):
                yield pb.TailLogsResponse(
                    chunk=task_pb2.LogChunk(attempt=number, offset=start, data=data[start : start + 4])
                )
                if self.breaks > 0:
                    self.breaks -= 1
                    self.on_break()
                    raise UnavailableError("restarting")
            yield pb.TailLogsResponse(attempt_ended=True, durable_offset=len(data))
            offset = 0

    async def ExplainTask(self, request: pb.ExplainTaskRequest, context: Any) -> pb.ExplainTaskResponse:
        return pb.ExplainTaskResponse(task=self._find(request.task_id), reasons=["attempt 1 ended: completed"])

    async def GetResult(self, request: pb.GetResultRequest, context: Any) -> pb.GetResultResponse:
        task = self._find(request.task_id)
        if task.state not in ENDED:
            raise PreconditionError(f"{task.task_id} has not ended", reason="TASK_NOT_ENDED")
        code = task.attempts[-1].exit_code
        reason = task_pb2.END_REASON_NONZERO_EXIT if code else task_pb2.END_REASON_COMPLETED
        result = task_pb2.Result(task_id=task.task_id, state=task.state, reason=reason, exit_code=code)
        result.message = f"exit code {code}" if code else ""
        result.MergeFrom(self.results.get(task.task_id, task_pb2.Result()))
        for path in task.spec.artifacts:
            result.artifacts.add(path=path, size=5, digest="ab" * 32)
        return pb.GetResultResponse(result=result)

    async def CheckpointTask(self, request: Any, context: Any) -> pb.CheckpointTaskResponse:
        task = self._find(request.task_id)
        if task.state in ENDED:
            raise PreconditionError(f"{task.task_id} does not run", reason="TASK_NOT_RUNNING")
        task.checkpoint.CopyFrom(task_pb2.SnapshotRef(snapshot_id="snap-1", files=3, bytes=2048))
        response = pb.CheckpointTaskResponse(checkpoint=task.checkpoint)
        response.frozen.FromMilliseconds(12)
        return response

    async def GetClusterStatus(self, request: Any, context: Any) -> pb.GetClusterStatusResponse:
        status = pb.GetClusterStatusResponse(leader="127.0.0.1:7401", term=7, version="0.1.0", etcd_bytes=4096)
        status.pools.add(pool="default", slots=2, idle=1, running=1)
        if "operator" in caller().roles:
            status.nodes.add(node="node-1", address=self.node_address, connected=True)
            status.nodes.add(node="node-2", address=self.node_address, connected=True, draining=True)
        return status


class FakeWorkspaces(_Workspace):  # type: ignore[misc]
    """Workspaces as dictionaries of tar members."""

    def __init__(self) -> None:
        self.trees: dict[str, dict[str, tuple[tarfile.TarInfo, bytes]]] = {}
        self.retention: dict[str, ws_pb.Retention] = {}
        self.rounds: list[tuple[str, bool]] = []
        self.deleted: list[str] = []
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.breaks = 0
        self.archive: bytes | None = None
        """Given to downloads instead of the tree; for hostile ones."""

    def _tree(self, name: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
        if name not in self.trees:
            raise NotFoundError(f"no workspace {name!r}")
        return self.trees[name]

    async def CreateWorkspace(self, request: Any, context: Any) -> ws_pb.CreateWorkspaceResponse:
        if request.name in self.trees:
            raise AlreadyExistsError(f"there is a workspace {request.name!r}")
        self.trees[request.name] = {}
        self.retention[request.name] = request.retention
        return ws_pb.CreateWorkspaceResponse(workspace=self._shown(request.name))

    def _shown(self, name: str) -> ws_pb.Workspace:
        self._tree(name)
        return ws_pb.Workspace(name=name, retention=self.retention.get(name))

    async def GetWorkspace(self, request: Any, context: Any) -> ws_pb.GetWorkspaceResponse:
        return ws_pb.GetWorkspaceResponse(workspace=self._shown(request.name))

    async def UpdateWorkspace(self, request: Any, context: Any) -> ws_pb.UpdateWorkspaceResponse:
        self.retention[request.name] = request.retention
        return ws_pb.UpdateWorkspaceResponse(workspace=self._shown(request.name))

    async def CollectGarbage(self, request: Any, context: Any) -> ws_pb.CollectGarbageResponse:
        require_role("operator")
        self.rounds.append((request.tenant, request.dry_run))
        report = ws_pb.GarbageReport(tenant=request.tenant or "acme", objects_removed=3, bytes_removed=3 << 20)
        return ws_pb.CollectGarbageResponse(reports=[report])

    async def DeleteTenant(self, request: Any, context: Any) -> ws_pb.DeleteTenantResponse:
        require_role("operator")
        self.deleted.append(request.tenant)
        return ws_pb.DeleteTenantResponse(objects_removed=2, bytes_removed=1024, keys_removed=5)

    async def ListWorkspaces(self, request: Any, context: Any) -> ws_pb.ListWorkspacesResponse:
        return ws_pb.ListWorkspacesResponse(workspaces=[ws_pb.Workspace(name=name) for name in sorted(self.trees)])

    async def DeleteWorkspace(self, request: Any, context: Any) -> ws_pb.DeleteWorkspaceResponse:
        self._tree(request.name)
        del self.trees[request.name]
        return ws_pb.DeleteWorkspaceResponse()

    async def ListFiles(self, request: Any, context: Any) -> ws_pb.ListFilesResponse:
        files = [ws_pb.File(path=path, size=len(data)) for path, (_, data) in self._tree(request.workspace).items()]
        return ws_pb.ListFilesResponse(files=files)

    async def ReadFile(self, request: Any, context: Any) -> AsyncIterator[ws_pb.ReadFileResponse]:
        tree = self._tree(request.workspace)
        if request.path not in tree:
            raise NotFoundError(f"no file {request.path!r}")
        yield ws_pb.ReadFileResponse(data=tree[request.path][1][request.offset :])

    async def UploadArchive(self, request_iterator: Any, context: Any) -> ws_pb.UploadArchiveResponse:
        header, data = None, io.BytesIO()
        async for request in request_iterator:
            if request.HasField("header"):
                header = request.header
            else:
                data.write(request.data)
        assert header is not None
        tree = self._tree(header.workspace)
        if header.replace:
            tree.clear()
        data.seek(0)
        with tarfile.open(fileobj=data) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                tree[member.name] = (member, content.read() if content else b"")
        response = ws_pb.UploadArchiveResponse()
        response.snapshot.snapshot_id = "snap-1"
        return response

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[ws_pb.DownloadArtifactResponse]:
        if (request.task_id, request.path) not in self.artifacts:
            raise NotFoundError(f"no artifact {request.path!r}")
        data = self.artifacts[request.task_id, request.path]
        for start in range(0, len(data), 3):
            yield ws_pb.DownloadArtifactResponse(data=data[start : start + 3])
            if self.breaks > 0:
                self.breaks -= 1
                raise UnavailableError("restarting")

    async def DownloadArchive(self, request: Any, context: Any) -> AsyncIterator[ws_pb.DownloadArchiveResponse]:
        tree = self._tree(request.workspace)
        data = self.archive
        if data is None:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for member, content in tree.values():
                    tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
            data = packed.getvalue()
        for start in range(0, len(data), 1000):
            yield ws_pb.DownloadArchiveResponse(data=data[start : start + 1000])


class FakePool(_Pool):  # type: ignore[misc]
    """One node with two slots."""

    def __init__(self) -> None:
        self.draining = False
        self.recycled: list[str] = []
        self.history: list[str] = []

    async def GetPool(self, request: Any, context: Any) -> pool_pb.GetPoolResponse:
        require_role("operator")
        pool = pool_pb.Pool(node="node-1", hard_cap=4, draining=self.draining)
        pool.capacity.pool, pool.capacity.slots = "default", 2
        pool.capacity.runtimes.extend(["claude-code", "openclaw"])
        pool.capacity.runtime_status.add(runtime="claude-code", ready=True, version="2.1.330")
        pool.capacity.runtime_status.add(runtime="openclaw", reason="it needs Node 24.16 or later")
        return pool_pb.GetPoolResponse(pools=[pool])

    async def ListSlots(self, request: Any, context: Any) -> pool_pb.ListSlotsResponse:
        require_role("operator")
        slots = [
            pool_pb.Slot(slot=f"slot-{i}", state=pool_pb.SLOT_STATE_IDLE, pool="default", uid=200000 + i)
            for i in range(2)
        ]
        slots[0].warm, slots[0].warm_memory_bytes = "claude-code", 168 << 20
        return pool_pb.ListSlotsResponse(slots=slots)

    async def DrainNode(self, request: Any, context: Any) -> pool_pb.DrainNodeResponse:
        require_role("operator")
        self.draining = True
        self.history.append("hand over" if request.hand_over else "drain")
        return pool_pb.DrainNodeResponse(running=1)

    async def UndrainNode(self, request: Any, context: Any) -> pool_pb.UndrainNodeResponse:
        require_role("operator")
        self.draining = False
        self.history.append("undrain")
        return pool_pb.UndrainNodeResponse()

    async def RecycleSlot(self, request: Any, context: Any) -> pool_pb.RecycleSlotResponse:
        require_role("operator")
        self.recycled.append(request.slot)
        return pool_pb.RecycleSlotResponse(slot=pool_pb.Slot(slot=request.slot, state=pool_pb.SLOT_STATE_PROVISIONING))


class Services:
    """All three on one loopback port, served by a loop in a thread of its own."""

    def __init__(self, key: Path):
        self.key = key
        self.scheduler = FakeScheduler()
        self.workspaces = FakeWorkspaces()
        self.pool = FakePool()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.address = self._run(self._start())
        self.scheduler.node_address = self.address

    async def _start(self) -> str:
        settings = ServerSettings(listen="127.0.0.1:0")
        self._server = RpcServer(settings, Authenticator([self.key]), clock=SystemClock())
        for name, add, servicer in (
            ("SchedulerService", scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.scheduler),
            ("WorkspaceService", workspace_pb2_grpc.add_WorkspaceServiceServicer_to_server, self.workspaces),
            ("PoolManagerService", pool_manager_pb2_grpc.add_PoolManagerServiceServicer_to_server, self.pool),
        ):
            self._server.add(f"cloudclaw.v1.{name}", add, servicer)
        return await self._server.start()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def close(self) -> None:
        self._run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
