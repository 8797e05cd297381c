"""The agents' command lines as anyone would start them, without CloudClaw: what it is measured against."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloudclaw.cli.dev.agents import default_prefix, in_prefix
from tests.support.agents import AGENTS

PREFIX = default_prefix().resolve()
_PROGRAMS = "/home/agents"
"""Where they are inside: their own place may be one that only root sees."""
_UID = "1000"
_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "IS_SANDBOX": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCLAW_NO_AUTO_UPDATE": "1",
    "OPENCLAW_OFFLINE": "1",
    "OPENCLAW_SKIP_CHANNELS": "1",
    "OPENCLAW_DISABLE_BONJOUR": "1",
}
_MODEL = "claude-opus-5-5"


@dataclass(frozen=True)
class Bare:
    """How to start agents afresh, one a task, straight at the model.

    Attributes:
        model: `host:port` of the scripted model.
        docker: words of `docker run` up to the image; empty: bubblewrap, with the same new namespaces.
        what: how rows name it.
    """

    model: str
    docker: tuple[str, ...] = ()
    what: str = "fresh bubblewrap"

    async def run(self, runtime: str, text: str) -> None:
        """One task from its start to its end."""
        argv, env = _command(runtime, text, self.model)
        words = self._docker(env, argv) if self.docker else self._bubblewrap(env, argv)
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), 120)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, f"{words[:3]} {runtime}: {out.decode()[-2000:]}"

    async def crowd(self, runtime: str, texts: Sequence[str], cap: int) -> float:
        """All of them, never more than `cap` at once; answers the seconds that took."""
        free = asyncio.Semaphore(cap)

        async def one(text: str) -> None:
            async with free:
                await self.run(runtime, text)

        start = time.perf_counter()
        await asyncio.gather(*(one(text) for text in texts))
        return time.perf_counter() - start

    def _docker(self, env: dict[str, str], argv: list[str]) -> list[str]:
        """A container like a careful person's: not root, fresh home and tree, the host's loopback for the model."""
        head, image = self.docker[:-1], self.docker[-1]
        fresh = [f"--tmpfs={path}:exec,uid={_UID},mode=700" for path in ("/home/agent", "/workspace")]
        variables = [f"--env={name}={value}" for name, value in env.items()]
        return [*head, "--rm", "--network=host", f"--user={_UID}:{_UID}", "--workdir=/workspace", *fresh,
                f"--volume={PREFIX}:{_PROGRAMS}:ro", *variables, image, *argv]  # fmt: skip

    def _bubblewrap(self, env: dict[str, str], argv: list[str]) -> list[str]:
        bwrap = shutil.which("bwrap")
        assert bwrap is not None
        base = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/home"]
        base += ["--ro-bind", str(PREFIX), _PROGRAMS]
        place = ["--dir", "/home/agent", "--dir", "/home/work", "--chdir", "/home/work"]
        apart = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        variables = [word for name, value in env.items() for word in ("--setenv", name, value)]
        return [bwrap, *base, *place, *apart, "--clearenv", *variables, *argv]


def _command(runtime: str, text: str, model: str) -> tuple[list[str], dict[str, str]]:
    programs = f"{_PROGRAMS}/bin"
    env = {"HOME": "/home/agent", "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **_QUIET}
    if runtime == "claude-code":
        env |= {"ANTHROPIC_BASE_URL": f"http://{model}", "ANTHROPIC_API_KEY": "none"}
        return [f"{programs}/claude", "-p", "--output-format", "stream-json", "--verbose",
                "--dangerously-skip-permissions", text], env  # fmt: skip
    if runtime == "opencode":
        env["OPENCODE_CONFIG_CONTENT"] = json.dumps(
            {
                "autoupdate": False, "share": "disabled", "model": f"bench/{_MODEL}", "small_model": f"bench/{_MODEL}",
                "enabled_providers": ["bench"], "permission": {"*": "allow"},
                "provider": {
                    "bench": {
                        "npm": "@ai-sdk/anthropic",
                        "options": {"baseURL": f"http://{model}/v1", "apiKey": "none"},
                        "models": {_MODEL: {"name": _MODEL, "tool_call": True}},
                    }
                },
            }
        )  # fmt: skip
        return [f"{programs}/opencode", "run", "--format", "json", text], env
    write = 'mkdir -p "$HOME/.openclaw" && printf %s "$1" > "$HOME/.openclaw/openclaw.json" && shift && exec "$@"'
    start = ["sh", "-c", write, "sh", json.dumps(_openclaw(model)), f"{programs}/openclaw"]
    session = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    return [*start, "agent", "--local", "--json", "--session-id", session, "--message", text], env


def _openclaw(model: str) -> dict[str, Any]:
    known = {"id": _MODEL, "name": _MODEL, "input": ["text"], "contextWindow": 200_000, "maxTokens": 16_384}
    provider = {"baseUrl": f"http://{model}", "apiKey": "none", "api": "anthropic-messages", "models": [known]}
    defaults = {
        "model": {"primary": f"bench/{_MODEL}"},
        "workspace": "/home/agent/work",
        "skipBootstrap": True,
        "heartbeat": {"every": "0m"},
    }
    return {
        "agents": {"defaults": defaults},
        "update": {"checkOnStart": False},
        "models": {"providers": {"bench": provider}},
    }


def installed() -> list[str]:
    """The agents that set-up put here."""
    return [name for name in AGENTS if name in in_prefix(None).runtimes]
