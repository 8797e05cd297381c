"""OpenCode, headless: one `opencode serve` for each attempt, spoken for by a small driver inside the sandbox.

`opencode run` would do without a driver, but tells its session only after the first step, takes one message, and is
silent for up to 72 s while it asks a model that is not there again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.runtime import AgentOptions, Input, RunRequest, Warmth
from cloudclaw_pool_manager.runtimes.agent import Agent
from cloudclaw_pool_manager.runtimes.environment import EGRESS, PLACEHOLDER
from cloudclaw_pool_manager.runtimes.scripts import OPENCODE_DRIVER

_PROVIDER: Final = "claw"
_PACKAGES: Final = {"anthropic": "@ai-sdk/anthropic", "openai": "@ai-sdk/openai-compatible"}
"""Both are part of OpenCode; one that is not would be fetched, and hang."""
_RETRIES: Final = 1
"""They are seconds apart. CloudClaw tries the whole attempt again."""
_READY: Final = r'^\{"type":"ready"\}$'
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenCodeOptions(AgentOptions):
    """
    Attributes:
        api: what the upstream speaks: `anthropic` (Messages) or `openai` (Chat Completions); names the upstream too,
            when there is no other name.
        context_tokens, output_tokens: of the models, which it does not know.
        python: interpreter of the driver, in the sandbox; 3.9 or newer.
    """

    api: str = "anthropic"
    model: str = "claude-opus-5-5"
    context_tokens: int = 200_000
    output_tokens: int = 32_000
    python: str = "python3"


class OpenCode(Agent):
    """One server an attempt, with a password of its own; nothing but its driver speaks with it."""

    name = "opencode"
    program = "opencode"
    oldest = (1, 18, 0)
    options_type = OpenCodeOptions
    options: OpenCodeOptions
    flags: ClassVar = {
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "SHELL": "/bin/bash",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.options.api not in _PACKAGES:
            raise InvalidArgumentError(
                f"opencode speaks {' or '.join(_PACKAGES)}, not {self.options.api!r}",
                field="runtime_options.opencode.api",
            )

    def launch(self, request: RunRequest) -> Launch:
        model = self.model_of(request)
        return Launch(
            argv=self._driver(warm=False),
            env=self.env_of(request, self._config(request.egress, model)),
            stdin=self._order(request, model),
            keep_stdin=request.conversation,
        )

    def warmth(self) -> Warmth | None:
        if not self.options.warm:
            return None
        env = self.env_of() | self._config(EGRESS, self.options.model)
        argv = self._driver(warm=True)
        named = json.dumps([argv, sorted(env.items())]).encode()
        key = f"{self.name}/{hashlib.sha256(named).hexdigest()[:16]}"
        return Warmth(Launch(argv, env=env, cwd="/tmp", warm_key=key), _READY, 512 * _MIB)

    def join(self, request: RunRequest) -> Launch | None:
        warmth, model = self.warmth(), self.model_of(request)
        if (
            warmth is None
            or request.session_id
            or request.env
            or request.egress != EGRESS
            or model != self.options.model
        ):
            return None
        return Launch(
            argv=warmth.launch.argv,
            stdin=self._order(request, model, dict(request.identity)),
            keep_stdin=request.conversation,
            warm_key=warmth.launch.warm_key,
        )

    def encode_input(self, given: Input) -> bytes | None:
        return _line({"text": given.text})

    def _driver(self, *, warm: bool) -> tuple[str, ...]:
        how = {"argv": [self.binary], "warm": warm, "retries": _RETRIES}
        return (self.options.python, "-I", "-c", OPENCODE_DRIVER, json.dumps(how))

    def _order(self, request: RunRequest, model: str, env: dict[str, str] | None = None) -> bytes:
        text = None if request.conversation and not self.texts(request) else self.words(request)
        order = {
            "directory": "/workspace",
            "session": request.session_id,
            "text": text,
            "model": {"providerID": _PROVIDER, "modelID": model},
            "env": env or {},
        }
        return _line(order)

    def _config(self, egress: str, model: str) -> dict[str, str]:
        """All of its configuration, as the variable that holds it. Without a gateway the task brings its own."""
        if not egress:
            return {}
        upstream = self.options.upstream or self.options.api
        limit = {"context": self.options.context_tokens, "output": self.options.output_tokens}
        provider = {
            "npm": _PACKAGES[self.options.api],
            "name": "CloudClaw's gateway",
            "options": {"baseURL": f"{egress}/{upstream}/v1", "apiKey": PLACEHOLDER},
            "models": {model: {"name": model, "tool_call": True, "limit": limit}},
        }
        # Nobody is there to be asked; the driver refuses what needs asking.
        permission = (
            {"*": "allow", "question": "deny"} if self.options.permissions else {"*": "ask", "question": "deny"}
        )
        config = {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,  # CloudClaw takes these
            "agent": {"title": {"disable": True}},  # a request of its own, for a name that nobody sees
            "model": f"{_PROVIDER}/{model}",
            "small_model": f"{_PROVIDER}/{model}",
            "enabled_providers": [_PROVIDER],
            "permission": permission,
            "provider": {_PROVIDER: provider},
        }
        return {"OPENCODE_CONFIG_CONTENT": json.dumps(config, separators=(",", ":"))}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
