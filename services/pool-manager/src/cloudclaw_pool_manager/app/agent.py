"""What a node does beside an agent at work: gives it its messages, sees its turns, and parks its conversation.

A task that is no conversation ends with the agent's first answer. A conversation waits then: its slot is kept for
`park_after`, and after that the agent's input is closed, it ends, and the attempt ends PARKED, to be resumed elsewhere
when there is a message. An agent that takes no input while it runs ends after every answer, and is parked so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from cloudclaw.agents.events import AnyEvent, Message, ToolCall, ToolResult, Turn
from cloudclaw.agents.pacing import Pace
from cloudclaw.agents.parser import mark
from cloudclaw.agents.transcript import Transcript
from cloudclaw.clock import Clock
from cloudclaw.coordination.records import AttemptState, EndReason
from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.app.logs import ShippedLog
from cloudclaw_pool_manager.app.observer import Observer
from cloudclaw_pool_manager.app.settling import Files, Settling
from cloudclaw_pool_manager.domain.assignment import Assignment, Input
from cloudclaw_pool_manager.domain.attempt import KillReason, Launch
from cloudclaw_pool_manager.domain.models import ModelUse
from cloudclaw_pool_manager.domain.outcome import Checkpoint, Outcome, parked
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError
from cloudclaw_pool_manager.ports.gateway import LimitKind
from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.ports.state import NodeState

_log = structlog.get_logger()

ENDS_WITHIN: Final = 10.0
"""Seconds that an agent may take to end once its input was closed; then it is ended, and its answer counts."""
FULL_PAUSE: Final = 0.5
"""Seconds before a message is offered again to an agent that does not read."""
MARKED: Final = 16 * 1024
"""Characters of a message in the log."""
NOTED: Final = 1 << 20
"""Bytes of the log, at most, that tell what a launch gives to an agent: those of one frame."""
_KINDS: Final = {
    LimitKind.REQUESTS: KillReason.REQUEST_LIMIT,
    LimitKind.TOKENS: KillReason.TOKEN_LIMIT,
    LimitKind.SPEND: KillReason.SPEND_LIMIT,
}


class Host(Protocol):
    """The attempt, as its agent's companion sees it. Nothing here blocks."""

    def end(self, why: KillReason) -> None:
        """End the program."""
        ...

    def turned(self) -> None:
        """A turn is complete and written down: a good moment for a checkpoint, until it works again."""
        ...

    def works(self) -> None:
        """The next turn has begun."""
        ...

    def sick(self, slot: Slot, message: str) -> None:
        """A call to `slot` failed."""
        ...


class Agent:
    """The companion of one attempt. For a program that is no agent (`adapter` None) it has nothing to do.

    Args:
        files: the attempt's, in which it writes its turns down.

    Attributes:
        adapter: of its runtime.
        observer: follows its log; None before there is one.
        use: of models by this task, earlier attempts included, as the gateway told last; None when it never did.
        closing: no more messages come.
    """

    def __init__(
        self,
        host: Host,
        assignment: Assignment,
        adapter: AgentAdapter | None,
        clock: Clock,
        files: Files,
    ):
        self.observer: Observer | None = None
        self.use: ModelUse | None = None
        self.closing = assignment.closing
        self._host = host
        self._assignment = assignment
        self.adapter = adapter
        self._clock = clock
        self._pending = {given.number: given for given in assignment.inputs}
        self._told = assignment.inputs_done
        self._open = False
        self._idle_since: float | None = None
        self._closed_at: float | None = None
        self._retry_at = 0.0
        self._turns = 0
        self._call = ""
        self._settling = Settling(clock, files, host.turned)
        self._leaves = False
        self._wake = asyncio.Event()

    # -- what others see and say; nothing here blocks --

    @property
    def transcript(self) -> Transcript:
        """What its agent has said so far."""
        return self.observer.transcript if self.observer is not None else Transcript()

    @property
    def told(self) -> int:
        """Messages that the node has for it: all up to this number."""
        return max([self._told, self.transcript.told, *self._pending])

    @property
    def settled(self) -> bool:
        """There is nothing to do here for its conversation: what it goes on from holds all answers, and it was given
        nothing more. What comes meanwhile is better answered by the next attempt than by one that is told to go on."""
        given = self._assignment
        conversation = self.adapter is not None and given.conversation is not None
        return conversation and given.resumes and given.answered and not given.inputs

    @property
    def waits(self) -> bool:
        """It has answered, and waits for its user."""
        return self._assignment.conversation is not None and self._idle_since is not None

    @property
    def settling(self) -> bool:
        """A turn is complete, and not yet written down: what is taken of its files now lacks it."""
        return self._settling.pending

    def take(self, inputs: Sequence[Input], *, closing: bool) -> None:
        """Messages from the leader; those that it has already are dropped."""
        known = self.told
        for given in inputs:
            if given.number > known or given.number in self._pending:
                self._pending[given.number] = given
        self.closing = self.closing or closing
        self._wake.set()

    def tick(self) -> None:
        """Look at the clock."""
        now = self._clock.boottime()
        if self._closed_at is not None:
            if now >= self._closed_at + ENDS_WITHIN:
                self._host.end(KillReason.ANSWERED)
            return
        self._settling.tick()
        if self._parks_at() <= now or (self._pending and 0.0 < self._retry_at <= now):
            self._wake.set()

    def leave(self) -> None:
        """Its node is drained: a conversation that waits for its user is parked now. What was said to it meanwhile is
        answered elsewhere."""
        self._leaves = True
        self._wake.set()

    def counted(self, use: ModelUse) -> None:
        """The gateway tells what was used. One that was started anew may have forgotten some of it."""
        self.use = use.most(self.use or self._assignment.model_used)

    def limit(self, kind: LimitKind) -> None:
        """The gateway refuses further calls."""
        self._host.end(_KINDS[kind])

    # -- its program --

    def note(self) -> bytes:
        """The marks that tell the log what its launch gives to the agent."""
        given = self._assignment
        room = NOTED // (len(given.inputs) + 1)
        if not given.session_in_base:
            note = _shown("prompt", given.prompt, room)
        else:
            note = b"" if given.inputs else mark("resumed", message="goes on from its last checkpoint")
        return note + b"".join(_marked(one, room) for one in given.inputs)

    def started(self, launch: Launch) -> None:
        """It was started so, with the messages of its assignment."""
        self._open = launch.keep_stdin
        self._given()

    def watch(self, log: ShippedLog, source: Slot, state: NodeState, pace: Pace) -> None:
        """Begin to follow its log."""
        if self.adapter is not None:
            uid, tenant = self._assignment.attempt.uid, self._assignment.attempt.tenant
            log.reader = self.observer = Observer(uid, tenant, source, self.adapter.parser(), state, self._heard, pace)

    def grown(self, log_end: int) -> None:
        """Its log did."""
        if self.observer is not None:
            self.observer.grown(log_end)

    async def adopted(self, log_start: int) -> None:
        """An earlier process started it, with the messages of its assignment; what that one was about to say to it
        after these, the leader says again, and the supervisor knows what it was told."""
        if self.observer is not None:
            await self.observer.recall(log_start)
        self._given()
        self._turns = self.transcript.turns
        self._open = True
        if self.transcript.answered:  # nothing more may be heard of it, and its checkpoint may have died half-way
            self._idle_since = self._clock.boottime()
            self._turned()
        self._wake.set()

    def accompany(self, slot: Slot) -> list[asyncio.Future[None]]:
        """What is at work beside its program, to be cancelled when that has ended and `heard_out` is over."""
        if self.observer is None:
            return []
        work = (self.observer.run(), self._attend(slot), self._settling.run())
        return [asyncio.ensure_future(one) for one in work]

    async def heard_out(self, log_end: int) -> None:
        """Its program has ended: wait until everything that it said was heard."""
        if self.observer is not None:
            self.observer.ended(log_end)
            await self.observer.complete.wait()

    async def _attend(self, slot: Slot) -> None:
        while True:
            try:
                await self._step(slot)
            except UnavailableError as error:
                _log.info("the agent takes no message now", error=error.message)
                self._retry_at = self._clock.boottime() + FULL_PAUSE
            except (SlotFailedError, FencedIncarnationError) as error:
                self._host.sick(slot, str(error))
            self._wake.clear()
            await self._wake.wait()

    async def _step(self, slot: Slot) -> None:
        if self._closed_at is not None:
            return
        if not self.transcript.answered or not self._all_heard:
            return
        if not self._open:
            self._closed_at = self._clock.boottime()  # it ends by itself, or is ended
            return
        if self._pending and not self._leaves:  # one at a time: an answer is the answer to all that came before
            given = self._pending[min(self._pending)]
            data = self.adapter.encode_input(given) if self.adapter is not None else None
            if data is None:  # it is answered in an attempt of its own
                self._open, self._closed_at = False, self._clock.boottime()
                return
            if await self._say(slot, f"input-{given.number}", note=_marked(given), data=data):
                self._told = max(self._told, given.number)
                self._pending.pop(given.number, None)
                self._idle_since = None
            return
        if self._assignment.conversation is None or self.closing or self._parks_at() <= self._clock.boottime():
            self._closed_at = self._clock.boottime()
            await self._say(slot, "close", close=True)

    async def _say(self, slot: Slot, name: str, *, note: bytes = b"", data: bytes = b"", close: bool = False) -> bool:
        """False when it takes no more."""
        try:
            await slot.input(self._assignment.attempt.uid, name, note=note, data=data, close=close)
        except PreconditionError as error:
            if not close:
                _log.info("the agent takes no more messages", error=error.message)
            self._open = False
            return False
        except InvalidArgumentError as error:
            _log.error("a message that no agent can be given is dropped", message=name, error=error.message)
        return True

    @property
    def _all_heard(self) -> bool:
        """Its log shows whatever it was told; of what its session held before, nothing is told again."""
        return max(self.transcript.told, self._assignment.inputs_done) >= self._told

    def _given(self) -> None:
        for one in self._assignment.inputs:
            self._told = max(self._told, one.number)
            self._pending.pop(one.number, None)

    def _heard(self, events: Sequence[AnyEvent]) -> None:
        seen, given = self.transcript, self._assignment
        if seen.answered and self._idle_since is None:
            self._idle_since = self._clock.boottime()
        elif not seen.answered:
            self._idle_since = None
            if not self._open:
                self._closed_at = None  # it was not its last word
        for event in events:
            if isinstance(event, ToolResult):
                self._call = event.call_id
            elif isinstance(event, Turn):
                self._turns = event.number
                self._turned()
            elif _works(event):
                self._settling.moved_on()
                self._host.works()
                if given.max_turns and self._turns >= given.max_turns:
                    self._host.end(KillReason.TURN_LIMIT)  # one turn more has begun
        self._wake.set()

    def _turned(self) -> None:
        """Its turn is complete; what it keeps of it reaches its files a little later."""
        if self.adapter is not None:
            trace = self.adapter.trace(self.transcript.session_id, self._call)
            self._call = ""  # an answer without calls is a turn as well
            self._settling.turned(self.adapter.settles, trace)

    def _parks_at(self) -> float:
        """Boot time at which its conversation is parked, when nothing happens before."""
        conversation = self._assignment.conversation
        if conversation is None or self._idle_since is None:
            return float("inf")
        return self._idle_since + (0.0 if self._leaves else conversation.park_after)

    # -- what it leaves --

    def closed(self, *, prepared: float) -> Outcome:
        """A conversation that is `settled`: what it left is what there is."""
        now, message = self._clock.wall(), "the conversation was closed"
        outcome = Outcome(AttemptState.SUCCEEDED, EndReason.COMPLETED, message, session_id=self._assignment.session_id)
        return self.concluded(replace(outcome, prepared=prepared, started=now, ended=now))

    def concluded(self, outcome: Outcome) -> Outcome:
        """The outcome with what the agent told; a conversation that may go on is parked."""
        if self.adapter is None:
            return outcome
        seen = self.transcript
        outcome = replace(
            outcome,
            final_message=outcome.final_message or seen.last_text,
            session_id=outcome.session_id or seen.session_id,
            usage=seen.usage,
            model_use=self._own_use(),
            inputs=max(self._assignment.inputs_done, seen.inputs),
        )
        over = self.closing and not self._pending and outcome.inputs >= self._told
        if outcome.state is AttemptState.SUCCEEDED and self._assignment.conversation is not None and not over:
            return parked(outcome)
        return outcome

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with what its files hold of the conversation, as far as was seen before they stood still."""
        if self.adapter is None:
            return checkpoint
        seen, given = self.transcript, self._assignment
        begun = seen.session_id if seen.begun else given.session_id if given.session_in_base else ""
        answered = self._all_answered()
        return replace(
            checkpoint,
            session_id=begun,
            inputs=max(given.inputs_done, seen.inputs),
            answered=answered,
            # The next attempt finds nothing to do then, and says nothing.
            final_message=seen.last_text if answered and given.conversation is not None else "",
            usage=seen.usage,
            model_use=self._own_use(),
        )

    def _all_answered(self) -> bool:
        seen = self.transcript
        return seen.answered and seen.finished is not None and seen.finished.ok and self._all_heard

    def _own_use(self) -> ModelUse | None:
        return None if self.use is None else self.use.since(self._assignment.model_used)


def _works(event: AnyEvent) -> bool:
    return isinstance(event, ToolCall) or (isinstance(event, Message) and event.role == "assistant")


def _marked(given: Input, room: int = NOTED) -> bytes:
    return _shown("input", given.text, room, id=given.message_id, number=given.number)


def _shown(event: str, text: str, room: int, **fields: str | int) -> bytes:
    """The mark with the beginning of `text`, in `room` bytes: JSON may need twelve for one character."""
    text = text[:MARKED]
    while len(line := mark(event, **fields, text=text)) > room and text:
        text = text[: min(len(text) - 1, len(text) * room // len(line))]
    return line
