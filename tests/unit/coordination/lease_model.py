"""What the lease protocol should do, in a few dictionaries, to hold the transactions against."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cloudclaw.coordination.port import Entry
from cloudclaw.coordination.records import TaskState

T = TypeVar("T")

WORKSPACES = ("site", "docs")
NODES = ("node-1", "node-2")


@dataclass
class ModelTask:
    """One task. `token` is 0 and `held` False unless it runs; `held`: its attempt key is there."""

    workspace: str
    max_attempts: int
    state: TaskState = TaskState.QUEUED
    delayed: bool = False
    attempt: int = 0
    uid: str = ""
    node: str = ""
    token: int = 0
    held: bool = False
    cancel: bool = False
    commits: int = 0
    ended_at: int = 0
    """Revision of its end; it must stay."""
    checkpoint: str = ""
    given_back: int = 0
    wanted: int = 0
    served: int = 0
    resumed: bool = False
    """The latest attempt began from a checkpoint."""
    archived: bool = False
    interactive: bool = False
    parked: bool = False
    inputs: int = 0
    done: int = 0
    """Inputs that the checkpoint contains."""
    beyond: int = -1
    """What its attempt has to answer beyond; -1 when it was given nothing to answer."""
    later: int = 0
    closing: bool = False
    words: str = ""
    """What it said last, as far as that is kept: with its checkpoint, or parked."""

    @property
    def asks(self) -> bool:
        """There is something to do for an agent, besides what the checkpoint contains."""
        return self.inputs > self.done or (self.closing and not self.later)

    @property
    def takes_input(self) -> bool:
        return self.interactive and not (self.state.ended or self.cancel or self.closing)

    @property
    def owns_writer(self) -> bool:
        return bool(self.workspace) and self.attempt > 0 and not self.state.ended

    def claimed(self, node: str, uid: str, token: int) -> None:
        self.state, self.delayed = TaskState.RUNNING, False
        self.attempt += 1
        self.beyond = self.done if self.asks and self.checkpoint else -1
        self.served, self.resumed = self.wanted, bool(self.checkpoint)
        self.node, self.uid, self.token, self.held = node, uid, token, True

    def left(self, state: TaskState, *, delayed: bool = False, revision: int = 0) -> None:
        """It no longer runs."""
        self.state, self.delayed, self.parked = state, delayed, False
        self.node, self.uid, self.token, self.held = "", "", 0, False
        self.ended_at = revision if state.ended else 0

    def unclaimed(self, revision: int) -> None:
        self.attempt -= 1
        self.left(TaskState.CANCELED if self.cancel else TaskState.QUEUED, revision=revision)

    def failed(self, revision: int, *, lost: bool, retry: bool) -> None:
        """Its attempt ended without success."""
        if self.cancel:
            self.left(TaskState.CANCELED, revision=revision)
        elif (lost or retry) and self.attempt - self.given_back < self.max_attempts:
            self.left(TaskState.QUEUED, delayed=True)
        else:
            self.left(TaskState.FAILED, revision=revision)

    def drained(self, revision: int) -> None:
        """Its node handed it over: that attempt does not count."""
        if self.cancel:
            self.left(TaskState.CANCELED, revision=revision)
        else:
            self.given_back += 1
            self.left(TaskState.QUEUED, delayed=True)

    def sent(self, how: str) -> None:
        """Its user said something: "now", "later" or "end"."""
        self.inputs += how == "now"
        self.later += how == "later"
        self.closing |= how == "end"
        self.woken()

    def woken(self) -> None:
        """A parked task that has something to do is parked no more."""
        if self.parked and self.asks:
            self.parked = self.delayed = False

    def contains(self, inputs: int) -> None:
        """What the new checkpoint says of the inputs."""
        self.done = max(self.done, min(inputs, self.inputs))

    def parks(self, inputs: int, revision: int) -> None:
        """Its attempt answered, up to the input `inputs`; a new checkpoint, which the model has not taken in yet, has
        all of it."""
        self.contains(inputs)
        if self.asks and self.done <= self.beyond:
            self.failed(revision, lost=False, retry=True)  # it was to do something, and did nothing
            return
        self.given_back = self.attempt
        self.left(TaskState.QUEUED, delayed=not self.asks)
        self.parked = self.delayed

    def answered(self, request: int) -> None:
        """A request for a checkpoint, and those before it."""
        self.served = max(self.served, min(request, self.wanted))


@dataclass
class Model:
    """The cluster: who leads, which nodes live, who writes what, and what was committed."""

    tasks: dict[str, ModelTask] = field(default_factory=dict)
    term: int = 0
    alive: dict[str, Entry] = field(default_factory=dict)
    """Living nodes and their key as it is."""
    heads: dict[str, str] = field(default_factory=lambda: dict.fromkeys(WORKSPACES, ""))
    snapshots: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in WORKSPACES})
    """What each workspace lists: every head that ever was, and the checkpoints that are of use."""
    highest_token: int = 0

    def writer(self, workspace: str) -> str:
        """The task that owns the workspace, or nothing."""
        owners = [name for name, task in self.tasks.items() if task.workspace == workspace and task.owns_writer]
        assert len(owners) <= 1, owners
        return owners[0] if owners else ""

    def commit(self, workspace: str, snapshot: str) -> None:
        """The workspace has a new head."""
        self.heads[workspace] = snapshot
        self.snapshots[workspace].add(snapshot)

    def checkpointed(self, task: ModelTask, snapshot: str) -> None:
        """The task's next attempt starts from `snapshot` ("": from no checkpoint), and not from the one before."""
        if task.workspace:
            self.snapshots[task.workspace] -= {task.checkpoint}
            self.snapshots[task.workspace] |= {snapshot} - {""}
        task.checkpoint = snapshot

    def node_lost(self, node: str) -> None:
        """The node's lease ended: every key on it is gone."""
        self.alive.pop(node, None)
        for task in self.tasks.values():
            if task.node == node:
                task.held = False


def done(call: Coroutine[Any, Any, T]) -> T:
    """What `call` returns; nothing in it waits, since the memory store never does."""
    try:
        call.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    call.close()
    raise AssertionError("a call to the memory store waited")
