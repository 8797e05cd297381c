"""The world that the lease protocol is driven in, and what must hold in it after every step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from cloudclaw.coordination import keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import CreateIs, Delete, Entry, Put
from cloudclaw.coordination.records import (
    AttemptRecord,
    AttemptState,
    InputRecord,
    NodeRecord,
    RequestRecord,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    WorkspaceRecord,
    WriterRecord,
    decode,
)
from cloudclaw.coordination.transactions import Token, Transactions, Versioned, waiting_key
from cloudclaw.errors import CloudClawError, UnavailableError
from tests.support.kv import ManualClock
from tests.unit.coordination.lease_model import NODES, WORKSPACES, Model, ModelTask, done

T = TypeVar("T")

picks = st.integers(0, 1000)
mostly_now = st.sampled_from([0, 0, 0, 0, 1, 2])
"""How many versions behind the caller's view is."""
faults = st.sampled_from(["", "", "", "", "answer lost", "not sent"])

TENANT: Final = "acme"
LEADER_KEY: Final = keys.election("scheduler", 1)

ODD: Final = 5
"""One pick in so many falls on a task or token that the step does not fit."""


class LeaseMachine(RuleBasedStateMachine):
    """Leaders, nodes, workspaces and tasks in a memory store, beside the model of them. The rules are a subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.kv = MemoryKeyValue(self.clock)
        self.tx = Transactions(self.kv)
        self.model = Model()
        self.versions: dict[str, list[Versioned[TaskRecord]]] = {}
        self.tokens: list[tuple[str, Token, Versioned[TaskRecord]]] = []
        """Every attempt that ever began: task, token, and the task as its holder knew it."""
        self.terms: list[int] = []
        self.node_views: dict[str, list[Entry]] = {node: [] for node in NODES}
        self.workspace_views: dict[str, list[Entry]] = {name: [] for name in WORKSPACES}
        self.requests: dict[str, tuple[str, str]] = {}
        self.request_lease = done(self.kv.grant(24 * 3600))
        """What the requests of archived tasks live on."""
        self.ids = itertools.count(1)
        self.only = ""
        """The task that every pick falls on, in the end."""

    # -- the world's own events --

    def elect(self) -> None:
        """The leader's key goes and another's comes; whoever led goes on as if nothing had happened."""
        done(self.kv.txn([], [Delete(LEADER_KEY)]))
        self.model.term = done(self.kv.txn([], [Put(LEADER_KEY, b"{}")])).revision
        self.terms.append(self.model.term)

    def node_returns(self, pick: int) -> None:
        """A node registers: on a new lease when it was lost, or again on the same one (restart)."""
        node = NODES[pick % len(NODES)]
        alive = self.model.alive.get(node)
        lease = alive.lease if alive else done(self.kv.grant(10))
        record = NodeRecord(node=node, address="a", incarnation=len(self.node_views[node]))
        done(self.tx.register_node(record, lease))
        self.see_node(node)

    def node_touches(self, pick: int) -> None:
        node = NODES[pick % len(NODES)]
        alive = self.model.alive.get(node)
        if alive is not None:
            record = decode(alive.value, NodeRecord)
            done(self.tx.touch_node(record, alive.lease, alive.create_revision))
            self.see_node(node)

    def node_is_lost(self, pick: int) -> None:
        node = NODES[pick % len(NODES)]
        if node in self.model.alive:
            self.kv.expire(self.model.alive[node].lease)
            self.model.node_lost(node)

    def user_writes(self, pick: int) -> None:
        """A user takes the writer, and commits or gives it back."""
        workspace, commit = WORKSPACES[pick % len(WORKSPACES)], pick % 3
        lease = done(self.kv.grant(10))
        free = not self.model.writer(workspace)
        taken = self.attempt(lambda: self.tx.acquire_writer(TENANT, workspace, self.op(), lease), free)
        if taken is None:
            return
        view = done(self.tx.get_workspace(TENANT, workspace))
        assert view is not None
        if commit:
            new = SnapshotPointer(id=f"snap-{self.op()}", manifest="m")
            after = WorkspaceRecord(
                name=workspace,
                created=1.0,
                updated=2.0,
                op_id=self.op(),
                head=new,
                generation=view.record.generation + 1,
            )
            done(self.tx.commit_workspace(TENANT, view, after, new, taken))
            self.model.commit(workspace, new.id)
        else:
            done(self.tx.release_writer(TENANT, workspace, taken))

    # -- after every step --

    @invariant()
    def the_store_is_as_the_rules_say(self) -> None:
        entries = {entry.key: entry for entry in done(self.kv.range("")).entries}
        records = {}
        for name, task in self.model.tasks.items():
            if task.archived:
                self.nothing_is_left_of(name, entries)
                continue
            entry = entries[keys.task(TENANT, name)]
            record = decode(entry.value, TaskRecord)
            records[name] = record
            versions = self.versions[name]
            if not versions or versions[-1].mod_revision != entry.mod_revision:
                assert not (versions and versions[-1].record.state.ended), "an ended task changed"
                versions.append(Versioned(record, entry.create_revision, entry.mod_revision))
            self.record_is_as_modeled(record, task)
            if task.state.ended:
                assert entry.mod_revision == task.ended_at
            assert task.commits == (record.state is TaskState.SUCCEEDED and bool(task.workspace))
        self.waiting_keys_are_those_of_queued_tasks(list(entries), records)
        self.inputs_have_their_numbers(entries, records)
        self.attempt_keys_are_those_of_running_tasks(entries, records)
        self.writers_and_heads_are_as_modeled(entries)

    def record_is_as_modeled(self, record: TaskRecord, task: ModelTask) -> None:
        assert (record.state, record.attempt, record.uid, record.node, record.cancel_requested) == (
            task.state,
            task.attempt,
            task.uid,
            task.node,
            task.cancel,
        )
        assert bool(record.due) is task.delayed
        assert record.attempt - record.given_back <= record.plan.max_attempts
        assert (record.checkpoint.id if record.checkpoint else "") == task.checkpoint
        assert (record.given_back, record.checkpoint_wanted, record.checkpoint_served) == (
            task.given_back,
            task.wanted,
            task.served,
        )
        assert (record.parked, record.inputs, record.inputs_done, record.later, record.closing) == (
            task.parked,
            task.inputs,
            task.done,
            task.later,
            task.closing,
        )
        assert record.inputs_done <= record.inputs
        assert record.result == task.words
        assert not (record.parked and record.asks), "parked with something to do"
        assert [attempt.number for attempt in record.attempts] == list(range(1, record.attempt + 1))
        running = [attempt for attempt in record.attempts if attempt.state is AttemptState.RUNNING]
        assert len(running) == (record.state is TaskState.RUNNING)
        assert all(attempt.resumed is task.resumed for attempt in running)

    def nothing_is_left_of(self, name: str, entries: dict[str, Entry]) -> None:
        """Of an archived task, but the key of its request, on a lease."""
        assert not [key for key in entries if name in keys.parts(key)]
        for key, entry in entries.items():
            if key.startswith(keys.REQUESTS) and decode(entry.value, RequestRecord).task == name:
                assert entry.lease == self.request_lease

    def waiting_keys_are_those_of_queued_tasks(self, stored: list[str], records: dict[str, TaskRecord]) -> None:
        waiting = [key for key in stored if key.startswith((keys.QUEUE, keys.DELAYED))]
        expected = [waiting_key(record) for record in records.values() if record.state is TaskState.QUEUED]
        assert sorted(waiting) == sorted(expected)

    def inputs_have_their_numbers(self, entries: dict[str, Entry], records: dict[str, TaskRecord]) -> None:
        """Every input that was accepted is there, and those that are due are numbered without gaps."""
        found: dict[str, list[int]] = {name: [] for name in records}
        for key, entry in entries.items():
            if key.startswith(keys.INPUTS):
                record = decode(entry.value, InputRecord)
                if not record.end:
                    found[keys.parts(key)[2]].append(record.number)
        for name, task in records.items():
            assert sorted(found[name]) == [0] * task.later + list(range(1, task.inputs + 1))

    def attempt_keys_are_those_of_running_tasks(
        self, entries: dict[str, Entry], records: dict[str, TaskRecord]
    ) -> None:
        held = {key: entry for key, entry in entries.items() if key.startswith(keys.ATTEMPTS)}
        for key, entry in held.items():
            _, node, _, name = keys.parts(key)
            attempt, record = decode(entry.value, AttemptRecord), records[name]
            assert record.state is TaskState.RUNNING
            assert (record.uid, record.node, record.attempt) == (attempt.uid, node, attempt.number)
            assert self.model.tasks[name].token == entry.create_revision
        assert len(held) == sum(task.held for task in self.model.tasks.values())

    def writers_and_heads_are_as_modeled(self, entries: dict[str, Entry]) -> None:
        for name in WORKSPACES:
            owner = self.model.writer(name)
            held = entries.get(keys.writer(TENANT, name))
            assert (decode(held.value, WriterRecord).holder if held else "") == owner
            entry = entries[keys.workspace(TENANT, name)]
            head = decode(entry.value, WorkspaceRecord).head
            assert (head.id if head else "") == self.model.heads[name]
            prefix = keys.snapshot(TENANT, name, "")
            assert {key[len(prefix) :] for key in entries if key.startswith(prefix)} == self.model.snapshots[name]
            views = self.workspace_views[name]
            if not views or views[-1] != entry:
                views.append(entry)

    # -- inside --

    window = 4
    """Rules pick among so many of the latest tasks and attempts, so that their steps meet."""

    def some(self, fits: Callable[[ModelTask], bool]) -> bool:
        return any(map(fits, self.model.tasks.values()))

    def op(self) -> str:
        return f"op-{next(self.ids)}"

    def see_node(self, node: str) -> None:
        entry = done(self.kv.get(keys.node(node)))
        assert entry is not None
        self.model.alive[node] = entry
        self.node_views[node].append(entry)

    def view(
        self, pick: int, behind: int, fits: Callable[[ModelTask], bool]
    ) -> tuple[str, Versioned[TaskRecord], bool]:
        """A task, mostly one that `fits`; a version of it that somebody may hold; whether that is the present one."""
        fitting = [name for name, task in self.model.tasks.items() if fits(task) and self.only in ("", name)]
        among = fitting if fitting and pick % ODD else list(self.versions)
        name = among[-1 - pick % min(len(among), self.window)]
        versions = self.versions[name]
        behind = min(behind, len(versions) - 1)
        return name, versions[-1 - behind], behind == 0

    def token(self, pick: int) -> tuple[str, Token, Versioned[TaskRecord]]:
        """An attempt that began once; mostly one that is still held, otherwise a zombie's: of one whose key is gone
        and whose task does not say so yet, or of any."""
        mine = [begun for begun in self.tokens if self.only in ("", begun[0])]
        held = [begun for begun in mine if self.holds(self.model.tasks[begun[0]], begun[1])]
        fenced = [
            begun for begun in mine if self.model.tasks[begun[0]].token == begun[1].revision and begun not in held
        ]
        among = (held if pick % ODD else fenced if pick % 2 else []) or self.tokens
        return among[-1 - pick % min(len(among), self.window)]

    def workspace_view(self, workspace: str, behind: int) -> Entry | None:
        views = self.workspace_views.get(workspace)
        return views[-1 - min(behind, len(views) - 1)] if views else None

    def term_of(self, leader: int) -> int:
        return self.terms[-1 - min(leader, len(self.terms) - 1)]

    def leads(self, leader: int) -> bool:
        return self.term_of(leader) == self.model.term

    def guard(self, leader: int) -> CreateIs:
        return CreateIs(LEADER_KEY, self.term_of(leader))

    @staticmethod
    def holds(task: ModelTask, token: Token) -> bool:
        """The token is that of the task's present attempt, and its key is there."""
        return task.state is TaskState.RUNNING and task.held and task.token == token.revision

    def attempt(self, call: Callable[[], Coroutine[Any, Any, T]], allowed: bool, fault: str = "") -> T | None:
        """Make the call; it must succeed exactly when it is allowed. None when it changed nothing."""
        if fault:
            self.kv.fail_next("txn", applied=fault == "answer lost")
        try:
            answer = done(call())
        except UnavailableError:
            assert fault == "not sent" or (fault and not allowed), "what was done was not read back"
            return None
        except CloudClawError:
            if allowed:
                raise
            return None
        finally:
            self.kv.heal()
        assert allowed, "let through, but not allowed"
        return answer
