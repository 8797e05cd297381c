"""An agent for tests of a node: it says what a test lets it write, in lines of JSON of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cloudclaw.agents.events import (
    AnyEvent,
    ErrorKind,
    Finished,
    Message,
    Started,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
    UsageReport,
)
from cloudclaw.agents.parser import JsonLines
from cloudclaw.agents.transcript import Transcript
from cloudclaw.errors import InvalidArgumentError, PreconditionError
from cloudclaw_pool_manager.domain.attempt import Exit, Launch
from cloudclaw_pool_manager.ports.runtime import Input, RunRequest, Trace, Verdict, Warmth
from tests.support.fake_slots import FakeSupervisor

NAME = "parrot"
KEY = "parrot/1"


class ParrotParser(JsonLines):
    """`{"session": id}`, `{"says": text}`, `{"turn": n}` (a tool call with its result, then the turn's end),
    `{"answers": n}` (one without calls), `{"used": tokens}`, `{"done": text}`, `{"failed": kind}`."""

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        match line:
            case {"session": str(session)}:
                return [Started(session, NAME)]
            case {"says": str(text)}:
                return [Message("assistant", text)]
            case {"turn": int(number)}:
                return [ToolCall("c", "sh", "{}"), ToolResult("c", "done"), Turn(number)]
            case {"answers": int(number)}:
                return [Turn(number)]
            case {"used": int(tokens)}:
                return [UsageReport(Usage(input_tokens=tokens))]
            case {"done": str(text)}:
                return [Finished(True, text=text)]
            case {"failed": str(kind)}:
                return [Finished(False, ErrorKind(kind), f"because of {kind}")]
        return []


class Parrot:
    """`AgentAdapter`. `takes_input`: while it runs; otherwise it ends with every answer."""

    name = NAME
    settles = 0.0

    def __init__(self, *, takes_input: bool = True, warm: bool = False, broken: str = "") -> None:
        self.takes_input = takes_input
        self.warm = warm
        self.broken = broken
        self.traces = False
        self.requests: list[RunRequest] = []

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        if not prompt:
            raise InvalidArgumentError("a parrot needs words", field="spec.prompt")

    def launch(self, request: RunRequest) -> Launch:
        self.requests.append(request)
        words = [] if request.resumes else [request.prompt]
        words += [given.text for given in request.inputs]
        return Launch(("parrot",), stdin="\n".join(words).encode(), keep_stdin=self.takes_input)

    def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
        end = transcript.finished
        if end is not None and end.ok and not exit.code:
            return Verdict(True, "COMPLETED", "answered")
        return Verdict(False, "AGENT_FAILED", end.message if end else "no answer")

    def probe(self) -> Launch:
        return Launch(("parrot", "--version"))

    def version(self, exit: Exit, stdout: str, stderr: str) -> str:
        if exit.code or self.broken:
            raise PreconditionError(self.broken or f"no parrot: {stderr}", subject=NAME)
        return stdout.strip()

    def parser(self) -> ParrotParser:
        return ParrotParser()

    def trace(self, session_id: str, call_id: str) -> Trace | None:
        return Trace(f".parrot/{session_id}", call_id.encode()) if self.traces and call_id else None

    def warmth(self) -> Warmth | None:
        return Warmth(Launch(("parrot",), warm_key=KEY), "ready", 1 << 20) if self.warm else None

    def join(self, request: RunRequest) -> Launch | None:
        if not self.warm or request.resumes:
            return None
        return replace(self.launch(request), warm_key=KEY)

    def encode_input(self, given: Input) -> bytes | None:
        return given.text.encode() + b"\n" if self.takes_input else None


def say(sandbox: FakeSupervisor, *lines: Mapping[str, object]) -> None:
    """The agent writes."""
    for line in lines:
        sandbox.write(json.dumps(line).encode() + b"\n")
