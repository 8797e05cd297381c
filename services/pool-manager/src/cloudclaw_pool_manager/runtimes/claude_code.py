"""Claude Code, headless: `claude -p`, messages and events as lines of JSON."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any, ClassVar, Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.runtime import Input, RunRequest, Trace, Warmth
from cloudclaw_pool_manager.runtimes.agent import Agent
from cloudclaw_pool_manager.runtimes.environment import EGRESS, PLACEHOLDER
from cloudclaw_pool_manager.runtimes.scripts import CLAUDE_SPARE, shell

_SESSIONS: Final = uuid.UUID("6f2f2a54-2b0e-5d0c-9a4e-2f0d7d1f7c11")
_READY: Final = r'"type":"control_response".*"subtype":"success"'
_ENV_FILE: Final = "/tmp/.claw-env"
_MIB: Final = 1 << 20


class ClaudeCode(Agent):
    """One process an attempt. A conversation's keeps its standard input open; other tasks' ends after the answer.

    All that a process is told at its start is one message, so its first answer is the answer to all of it.
    """

    name = "claude-code"
    program = "claude"
    oldest = (2, 1, 330)
    upstream = "anthropic"
    settles = 1.0  # it writes 100 ms later, more when there is much to do; its `trace` mostly shows before
    flags: ClassVar = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        # CloudClaw tries the whole attempt again; by default a refused key is retried for three minutes.
        "CLAUDE_CODE_MAX_RETRIES": "2",
        # It refuses to work without asking as root, which a container may show it as.
        "IS_SANDBOX": "1",
    }

    def launch(self, request: RunRequest) -> Launch:
        argv = self._command(self.model_of(request))
        if request.max_turns:
            argv += ["--max-turns", str(request.max_turns)]
        if request.session_id:
            argv += ["--resume", _session(request.session_id)]
        else:
            argv += ["--session-id", str(uuid.uuid5(_SESSIONS, request.uid))]
        return Launch(
            argv=tuple(argv),
            env=self.env_of(request, self._access(request)),
            stdin=self._first(request),
            keep_stdin=request.conversation,
        )

    def trace(self, session_id: str, call_id: str) -> Trace | None:
        try:
            path = f".claude/projects/-workspace/{uuid.UUID(session_id)}.jsonl"
        except ValueError:
            return None
        return Trace(path, b'"tool_use_id":' + json.dumps(call_id).encode()) if call_id else None

    def warmth(self) -> Warmth | None:
        if not self.options.warm:
            return None
        command = self._command(self.options.model)
        env = self.env_of() | {**self._access_at(EGRESS), "CLAUDE_ENV_FILE": _ENV_FILE}
        argv = shell(CLAUDE_SPARE, *command)
        named = json.dumps([argv, sorted(env.items())]).encode()
        key = f"{self.name}/{hashlib.sha256(named).hexdigest()[:16]}"
        # Its working directory must be one that stays: /workspace is another one when the task is there.
        return Warmth(Launch(argv, env=env, cwd="/tmp", warm_key=key), _READY, 256 * _MIB)

    def join(self, request: RunRequest) -> Launch | None:
        warmth = self.warmth()
        if (
            warmth is None
            or request.session_id  # it has a session of its own
            or request.env  # which would reach the tools, not the agent
            or request.max_turns  # a flag
            or request.egress != EGRESS
            or self.model_of(request) != self.options.model
        ):
            return None
        exports = "; ".join(f"export {name}={_quoted(value)}" for name, value in sorted(request.identity.items()))
        if "\n" in exports:
            return None
        claim: dict[str, Any] = {"subtype": "claim_session", "cwd": "/workspace"}
        if self.options.permissions:
            claim["permission_mode"] = "bypassPermissions"
        order = _line({"type": "control_request", "request_id": "claim", "request": claim})
        return Launch(
            argv=warmth.launch.argv,
            stdin=exports.encode() + b"\n" + order + self._first(request),
            keep_stdin=request.conversation,
            warm_key=warmth.launch.warm_key,
        )

    def encode_input(self, given: Input) -> bytes | None:
        return _message(uuid.uuid5(_SESSIONS, f"{given.number} {given.message_id}"), given.text)

    def _command(self, model: str) -> list[str]:
        argv = [self.binary, "-p", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"]
        if self.options.permissions:
            argv.append("--dangerously-skip-permissions")
        return [*argv, "--model", model] if model else argv

    def _first(self, request: RunRequest) -> bytes:
        if request.conversation and not self.texts(request):
            return b""
        return _message(uuid.uuid5(_SESSIONS, f"{request.uid} first"), self.words(request))

    def _access(self, request: RunRequest) -> dict[str, str]:
        return self._access_at(request.egress) if request.egress else {}

    def _access_at(self, egress: str) -> dict[str, str]:
        url = f"{egress}/{self.options.upstream or self.upstream}"
        return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": PLACEHOLDER}


def _session(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError as error:
        raise InvalidArgumentError(
            f"a session of Claude Code is named by a UUID, not {value!r}", field="spec.session_id"
        ) from error


def _message(name: uuid.UUID, text: str) -> bytes:
    content = {"role": "user", "content": [{"type": "text", "text": text}]}
    return _line({"type": "user", "message": content, "parent_tool_use_id": None, "session_id": "", "uuid": str(name)})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
