"""Codex, headless: `codex exec`."""

from __future__ import annotations

import json
from typing import ClassVar, Final

from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.runtime import RunRequest
from cloudclaw_pool_manager.runtimes.agent import Agent
from cloudclaw_pool_manager.runtimes.environment import PLACEHOLDER
from cloudclaw_pool_manager.runtimes.sessions import known_session

_KEY: Final = "CLAW_MODEL_KEY"
_RESUME: Final = """\
id=$1; shift
for file in "${CODEX_HOME:-$HOME/.codex}"/sessions/*/*/*/rollout-*"$id".jsonl; do
  test -f "$file" && grep -a '"type":"token_count"' "$file" | tail -n 1
done
exec "$@"
"""
"""Codex counts a thread's use from the thread's beginning; what that was before this attempt stands in its file."""


class Codex(Agent):
    """One process an attempt; it takes no messages while it runs, and ends with its answer.

    Cold only: it asks its model 0.2 s after its start, so that waiting warm would gain nothing, and it takes its prompt
    when it starts. Endless tool calls end at the node's limit of turns, which its stream tells.
    """

    name = "codex"
    program = "codex"
    oldest = (0, 169, 0)
    upstream = "openai"
    settles = 0.1  # less than a millisecond was measured
    flags: ClassVar = {"NO_COLOR": "1"}

    def launch(self, request: RunRequest) -> Launch:
        base = self.upstream_url(request)
        argv = (*self._command(base, self.model_of(request)), *self._session(request.session_id), "-")
        if request.session_id:
            argv = ("sh", "-c", _RESUME, "sh", request.session_id, *argv)
        env = self.env_of(request, {_KEY: PLACEHOLDER} if base else {})
        return Launch(argv, env, stdin=self.words(request).encode())

    def _command(self, base: str, model: str) -> list[str]:
        settings: dict[str, object] = {"check_for_update_on_startup": False, "analytics.enabled": False}
        if base:
            # CloudClaw tries the whole attempt again, and its gateway nothing: so much is left to the agent.
            settings |= {
                "model_provider": "cloudclaw",
                "model_providers.cloudclaw.name": "CloudClaw",
                "model_providers.cloudclaw.base_url": f"{base}/v1",
                "model_providers.cloudclaw.env_key": _KEY,
                "model_providers.cloudclaw.wire_api": "responses",
                "model_providers.cloudclaw.request_max_retries": 3,
                "model_providers.cloudclaw.stream_max_retries": 3,
            }
        argv = [self.binary]
        for name, value in settings.items():
            argv += ["-c", f"{name}={json.dumps(value)}"]  # such JSON is TOML as well
        argv += ["-m", model] if model else []
        argv += ["exec", "--json", "--skip-git-repo-check"]
        if self.options.permissions:
            return [*argv, "--dangerously-bypass-approvals-and-sandbox"]
        return [*argv, "--sandbox", "workspace-write"]

    def _session(self, session_id: str) -> tuple[str, ...]:
        return ("resume", known_session(session_id)) if session_id else ()
