"""Runtimes and backends from packages, ours and third parties'."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from cloudclaw.agents.transcript import Transcript
from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends.bubblewrap import BubblewrapPool
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason
from cloudclaw_pool_manager.ports.runtime import RunRequest
from cloudclaw_pool_manager.runtimes.command import CommandRuntime
from cloudclaw_pool_manager.runtimes.registry import BACKENDS, RUNTIMES, load_backend, load_runtimes

HERE = __name__


class Echo:
    """A third party's runtime."""

    name = "echo"

    def validate(self, argv: tuple[str, ...], prompt: str) -> None: ...

    def launch(self, request: object) -> None: ...

    def judge(self, request: object, exit: object, transcript: object) -> None: ...


class Half:
    """One that lacks a method."""

    name = "half"

    def validate(self, argv: tuple[str, ...], prompt: str) -> None: ...

    def launch(self, request: object) -> None: ...


class Raises:
    def __init__(self) -> None:
        raise ZeroDivisionError("no such agent installed")


def test_the_installed_runtimes_and_backends_are_found() -> None:
    assert isinstance(load_runtimes()["command"], CommandRuntime)
    assert load_backend("bubblewrap") is BubblewrapPool


@pytest.mark.parametrize(("code", "named"), [(153, "limit of one file"), (152, "exit code 152"), (1, "exit code 1")])
def test_a_command_that_a_file_limit_ended_is_told_so(code: int, named: str) -> None:
    request = RunRequest(argv=("sh",), prompt="", env={}, session_id="", resumes=False, identity={})
    ended = Exit(code, 0, KillReason.NONE, oom_killed=False, log_end=0, started=0.0, ended=1.0)
    verdict = CommandRuntime().judge(request, ended, Transcript())
    assert (verdict.succeeded, verdict.reason) == (False, "NONZERO_EXIT")
    assert named in verdict.message
    assert ("SIGXFSZ" in verdict.message) == (code == 153)


def test_a_third_partys_runtime_is_a_package() -> None:
    point = EntryPoint("echo", f"{HERE}:Echo", RUNTIMES)
    assert load_runtimes(["echo"], found=[point])["echo"].name == "echo"


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (EntryPoint("gone", "no_such_package.agent:Agent", RUNTIMES), "no_such_package"),
        (EntryPoint("raises", f"{HERE}:Raises", RUNTIMES), "no such agent installed"),
        (EntryPoint("half", f"{HERE}:Half", RUNTIMES), "judge"),
        (EntryPoint("other", f"{HERE}:Echo", RUNTIMES), "calls itself 'echo'"),
    ],
)
def test_a_broken_runtime_is_named(point: EntryPoint, why: str) -> None:
    with pytest.raises(PreconditionError, match=why) as broken:
        load_runtimes([point.name], found=[point])
    assert point.name in broken.value.message
    assert point.value in broken.value.message
    assert broken.value.reason == "BROKEN_ENTRY_POINT"


def test_a_broken_backend_is_named() -> None:
    with pytest.raises(PreconditionError, match=r"nowhere\.slots:Pool"):
        load_backend("cloud", found=[EntryPoint("cloud", "nowhere.slots:Pool", BACKENDS)])


def test_one_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(PreconditionError, match=r"no runtime 'no-such-agent'; installed are .*command"):
        load_runtimes(["no-such-agent"])
    with pytest.raises(PreconditionError, match="no backend 'firecracker'"):
        load_backend("firecracker")
