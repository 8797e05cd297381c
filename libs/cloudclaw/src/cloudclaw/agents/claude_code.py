"""Claude Code's `--output-format stream-json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloudclaw.agents.events import (
    MOST,
    AnyEvent,
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
from cloudclaw.agents.reading import AgentMemory, AgentParser, as_json, as_text, brief, count, few, money

_SYNTHETIC: Final = "<synthetic>"
"""The model of messages that the agent wrote itself, to say that a request failed."""
_SUBTYPES: Final = {"error_max_turns": ErrorKind.TURN_LIMIT, "error_max_budget_usd": ErrorKind.BUDGET}


class ClaudeMemory(AgentMemory):
    """
    Attributes:
        message: id of the message whose blocks come now; each block is a line of its own.
        counted: that message is a turn already.
        sums: of the results so far.
        asked: input tokens, those read from and written to a cache, of the messages since the last result.
    """

    message: str = ""
    counted: bool = False
    sums: Usage = Usage()
    asked: tuple[int, int, int] = (0, 0, 0)


class ClaudeCodeParser(AgentParser):
    """One object a line: `system/init`, `assistant`, `user` (results of tools), `system/api_retry`, `result`.

    A session that goes on has the earlier use of models in `modelUsage` and `total_cost_usd`;
    `model_usage_since_last_result` is this process's own.
    """

    memory_type: type[Memory] = ClaudeMemory
    memory: ClaudeMemory

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        match line["type"], line.get("subtype"):
            case "system", "init":
                return self._init(line)
            case "system", "api_retry":
                return self._retry(line)
            case "system", "compact_boundary":
                return [Note("compacted", "the conversation was summed up to fit into the model's context")]
            case "assistant", _:
                return self._assistant(line)
            case "user", _:
                return self._results(line)
            case "result", _:
                return self._result(line)
            case "control_response", _:
                return self._control(line["response"])
        return []

    def _init(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        session, model = brief(line["session_id"]), brief(line.get("model", ""))
        if session == self.memory.session:  # said again before every message that it takes
            return []
        self.memory.session, self.memory.model = session, model
        return [Started(session, brief(f"claude-code {line.get('claude_code_version', '')}").strip(), model)]

    def _retry(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        status, error = line.get("error_status"), brief(line.get("error", ""))
        status = status if isinstance(status, int) else None
        kind = kind_of(status, error)
        if status is None and kind is ErrorKind.UNKNOWN:
            kind = ErrorKind.UNREACHABLE
        return [Retry(kind, f"{error} ({status or 'no answer'})", count(line.get("attempt")) or 0)]

    def _assistant(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        message, below = line["message"], bool(line.get("parent_tool_use_id"))
        if message.get("model") == _SYNTHETIC:
            return []  # `result` says it again, and better
        events: list[AnyEvent] = []
        for block in few(message["content"]):
            match block:
                case {"type": "text", "text": str(text)} if text and not below:
                    self.memory.text, self.memory.ended = cut(text), False
                    events.append(Message("assistant", cut(text)))
                case {"type": "tool_use", "id": str(call), "name": str(tool)}:
                    call = brief(call)
                    if not below:
                        self.opened(call)
                    events.append(ToolCall(call, brief(tool), as_json(block.get("input", {}))))
        return [*events, *self._used(brief(message.get("id", "")), message.get("usage"), below=below)]

    def _used(self, message: str, usage: Any, *, below: bool) -> list[AnyEvent]:
        if not below and message != self.memory.message:
            self.memory.message, self.memory.counted = message, False
        elif not below or not isinstance(usage, Mapping):
            return []  # a further block of the same message repeats its usage
        if not isinstance(usage, Mapping):
            return []
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        new = [count(usage.get(name)) or 0 for name in names]
        old = self.memory.asked
        self.memory.asked = (min(old[0] + new[0], MOST), min(old[1] + new[1], MOST), min(old[2] + new[2], MOST))
        return [UsageReport(self._sum())]

    def _sum(self) -> Usage:
        """So far. What it writes is told by results only: a message's own count is that of its beginning."""
        asked, turns = self.memory.asked, self.memory.turns
        now = Usage(input_tokens=asked[0], cache_read_tokens=asked[1], cache_write_tokens=asked[2], turns=turns or None)
        return self.memory.sums.plus(now) if any(asked) or turns else self.memory.sums

    def _results(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        content = line["message"]["content"]
        if not isinstance(content, list):
            return []
        events: list[AnyEvent] = []
        complete = False
        for block in few(content):
            match block:
                case {"type": "tool_result", "tool_use_id": str(call)}:
                    call, failed = brief(call), block.get("is_error") is True
                    events.append(ToolResult(call, as_text(block.get("content")), failed))
                    complete = self.closed(call) or complete
        return [*events, *self._turned()] if complete else events

    def _turned(self) -> list[AnyEvent]:
        """A message may call one more tool when all that it called before have results: it stays the same turn."""
        if self.memory.counted:
            return []
        self.memory.counted = True
        return self.turn()

    def _result(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        good = line.get("subtype") == "success" and line.get("is_error") is False
        events: list[AnyEvent] = self._turned() if good and self.memory.message else []
        self.memory.message, self.memory.open_calls = "", []
        used = self._reported(line)
        self.memory.asked = (0, 0, 0)
        self.memory.sums = self.memory.sums.plus(used)
        if self.memory.sums != Usage():
            turns = self.memory.turns or None
            events.append(UsageReport(self.memory.sums.plus(Usage(turns=turns))))
        text = str(line.get("result") or "")
        if not good:
            return [*events, *self._bad(line, text)]
        denied = line.get("permission_denials")
        if isinstance(denied, list) and denied:
            tools = ", ".join(dict.fromkeys(brief(one.get("tool_name", "?")) for one in few(denied)))
            return [*events, *self.failed(ErrorKind.PERMISSION, f"it was denied: {tools}", text)]
        return [*events, *self.finished(text)]

    def _reported(self, line: Mapping[str, Any]) -> Usage:
        models = line.get("model_usage_since_last_result")
        if isinstance(models, Mapping):
            used = Usage()
            for one in few(models.values()):
                used = used.plus(
                    Usage(
                        input_tokens=count(one.get("inputTokens")),
                        output_tokens=count(one.get("outputTokens")),
                        cache_read_tokens=count(one.get("cacheReadInputTokens")),
                        cache_write_tokens=count(one.get("cacheCreationInputTokens")),
                        cost_usd=money(one.get("costUSD")),
                    )
                )
            return used
        usage = line.get("usage") or {}
        return Usage(
            input_tokens=count(usage.get("input_tokens")),
            output_tokens=count(usage.get("output_tokens")),
            cache_read_tokens=count(usage.get("cache_read_input_tokens")),
            cache_write_tokens=count(usage.get("cache_creation_input_tokens")),
        )

    def _bad(self, line: Mapping[str, Any], text: str) -> list[AnyEvent]:
        """A `success` that is an error among them: a model that cannot be asked ends so."""
        errors = line.get("errors")
        said = "; ".join(str(one) for one in few(errors)) if isinstance(errors, list) else ""
        said = said or text or str(line.get("terminal_reason") or line.get("subtype") or "it ended with an error")
        kind = _SUBTYPES.get(str(line.get("subtype")))
        status = line.get("api_error_status")
        if kind is None and line.get("terminal_reason") == "prompt_too_long":
            kind = ErrorKind.CONTEXT
        if kind is None and isinstance(status, int):
            kind = kind_of(status, str(line.get("api_error_type") or ""), said)
        if kind is None and line.get("api_error") == "connection_failed":
            kind = ErrorKind.UNREACHABLE
        if kind is None and "No conversation found" in said:
            kind = ErrorKind.CONFIGURATION
        if kind is None and line.get("subtype") == "success":
            kind = kind_of(None, said)
        return self.failed(kind or ErrorKind.UNKNOWN, said)

    def _control(self, response: Mapping[str, Any]) -> list[AnyEvent]:
        """A warm process that refuses to take the session says why, and then answers with an error."""
        if response.get("subtype") != "error":
            return []
        return [Note("refused", cut(str(response.get("error", "")), 2000))]
