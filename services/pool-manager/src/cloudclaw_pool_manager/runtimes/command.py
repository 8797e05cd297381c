"""The `command` runtime: any program; exit code 0 is success."""

from __future__ import annotations

import signal
from typing import Final

from cloudclaw.agents.transcript import Transcript
from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import Exit, Launch
from cloudclaw_pool_manager.ports.runtime import RunRequest, Verdict
from cloudclaw_pool_manager.runtimes.environment import BASE_ENV

_FILE_LIMIT: Final = 128 + signal.SIGXFSZ
"""What a shell ends with when its last command was killed for a file over the limit."""


class CommandRuntime:
    """Runs `argv` with the prompt as its standard input."""

    name = "command"

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        if not argv or not argv[0]:
            raise InvalidArgumentError(
                "the command runtime needs a program: give it after `--`, as in `claw submit -- make test`",
                field="spec.argv",
            )

    def launch(self, request: RunRequest) -> Launch:
        return Launch(
            argv=request.argv,
            env={**BASE_ENV, **request.env, **request.identity},
            stdin=request.prompt.encode(),
        )

    def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
        if exit.signal:
            return Verdict(False, "KILLED_BY_SIGNAL", f"ended by signal {exit.signal}")
        if exit.code in (126, 127):
            how = "not found" if exit.code == 127 else "not executable"
            return Verdict(False, "START_FAILED", f"{request.argv[0]!r}: {how} (exit code {exit.code})")
        if exit.code == _FILE_LIMIT:
            return Verdict(
                False, "NONZERO_EXIT", f"exit code {exit.code}: a file reached the limit of one file (SIGXFSZ)"
            )
        if exit.code:
            return Verdict(False, "NONZERO_EXIT", f"exit code {exit.code}")
        return Verdict(True, "COMPLETED", "exit code 0")
