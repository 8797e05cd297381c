"""OpenClaw's `agent --local --json`: one document at the end, and a log on standard error that tells what happens.

The document has the answer, the use of models and the failure. Turns, tools and retries are in the log, at the level
`debug`, as text or as JSON (`logging.consoleStyle`); what tools were told and what came of them is in neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

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
    Usage,
    UsageReport,
    cut,
)
from cloudclaw.agents.kinds import kind_of
from cloudclaw.agents.parser import MAX_LINE, decoded
from cloudclaw.agents.reading import AgentMemory, AgentParser, brief, count, money
from cloudclaw.agents.wording import kind_in

NAME: Final = "openclaw"

_MAX_LOG_LINE: Final = 16 << 10
_SAYS: Final = re.compile(
    r"embedded run (?:start|tool start|tool end|agent end): |\[model-fetch\] (?:start|response|error) "
)
_BEGUN: Final = re.compile(r"embedded run start: .*?\bsessionId=(\S+)(?: provider=\S+ model=(\S+))?")
_ASKS: Final = re.compile(r"\[model-fetch\] start ")
_REFUSED: Final = re.compile(r"\[model-fetch\] response .*\bstatus=([45]\d\d)\b")
_UNREACHED: Final = re.compile(r"\[model-fetch\] error .*?\bmessage=(.*)")
_CALLS: Final = re.compile(r"embedded run tool start: .*?\btool=(\S{1,200}) toolCallId=(\S+)")
_RETURNED: Final = re.compile(r"embedded run tool end: .*?\btoolCallId=(\S+)(.*)")
_ENDED: Final = re.compile(r"embedded run agent end: .*?\bisError=(true|false)(?:.* rawError=(.*))?")
_REPEATED: Final = frozenset({ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED, ErrorKind.SERVER, ErrorKind.UNREACHABLE})
_MISUSED: Final = re.compile(r"config is invalid|does not recognize|unknown (?:option|command)|no session", re.I)


class OpenClawMemory(AgentMemory):
    """`log_line`: of standard error, so far; `document`: lines of one, so far, and their `size`; `between`: the
    tools that were called have their results; `failures`: of requests, one after the other."""

    log_line: bytes = b""
    document: list[bytes] = msgspec.field(default_factory=list)
    size: int = 0
    between: bool = False
    failures: int = 0


class OpenClawParser(AgentParser):
    """`StreamParser` of OpenClaw."""

    memory_type = OpenClawMemory
    memory: OpenClawMemory

    # -- the log --

    def on_stderr(self, data: bytes) -> list[AnyEvent]:
        events = super().on_stderr(data)
        *lines, self.memory.log_line = (self.memory.log_line + data).split(b"\n")
        self.memory.log_line = self.memory.log_line[:_MAX_LOG_LINE]
        for line in lines:
            events += self._logged(_message(line[:_MAX_LOG_LINE]))
        return events

    def _logged(self, said: str) -> list[AnyEvent]:
        begin = _SAYS.search(said)
        if begin is None:
            return []
        # Only there: a line that says it a thousand times would be looked through a thousand times.
        said = said[begin.start() :]
        if _ASKS.match(said):
            # All tools that the last answer called were run: only now is it sure that no other is to come.
            between, self.memory.between = self.memory.between, False
            return self.turn() if between else []
        if found := _BEGUN.match(said):
            known, self.memory.session = self.memory.session, brief(found[1])
            self.memory.model = brief(found[2] or "")
            return [] if known == self.memory.session else [Started(self.memory.session, NAME, self.memory.model)]
        if found := _CALLS.match(said):
            call_id = brief(found[2])
            self.opened(call_id)
            self.memory.failures = 0
            return [ToolCall(call_id, brief(found[1]), "{}")]
        if found := _RETURNED.match(said):
            call_id = brief(found[1])
            self.memory.between = self.closed(call_id) or self.memory.between
            return [ToolResult(call_id, "", is_error="isError=true" in found[2])]
        if found := _REFUSED.match(said):
            return self._again(kind_of(int(found[1])), f"the model's endpoint answered with status {found[1]}")
        if found := _UNREACHED.match(said):
            return self._again(ErrorKind.UNREACHABLE, cut(found[1], 500))
        if found := _ENDED.match(said):
            return self._stopped(found[1] == "true", found[2] or said)
        return []

    def _again(self, kind: ErrorKind, message: str) -> list[AnyEvent]:
        self.memory.failures += 1
        self.memory.trouble = (kind, message)
        return [Retry(kind, message, self.memory.failures) if kind in _REPEATED else Error(kind, message)]

    def _stopped(self, failed: bool, words: str) -> list[AnyEvent]:
        if failed:
            kind = kind_in(words)
            if kind is not ErrorKind.UNKNOWN or self.memory.trouble is None:
                self.memory.trouble = (kind, cut(words, 2000))
            return []
        self.memory.between, self.memory.trouble, self.memory.failures = False, None, 0
        return self.turn()

    # -- the document --

    def _line(self, line: bytes, *, system: bool) -> list[AnyEvent]:
        if system:
            return super()._line(line, system=True)
        if not self.memory.document and not line.lstrip().startswith(b"{"):
            return []
        self.memory.document.append(line)
        self.memory.size += len(line) + 1
        if self.memory.size > MAX_LINE:
            self._forget()
        elif line.rstrip() == b"}" or (len(self.memory.document) == 1 and line.rstrip().endswith(b"}")):
            return self._whole()
        return []

    def on_end(self) -> list[AnyEvent]:
        events = self._whole() if self.memory.document else []
        return [*events, *super().on_end()]

    def _whole(self) -> list[AnyEvent]:
        document = b"\n".join(self.memory.document)
        self._forget()
        return super()._line(document, system=False)

    def _forget(self) -> None:
        self.memory.document, self.memory.size = [], 0

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        meta = line.get("meta") or {}
        agent = meta.get("agentMeta") or line
        payloads = line.get("payloads") or []
        events: list[AnyEvent] = []
        if (session := agent.get("sessionId")) and brief(session) != self.memory.session:
            self.memory.session = brief(session)
            events.append(Started(self.memory.session, NAME, brief(agent.get("model") or "")))
        texts = [str(one["text"]) for one in payloads if one.get("text") and not one.get("isError")]
        if texts:
            self.memory.text = cut("\n\n".join(texts))
            events.append(Message("assistant", self.memory.text))
        events += self._used(agent)
        error = line.get("error") or meta.get("error")
        wrong = [str(one.get("text") or "") for one in payloads if one.get("isError")]
        if line.get("ok") is False or error or wrong or meta.get("aborted"):
            said = str(error.get("message") or "") if isinstance(error, Mapping) else str(error or "")
            return [*events, self._failed(said or "\n".join(wrong) or "it was aborted")]
        if "payloads" not in line:
            return events
        if not self.memory.turns:
            events += self.turn()
        return [*events, *self.finished()]

    def _used(self, agent: Mapping[str, Any]) -> list[AnyEvent]:
        usage = agent.get("usage") or {}
        fresh, out, read, written = (count(usage.get(name)) for name in ("input", "output", "cacheRead", "cacheWrite"))
        if fresh is None and out is None:
            return []
        turns = count(agent.get("assistantTurns"))
        # A model without a price costs nothing in its words.
        return [UsageReport(Usage(fresh, out, read, written, money(agent.get("costUsd")) or None, turns))]

    def _failed(self, message: str) -> AnyEvent:
        kind = ErrorKind(self.memory.trouble[0]) if self.memory.trouble else kind_in(message)
        if kind is ErrorKind.UNKNOWN and _MISUSED.search(message):
            kind = ErrorKind.CONFIGURATION
        self.memory.ended, self.memory.trouble = True, None
        return Finished(False, kind, cut(message, 2000))


def _message(line: bytes) -> str:
    """What a line of the log says."""
    if line.startswith(b"{"):
        try:
            return str(decoded(line)["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    return line.decode(errors="replace")
