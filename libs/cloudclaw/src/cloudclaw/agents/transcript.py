"""What the events of one attempt amount to so far."""

from __future__ import annotations

import msgspec

from cloudclaw.agents.events import (
    AnyEvent,
    Error,
    ErrorKind,
    Finished,
    Message,
    Retry,
    Started,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
    UsageReport,
)


class Transcript(msgspec.Struct):
    """Folded from events, one after the other; small, so that it can be remembered over a restart.

    Attributes:
        session_id: the agent's session, "" while unknown.
        begun: the model answered in this attempt, so the session holds what the agent was given first.
        inputs: inputs that the agent has begun to answer: all up to this number. The prompt is number 0.
        told: inputs that it was given: all up to this number.
        prompted: it was given its prompt.
        answered: it has answered everything that it was told; it waits now, or ends.
        turns: complete turns.
        calls, failed_calls: tools it used, and how many of these ended in an error.
        last_text: the last message of the assistant.
        finished: the last `Finished`.
        error: the last `Error`, or, when there was none, what the last `Retry` was about.
        usage: the last report; None when there was none.
    """

    session_id: str = ""
    begun: bool = False
    inputs: int = 0
    told: int = 0
    prompted: bool = False
    answered: bool = False
    turns: int = 0
    calls: int = 0
    failed_calls: int = 0
    last_text: str = ""
    finished: Finished | None = None
    error: Error | None = None
    usage: Usage | None = None

    def apply(self, event: AnyEvent) -> None:
        """Take the next event in."""
        match event:
            case Started(session_id=session):
                self.session_id = session or self.session_id
            case Message(role="user", number=number):
                self.prompted = True
                self.told = max(self.told, number)
                self.answered = False
            case Message(text=text):
                self.last_text = text or self.last_text
                self._answering()
            case ToolCall():
                self.calls += 1
                self._answering()
            case ToolResult(is_error=failed):
                self.failed_calls += failed
            case Turn(number=number):
                self.turns = max(self.turns, number)
            case UsageReport(usage=usage):
                self.usage = usage
            case Error():
                self.error = event
            case Retry(kind=kind, message=message):
                if self.error is None or self.error.kind is ErrorKind.UNKNOWN:
                    self.error = Error(kind, message)
            case Finished(text=text):
                self.finished = event
                self.last_text = text or self.last_text
                self.inputs = self.told if event.ok else self.inputs
                self.answered = True

    def _answering(self) -> None:
        self.begun = True
        self.inputs = self.told
        self.answered = False

    def dump(self) -> bytes:
        """For `load`."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def load(state: bytes) -> Transcript:
        """What `dump` gave. `ValueError` for other bytes."""
        try:
            return msgspec.msgpack.decode(state, type=Transcript)
        except msgspec.DecodeError as error:
            raise ValueError(f"no transcript: {error}") from error
