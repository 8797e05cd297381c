"""The runtime `owl`, by a third party: the adapter for pool-managers, and the parser that schedulers need too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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
from cloudclaw_pool_manager.ports.runtime import AgentOptions, Input, RunRequest, Trace, Verdict, Warmth
from cloudclaw_pool_manager.runtimes.agent import read_options
from cloudclaw_pool_manager.runtimes.ends import judge

WORDS = {"busy": ErrorKind.RATE_LIMIT, "session": ErrorKind.CONFIGURATION}


class OwlParser(JsonLines):
    """One object a line; `owl` tells which."""

    def on_object(self, line: Mapping[str, Any]) -> list[AnyEvent]:
        match line["owl"]:
            case "session":
                return [Started(str(line["id"]), "owl", str(line["model"]))]
            case "tool":
                return [ToolCall(str(line["call"]), str(line["name"]), json.dumps(line["arguments"]))]
            case "result":
                return [ToolResult(str(line["call"]), str(line["output"]))]
            case "tokens":
                return [UsageReport(Usage(input_tokens=int(line["read"]), output_tokens=int(line["written"])))]
            case "turn":
                return [Turn(int(line["number"]))]
            case "done":
                text = str(line["text"])
                return [Message("assistant", text), Finished(True, text=text)]
            case "failed":
                return [Finished(False, WORDS.get(line["why"], ErrorKind.UNKNOWN), str(line["message"]))]
        return []


class Owl:
    """`AgentAdapter`: one process an attempt, which reads its words from standard input."""

    name = "owl"
    settles = 0.0

    def __init__(self, **options: Any) -> None:
        self.options = read_options(self.name, AgentOptions, options)
        self.binary = self.options.binary or "owl"

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        if argv:
            raise InvalidArgumentError("an owl takes a prompt", field="spec.argv")

    def launch(self, request: RunRequest) -> Launch:
        words = [given.text for given in request.inputs]
        if not (request.resumes and request.session_id):
            words = [text for text in (request.prompt, *words) if text]
        elif not words:
            words = [self.options.resume_prompt]
        if not words:
            raise InvalidArgumentError("an owl needs words", field="spec.prompt")
        argv = [self.binary, "--session", request.session_id or request.uid]
        argv += ["--go-on"] if request.session_id else []
        model = request.model or self.options.model
        argv += ["--model", model] if model else []
        return Launch(tuple(argv), self._env(request), stdin="\n".join(words).encode())

    def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
        return judge(self.name, exit, transcript)

    def probe(self) -> Launch:
        return Launch((self.binary, "--version"), self._env(None), cwd="/")

    def version(self, exit: Exit, stdout: str, stderr: str) -> str:
        found = re.search(r"(\d+)\.\d+\.\d+", stdout)
        if exit.code or exit.signal or found is None:
            raise PreconditionError(f"`{self.binary} --version` told no version: {stderr or stdout}", subject="owl")
        if int(found[1]) < 2:
            raise PreconditionError(f"owl {found[0]} is too old: 2.0.0 or later is needed", subject="owl")
        return found[0]

    def parser(self) -> OwlParser:
        return OwlParser()

    def trace(self, session_id: str, call_id: str) -> Trace | None:
        return None

    def warmth(self) -> Warmth | None:
        return None

    def join(self, request: RunRequest) -> Launch | None:
        return None

    def encode_input(self, given: Input) -> bytes | None:
        return None

    def _env(self, request: RunRequest | None) -> dict[str, str]:
        path = ":".join([*self.options.path, "/usr/local/bin", "/usr/bin", "/bin"])
        env = {"PATH": path, "HOME": "/home/agent", **self.options.env}
        if request is not None:
            upstream = f"{request.egress}/{self.options.upstream or 'owls'}" if request.egress else ""
            env |= {**request.env, "OWL_URL": upstream, **request.identity}
        return env
