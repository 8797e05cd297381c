"""Claude Code's cases."""

from __future__ import annotations

import signal
from typing import Any

from tests.support.recordings.case import LOOP, PATH, PROMPT, Agent, Case, failing, hanging, work
from tests.support.recordings.sandbox import MODEL

SESSION = "11111111-2222-4333-8444-555555555555"
BASE = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
FREE = [*BASE, "--dangerously-skip-permissions"]
NEW = [*FREE, "--session-id", SESSION]


def _failure(name: str, kind: str, note: str) -> Case:
    env = {"CLAUDE_CODE_MAX_RETRIES": "2"}
    return Case(name, NEW, [failing(kind)], note, stdin=PROMPT, env=env)


def _user(text: str) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": text}}


CLAUDE = Agent(
    name="claude-code",
    process="claude",
    env={
        "PATH": PATH,
        "HOME": "/home/agent",
        "ANTHROPIC_BASE_URL": f"{MODEL}/anthropic",
        "ANTHROPIC_API_KEY": "sk-scripted",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    },
    cases=[
        Case("success", NEW, [work("work")], "write a file, run a command, say so", stdin=PROMPT),
        Case("session-in-use", NEW, [work("work")], "the same --session-id again", stdin=PROMPT, continues="success"),
        Case(
            "resumed",
            [*FREE, "-r", SESSION],
            [work("work")],
            "a second prompt to the session of `success`",
            stdin=PROMPT,
            continues="success",
        ),
        Case("max-turns", [*NEW, "--max-turns", "2"], [LOOP], "a model that calls tools for ever", stdin=PROMPT),
        Case("max-budget", [*NEW, "--max-budget-usd", "0.06"], [LOOP], "the agent's own budget", stdin=PROMPT),
        _failure("authentication", "authentication", "401"),
        _failure("permission", "permission", "403"),
        _failure("billing", "billing", "400: credit balance"),
        _failure("rate-limit", "rate_limit", "429, retries used up"),
        _failure("overloaded", "overloaded", "529, retries used up"),
        _failure("server-error", "server_error", "500, retries used up"),
        _failure("context-too-long", "context_too_long", "400: prompt is too long"),
        _failure("not-found", "not_found", "404: no such model"),
        _failure("invalid-request", "invalid_request", "400"),
        Case(
            "retried",
            NEW,
            [{"name": "work", "turns": [{"text": "It went well.", "error": {"kind": "overloaded", "times": 1}}]}],
            "529 once, then an answer",
            stdin=PROMPT,
        ),
        Case(
            "refused-connection",
            NEW,
            [],
            "nobody listens at the base URL",
            stdin=PROMPT,
            env={"CLAUDE_CODE_MAX_RETRIES": "2", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"},
        ),
        Case("permission-denied", [*BASE, "--session-id", SESSION], [work("work")], "tools are denied", stdin=PROMPT),
        Case("bad-flag", [*NEW, "--no-such-flag"], [], "an unknown option", stdin=PROMPT),
        Case("bad-settings", [*NEW, "--settings", "{broken"], [], "broken --settings", stdin=PROMPT),
        Case("bad-mcp", [*NEW, "--mcp-config", "/workspace/none.json"], [], "a missing MCP file", stdin=PROMPT),
        Case("unknown-session", [*FREE, "-r", SESSION], [work("work")], "-r with an unknown id", stdin=PROMPT),
        Case("sigterm", NEW, [hanging()], "SIGTERM in turn 2", stdin=PROMPT, signal=signal.SIGTERM),
        Case("sigint", NEW, [hanging()], "SIGINT in turn 2", stdin=PROMPT, signal=signal.SIGINT),
        Case("killed", NEW, [hanging()], "kill -9 in turn 2", stdin=PROMPT, signal=signal.SIGKILL),
        Case(
            "resumed-after-kill",
            [*FREE, "-r", SESSION],
            [work("work")],
            "goes on from `killed`",
            stdin="Go on where you were interrupted.",
            continues="killed",
        ),
        Case(
            "stream-json",
            [*NEW, "--input-format", "stream-json"],
            [work("work")],
            "initialize, then two messages through one process",
            messages=[
                {"type": "control_request", "request_id": "one", "request": {"subtype": "initialize"}},
                _user(PROMPT),
                _user("[[scenario:work]] And once more."),
            ],
        ),
    ],
)
