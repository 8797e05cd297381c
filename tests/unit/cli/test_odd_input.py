"""Odd input and odd surroundings: each is told what is wrong, and nothing ends in a traceback."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import pytest

from cloudclaw.cli import follow
from cloudclaw.cli.command import Given
from cloudclaw.cli.failures import report
from cloudclaw.cli.output import open_streams
from cloudclaw.cli.session import Session
from cloudclaw.cli.text import span
from cloudclaw.client.retry import Patience
from cloudclaw.errors import UnavailableError, UnimplementedError
from cloudclaw.rpc.auth import Minter
from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services
from tests.unit.cli.test_terminal import on_a_terminal

TASK = "task-0000000000000000"
AGENT = ("submit", "--runtime", "claude-code")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("submit", "--", "echo", "a\udcff"), r"not UTF-8 text: b'a\xff'"),
        ((*AGENT, "--prompt", "a\udcff"), "not UTF-8 text"),
        (("submit", "--prompt", "x"), "--runtime claude-code"),
        (("submit", "--prompt", "x", "--", "true"), "--runtime claude-code"),
        (("submit", "--session", "s", "--", "true"), "--session: goes with an agent"),
        ((*AGENT, "--", "true"), "claude-code takes a prompt and no command"),
        ((*AGENT, "--prompt", " \n"), "--prompt: it is empty"),
        ((*AGENT, "--prompt-file", "/dev/null"), "--prompt-file: it is empty"),
        ((*AGENT, "--prompt-file", "/nonexistent"), "cannot read /nonexistent: No such file or directory\n"),
        ((*AGENT, "--prompt", "x", "--max-turns", "99999999999"), "--max-turns: must be at most 2,147,483,647"),
        ((*AGENT, "--prompt", "x", "--max-requests", "9" * 20), "--max-requests"),
        ((*AGENT, "--prompt", "x", "--max-tokens", "9" * 20), "--max-tokens"),
        ((*AGENT, "--prompt", "x", "--max-spend", "inf"), "--max-spend"),
        (("submit", "--priority", "99999999999", "--", "true"), "--priority"),
        (("submit", "--priority", "-99999999999", "--", "true"), "--priority"),
        (("submit", "--max-attempts", "99999999999", "--", "true"), "--max-attempts"),
        (("submit", "--memory", "99999999999", "--", "true"), "--memory"),
        (("submit", "--cpu", "inf", "--", "true"), "--cpu"),
    ],
)
def test_what_cannot_be_sent_is_wrong_usage(
    claw: Claw, services: Services, arguments: tuple[str, ...], said: str
) -> None:
    ran = claw(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not services.scheduler.submitted


def test_a_file_that_is_no_text_is_named_with_the_place(claw: Claw, services: Services, tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(b"ab\xff")
    for arguments, option in (
        ((*AGENT, "--prompt-file", str(file)), "--prompt-file"),
        (("send", TASK, "--file", str(file)), "--file"),
    ):
        ran = claw(*arguments)
        assert ran.code == 2
        assert f"{option}: {file} is not UTF-8 text, at byte 2" in ran.err
    assert not services.scheduler.submitted


@pytest.mark.parametrize("token", ["ey.a\nb.c", "schlüssel"])
def test_a_token_that_no_header_takes_is_denied(claw: Claw, token: str) -> None:
    ran = claw("ls", "--token", token)
    assert ran.code == 4
    assert "not a JWT" in ran.err
    assert token not in ran.err


def test_a_key_of_two_lines_is_none(claw: Claw, services: Services) -> None:
    ran = claw("tenant", "set-key", "anthropic", stdin="sk-one\nsk-two\n")
    assert ran.code == 2
    assert "one line" in ran.err
    assert not services.scheduler.keys


def test_an_upstream_that_no_agent_uses_by_itself_is_remarked_on(claw: Claw) -> None:
    assert claw("tenant", "set-key", "anthropic", stdin="sk-x").err == ""
    ran = claw("tenant", "set-key", "antropic", stdin="sk-x")
    assert ran.code == 0
    assert "anthropic, openai, gemini" in ran.err


@pytest.mark.parametrize(("typed", "code", "said"), [(b"\x03", 130, ""), (b"\x04", 2, "no key came")])
def test_the_question_for_a_key_can_be_left(services: Services, typed: bytes, code: int, said: str) -> None:
    seen = on_a_terminal(services, "tenant", "set-key", "anthropic", typed=typed, once="key for anthropic: ", code=code)
    assert said in seen
    assert "Traceback" not in seen
    assert not services.scheduler.keys


def test_a_conversation_that_has_ended_takes_no_lines(claw: Claw, services: Services) -> None:
    claw(*AGENT, "--conversation")
    services.scheduler.tasks[TASK].state = task_pb2.TASK_STATE_CANCELED
    ran = claw("chat", TASK, stdin="are you there?\n")
    assert (ran.code, ran.out) == (6, "")
    assert f"{TASK} has ended: canceled" in ran.err
    assert not services.scheduler.inputs


async def test_who_watches_is_told_why_it_waits_and_how_to_come_back(
    services: Services, claw: Claw, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(claw, "submit", "--", "x")
    task = services.scheduler.tasks[TASK]
    task.state, task.wait_reason = task_pb2.TASK_STATE_QUEUED, task_pb2.WAIT_REASON_WRITER
    monkeypatch.setattr(follow, "WAITS_AFTER", 0.0)
    async with Session(Given(endpoint=services.address, token=Minter(services.key).mint("acme"))) as session:
        remarks: asyncio.Queue[str] = asyncio.Queue()
        monkeypatch.setattr(session.output, "remark", remarks.put_nowait)
        with pytest.raises(asyncio.CancelledError):
            async with follow.watching(session, session.client(), TASK, f"claw logs {TASK} --follow"):
                said = [await asyncio.wait_for(remarks.get(), 30) for _ in range(2)]
                raise asyncio.CancelledError
        assert said[0] == f"{TASK} is queued (writer)"
        assert said[1].startswith("  ")
        last = remarks.get_nowait()
        assert f"claw logs {TASK} --follow" in last
        assert f"claw cancel {TASK}" in last


@pytest.mark.parametrize(
    ("reason", "session", "said"),
    [
        (task_pb2.END_REASON_BAD_CONFIGURATION, ("--session", "s"), "lies in one workspace"),
        (task_pb2.END_REASON_BAD_CONFIGURATION, (), ""),
        (task_pb2.END_REASON_RUN_TIMEOUT, ("--session", "s"), "`--timeout` is the limit"),
    ],
)
def test_an_end_says_what_can_be_done_about_it(
    claw: Claw, services: Services, reason: task_pb2.EndReason, session: tuple[str, ...], said: str
) -> None:
    services.scheduler.results[TASK] = task_pb2.Result(state=task_pb2.TASK_STATE_FAILED, reason=reason, message="no")
    ran = claw(*AGENT, "--wait", "--prompt", "go", *session)
    assert ran.code == 1
    assert said in ran.out + ran.err
    assert ("lies in one workspace" in ran.err) == (said == "lies in one workspace")


def test_a_command_that_ran_too_long_names_the_option(claw: Claw, services: Services) -> None:
    services.scheduler.results[TASK] = task_pb2.Result(
        state=task_pb2.TASK_STATE_FAILED, reason=task_pb2.END_REASON_RUN_TIMEOUT, message="ran too long"
    )
    ran = claw("submit", "--wait", "--", "x")
    assert ran.code == 1
    assert "`--timeout` is the limit" in ran.err


def test_an_outage_is_told_once_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    away = Session(Given(endpoint="127.0.0.1:1"))._away("127.0.0.1:1", 120.0)
    assert away is not None
    for seconds in (0.0, 1.0, 2.5, 9.0, 0.5, 3.0):  # two outages
        away(UnavailableError("x"), seconds)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("127.0.0.1:1 does not answer; trying again for 120 s" in line for line in lines)


async def test_a_patient_client_tells_of_its_pauses() -> None:
    told: list[float] = []
    failures = 2

    async def call() -> str:
        nonlocal failures
        if failures:
            failures -= 1
            raise UnavailableError("away")
        return "here"

    patience = Patience(60.0, lambda _, seconds: told.append(seconds))
    assert await patience.call(call) == "here"
    assert len(told) == 2
    assert told[0] <= told[1]


def test_where_nothing_answers_is_the_place_that_was_tried(claw: Claw, capsys: pytest.CaptureFixture[str]) -> None:
    ran = claw("ws", "ls", "--workspace-endpoint", "127.0.0.1:1")
    assert ran.code == 5
    assert "nothing answers at 127.0.0.1:1\n" in ran.err
    assert "CLAW_WORKSPACE_ENDPOINT" in ran.err
    ran = claw("ls", "--endpoint", "no-such-host.invalid:7401")
    assert ran.code == 5
    assert "'no-such-host.invalid:7401' leads nowhere" in ran.err
    assert report(UnimplementedError("unknown service"), json_output=False, endpoint="127.0.0.1:2379") == 5
    assert "another service answers there" in capsys.readouterr().err


def test_hints_are_about_what_was_not_found(operator: Claw) -> None:
    assert "CLAW_TENANT" in operator("ls", "--tenant", "other").err
    ran = operator("pool", "slots", "--node", "none")
    assert ran.code == 3
    assert "claw ws ls" not in ran.err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0996, "0.10s"), (0.05, "50ms"), (9.997, "10s"), (59.6, "1m00s"), (359.7, "6m00s"), (3599.8, "1h00m")],
)
def test_lengths_of_time_are_rounded_before_they_are_split(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_names_are_whole_on_the_narrowest_terminal(services: Services, claw: Claw) -> None:
    claw("submit", "--", "x")
    assert TASK in on_a_terminal(services, "ls", COLUMNS="40")


def test_an_encoding_that_lacks_a_character_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    open_streams()
    print("a → b", flush=True)
    assert out.getvalue() == rb"a \u2192 b" + b"\n"


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)


def test_output_that_goes_nowhere_is_an_error_and_closed_output_is_not(services: Services) -> None:
    command = f"{sys.executable} -m cloudclaw.cli token create --tenant acme --key {services.key}"
    full = _shell(f"{command} > /dev/full")
    assert full.returncode == 5
    assert full.stderr == "error: No space left on device\n"
    closed = _shell(f"{command} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
