"""OpenCode's cases."""

from __future__ import annotations

import json
import signal

from tests.support.recordings.case import LOOP, PATH, PROMPT, Agent, Case, Tree, failing, hanging, work
from tests.support.recordings.sandbox import MODEL

RUN = ["opencode", "run", "--format", "json"]
NEW = [*RUN, PROMPT]


def _config(npm: str, base: str, **more: Tree) -> str:
    model = {"name": "Scripted", "limit": {"context": 200000, "output": 8192}, "cost": {"input": 3, "output": 15}}
    options = {"baseURL": base, "apiKey": "sk-scripted"}
    return json.dumps(
        {
            "model": "claw/scripted",
            "small_model": "claw/scripted",
            "autoupdate": False,
            "share": "disabled",
            "enabled_providers": ["claw"],
            "permission": {"*": "allow"},
            "provider": {"claw": {"npm": npm, "name": "claw", "options": options, "models": {"scripted": model}}},
            **more,
        }
    )


CHAT = _config("@ai-sdk/openai-compatible", f"{MODEL}/openai/v1")
MESSAGES = _config("@ai-sdk/anthropic", f"{MODEL}/anthropic/v1")


def _failure(name: str, kind: str, note: str) -> Case:
    return Case(name, NEW, [failing(kind)], note)


OPENCODE = Agent(
    name="opencode",
    process="opencode",
    env={
        "PATH": PATH,
        "HOME": "/home/agent",
        "OPENCODE_CONFIG_CONTENT": CHAT,
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    },
    cases=[
        Case("success", NEW, [work("work")], "write a file, run a command, say so"),
        Case(
            "resumed",
            [*RUN, "-c", PROMPT],
            [work("work")],
            "a second prompt to the session of `success`",
            continues="success",
        ),
        Case(
            "success-anthropic",
            NEW,
            [work("work")],
            "the same through Anthropic Messages",
            env={"OPENCODE_CONFIG_CONTENT": MESSAGES},
        ),
        _failure("authentication", "authentication", "401"),
        _failure("permission", "permission", "403"),
        _failure("billing", "billing", "429: insufficient_quota"),
        _failure("not-found", "not_found", "404: no such model"),
        _failure("invalid-request", "invalid_request", "400"),
        Case(
            "context-too-long",
            NEW,
            [failing("context_too_long")],
            "400: the context is too long, however often it is compacted, which it does without end",
            timeout=20,
        ),
        Case(
            "compacted",
            NEW,
            [{"name": "work", "turns": [{"text": "Done.", "error": {"kind": "context_too_long", "times": 1}}]}],
            "400 once: the context is too long; it is compacted and goes on, and ends with 1 all the same",
        ),
        _failure("rate-limit", "rate_limit", "429, retries used up"),
        Case(
            "overloaded",
            NEW,
            [failing("overloaded")],
            "529 from Anthropic, retries used up",
            env={"OPENCODE_CONFIG_CONTENT": MESSAGES},
        ),
        Case(
            "retried",
            NEW,
            [{"name": "work", "turns": [{"text": "It went well.", "error": {"kind": "server_error", "times": 1}}]}],
            "500 once, then an answer",
        ),
        Case(
            "permission-denied",
            NEW,
            [work("work")],
            "a command is denied (a tool that is denied whole is not even offered to the model)",
            env={
                "OPENCODE_CONFIG_CONTENT": _config(
                    "@ai-sdk/openai-compatible",
                    f"{MODEL}/openai/v1",
                    permission={"edit": "allow", "bash": {"*": "allow", "cat *": "deny"}},
                )
            },
        ),
        Case("bad-flag", [*RUN, "--no-such-flag", "hello"], [], "an unknown option"),
        Case("bad-config", NEW, [], "a broken configuration", env={"OPENCODE_CONFIG_CONTENT": "{broken"}),
        Case(
            "unknown-model",
            [*RUN, "-m", "claw/other", PROMPT],
            [],
            "a model that the configuration does not have",
        ),
        Case("unknown-session", [*RUN, "-s", "ses_none", PROMPT], [work("work")], "-s with an unknown id"),
        Case("sigterm", NEW, [hanging()], "SIGTERM in turn 2", signal=signal.SIGTERM),
        Case("sigint", NEW, [hanging()], "SIGINT in turn 2, which it ignores", signal=signal.SIGINT, timeout=20),
        Case("killed", NEW, [hanging()], "kill -9 in turn 2", signal=signal.SIGKILL),
        Case(
            "resumed-after-kill",
            [*RUN, "-c", "Go on where you were interrupted."],
            [work("work")],
            "goes on from `killed`",
            continues="killed",
        ),
        Case(
            "killed-in-a-loop",
            NEW,
            [LOOP],
            "a model that calls tools for ever; kill -9 in turn 5",
            signal=signal.SIGKILL,
            signal_in_turn=4,
        ),
        Case("server-error", NEW, [failing("server_error")], "500, retries used up (75 s)"),
        Case(
            "refused-connection",
            NEW,
            [],
            "nobody listens at the base URL (72 s of silence)",
            env={"OPENCODE_CONFIG_CONTENT": _config("@ai-sdk/openai-compatible", "http://127.0.0.1:9/v1")},
        ),
    ],
)
