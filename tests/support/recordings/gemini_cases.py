"""Gemini's cases."""

from __future__ import annotations

import json
import signal

from tests.support.recordings.case import PATH, PROMPT, Agent, Case, failing, hanging, work
from tests.support.recordings.sandbox import MODEL

RUN = ["gemini", "-o", "stream-json", "--yolo", "--skip-trust"]
NEW = [*RUN, "-p", PROMPT]


def _home(**general: int) -> dict[str, str]:
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True, "enableAutoUpdate": False, **general},
        "telemetry": {"enabled": False},
    }
    return {".gemini/settings.json": json.dumps(settings)}


def _failure(name: str, kind: str, note: str, **general: int) -> Case:
    return Case(name, NEW, [failing(kind)], note, home=_home(**general))


GEMINI = Agent(
    name="gemini",
    process="gemini",
    env={
        "PATH": PATH,
        "HOME": "/home/agent",
        "GOOGLE_GEMINI_BASE_URL": f"{MODEL}/gemini",
        "GEMINI_API_KEY": "sk-scripted",
        "GEMINI_MODEL": "gemini-2.5-pro",
    },
    home=_home(),
    cases=[
        Case("success", NEW, [work("work")], "write a file, run a command, say so"),
        Case(
            "resumed",
            [*RUN, "--resume", "latest", "-p", PROMPT],
            [work("work")],
            "a second prompt to the session of `success`",
            continues="success",
        ),
        _failure("authentication", "authentication", "401"),
        _failure("permission", "permission", "403"),
        _failure("not-found", "not_found", "404: no such model"),
        _failure("context-too-long", "context_too_long", "400: the context is too long"),
        Case("bad-flag", [*NEW, "--no-such-flag"], [], "an unknown option"),
        Case("unknown-session", [*RUN, "--resume", "none", "-p", PROMPT], [work("work")], "an unknown session"),
        Case("sigterm", NEW, [hanging()], "SIGTERM in turn 2, which it ignores", signal=signal.SIGTERM, timeout=20),
        Case("killed", NEW, [hanging()], "kill -9 in turn 2", signal=signal.SIGKILL),
        Case(
            "resumed-after-kill",
            [*RUN, "--resume", "latest", "-p", "Go on where you were interrupted."],
            [work("work")],
            "goes on from `killed`",
            continues="killed",
        ),
        _failure("rate-limit", "rate_limit", "429, retries used up"),
        _failure("server-error", "server_error", "500, three attempts as CloudClaw sets it", maxAttempts=3),
        _failure("overloaded", "overloaded", "503, three attempts", maxAttempts=3),
        _failure("billing", "billing", "429: the quota is used up, three attempts", maxAttempts=3),
        _failure("invalid-request", "invalid_request", "400"),
    ],
)
