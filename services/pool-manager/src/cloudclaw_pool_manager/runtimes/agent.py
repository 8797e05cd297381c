"""What our agents' adapters share: options, environment, words to say first, versions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from cloudclaw.agents.parser import StreamParser
from cloudclaw.agents.registry import parser_for
from cloudclaw.agents.transcript import Transcript
from cloudclaw.errors import InvalidArgumentError, PreconditionError
from cloudclaw_pool_manager.domain.attempt import Exit, Launch
from cloudclaw_pool_manager.ports.runtime import AgentOptions, Input, RunRequest, Trace, Verdict, Warmth
from cloudclaw_pool_manager.runtimes.ends import judge
from cloudclaw_pool_manager.runtimes.environment import BASE_ENV, PATH

_Options = TypeVar("_Options", bound=AgentOptions)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Agent:
    """Base of `AgentAdapter`s whose program is one process for each attempt.

    A subclass sets the class attributes and implements `launch`. Third parties' adapters need not use it.

    Attributes:
        name: the runtime's.
        program: the binary's usual name.
        oldest: the oldest version that works.
        options_type: its options.
        flags: variables that it always gets.
    """

    settles: float = 0.0

    name: str
    program: ClassVar[str]
    oldest: ClassVar[tuple[int, int, int]]
    options_type: ClassVar[type[AgentOptions]] = AgentOptions
    upstream: ClassVar[str]
    flags: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **options: Any) -> None:
        self.options = read_options(self.name, self.options_type, options)

    # -- the contract --

    def validate(self, argv: tuple[str, ...], prompt: str) -> None:
        if argv:
            raise InvalidArgumentError(
                f"{self.name} takes a prompt, not a command: give it by `--prompt`", field="spec.argv"
            )
        if "\0" in prompt:
            raise InvalidArgumentError("the prompt holds a NUL character", field="spec.prompt")

    def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
        return judge(self.name, exit, transcript)

    def probe(self) -> Launch:
        return Launch((self.binary, "--version"), env=self.env_of(), cwd="/")

    def version(self, exit: Exit, stdout: str, stderr: str) -> str:
        said = (stderr.strip() or stdout.strip())[-500:]
        if exit.code in (126, 127):
            raise self._unfit(f"{self.binary} is not there, or cannot be executed; PATH is {self.env_of()['PATH']}")
        if exit.code or exit.signal:
            raise self._unfit(f"`{self.binary} --version` ended with exit code {exit.code}: {said or 'no word'}")
        found = _VERSION.search(stdout)
        if found is None:
            raise self._unfit(f"`{self.binary} --version` told no version: {said or 'nothing'}")
        if tuple(map(int, found.groups())) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            raise self._unfit(f"version {found[0]} is too old: {oldest} or later is needed")
        return found[0]

    def parser(self) -> StreamParser:
        return parser_for(self.name)

    def trace(self, session_id: str, call_id: str) -> Trace | None:
        return None

    def warmth(self) -> Warmth | None:
        return None

    def join(self, request: RunRequest) -> Launch | None:
        return None

    def encode_input(self, given: Input) -> bytes | None:
        return None

    # -- for subclasses --

    @property
    def binary(self) -> str:
        """What is started."""
        return self.options.binary or self.program

    def upstream_url(self, request: RunRequest) -> str:
        """The model's endpoint as the agent sees it; empty when there is no gateway."""
        return f"{request.egress}/{self.options.upstream or self.upstream}" if request.egress else ""

    def env_of(self, request: RunRequest | None = None, access: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment. The task's own variables win over the agent's flags, and lose only against the way to
        the model (`access`) and CloudClaw's own names."""
        path = ":".join([*self.options.path, PATH])
        env = {**BASE_ENV, "PATH": path, **self.flags, **self.options.env}
        if request is not None:
            env |= {**request.env, **(access or {}), **request.identity}
        return env

    def texts(self, request: RunRequest) -> list[str]:
        """What the agent is told first: the prompt and the messages after it; when the session holds the prompt, only
        the messages, or, without any, that it was interrupted."""
        messages = [given.text for given in request.inputs]
        if request.resumes and request.session_id:
            return messages or [self.options.resume_prompt]
        return [text for text in (request.prompt, *messages) if text]

    def model_of(self, request: RunRequest) -> str:
        """The model to ask for, empty for the agent's default."""
        return request.model or self.options.model

    def words(self, request: RunRequest) -> str:
        """`texts` as one text. `InvalidArgumentError` when there is nothing to say."""
        texts = self.texts(request)
        if not texts:
            raise InvalidArgumentError(f"{self.name} needs a prompt", field="spec.prompt")
        return "\n\n".join(texts)

    def _unfit(self, why: str) -> PreconditionError:
        return PreconditionError(why, subject=self.name, reason="RUNTIME_UNFIT")


def read_options(name: str, kind: type[_Options], given: Mapping[str, Any]) -> _Options:
    """Options from a pool's settings. `InvalidArgumentError` names those that are unknown or of a wrong type."""
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(given) - known):
        raise InvalidArgumentError(
            f"{name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}",
            field=f"runtime_options.{name}",
        )
    hints = get_type_hints(kind)
    values = {key: _read(f"runtime_options.{name}.{key}", hints[key], value) for key, value in given.items()}
    return kind(**values)


def _read(where: str, hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_read(where, get_args(hint)[0], one) for one in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(key): _read(where, get_args(hint)[1], one) for key, one in value.items()}
    if hint is Any or (isinstance(hint, type) and isinstance(value, hint) and (hint is bool or value is not True)):
        return value
    if origin is None and hint is float and isinstance(value, int):
        return float(value)
    raise InvalidArgumentError(f"{where} cannot be {value!r}", field=where)
