"""The lease protocol, driven at random against a model: stale leaders, zombies, lost answers and all.

Every rule says beforehand whether the protocol must let it through; what it then does is compared with the model,
and the invariants of design §5 are read off the store itself after every step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Coroutine
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from cloudclaw.coordination import life
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    Mode,
    Plan,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    WorkspaceRecord,
    decode,
)
from cloudclaw.coordination.transactions import Token, Versioned
from tests.unit.coordination.conversation_rules import ConversationRules
from tests.unit.coordination.lease_machine import TENANT, faults, mostly_now, picks
from tests.unit.coordination.lease_model import NODES, WORKSPACES, ModelTask, done


class LeaseProtocol(ConversationRules):
    """See the module."""

    @initialize()
    def start(self) -> None:
        for name in WORKSPACES:
            record = WorkspaceRecord(name=name, created=1.0, updated=1.0, op_id=self.op())
            done(self.tx.create_workspace(TENANT, record))
        self.elect()
        for node in NODES:
            self.node_returns(NODES.index(node))
            self.node_touches(NODES.index(node))
        for interactive in (False, True):
            self.submit(WORKSPACES[0], 3, "", "", interactive, "")

    @rule(
        event=st.sampled_from(["elect", "node_returns", "node_touches", "node_is_lost", "node_is_lost", "user_writes"]),
        pick=picks,
    )
    def world(self, event: str, pick: int) -> None:
        if event == "elect":
            self.elect()
        else:
            {
                "node_returns": self.node_returns,
                "node_touches": self.node_touches,
                "node_is_lost": self.node_is_lost,
                "user_writes": self.user_writes,
            }[event](pick)

    # -- the protocol --

    @rule(
        workspace=st.sampled_from(["", *WORKSPACES, *WORKSPACES]),
        max_attempts=st.integers(1, 3),
        request=st.sampled_from(["", "", "r1", "r2"]),
        digest=st.sampled_from(["d1", "d1", "d2"]),
        interactive=st.booleans(),
        fault=faults,
    )
    def submit(
        self, workspace: str, max_attempts: int, request: str, digest: str, interactive: bool, fault: str
    ) -> None:
        plan = Plan(
            workspace=workspace,
            mode=Mode.EXCLUSIVE if workspace else Mode.EPHEMERAL,
            max_attempts=max_attempts,
            interactive=interactive,
            idle_timeout=60.0,
        )
        name = f"task-{next(self.ids)}"
        record = life.queued(tenant=TENANT, task=name, plan=plan, now=self.clock.now, op_id=self.op(), request=request)
        earlier = self.requests.get(request) if request else None
        allowed = earlier is None or (earlier[1] == digest and not self.model.tasks[earlier[0]].archived)
        answer = self.attempt(
            lambda: self.tx.submit(record, b"spec", request_id=request, digest=digest), allowed, fault
        )
        if answer is None:
            return
        assert answer.created is (earlier is None)
        assert answer.task.record.task == (earlier[0] if earlier else name)
        if answer.created:
            self.model.tasks[name] = ModelTask(workspace, max_attempts, interactive=interactive)
            self.versions[name] = []
            if request:
                self.requests[request] = (name, digest)

    @precondition(lambda self: self.some(lambda task: task.state is TaskState.QUEUED and not task.delayed))
    @rule(pick=picks, behind=mostly_now, leader=mostly_now, node=picks, behind_workspace=mostly_now, fault=faults)
    def claim(self, pick: int, behind: int, leader: int, node: int, behind_workspace: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: task.state is TaskState.QUEUED and not task.delayed)
        task = self.model.tasks[name]
        where = NODES[node % len(NODES)]
        seen = self.node_views[where][-1]
        workspace = self.workspace_view(task.workspace, behind_workspace)
        allowed = (
            now
            and task.state is TaskState.QUEUED
            and not task.delayed
            and self.leads(leader)
            and where in self.model.alive
            and (
                not task.workspace
                or task.owns_writer
                or (not self.model.writer(task.workspace) and workspace is self.workspace_views[task.workspace][-1])
            )
        )
        uid = f"uid-{next(self.ids)}"

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            base = decode(workspace.value, WorkspaceRecord).head if workspace is not None else None
            claimed = life.claimed(view.record, where, uid, base, self.clock.now, self.op())
            return self.tx.claim(self.guard(leader), view, claimed, seen, workspace=workspace)

        answer = self.attempt(call, allowed, fault)
        if answer is not None:
            token = Token(where, TENANT, name, answer.mod_revision)
            assert done(self.tx.token_valid(token, uid))
            assert token.revision > self.model.highest_token
            self.model.highest_token = token.revision
            self.tokens.append((name, token, answer))
            task.claimed(where, uid, token.revision)

    @precondition(lambda self: self.tokens)
    @rule(
        pick=picks,
        behind=mostly_now,
        as_claimed=st.booleans(),
        request=st.integers(0, 3),
        inputs=st.integers(0, 3),
        answers=st.booleans(),
        fault=faults,
    )
    def checkpoint(
        self, pick: int, behind: int, as_claimed: bool, request: int, inputs: int, answers: bool, fault: str
    ) -> None:
        """A holder records a checkpoint, zombies included; it may answer a request, even one nobody made, contain
        inputs, even some that nobody sent, and bring an answer."""
        name, token, claimed = self.token(pick)
        task = self.model.tasks[name]
        view = claimed if as_claimed else self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        new = SnapshotPointer(id=f"snap-{self.op()}", manifest="m")
        allowed = self.holds(task, token) and view.mod_revision == self.versions[name][-1].mod_revision

        said = f"with {new.id}" if answers else ""

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = life.checkpointed(
                view.record, self.clock.now, new, op_id=self.op(), request=request, inputs=inputs, result=said
            )
            return self.tx.checkpoint(token, view, after, new)

        if self.attempt(call, allowed, fault) is not None:
            self.model.checkpointed(task, new.id)
            task.answered(request)
            task.contains(inputs)
            task.words = said or task.words

    @precondition(lambda self: self.some(lambda task: task.state is TaskState.RUNNING))
    @rule(pick=picks, behind=mostly_now, fault=faults)
    def want_checkpoint(self, pick: int, behind: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: task.state is TaskState.RUNNING)
        task = self.model.tasks[name]

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = life.checkpoint_wanted(view.record, self.clock.now, op_id=self.op())
            return self.tx.want_checkpoint(view, after)

        if self.attempt(call, now and task.state is TaskState.RUNNING, fault) is not None:
            task.wanted += 1

    @precondition(lambda self: self.some(lambda task: task.served < task.wanted))
    @rule(pick=picks, behind=mostly_now, request=st.integers(1, 3), fault=faults)
    def refuse_checkpoint(self, pick: int, behind: int, request: int, fault: str) -> None:
        name, token, _ = self.token(pick)
        task = self.model.tasks[name]
        view = self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        if view.record.checkpoint_served >= min(request, view.record.checkpoint_wanted):
            return  # answered before: nothing is to be written

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = life.checkpoint_refused(view.record, self.clock.now, "no", op_id=self.op(), request=request)
            return self.tx.serve_checkpoint(token, view, after)

        allowed = self.holds(task, token) and view is self.versions[name][-1]
        if self.attempt(call, allowed, fault) is not None:
            task.answered(request)

    @precondition(lambda self: self.tokens)
    @rule(
        pick=picks,
        behind=mostly_now,
        as_claimed=st.booleans(),
        how=st.sampled_from(["success", "success", "failure", "retryable", "canceled", "drained", "drained"]),
        fault=faults,
    )
    def report(self, pick: int, behind: int, as_claimed: bool, how: str, fault: str) -> None:
        """A holder reports its end, zombies included: any token that ever was, any view it may have had."""
        name, token, claimed = self.token(pick)
        task = self.model.tasks[name]
        view = claimed if as_claimed else self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        allowed = self.holds(task, token) and view.mod_revision == self.versions[name][-1].mod_revision
        state = {"success": AttemptState.SUCCEEDED, "canceled": AttemptState.CANCELED}.get(how, AttemptState.FAILED)
        new = SnapshotPointer(id=f"snap-{self.op()}", manifest="m")

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = life.reported(
                view.record,
                self.clock.now,
                state,
                EndReason.DRAINED if how == "drained" else EndReason.NONZERO_EXIT,
                op_id=self.op(),
                retryable=how == "retryable",
                token=token.revision,
            )
            moves = after.state is TaskState.SUCCEEDED and view.record.plan.writes
            return self.tx.finish(token, view, after, snapshot=new if moves else None, move_head=moves)

        answer = self.attempt(call, allowed, fault)
        if answer is None:
            return
        if how == "success" and not task.cancel:
            task.left(TaskState.SUCCEEDED, revision=answer.mod_revision)
            self.model.checkpointed(task, "")
            if task.workspace:
                task.commits += 1
                self.model.commit(task.workspace, new.id)
        elif how == "drained":
            task.drained(answer.mod_revision)
        else:
            task.failed(answer.mod_revision, lost=False, retry=how in ("retryable", "canceled"))

    @precondition(lambda self: self.some(lambda task: task.state is TaskState.RUNNING))
    @rule(pick=picks, behind=mostly_now, leader=mostly_now, fault=faults)
    def expire(self, pick: int, behind: int, leader: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: task.state is TaskState.RUNNING and not task.held)
        task = self.model.tasks[name]
        allowed = now and task.state is TaskState.RUNNING and not task.held and self.leads(leader)
        answer = self.attempt(
            lambda: self.tx.expire(self.guard(leader), view, life.lost(view.record, self.clock.now, op_id=self.op())),
            allowed,
            fault,
        )
        if answer is not None:
            task.failed(answer.mod_revision, lost=True, retry=True)

    @precondition(lambda self: self.some(lambda task: task.held))
    @rule(pick=picks, behind=mostly_now, behind_node=st.integers(0, 1), leader=mostly_now, fault=faults)
    def requeue_early(self, pick: int, behind: int, behind_node: int, leader: int, fault: str) -> None:
        name, token, _ = self.token(pick)
        task = self.model.tasks[name]
        view = self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        seen = self.node_views[token.node]
        node = seen[-1 - min(behind_node, len(seen) - 1)]
        allowed = (
            self.holds(task, token)
            and view is self.versions[name][-1]
            and self.leads(leader)
            and self.model.alive.get(token.node) == node
        )
        answer = self.attempt(
            lambda: self.tx.requeue_early(
                self.guard(leader), token, view, life.lost(view.record, self.clock.now, op_id=self.op()), node
            ),
            allowed,
            fault,
        )
        if answer is not None:
            task.failed(answer.mod_revision, lost=True, retry=True)

    @precondition(lambda self: self.some(lambda task: task.held))
    @rule(pick=picks, behind=mostly_now, leader=mostly_now, fault=faults)
    def unclaim(self, pick: int, behind: int, leader: int, fault: str) -> None:
        name, token, _ = self.token(pick)
        task = self.model.tasks[name]
        view = self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        if view.record.attempt == 1 and view.record.checkpoint is not None:
            return  # it has begun: `life` refuses
        allowed = self.holds(task, token) and view is self.versions[name][-1] and self.leads(leader)
        answer = self.attempt(
            lambda: self.tx.unclaim(
                self.guard(leader), token, view, life.unclaimed(view.record, self.clock.now, op_id=self.op())
            ),
            allowed,
            fault,
        )
        if answer is not None:
            task.unclaimed(answer.mod_revision)

    @precondition(lambda self: self.some(lambda task: not task.state.ended))
    @rule(pick=picks, behind=mostly_now, fault=faults)
    def cancel(self, pick: int, behind: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: not task.state.ended)
        task = self.model.tasks[name]
        runs = view.record.state is TaskState.RUNNING
        if runs and view.record.cancel_requested:
            return

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            change = life.cancel_requested if runs else life.canceled
            return self.tx.cancel(view, change(view.record, self.clock.now, op_id=self.op()))

        answer = self.attempt(call, now and not task.state.ended, fault)
        if answer is not None and runs:
            task.cancel = True
        elif answer is not None:
            task.left(TaskState.CANCELED, revision=answer.mod_revision)

    @precondition(lambda self: self.some(lambda task: task.delayed))
    @rule(pick=picks, behind=mostly_now, leader=mostly_now, fault=faults)
    def due(self, pick: int, behind: int, leader: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: task.delayed and not task.parked)
        task = self.model.tasks[name]
        allowed = now and task.delayed and not task.parked and self.leads(leader)
        answer = self.attempt(
            lambda: self.tx.due(
                self.guard(leader), view, life.became_due(view.record, self.clock.now, op_id=self.op())
            ),
            allowed,
            fault,
        )
        if answer is not None:
            task.delayed = False

    @precondition(lambda self: self.some(lambda task: task.state.ended))
    @rule(pick=picks, count=st.integers(1, 3), again=st.booleans(), fault=faults)
    def archive(self, pick: int, count: int, again: bool, fault: str) -> None:
        """A few ended tasks, or once more some that are gone."""
        ended = [name for name, task in self.model.tasks.items() if task.state.ended and task.archived is again]
        names = {ended[(pick + n) % len(ended)] for n in range(count)} if ended else set()
        tasks = [self.versions[name][-1] for name in sorted(names)]
        answer = self.attempt(lambda: self.tx.archive(tasks, self.request_lease), True, fault if tasks else "")
        if answer is not None:
            assert answer == tasks
            for name in names:
                self.model.tasks[name].archived = True

    def teardown(self) -> None:
        """No task is lost: from wherever it was left, a healthy cluster brings every one to its end.

        Every other one is handed over once more and then fails until its attempts are used up.
        """
        if not self.terms or sys.exc_info()[0] is not None:
            return  # not begun, or failed already
        for index, node in enumerate(NODES):
            if node not in self.model.alive:
                self.node_returns(index)
        unfinished = [name for name, task in self.model.tasks.items() if not task.state.ended]
        for number, name in enumerate(sorted(unfinished, key=lambda name: not self.model.tasks[name].owns_writer)):
            task = self.model.tasks[name]
            reports = itertools.chain(["drained"], itertools.repeat("retryable"))
            for _ in range(4 * (task.max_attempts + 2)):
                self.the_store_is_as_the_rules_say()
                if task.state.ended:
                    break
                self.only = name
                if task.parked and task.later:
                    self.input_is_due(1, 0, 1, 0, "")
                elif task.parked:
                    self.idle(1, 0, 0, "")
                elif task.delayed:
                    self.due(1, 0, 0, "")
                elif task.state is TaskState.QUEUED:
                    self.claim(1, 0, 0, 0, 0, "")
                elif not task.held:
                    self.expire(1, 0, 0, "")
                else:
                    self.report(1, 0, False, next(reports) if number % 2 else "success", "")
            assert task.state.ended, (name, task)
            if task.state is TaskState.FAILED:
                assert task.attempt - task.given_back == task.max_attempts
        for _ in self.model.tasks:
            self.archive(0, 1, False, "")
            self.the_store_is_as_the_rules_say()
        assert all(task.archived for task in self.model.tasks.values())


TestLeaseProtocol = LeaseProtocol.TestCase
# Explaining a failure traces every line, which takes minutes here; the steps themselves say enough.
_PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)
TestLeaseProtocol.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, phases=_PHASES)
