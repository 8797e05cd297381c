"""The runtime port: which agent runs in a slot. Adapters are found through entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cloudclaw_pool_manager.domain.attempt import Exit, Launch


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a runtime needs of a task to build its command line.

    Attributes:
        argv: from the spec; may be empty for agents.
        prompt: from the spec.
        env: from the spec, names checked.
        session_id: session to continue, empty for a new one.
        resumes: an earlier attempt was lost; the tree is its last checkpoint.
        identity: `CLAW_TASK_ID`, `CLAW_ATTEMPT` and the like, to be passed on.
    """

    argv: tuple[str, ...]
    prompt: str
    env: Mapping[str, str]
    session_id: str
    resumes: bool
    identity: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a runtime makes of an exit.

    Attributes:
        succeeded: the attempt may be committed.
        reason: an `EndReason` name without its prefix, such as `COMPLETED`.
        message: for people.
        retryable: another attempt may succeed.
        final_message: the agent's last message, empty when there is none.
        session_id: the agent's session.
    """

    succeeded: bool
    reason: str
    message: str
    retryable: bool = False
    final_message: str = ""
    session_id: str = ""


class RuntimeAdapter(Protocol):
    """One kind of agent. Stateless; one instance serves all attempts.

    Registered under the entry point group `cloudclaw.runtimes`; called with no arguments.
    """

    name: str

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        """Raise `InvalidArgumentError` when the spec cannot be run by this runtime."""
        ...

    def launch(self, request: RunRequest) -> Launch:
        """The command line, environment and input."""
        ...

    def judge(self, request: RunRequest, exit: Exit) -> Verdict:
        """What the exit means. Called only when CloudClaw did not end the attempt itself."""
        ...
