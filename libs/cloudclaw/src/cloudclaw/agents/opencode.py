"""OpenCode: what `opencode run --format json` prints, and our driver of `opencode serve`, which speaks like it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from cloudclaw.agents.events import (
    AnyEvent,
    Error,
    ErrorKind,
    Message,
    Note,
    Retry,
    Started,
    ToolCall,
    ToolResult,
    Usage,
    UsageReport,
    cut,
)
from cloudclaw.agents.kinds import kind_of
from cloudclaw.agents.parser import Memory
from cloudclaw.agents.reading import AgentMemory, AgentParser, as_json, as_text, brief, count, money

_NAMES: Final = {
    "ProviderAuthError": ErrorKind.AUTHENTICATION,
    "ContextOverflowError": ErrorKind.CONTEXT,
    "SessionNotFound": ErrorKind.CONFIGURATION,
    "BadRequest": ErrorKind.CONFIGURATION,
    "ConfigInvalidError": ErrorKind.CONFIGURATION,
    "ConfigJsonError": ErrorKind.CONFIGURATION,
}
_DENIED: Final = re.compile(r"rule which prevents you from using this|rejected permission", re.IGNORECASE)


class OpenCodeMemory(AgentMemory):
    """
    Attributes:
        driven: our driver speaks, which tells when an answer is complete.
        reason: why the last step ended.
        used: so far.
        denied: tools that it was not allowed.
    """

    driven: bool = False
    reason: str = ""
    used: Usage = Usage()
    denied: str = ""


class OpenCodeParser(AgentParser):
    """Lines `{type, sessionID, part}`: `step_start`, `tool_use`, `text`, `step_finish`, `error`; of the driver also
    `session`, `tool_start`, `retry`, `denied`, `compacted`, `aside` and `idle`.

    `run` has no last word: it ended well when the last step's reason is `stop`, and the exit code is 0.
    """

    memory_type: type[Memory] = OpenCodeMemory
    memory: OpenCodeMemory

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        session, kind = brief(line.get("sessionID") or ""), line["type"]
        if kind == "session":
            self.memory.driven, self.memory.session = True, session
            return [Started(session, "opencode", "", line.get("resumed") is True)]
        events: list[AnyEvent] = []
        if session and not self.memory.session and kind in ("step_start", "text", "tool_use", "step_finish", "error"):
            self.memory.session = session
            events.append(Started(session, "opencode"))
        mine = session in ("", self.memory.session)
        part = line.get("part")
        match kind:
            case "text" if mine and isinstance(part, Mapping) and str(part["text"]).strip():
                self.memory.text, self.memory.ended = cut(str(part["text"])), False
                events.append(Message("assistant", self.memory.text))
            case "tool_start" | "tool_use" if isinstance(part, Mapping):
                events += self._tool(part, mine=mine, over=kind == "tool_use")
            case "step_finish" | "aside" if isinstance(part, Mapping):
                events += self._step(part, mine=mine and kind == "step_finish")
            case "retry":
                events += self._retry(line)
            case "denied":
                self.memory.denied = brief(line.get("tool") or "a tool")
            case "compacted":
                events.append(Note("compacted", "the conversation was summed up to fit into the model's context"))
            case "error":
                events += self._error(line["error"])
            case "idle" if mine:
                events += self._idle()
        return events

    def on_end(self) -> list[AnyEvent]:
        if self.memory.driven or self.memory.ended or not self.memory.session:
            return super().on_end()
        return self._idle() if self.memory.trouble or self.memory.reason == "stop" else []

    def _tool(self, part: Mapping[str, Any], *, mine: bool, over: bool) -> list[AnyEvent]:
        call, state = brief(part["callID"]), part["state"]
        events: list[AnyEvent] = []
        if call not in self.memory.open_calls:
            self.opened(call)
            events.append(ToolCall(call, brief(part["tool"]), as_json(state.get("input", {}))))
        if over:
            self.closed(call)
            failed = state.get("status") == "error"
            output = as_text(state.get("error" if failed else "output"))
            if failed and _DENIED.search(output):
                self.memory.denied = brief(part["tool"])
            events.append(ToolResult(call, output, failed))
        return events

    def _step(self, part: Mapping[str, Any], *, mine: bool) -> list[AnyEvent]:
        tokens = part.get("tokens")
        tokens = tokens if isinstance(tokens, Mapping) else {}
        cache = tokens.get("cache")
        cache = cache if isinstance(cache, Mapping) else {}
        written = count(tokens.get("output"))
        step = Usage(
            input_tokens=count(tokens.get("input")),
            output_tokens=None if written is None else written + (count(tokens.get("reasoning")) or 0),
            cache_read_tokens=count(cache.get("read")),
            cache_write_tokens=count(cache.get("write")),
            cost_usd=money(part.get("cost")) or None,  # 0 is what it says when it knows no price
            turns=1 if mine else None,
        )
        self.memory.used = self.memory.used.plus(step)
        events: list[AnyEvent] = [UsageReport(self.memory.used)]
        if mine:
            self.memory.reason, self.memory.trouble = brief(part.get("reason") or ""), None
            events += self.turn()
        return events

    def _retry(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        message = cut(str(line.get("message") or "it asks the model again"), 2000)
        return [Retry(_again(message), message, count(line.get("attempt")) or 0)]

    def _error(self, error: Mapping[str, Any]) -> list[AnyEvent]:
        name, data = brief(error.get("name") or ""), error.get("data")
        data = data if isinstance(data, Mapping) else {}
        message = cut(str(data.get("message") or name or "an error without a word"), 2000)
        status = count(data.get("statusCode"))
        kind = _NAMES.get(name)
        if kind is None:
            kind = _again(message) if name == "Retries" else kind_of(status, message, str(data.get("responseBody", "")))
        self.memory.trouble, self.memory.reason = (kind.value, message), ""
        return [Error(kind, message)]

    def _idle(self) -> list[AnyEvent]:
        reason, trouble = self.memory.reason, self.memory.trouble
        self.memory.reason, self.memory.trouble, self.memory.ended = "", None, True
        denied, self.memory.denied = self.memory.denied, ""
        if trouble is not None:
            return self.failed(ErrorKind(trouble[0]), trouble[1])[1:]
        if denied:
            return self.failed(ErrorKind.PERMISSION, f"it was denied: {denied}", self.memory.text)
        if reason == "stop":
            return self.finished()
        return self.failed(ErrorKind.UNKNOWN, f"it stopped without an answer ({reason or 'no step was complete'})")


def _again(message: str) -> ErrorKind:
    """Of something after which it asks the model again: trouble at the other end, unless it says otherwise."""
    kind = kind_of(None, message)
    return ErrorKind.SERVER if kind is ErrorKind.UNKNOWN else kind
