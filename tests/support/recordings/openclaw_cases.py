"""OpenClaw's cases."""

from __future__ import annotations

import json
import signal

from tests.support.recordings.case import PATH, PROMPT, Agent, Case, Tree, failing, hanging, work
from tests.support.recordings.sandbox import MODEL

SESSION = "11111111-2222-4333-8444-555555555555"
LOCAL = ["openclaw", "agent", "--local", "--json", "--session-id", SESSION, "--message", PROMPT]
EXEC = ["openclaw", "agent", "exec", "--json", "--cwd", "/workspace", PROMPT]


def config(api: str, base: str) -> str:
    """`openclaw.json` for one provider that speaks `api` at `base`."""
    model: Tree = {"id": "scripted", "name": "Scripted", "input": ["text"], "contextWindow": 200000, "maxTokens": 8192}
    model["cost"] = {"input": 3, "output": 15, "cacheRead": 0, "cacheWrite": 0}
    provider = {"baseUrl": base, "apiKey": "sk-scripted", "api": api, "models": [model]}
    defaults = {"model": {"primary": "claw/scripted"}, "workspace": "/workspace", "skipBootstrap": True}
    return json.dumps(
        {
            "models": {"providers": {"claw": provider}},
            "agents": {"defaults": {**defaults, "heartbeat": {"every": "0m"}}},
            "update": {"checkOnStart": False},
        },
        indent=2,
    )


def logged(text: str) -> str:
    """The configuration `text` with a log that tells turns and tools, as JSON on standard error."""
    logging = {"level": "error", "consoleLevel": "debug", "consoleStyle": "json"}
    return json.dumps({**json.loads(text), "logging": logging}, indent=2)


CHAT = config("openai-completions", f"{MODEL}/openai/v1")
CONFIG = ".openclaw/openclaw.json"


def _failure(name: str, kind: str, note: str) -> Case:
    return Case(name, LOCAL, [failing(kind)], note)


OPENCLAW = Agent(
    name="openclaw",
    process="openclaw",
    env={"PATH": PATH, "HOME": "/home/agent"},
    home={CONFIG: CHAT},
    cases=[
        Case("success", LOCAL, [work("work")], "write a file, run a command, say so"),
        Case("resumed", LOCAL, [work("work")], "a second prompt to the session of `success`", continues="success"),
        Case("logged", LOCAL, [work("work")], "the same with its log", home={CONFIG: logged(CHAT)}),
        Case(
            "logged-failed",
            LOCAL,
            [{"name": "work", "turns": [work("work")["turns"][0], {"error": {"kind": "authentication"}}]}],
            "401 in turn 2, with its log",
            home={CONFIG: logged(CHAT)},
        ),
        Case(
            "success-anthropic",
            LOCAL,
            [work("work")],
            "the same through Anthropic Messages",
            home={CONFIG: config("anthropic-messages", f"{MODEL}/anthropic")},
        ),
        Case("exec", EXEC, [work("work")], "`agent exec`: one document with the final text and a summary of tools"),
        Case("exec-failed", EXEC, [failing("authentication")], "`agent exec` and 401"),
        _failure("authentication", "authentication", "401"),
        _failure("billing", "billing", "429: insufficient_quota"),
        _failure("permission", "permission", "403"),
        _failure("not-found", "not_found", "404: no such model"),
        _failure("invalid-request", "invalid_request", "400"),
        _failure("context-too-long", "context_too_long", "400: the context is too long"),
        Case("bad-flag", [*LOCAL, "--no-such-flag"], [], "an unknown option"),
        Case("bad-config", LOCAL, [], "a broken configuration", home={CONFIG: "{broken"}),
        Case("sigterm", LOCAL, [hanging()], "SIGTERM in turn 2", signal=signal.SIGTERM),
        Case("sigint", LOCAL, [hanging()], "SIGINT in turn 2", signal=signal.SIGINT),
        Case("killed", LOCAL, [hanging()], "kill -9 of all in turn 2", signal=signal.SIGKILL),
        Case(
            "resumed-after-kill",
            [*LOCAL[:-1], "Go on where you were interrupted."],
            [work("work")],
            "goes on from `killed`",
            continues="killed",
        ),
        _failure("rate-limit", "rate_limit", "429, retries used up (150 s)"),
        _failure("server-error", "server_error", "500, retries used up (90 s)"),
        _failure("overloaded", "overloaded", "503, retries used up"),
    ],
)
