"""Exit codes, and errors that say what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudclaw import errors
from cloudclaw.cli.failures import exit_code, report
from cloudclaw.rpc.auth import Minter
from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services

TASK = "task-0000000000000000"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgumentError("x", field="f"), 2),
        (errors.OutOfRangeError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.UnauthenticatedError("x"), 4),
        (errors.PermissionDeniedError("x"), 4),
        (errors.UnavailableError("x"), 5),
        (errors.CloudClawError("x"), 5),
        (errors.DataLossError("x"), 5),
        (errors.UnimplementedError("x"), 5),
        (errors.PreconditionError("x"), 6),
        (errors.FencedError("x"), 6),
        (errors.AlreadyExistsError("x"), 6),
        (errors.AbortedError("x"), 6),
        (errors.QuotaExceededError("x"), 6),
    ],
)
def test_every_error_has_its_exit_code(error: errors.CloudClawError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("json_output", [False, True])
def test_words_in_errors_leave_a_terminal_alone(capsys: pytest.CaptureFixture[str], json_output: bool) -> None:
    nasty = "no task \x9b2J\x1b]0;x\x07\u202e\udcff"
    error = errors.NotFoundError(nasty, metadata={"of": nasty})
    report(error, json_output=json_output, endpoint="here")
    said = capsys.readouterr().err
    assert not {"\x9b", "\x1b", "\x07", "\u202e", "\udcff"} & set(said)
    if json_output:
        assert json.loads(said)["error"]["message"] == nasty


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("get", TASK), 3, "claw ls"),
        (("submit", "--pool", "missing", "--", "true"), 6, "missing"),
        (("submit", "--pool", "full", "--", "true"), 6, "end or delete"),
        (("pool", "slots", "--endpoint", "ADDRESS"), 4, "--role operator"),
        (("ws", "files", "none"), 3, "claw ws ls"),
    ],
)
def test_errors_say_what_to_do_next(
    claw: Claw, services: Services, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    ran = claw(*(a.replace("ADDRESS", services.address) for a in arguments))
    assert ran.code == code
    assert hint in ran.err
    assert ran.err.startswith("error: ")
    assert ran.out == ""


def test_a_task_that_has_not_ended_has_no_result_yet(claw: Claw, services: Services) -> None:
    claw("submit", "--", "x")
    services.scheduler.tasks[TASK].state = task_pb2.TASK_STATE_QUEUED
    ran = claw("result", TASK)
    assert ran.code == 6
    assert "claw logs --follow" in ran.err


def test_with_json_the_error_is_an_object_on_standard_error(claw: Claw) -> None:
    ran = claw("get", TASK, "--output", "json")
    assert (ran.code, ran.out) == (3, "")
    assert json.loads(ran.err)["error"]["code"] == "NOT_FOUND"


def test_nothing_that_answers_is_exit_code_five_with_advice(claw: Claw) -> None:
    ran = claw("ls", "--endpoint", "127.0.0.1:1")
    assert ran.code == 5
    assert "nothing answers at 127.0.0.1:1" in ran.err
    assert "claw dev" in ran.err


@pytest.mark.parametrize("token", ["garbage", "eyJhbGciOiJub25lIn0.e30."])
def test_a_bad_token_is_denied(claw: Claw, token: str) -> None:
    assert claw("ls", "--token", token).code == 4


def test_without_a_token_it_says_how_to_get_one(bare: Claw, services: Services) -> None:
    ran = bare("--endpoint", services.address, "ls")
    assert ran.code == 4
    assert "claw token create" in ran.err


def test_another_tenants_token_is_refused_before_anything_is_sent(claw: Claw, services: Services) -> None:
    ran = claw("submit", "--tenant", "other", "--", "true")
    assert ran.code == 4
    assert "'acme', not 'other'" in ran.err
    assert not services.scheduler.submitted


def test_options_go_before_the_environment(claw: Claw, services: Services) -> None:
    other = Minter(services.key).mint("other")
    claw("submit", "--", "x")
    assert claw("get", TASK, "--token", other).code == 3
    assert claw("--token", other, "get", TASK).code == 3
    assert claw("get", TASK).code == 0


def test_a_running_dev_is_found_without_any_setting(bare: Claw, services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "dev-data"
    folder.mkdir()
    token = Minter(services.key).mint("dev", ["user", "operator"])
    endpoints = {"scheduler": services.address, "workspace": services.address}
    (folder / "ready.json").write_text(json.dumps({"token": token, "operator_token": token, "endpoints": endpoints}))
    assert bare("submit", "--", "x").code == 0
    assert bare("ws", "create", "w").code == 0
    assert bare("top").code == 0
    # Its token is for its own endpoints only.
    assert bare("ls", "--endpoint", "127.0.0.1:1").code == 4


def test_tokens_are_made_and_keys_are_not_replaced(bare: Claw, services: Services, tmp_path: Path) -> None:
    key = tmp_path / "k.key"
    assert bare("token", "key", str(key)).code == 0
    again = bare("token", "key", str(key))
    assert again.code == 5
    assert "exists" in again.err
    made = bare("token", "create", "--tenant", "acme", "--key", str(services.key), "--role", "operator", "--ttl", "1m")
    ran = bare("--endpoint", services.address, "--token", made.out.strip(), "pool", "get", "--node", "node-1")
    assert ran.code == 0, ran.err
    assert bare("token", "create", "--key", str(services.key)).code == 2
    assert bare("token", "create", "--tenant", "a", "--key", str(services.key), "--ttl", "x").code == 2
    assert bare("token", "create", "--tenant", "a", "--key", str(services.key), "--role", "root").code == 2


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloudclaw.cli", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_module_runs_and_a_reader_that_leaves_is_no_error() -> None:
    assert "submit" in _run("--help").stdout
    piped = f"{sys.executable} -m cloudclaw.cli --help | true"
    ran = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ran.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['claw', '--help']\n"
        "from cloudclaw.cli.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'google.protobuf', 'pydantic', 'rich.console', 'cryptography', 'jwt'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
