"""Codex's `exec --json`: one item of a thread a line.

Its usage counts the whole thread, earlier processes included. Whoever resumes one prints the last `token_count` line of
the thread's own file first; what that tells is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloudclaw.agents.events import (
    AnyEvent,
    Error,
    Finished,
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
from cloudclaw.agents.reading import AgentMemory, AgentParser, as_json, as_text, brief, count
from cloudclaw.agents.wording import kind_in

NAME: Final = "codex"

_AGAIN: Final = re.compile(r"Reconnecting\.\.\. (\d+)/\d+ ?\(?")
_NO_TOOLS: Final = frozenset({"agent_message", "reasoning", "error", "todo_list"})
_FAILED: Final = frozenset({"failed", "declined"})
_COUNTS: Final = ("input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens")


class CodexMemory(AgentMemory):
    """`before`: what the thread had used before this process; `resumed`: it was there before."""

    before: dict[str, int] = msgspec.field(default_factory=dict)
    resumed: bool = False


class CodexParser(AgentParser):
    """`StreamParser` of Codex. It does not tell which calls were one answer of the model: tools that it runs one after
    the other count as a turn each."""

    memory_type = CodexMemory
    memory: CodexMemory

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        match line["type"]:
            case "thread.started":
                self.memory.session = brief(line["thread_id"])
                return [Started(self.memory.session, NAME, resumed=self.memory.resumed)]
            case "item.started" | "item.completed":
                return self._item(line["item"], done=line["type"] == "item.completed")
            case "turn.completed":
                return self._completed(line.get("usage") or {})
            case "turn.failed":
                return self._failed(str(line["error"]["message"]))
            case "error":
                return [_trouble(str(line["message"]))]
            case "event_msg":
                return self._before(line["payload"])
        return []

    def _item(self, item: Mapping[str, Any], *, done: bool) -> list[AnyEvent]:
        kind = str(item["type"])
        if kind not in _NO_TOOLS:
            return self._tool(kind, item, done=done)
        if kind == "agent_message" and done:
            self.memory.text = cut(str(item["text"]))
            return [Message("assistant", self.memory.text)]
        if kind == "error" and done:
            return [Note("warning", cut(str(item["message"])))]
        return []

    def _tool(self, kind: str, item: Mapping[str, Any], *, done: bool) -> list[AnyEvent]:
        call_id = brief(item["id"])
        tool, arguments = _call(kind, item)
        events: list[AnyEvent] = []
        if call_id not in self.memory.open_calls:
            self.opened(call_id)
            events.append(ToolCall(call_id, tool, as_json(arguments)))
        if done:
            failed = item.get("status") in _FAILED or bool(item.get("exit_code")) or bool(item.get("error"))
            events.append(ToolResult(call_id, _output(item), failed))
            events += self.turn() if self.closed(call_id) else []
        return events

    def _completed(self, usage: Mapping[str, Any]) -> list[AnyEvent]:
        turn = self.turn()
        fresh, cached, written, out = (self._used(name, count(usage.get(name))) for name in _COUNTS)
        if fresh is not None:  # what came from a cache is counted as input, too
            fresh = max(fresh - (cached or 0) - (written or 0), 0)
        report = UsageReport(Usage(fresh, out, cached, written, turns=self.memory.turns))
        return [report, *turn, *self.finished()]

    def _failed(self, message: str) -> list[AnyEvent]:
        self.memory.ended = True
        return [Finished(False, kind_in(message), cut(message, 2000))]

    def _used(self, name: str, total: int | None) -> int | None:
        return None if total is None else max(total - self.memory.before.get(name, 0), 0)

    def _before(self, payload: Mapping[str, Any]) -> list[AnyEvent]:
        if payload["type"] == "token_count" and not self.memory.session:
            self.memory.resumed = True
            total = (payload.get("info") or {}).get("total_token_usage") or {}
            self.memory.before = {name: used for name in _COUNTS if (used := count(total.get(name))) is not None}
        return []


def _trouble(message: str) -> AnyEvent:
    again = _AGAIN.match(message)
    if again is None:
        return Error(kind_in(message), cut(message, 2000))
    return Retry(kind_in(message), cut(message[again.end() :].removesuffix(")"), 2000), int(again[1][:6]))


def _call(kind: str, item: Mapping[str, Any]) -> tuple[str, object]:
    match kind:
        case "command_execution":
            return "shell", {"command": item.get("command")}
        case "mcp_tool_call":
            return brief(f"{item.get('server', '')}.{item.get('tool', '')}"), item.get("arguments")
        case "file_change":
            return "patch", {"changes": item.get("changes")}
        case "web_search":
            return "web_search", {"query": item.get("query")}
    return brief(kind), {name: value for name, value in item.items() if name not in ("id", "type", "status")}


def _output(item: Mapping[str, Any]) -> str:
    if "aggregated_output" in item:
        return as_text(item["aggregated_output"])
    if error := item.get("error"):
        return as_text(error.get("message", error) if isinstance(error, Mapping) else error)
    result = item.get("result")
    return as_text(result.get("content") if isinstance(result, Mapping) else result)
