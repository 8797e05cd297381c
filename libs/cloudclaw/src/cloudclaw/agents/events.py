"""The events of an agent's run, in words that all agents share."""

from __future__ import annotations

import enum

import msgspec

MAX_TEXT = 64 * 1024
"""Characters of one text in an event; the raw log has the rest."""


MOST = 2**60
"""Of what is counted: sums of lies stay numbers that a message can carry."""


class ErrorKind(enum.StrEnum):
    """What went wrong, as far as an agent or its model's endpoint told."""

    AUTHENTICATION = "authentication"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    CONTEXT = "context"
    NOT_FOUND = "not_found"
    UNREACHABLE = "unreachable"
    SERVER = "server"
    REJECTED = "rejected"
    """The endpoint refused the request itself: asking again is no use."""
    TURN_LIMIT = "turn_limit"
    BUDGET = "budget"
    PERMISSION = "permission"
    CONFIGURATION = "configuration"
    UNKNOWN = "unknown"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens and cost as the agent reported them; None for what it did not report."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost_usd: float | None = None
    turns: int | None = None

    def plus(self, other: Usage) -> Usage:
        """Both together: a field that neither reported stays None."""
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        return msgspec.convert(sums, Usage)


class Event(msgspec.Struct, frozen=True, tag=True):
    """One event. `offset` is not part of it: events follow each other as their bytes do."""


class Started(Event, frozen=True):
    """The agent's process knows its session. `resumed`: it continues an earlier one, and
    says so."""

    session_id: str
    agent: str = ""
    model: str = ""
    resumed: bool = False


class Message(Event, frozen=True):
    """A whole message. `role` is `user` or `assistant`; `message_id`, `number`: of a user's input, "" and 0 for the
    prompt."""

    role: str
    text: str
    message_id: str = ""
    number: int = 0


class ToolCall(Event, frozen=True):
    """The agent uses a tool; `arguments` is JSON."""

    call_id: str
    tool: str
    arguments: str


class ToolResult(Event, frozen=True):
    """What came of it."""

    call_id: str
    output: str
    is_error: bool = False


class UsageReport(Event, frozen=True):
    """Use of this attempt so far (not of this event alone)."""

    usage: Usage


class Turn(Event, frozen=True):
    """A turn is complete: the model answered, and every tool that it called has a result. What the agent keeps of the
    conversation is on its way to disk: the moment for a checkpoint. `number`: from 1 within the attempt."""

    number: int


class Retry(Event, frozen=True):
    """The agent repeats a request by itself."""

    kind: ErrorKind
    message: str
    attempt: int = 0


class Error(Event, frozen=True):
    """Something went wrong; whether it ends the run is told by `Finished` or the exit."""

    kind: ErrorKind
    message: str


class Finished(Event, frozen=True):
    """The agent has answered all that it was given. An agent that takes input waits now; others end.

    Attributes:
        ok: it did what it was asked, as far as it tells.
        error: what kept it from that.
        message: for people, when not ok.
        text: its final message.
    """

    ok: bool
    error: ErrorKind | None = None
    message: str = ""
    text: str = ""


class Note(Event, frozen=True):
    """A word from CloudClaw or from the agent about itself."""

    phase: str
    message: str


AnyEvent = Started | Message | ToolCall | ToolResult | UsageReport | Turn | Retry | Error | Finished | Note


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """`text`, or its beginning with a word about the rest."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters in the log)"


def _sum(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one + other, MOST)
