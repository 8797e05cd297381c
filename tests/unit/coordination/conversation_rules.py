"""What happens to conversations in the world of the lease protocol."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from msgspec.structs import replace

from cloudclaw.coordination import conversation, keys
from cloudclaw.coordination.records import InputRecord, SnapshotPointer, TaskRecord, decode
from cloudclaw.coordination.transactions import Versioned
from tests.unit.coordination.lease_machine import TENANT, LeaseMachine, faults, mostly_now, picks
from tests.unit.coordination.lease_model import done


class ConversationRules(LeaseMachine):
    """Users say something, attempts park, parked tasks wake."""

    @precondition(lambda self: self.some(lambda task: task.takes_input))
    @rule(
        pick=picks,
        behind=mostly_now,
        how=st.sampled_from(["now", "now", "later", "end"]),
        again=st.booleans(),
        fault=faults,
    )
    def send(self, pick: int, behind: int, how: str, again: bool, fault: str) -> None:
        """A user says something, on whatever replica; sometimes under an id that was used before."""
        name, view, now = self.view(pick, behind, lambda task: task.takes_input)
        task = self.model.tasks[name]
        if view.record.state.ended:
            return  # `conversation` refuses
        message = "m-again" if again else f"m-{next(self.ids)}"
        known = done(self.tx.get_input(TENANT, name, message)) is not None
        due = self.clock.now + 5.0 if how == "later" else 0.0

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = conversation.sent(
                view.record, self.clock.now, op_id=self.op(), text=how != "end", end=how == "end", due=due
            )
            number = after.inputs if how == "now" else 0
            sent = InputRecord(op_id=after.op_id, digest="d", created=1.0, number=number, due=due, end=how == "end")
            return self.tx.send_input(view, after, message, sent)

        if self.attempt(call, now and task.takes_input and not known, fault) is not None:
            task.sent(how)

    @precondition(lambda self: self.some(lambda task: task.interactive and task.held))
    @rule(pick=picks, behind=mostly_now, as_claimed=st.booleans(), inputs=st.integers(0, 4), fault=faults)
    def park(self, pick: int, behind: int, as_claimed: bool, inputs: int, fault: str) -> None:
        """A holder waits for input, zombies included."""
        name, token, claimed = self.token(pick)
        task = self.model.tasks[name]
        view = claimed if as_claimed else self.versions[name][-1 - min(behind, len(self.versions[name]) - 1)]
        new = SnapshotPointer(id=f"snap-{self.op()}", manifest="m")
        allowed = (
            self.holds(task, token)
            and view.mod_revision == self.versions[name][-1].mod_revision
            and task.interactive
            and not task.cancel
        )

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            said = f"with {new.id}"
            after = conversation.parked(view.record, self.clock.now, new, op_id=self.op(), inputs=inputs, result=said)
            return self.tx.park(token, view, after, new)

        answer = self.attempt(call, allowed, fault)
        if answer is not None:
            task.parks(inputs, answer.mod_revision)
            task.words = f"with {new.id}"
            self.model.checkpointed(task, new.id)

    @precondition(lambda self: self.some(lambda task: task.later and not task.state.ended))
    @rule(pick=picks, behind=mostly_now, count=st.integers(1, 2), leader=mostly_now, fault=faults)
    def input_is_due(self, pick: int, behind: int, count: int, leader: int, fault: str) -> None:
        name, view, now = self.view(pick, behind, lambda task: task.later > 0 and not task.state.ended)
        task = self.model.tasks[name]
        prefix = keys.input_(TENANT, name, "")
        waiting = [
            (entry.key[len(prefix) :], Versioned(record, entry.create_revision, entry.mod_revision))
            for entry in done(self.kv.range(prefix)).entries
            if (record := decode(entry.value, InputRecord)).waits
        ][:count]
        if len(waiting) < min(count, view.record.later) or view.record.state.ended or not waiting:
            return
        allowed = now and len(waiting) <= task.later and not task.state.ended and self.leads(leader)

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = conversation.came_due(view.record, self.clock.now, len(waiting), 9.0, op_id=self.op())
            inputs = [
                (message, old, replace(old.record, number=view.record.inputs + place))
                for place, (message, old) in enumerate(waiting, 1)
            ]
            return self.tx.came_due(self.guard(leader), view, after, inputs)

        if self.attempt(call, allowed, fault) is not None:
            task.inputs += len(waiting)
            task.later -= len(waiting)
            task.woken()

    @precondition(lambda self: self.some(lambda task: task.parked))
    @rule(pick=picks, behind=mostly_now, leader=mostly_now, fault=faults)
    def idle(self, pick: int, behind: int, leader: int, fault: str) -> None:
        """A parked task has waited for too long."""
        name, view, now = self.view(pick, behind, lambda task: task.parked and not task.later)
        task = self.model.tasks[name]
        allowed = now and task.parked and not task.later and self.leads(leader)

        def call() -> Coroutine[Any, Any, Versioned[TaskRecord]]:
            after = conversation.idled(view.record, self.clock.now, op_id=self.op())
            return self.tx.idled(self.guard(leader), view, after)

        if self.attempt(call, allowed, fault) is not None:
            task.closing = True
            task.woken()
