"""Codex's cases."""

from __future__ import annotations

import signal

from tests.support.recordings.case import PATH, PROMPT, Agent, Case, failing, hanging, work
from tests.support.recordings.sandbox import MODEL

PROVIDER = (
    f'{{name="claw", base_url="{MODEL}/openai/v1", env_key="CLAW_KEY", wire_api="responses", '
    "request_max_retries=1, stream_max_retries=1}"
)
OPTIONS = ["-c", f"model_providers.claw={PROVIDER}", "-c", "model_provider=claw", "-m", "scripted"]
EXEC = ["codex", *OPTIONS, "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]


def _failure(name: str, kind: str, note: str) -> Case:
    return Case(name, [*EXEC, PROMPT], [failing(kind)], note)


CODEX = Agent(
    name="codex",
    process="codex",
    env={"PATH": PATH, "HOME": "/home/agent", "CLAW_KEY": "sk-scripted"},
    cases=[
        Case("success", [*EXEC, PROMPT], [work("work")], "write a file, run a command, say so"),
        Case(
            "resumed",
            [*EXEC, "resume", "--last", PROMPT],
            [work("work")],
            "a second prompt to the session of `success`",
            continues="success",
        ),
        _failure("authentication", "authentication", "401"),
        _failure("billing", "billing", "429: insufficient_quota"),
        _failure("rate-limit", "rate_limit", "429, retries used up"),
        _failure("overloaded", "overloaded", "503, retries used up"),
        _failure("server-error", "server_error", "500, retries used up"),
        _failure("not-found", "not_found", "404: no such model"),
        _failure("permission", "permission", "403, which it repeats"),
        _failure("invalid-request", "invalid_request", "400"),
        _failure("context-too-long", "context_too_long", "400: the context is too long"),
        Case("bad-flag", [*EXEC, "--no-such-flag", PROMPT], [], "an unknown option"),
        Case(
            "unknown-session",
            [*EXEC, "resume", "11111111-2222-4333-8444-555555555555", PROMPT],
            [work("work")],
            "resume with an unknown id",
        ),
        Case("sigterm", [*EXEC, PROMPT], [hanging()], "SIGTERM in turn 2", signal=signal.SIGTERM),
        Case("killed", [*EXEC, PROMPT], [hanging()], "kill -9 in turn 2", signal=signal.SIGKILL),
        Case(
            "resumed-after-kill",
            [*EXEC, "resume", "--last", "Go on where you were interrupted."],
            [work("work")],
            "goes on from `killed`",
            continues="killed",
        ),
    ],
)
