"""The runtime port: which agent runs in a slot. Adapters are found through entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cloudclaw.agents.parser import StreamParser
from cloudclaw.agents.transcript import Transcript
from cloudclaw_pool_manager.domain.assignment import Input
from cloudclaw_pool_manager.domain.attempt import Exit, Launch

__all__ = [
    "AgentAdapter",
    "AgentOptions",
    "Input",
    "RunRequest",
    "RuntimeAdapter",
    "Trace",
    "Verdict",
    "Warmth",
]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a runtime needs of a task to build its command line.

    Attributes:
        argv: from the spec; may be empty for agents.
        prompt: from the spec.
        env: from the spec, names checked.
        session_id: session to continue, empty for a new one. The tree holds it when `resumes`; otherwise the user
            says that it does.
        resumes: an earlier attempt was lost or parked; the tree is its last checkpoint.
        identity: `CLAW_TASK_ID`, `CLAW_ATTEMPT` and the like, to be passed on.
        uid: the attempt's; for what must be unique and the same when asked twice (a new session's id).
        model: from the spec, empty for the runtime's default.
        max_turns: from the spec, 0 for none.
        inputs: messages that the session does not hold yet, oldest first; the agent is given them after the prompt, or
            in its place when the session holds that already.
        conversation: the agent is to wait for input when it has answered.
        egress: the way to models, such as `http://127.0.0.1:8787`; empty when there is none.
        memory_bytes: what the attempt may use, for agents that size a heap.
    """

    argv: tuple[str, ...]
    prompt: str
    env: Mapping[str, str]
    session_id: str
    resumes: bool
    identity: Mapping[str, str]
    uid: str = ""
    model: str = ""
    max_turns: int = 0
    inputs: tuple[Input, ...] = ()
    conversation: bool = False
    egress: str = ""
    memory_bytes: int = 0


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


@dataclass(frozen=True, slots=True)
class Warmth:
    """A program that can wait for its task.

    Attributes:
        launch: started before there is a task; `warm_key` names it, so that a restarted manager knows what waits.
        ready: regular expression; a line of standard output that matches says that it waits.
        memory_bytes: what it needs while it waits; a pool whose limit is lower is not warmed.
    """

    launch: Launch
    ready: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What an agent's files show of a turn that is written down.

    Attributes:
        path: of the file, below the home folder, without `..`.
        text: bytes that are in its last 256 KiB then, and were nowhere in it before.
    """

    path: str
    text: bytes


class RuntimeAdapter(Protocol):
    """One kind of program. Stateless; one instance serves all attempts of a pool.

    Registered under the entry point group `cloudclaw.runtimes`; called with the pool's `runtime_options` for it as
    keyword arguments, with none when there are none.
    """

    name: str

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        """Raise `InvalidArgumentError` when the spec cannot be run by this runtime."""
        ...

    def launch(self, request: RunRequest) -> Launch:
        """The command line, environment and input. `InvalidArgumentError` when there cannot be one."""
        ...

    def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
        """What the exit means. Called only when CloudClaw did not end the attempt itself."""
        ...


@runtime_checkable
class AgentAdapter(RuntimeAdapter, Protocol):
    """A runtime whose program is an agent: it says what it does, keeps a session, and may take input.

    `cloudclaw_pool_manager.testing.runtimes` holds the tests that every adapter passes.

    Attributes:
        settles: seconds after a `Turn` within which the agent has written what it keeps of it. A checkpoint of the turn
            waits so long, unless its `trace` shows earlier: one that came before would hold the turn's files and not
            the turn, which is then done twice.
    """

    settles: float

    def probe(self) -> Launch:
        """A command that tells the program's version quickly and touches no model."""
        ...

    def version(self, exit: Exit, stdout: str, stderr: str) -> str:
        """The version that the probe told. `PreconditionError` with what to do when it cannot run here (not found, too
        old, broken)."""
        ...

    def parser(self) -> StreamParser:
        """A new parser for an attempt's log; of the same class as `cloudclaw.agents.registry` has for this name."""
        ...

    def trace(self, session_id: str, call_id: str) -> Trace | None:
        """What shows in the files of a session that a turn is written down whose last result was that of the call
        `call_id`, "" for a turn without calls; None when nothing does."""
        ...

    def warmth(self) -> Warmth | None:
        """What to start in an idle slot; None when the agent cannot wait warm, or should not."""
        ...

    def join(self, request: RunRequest) -> Launch | None:
        """How the attempt goes on in the program that waits: `stdin` is written to it, `warm_key` is that of `warmth`.
        None when this request needs a program of its own (it continues a session, say)."""
        ...

    def encode_input(self, given: Input) -> bytes | None:
        """What to write to the standard input of a running program for this message. None when it takes none: then
        the message waits for the next turn, in an attempt of its own."""
        ...


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options that all agents' adapters take (`runtime_options` of a pool).

    Attributes:
        binary: absolute path of the program inside the sandbox; empty: by its usual name, on `path`.
        path: directories before the usual PATH.
        model: default model, in the agent's words; empty for the agent's own default.
        upstream: name of the gateway's upstream.
        resume_prompt: what a session is told that goes on after a lost attempt.
        env: further variables of the agent.
        warm: let it wait warm where it can.
        permissions: let it use every tool without asking; its sandbox is what holds it.
    """

    binary: str = ""
    path: tuple[str, ...] = ()
    model: str = ""
    upstream: str = ""
    resume_prompt: str = (
        "Your work was interrupted and goes on now, possibly on another machine. The files are as your last completed"
        " step left them; processes that you started are gone. Check what is there, and continue."
    )
    env: Mapping[str, str] = field(default_factory=dict)
    warm: bool = True
    permissions: bool = True
