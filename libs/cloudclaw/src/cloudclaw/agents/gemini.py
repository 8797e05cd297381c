"""Gemini's `-o stream-json`: messages in pieces, tools, and a result at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from cloudclaw.agents.events import (
    MAX_TEXT,
    AnyEvent,
    Error,
    ErrorKind,
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

NAME: Final = "gemini"

_TURN_LIMITS: Final = ("MaxSessionTurnsError", "FatalTurnLimitedError")
_AGAIN: Final = re.compile(rb"^Attempt (\d{1,6}) failed\b.*$", re.MULTILINE)
_MAX_ERROR_LINE: Final = 4096


class GeminiMemory(AgentMemory):
    """`complaint`: a line of standard error so far; `piece`: a message so far; `length`: with what was not kept."""

    complaint: bytes = b""
    piece: str = ""
    length: int = 0


class GeminiParser(AgentParser):
    """`StreamParser` of Gemini."""

    memory_type = GeminiMemory
    memory: GeminiMemory

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        kind = line["type"]
        if kind == "message":
            if line["role"] != "assistant":
                return self._said()  # it repeats what it was given, which the log tells already
            piece = str(line["content"])
            self.memory.piece += piece[: MAX_TEXT - len(self.memory.piece)]
            self.memory.length += len(piece)
            return [] if line.get("delta") else self._said()
        said = self._said()
        try:
            return [*said, *self._other(kind, line)]
        except (ValueError, KeyError, TypeError, AttributeError):
            return said

    def on_stderr(self, data: bytes) -> list[AnyEvent]:
        events = super().on_stderr(data)
        lines, _, self.memory.complaint = (self.memory.complaint + data).rpartition(b"\n")
        self.memory.complaint = self.memory.complaint[:_MAX_ERROR_LINE]
        for again in _AGAIN.finditer(lines):
            message = again[0].decode(errors="replace")[:_MAX_ERROR_LINE]
            events.append(Retry(kind_in(message), cut(message, 500), int(again[1])))
        return events

    def on_end(self) -> list[AnyEvent]:
        return [*self._said(), *super().on_end()]

    def _other(self, kind: str, line: Mapping[str, Any]) -> list[AnyEvent]:
        match kind:
            case "init":
                self.memory.session, self.memory.model = brief(line["session_id"]), brief(line.get("model") or "")
                return [Started(self.memory.session, NAME, self.memory.model)]
            case "tool_use":
                call_id = brief(line["tool_id"])
                self.opened(call_id)
                return [ToolCall(call_id, brief(line["tool_name"]), as_json(line.get("parameters")))]
            case "tool_result":
                call_id, error = brief(line["tool_id"]), line.get("error") or {}
                output = as_text(line.get("output") or error.get("message"))
                result = ToolResult(call_id, output, line.get("status") == "error")
                return [result, *(self.turn() if self.closed(call_id) else [])]
            case "error":
                message = cut(str(line["message"]), 2000)
                return [
                    Note("warning", message) if line.get("severity") == "warning" else Error(kind_in(message), message)
                ]
            case "result":
                return self._result(line)
        return []

    def _result(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        stats = line.get("stats") or {}
        if line["status"] == "success":
            turn = self.turn()
            return [*self._usage(stats), *turn, *self.finished()]
        error = line.get("error") or {}
        message = cut(str(error.get("message", line["status"])), 2000)
        limit = error.get("type") in _TURN_LIMITS
        self.memory.ended = True
        return [*self._usage(stats), Finished(False, ErrorKind.TURN_LIMIT if limit else kind_in(message), message)]

    def _usage(self, stats: Mapping[str, Any]) -> list[AnyEvent]:
        fresh, out, cached = (count(stats.get(name)) for name in ("input", "output_tokens", "cached"))
        if not any((fresh, out, cached)):
            return []
        return [UsageReport(Usage(fresh, out, cached, turns=self.memory.turns))]

    def _said(self) -> list[AnyEvent]:
        """The message that is complete now, if one is."""
        piece, more = self.memory.piece, self.memory.length - len(self.memory.piece)
        self.memory.piece, self.memory.length = "", 0
        if not piece:
            return []
        self.memory.text = f"{piece}… ({more} more characters in the log)" if more else piece
        return [Message("assistant", self.memory.text)]
