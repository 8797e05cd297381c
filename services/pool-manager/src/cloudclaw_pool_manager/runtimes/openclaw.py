"""OpenClaw, headless: `openclaw agent --local`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.runtime import AgentOptions, RunRequest
from cloudclaw_pool_manager.runtimes.agent import Agent
from cloudclaw_pool_manager.runtimes.environment import PLACEHOLDER
from cloudclaw_pool_manager.runtimes.sessions import known_session, new_session

LEAST_MEMORY: Final = 768 << 20
"""Bytes with less of which it hangs in collecting garbage, instead of being killed; it is at ease with 1.2 GB."""

_CONFIG: Final = "/tmp/claw-openclaw.json"
_PROMPT: Final = "/tmp/claw-prompt"
_START: Final = """\
umask 077
printf %s "$2" > "$1" && cat > "$3" || exit 126
if [ -n "$4" ] && ! grep -aqsF -e "$4" "$HOME"/.openclaw/agents/main/agent/openclaw-agent.sqlite*; then
  printf '{"ok": false, "error": {"message": "there is no session %s in its home folder"}}\n' "$4"
  exit 1
fi
shift 4
exec "$@" < /dev/null
"""
"""Configuration and prompt come by files only; neither is part of a checkpoint. To go on in a session that is not there
would begin another by its name, without a word."""
_PROVIDER: Final = "cloudclaw"
_APIS: Final = {"anthropic": ("anthropic-messages", ""), "openai": ("openai-responses", "/v1")}
_COMPATIBLE: Final = ("openai-completions", "/v1")


@dataclass(frozen=True, slots=True)
class OpenClawOptions(AgentOptions):
    """Attributes:
    api: protocol of the upstream, in OpenClaw's words: `anthropic-messages`, `openai-completions` or
        `openai-responses`; empty: by the upstream's name, `openai-completions` for unknown ones.
    context_window: tokens that the model reads at most; it sums up what was said before it gets there.
    max_tokens: of one answer.
    """

    api: str = ""
    context_window: int = 200_000
    max_tokens: int = 16_384


class OpenClaw(Agent):
    """One process an attempt; it takes no messages while it runs, and ends with its answer.

    Cold only. `openclaw gateway run` can wait for prompts, but not for a home folder: before it is ready it has opened
    its state database and its locks in the one that it found, and when the task's is in its place its first request
    fails (measured, see the README). It would also keep 780 to 960 MB for each waiting slot.

    It prints one document at its end. Turns and tools are told by its log at the level `debug`, on standard error, so
    that endless tool calls end at the node's limit of turns: it has none of its own.

    It leaves a process of its own session behind when it is killed, and a lock with it; both go with the sandbox.
    """

    name = "openclaw"
    program = "openclaw"
    oldest = (2026, 9, 6)
    options_type = OpenClawOptions
    options: OpenClawOptions
    upstream = "anthropic"
    settles = 0.2  # 2 to 6 ms were measured
    usual_model: ClassVar[str] = "claude-sonnet-4-6"
    flags: ClassVar = {
        "OPENCLAW_CONFIG_PATH": _CONFIG,
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_OFFLINE": "1",
        "OPENCLAW_SKIP_CHANNELS": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "NO_COLOR": "1",
    }

    def launch(self, request: RunRequest) -> Launch:
        if 0 < request.memory_bytes < LEAST_MEMORY:
            raise InvalidArgumentError(
                f"openclaw needs 1.2 GB of memory; with {request.memory_bytes >> 20} MiB it would hang",
                field="spec.resources.memory_bytes",
            )
        session = known_session(request.session_id) if request.session_id else new_session(request.uid)
        argv = [self.binary, "agent", "--local", "--json", "--session-id", session]
        # Nought is no limit of its own time, which is ten minutes otherwise; the task's is the node's affair.
        argv += ["--timeout", "0", "--message-file", _PROMPT]
        config = json.dumps(self._config(request))
        return Launch(
            ("sh", "-c", _START, "sh", _CONFIG, config, _PROMPT, request.session_id, *argv),
            self.env_of(request),
            stdin=self.words(request).encode(),
        )

    def _config(self, request: RunRequest) -> dict[str, Any]:
        model = self.model_of(request) or self.usual_model
        config: dict[str, Any] = {
            "agents": {
                "defaults": {
                    "model": {"primary": f"{_PROVIDER}/{model}"},
                    "workspace": "/workspace",
                    "skipBootstrap": True,
                    "heartbeat": {"every": "0m"},
                }
            },
            "update": {"checkOnStart": False},
            "logging": {"level": "error", "consoleLevel": "debug", "consoleStyle": "json"},
        }
        if not self.options.permissions:
            config["tools"] = {"exec": {"security": "deny"}}
        if base := self.upstream_url(request):
            config["models"] = {"providers": {_PROVIDER: self._provider(base, model)}}
        return config

    def _provider(self, base: str, model: str) -> dict[str, Any]:
        api, version = _APIS.get(self.options.upstream or self.upstream, _COMPATIBLE)
        if self.options.api:
            api, version = self.options.api, "" if self.options.api == "anthropic-messages" else "/v1"
        known = {"id": model, "name": model, "input": ["text"]}
        sizes = {"contextWindow": self.options.context_window, "maxTokens": self.options.max_tokens}
        return {"baseUrl": base + version, "apiKey": PLACEHOLDER, "api": api, "models": [{**known, **sizes}]}
