"""Gemini, headless: lines of JSON."""

from __future__ import annotations

import json
from typing import ClassVar, Final

from cloudclaw_pool_manager.domain.attempt import Launch
from cloudclaw_pool_manager.ports.runtime import RunRequest
from cloudclaw_pool_manager.runtimes.agent import Agent
from cloudclaw_pool_manager.runtimes.environment import PLACEHOLDER
from cloudclaw_pool_manager.runtimes.sessions import known_session, new_session

_START: Final = """\
file="$HOME/.gemini/settings.json"
test -e "$file" || { mkdir -p "${file%/*}" && printf %s "$1" > "$file"; } || exit 126
shift
exec "$@"
"""
"""How it signs in is told by a file only; system-wide ones are read from directories of root's alone. A file that is
there already is the user's own, or an earlier attempt's."""
_SETTINGS: Final = {
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    # Ten by default, which takes three and a half minutes when there is too much to do; CloudClaw tries again as well.
    "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False, "maxAttempts": 3},
}


class Gemini(Agent):
    """One process an attempt; it takes no messages while it runs, and ends with its answer.

    Cold only: it takes its prompt when it starts, and that is 1.3 s before its first request. Endless tool calls end at
    the node's limit of turns, which its stream tells.
    """

    name = "gemini"
    program = "gemini"
    oldest = (0, 61, 0)
    upstream = "gemini"
    settles = 0.1  # 0 to 3 ms were measured
    flags: ClassVar = {
        "NO_COLOR": "1",
        # Otherwise it starts itself again with a larger heap, which takes another second.
        "GEMINI_CLI_NO_RELAUNCH": "true",
    }

    def launch(self, request: RunRequest) -> Launch:
        base, model = self.upstream_url(request), self.model_of(request)
        argv = [self.binary, "-o", "stream-json", "--skip-trust"]
        argv += ["--approval-mode", "yolo" if self.options.permissions else "auto_edit"]
        argv += ["-m", model] if model else []
        if request.session_id:
            argv += ["--resume", known_session(request.session_id)]
        else:
            argv += ["--session-id", new_session(request.uid)]
        access = {"GOOGLE_GEMINI_BASE_URL": base, "GEMINI_API_KEY": PLACEHOLDER} if base else {}
        return Launch(
            ("sh", "-c", _START, "sh", json.dumps(_SETTINGS), *argv),
            self.env_of(request, access),
            stdin=self.words(request).encode(),
        )
