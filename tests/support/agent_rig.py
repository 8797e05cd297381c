"""Runs the installed agents as a node does: an adapter's launch in a real slot, its way out leading to a scripted
model, its log through the adapter's parser, its exit through the adapter's judgement."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloudclaw.agents.events import AnyEvent, Finished
from cloudclaw.agents.parser import StreamParser, mark
from cloudclaw.agents.transcript import Transcript
from cloudclaw.testing.scripted_model import ScriptedModel
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits
from cloudclaw_pool_manager.ports.backend import Slot, SlotPhase, SlotStatus
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Input, RunRequest, Verdict
from cloudclaw_pool_manager.runtimes.environment import EGRESS
from tests.support import slots
from tests.support.require import CACHE, require_agent, require_bubblewrap
from tests.support.slots import PYTHON_PREFIX, Node

LIMITS = Limits(cpu_millis=2000, memory_bytes=2 << 30, pids=512, disk_bytes=1 << 30, tmp_bytes=128 << 20)
WITHIN = 240.0
"""Seconds that a test waits for an agent: with a quarter of a core OpenClaw takes 90 for three turns."""
PROMPT = "[[scenario:work]] Write hello.txt, please."


def scenario(*turns: dict[str, Any], name: str = "work") -> dict[str, Any]:
    """A script of one scenario, chosen by `PROMPT`."""
    return {"scenarios": [{"name": name, "turns": list(turns)}]}


WORK = scenario(
    {"text": "I write the file.", "tools": [{"write": {"path": "hello.txt", "content": "hello\n"}}]},
    {"tools": [{"bash": "cat hello.txt; echo task $CLAW_TASK_ID >> turns.txt"}]},
    {"text": "The file is written."},
)


def failing(kind: str) -> dict[str, Any]:
    """A model that answers with an error, always."""
    return scenario({"error": {"kind": kind}})


@dataclass
class Run:
    """One attempt, while it runs and afterwards."""

    adapter: AgentAdapter
    request: RunRequest
    slot: Slot
    attempt: AttemptId
    tree: Path
    parser: StreamParser
    transcript: Transcript = field(default_factory=Transcript)
    events: list[AnyEvent] = field(default_factory=list)
    offset: int = 0
    log: bytes = b""
    exit: Exit | None = None

    async def until(self, wanted: Callable[[Transcript], bool], within: float = WITHIN) -> Transcript:
        """Its transcript, as soon as that is `wanted`; an agent that ends before fails the test."""
        async with asyncio.timeout(within), contextlib.aclosing(self.slot.updates()) as updates:  # type: ignore[type-var]
            async for status in updates:
                await self._read(status)
                if wanted(self.transcript):
                    return self.transcript
                assert self.exit is None, f"it ended: {self.exit}\n{self.log.decode(errors='replace')[-4000:]}"
        raise AssertionError("the updates ended")

    async def ended(self, within: float = WITHIN) -> Verdict:
        """What became of it."""
        async with asyncio.timeout(within), contextlib.aclosing(self.slot.updates()) as updates:  # type: ignore[type-var]
            async for status in updates:
                await self._read(status)
                if self.exit is not None:
                    break
        assert self.exit is not None
        self._tell(self.parser.close())
        await self.slot.release(self.attempt.uid)
        return self.adapter.judge(self.request, self.exit, self.transcript)

    async def say(self, text: str, number: int) -> None:
        """A user's message, as a node gives it."""
        given = Input(number, f"message-{number}", text)
        data = self.adapter.encode_input(given)
        assert data is not None
        note = mark("input", id=given.message_id, number=number, text=text)
        assert await self.slot.input(self.attempt.uid, f"input-{number}", note=note, data=data)

    async def close(self) -> Verdict:
        """No more messages."""
        await self.slot.input(self.attempt.uid, "close", close=True)
        return await self.ended()

    async def wrote(self, pattern: str, text: bytes, times: int = 1) -> None:
        """Wait until a file of its tree holds `text` so often: agents write a turn down after they told it."""
        async with asyncio.timeout(WITHIN):
            while not any(path.read_bytes().count(text) >= times for path in self.tree.glob(pattern)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """All of its processes, at once."""
        await self.slot.stop(self.attempt.uid, KillReason.FENCED, 0)
        await self.ended()

    @property
    def text(self) -> str:
        return self.log.decode(errors="replace")

    async def _read(self, status: SlotStatus) -> None:
        while frames := await self.slot.read_log(self.attempt.uid, self.offset, 1 << 20):
            for frame in frames:
                self.offset += len(frame.data)
                self.log += frame.data
                self._tell(self.parser.feed(int(frame.stream), frame.data))
        if status.phase is SlotPhase.EXITED:
            self.exit = status.exit

    def _tell(self, events: Sequence[AnyEvent]) -> None:
        self.events += events
        for event in events:
            self.transcript.apply(event)


@dataclass
class AgentRig:
    """A node with one slot, and a model outside."""

    node: Node
    slot: Slot
    agents: Path
    number: int = 0
    model: ScriptedModel | None = None
    ways: list[asyncio.Server] = field(default_factory=list)

    def options(self, **more: Any) -> dict[str, Any]:
        """Options by which an adapter finds the installed agents."""
        return {"path": (str(self.agents / "bin"),), **more}

    def request(self, **changes: Any) -> RunRequest:
        """A request for a first attempt."""
        self.number += 1
        first = RunRequest(
            argv=(),
            prompt=PROMPT,
            env={},
            session_id="",
            resumes=False,
            identity={"CLAW_TASK_ID": "task-1", "CLAW_ATTEMPT": str(self.number)},
            uid=f"att-{self.number}-{id(self):x}",
            egress=EGRESS,
            memory_bytes=LIMITS.memory_bytes,
        )
        return replace(first, **changes)

    async def start(
        self, adapter: AgentAdapter, request: RunRequest, *, tree: Path | None = None, launch: Launch | None = None
    ) -> Run:
        """Start an attempt; `launch` instead of the adapter's own."""
        launch = launch or adapter.launch(request)
        said = [] if request.resumes else [mark("prompt", text=request.prompt)]
        said += [mark("input", id=one.message_id, number=one.number, text=one.text) for one in request.inputs]
        attempt = slots.attempt(uid=request.uid)
        tree = tree or self.node.tree()
        launch = replace(launch, note=b"".join(said))
        await self.slot.start(attempt, launch, LIMITS, tree, slots.soon(WITHIN * 2))
        await self.connect(attempt.uid)
        return Run(adapter, request, self.slot, attempt, tree, adapter.parser())

    async def run(self, adapter: AgentAdapter, **changes: Any) -> tuple[Run, Verdict]:
        """One attempt to its end."""
        run = await self.start(adapter, self.request(**changes))
        return run, await run.ended()

    async def connect(self, uid: str) -> None:
        """Lead what comes out of the sandbox to the model; without one it finds nobody."""
        listener = socket.socket(fileno=await self.slot.egress(uid))
        listener.setblocking(False)
        self.ways.append(await asyncio.start_server(self._carry, sock=listener))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                if self.model is None:
                    return
                url = urlsplit(self.model.url)
                there, back = await asyncio.open_connection(url.hostname, url.port)
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
            finally:
                writer.close()

    def copy(self, tree: Path) -> Path:
        """What a checkpoint of `tree` holds."""
        copied = self.node.tree()
        for part in ("workspace", "home"):
            shutil.rmtree(copied / part)
            shutil.copytree(tree / part, copied / part, symlinks=True)
        for path in (copied, *copied.rglob("*")):
            self.node.own(path)
        return copied

    async def close(self) -> None:
        """Before the node goes."""
        for way in self.ways:
            way.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def agent_rig(agent: str) -> AsyncIterator[AgentRig]:
    """A rig for an installed agent."""
    require_bubblewrap()
    require_agent(agent)
    agents = (CACHE / "agents" / "current").resolve()
    async with slots.node(read_only=(PYTHON_PREFIX, str(agents)), egress=True, defaults=LIMITS) as node:
        rig = AgentRig(node, await node.pool().provision(0), agents)
        yield rig
        await rig.close()


@contextlib.asynccontextmanager
async def playing(rig: AgentRig, script: dict[str, Any]) -> AsyncIterator[ScriptedModel]:
    """The model of a rig."""
    async with ScriptedModel(script) as model:
        rig.model = model
        yield model
        rig.model = None


def asked(model: ScriptedModel) -> list[dict[str, Any]]:
    """The requests that belong to a scenario: no titles, no counting of tokens."""
    return [entry for entry in model.requests if entry.get("scenario")]


def answers(run: Run) -> list[Finished]:
    """Every answer so far."""
    return [event for event in run.events if isinstance(event, Finished)]
