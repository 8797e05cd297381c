"""The contract of runtimes, on ours."""

from __future__ import annotations

from typing import Any, ClassVar

from cloudclaw_pool_manager.ports.runtime import AgentAdapter, RuntimeAdapter
from cloudclaw_pool_manager.runtimes.claude_code import ClaudeCode
from cloudclaw_pool_manager.runtimes.codex import Codex
from cloudclaw_pool_manager.runtimes.command import CommandRuntime
from cloudclaw_pool_manager.runtimes.gemini import Gemini
from cloudclaw_pool_manager.runtimes.openclaw import OpenClaw
from cloudclaw_pool_manager.runtimes.opencode import OpenCode
from cloudclaw_pool_manager.testing.runtimes import AgentContract, RuntimeContract
from tests.support.transcripts import RECORDINGS


class TestCommand(RuntimeContract):
    argv = ("cat",)

    def adapter(self, **options: Any) -> RuntimeAdapter:
        return CommandRuntime()


class TestClaudeCode(AgentContract):
    recordings = RECORDINGS / "claude-code"
    expected: ClassVar = {
        "success": "COMPLETED",
        "resumed": "COMPLETED",
        "resumed-after-kill": "COMPLETED",
        "stream-json": "COMPLETED",
        "retried": "COMPLETED",
        "authentication": "MODEL_AUTHENTICATION",
        "permission": "MODEL_AUTHENTICATION",
        "billing": "MODEL_AUTHENTICATION",
        "rate-limit": "MODEL_RATE_LIMIT",
        "overloaded": "MODEL_OVERLOADED",
        "server-error": "MODEL_FAILED",
        "invalid-request": "MODEL_FAILED",
        "context-too-long": "MODEL_CONTEXT",
        "not-found": "MODEL_NOT_FOUND",
        "refused-connection": "MODEL_UNREACHABLE",
        "max-turns": "TURN_LIMIT",
        "max-budget": "SPEND_LIMIT",
        "permission-denied": "PERMISSION_DENIED",
        "bad-flag": "BAD_CONFIGURATION",
        "bad-settings": "BAD_CONFIGURATION",
        "bad-mcp": "BAD_CONFIGURATION",
        "session-in-use": "BAD_CONFIGURATION",
        "unknown-session": "BAD_CONFIGURATION",
        "sigterm": "KILLED_BY_SIGNAL",
        "sigint": "AGENT_FAILED",
        "killed": "KILLED_BY_SIGNAL",
    }

    def adapter(self, **options: Any) -> AgentAdapter:
        return ClaudeCode(**options)


class TestCodex(AgentContract):
    recordings = RECORDINGS / "codex"
    expected: ClassVar = {
        "success": "COMPLETED",
        "resumed": "COMPLETED",
        "resumed-after-kill": "COMPLETED",
        "authentication": "MODEL_AUTHENTICATION",
        "billing": "MODEL_AUTHENTICATION",
        "rate-limit": "MODEL_RATE_LIMIT",
        "overloaded": "MODEL_OVERLOADED",
        "server-error": "MODEL_FAILED",
        "invalid-request": "MODEL_FAILED",
        "permission": "MODEL_AUTHENTICATION",
        "not-found": "MODEL_NOT_FOUND",
        "context-too-long": "MODEL_CONTEXT",
        "bad-flag": "BAD_CONFIGURATION",
        "unknown-session": "BAD_CONFIGURATION",
        "sigterm": "KILLED_BY_SIGNAL",
        "killed": "KILLED_BY_SIGNAL",
    }

    def adapter(self, **options: Any) -> AgentAdapter:
        return Codex(**options)


class TestGemini(AgentContract):
    recordings = RECORDINGS / "gemini"
    expected: ClassVar = {
        "success": "COMPLETED",
        "resumed": "COMPLETED",
        "resumed-after-kill": "COMPLETED",
        "authentication": "MODEL_AUTHENTICATION",
        "permission": "MODEL_AUTHENTICATION",
        "billing": "MODEL_AUTHENTICATION",
        "rate-limit": "MODEL_RATE_LIMIT",
        "overloaded": "MODEL_OVERLOADED",
        "server-error": "MODEL_FAILED",
        "invalid-request": "MODEL_FAILED",
        "not-found": "MODEL_NOT_FOUND",
        "context-too-long": "MODEL_CONTEXT",
        "bad-flag": "BAD_CONFIGURATION",
        "unknown-session": "BAD_CONFIGURATION",
        "killed": "KILLED_BY_SIGNAL",
    }

    def adapter(self, **options: Any) -> AgentAdapter:
        return Gemini(**options)


class TestOpenClaw(AgentContract):
    recordings = RECORDINGS / "openclaw"
    good_version = "OpenClaw 9999.1.1 (0123abc)"
    expected: ClassVar = {
        "success": "COMPLETED",
        "success-anthropic": "COMPLETED",
        "resumed": "COMPLETED",
        "resumed-after-kill": "COMPLETED",
        "logged": "COMPLETED",
        "exec": "COMPLETED",
        "authentication": "MODEL_AUTHENTICATION",
        "billing": "MODEL_AUTHENTICATION",
        "permission": "MODEL_AUTHENTICATION",
        "logged-failed": "MODEL_AUTHENTICATION",
        "exec-failed": "MODEL_AUTHENTICATION",
        "rate-limit": "MODEL_RATE_LIMIT",
        "overloaded": "MODEL_OVERLOADED",
        "server-error": "MODEL_FAILED",
        "invalid-request": "MODEL_FAILED",
        "not-found": "MODEL_NOT_FOUND",
        "context-too-long": "MODEL_CONTEXT",
        "bad-flag": "BAD_CONFIGURATION",
        "bad-config": "BAD_CONFIGURATION",
        "sigterm": "KILLED_BY_SIGNAL",
        "sigint": "KILLED_BY_SIGNAL",
        "killed": "KILLED_BY_SIGNAL",
    }

    def adapter(self, **options: Any) -> AgentAdapter:
        return OpenClaw(**options)


class TestOpenCode(AgentContract):
    recordings = RECORDINGS / "opencode"
    session = "ses_ddde08844ffepf1ejwnEdxjAb0"
    expected: ClassVar = {
        "success": "COMPLETED",
        "success-anthropic": "COMPLETED",
        "resumed": "COMPLETED",
        "resumed-after-kill": "COMPLETED",
        "retried": "COMPLETED",
        "authentication": "MODEL_AUTHENTICATION",
        "permission": "MODEL_AUTHENTICATION",
        "billing": "MODEL_AUTHENTICATION",
        "rate-limit": "MODEL_RATE_LIMIT",
        "overloaded": "MODEL_OVERLOADED",
        "server-error": "MODEL_FAILED",
        "invalid-request": "MODEL_FAILED",
        "context-too-long": "MODEL_CONTEXT",
        "compacted": "MODEL_CONTEXT",
        "not-found": "MODEL_NOT_FOUND",
        "refused-connection": "MODEL_UNREACHABLE",
        "permission-denied": "PERMISSION_DENIED",
        "bad-flag": "BAD_CONFIGURATION",
        "bad-config": "BAD_CONFIGURATION",
        "unknown-session": "BAD_CONFIGURATION",
        "killed": "KILLED_BY_SIGNAL",
        "killed-in-a-loop": "KILLED_BY_SIGNAL",
        "sigterm": "KILLED_BY_SIGNAL",
    }

    def adapter(self, **options: Any) -> AgentAdapter:
        return OpenCode(**options)
