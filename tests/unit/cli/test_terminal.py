"""What a person at a terminal sees, and what a pipe gets."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudclaw.cli.output import Output
from cloudclaw.rpc.auth import Minter
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services

_WITH_A_TERMINAL = """
import os, runpy
os.open(os.ttyname(0), os.O_RDWR)  # the first that a new session opens is its own: the terminal whose Ctrl-C it gets
runpy.run_module("cloudclaw.cli", run_name="__main__", alter_sys=True)
"""


def _until_it_sleeps(pid: int) -> None:
    """Return once the process waits for what is typed: its question stands there a moment before it does."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline, "it never waits"
        time.sleep(0.01)


def on_a_terminal(
    services: Services, *arguments: str, typed: bytes = b"", once: str = "", code: int = 0, **environment: str
) -> str:
    """The output of `claw` on a terminal, on which somebody types `typed`, once it says `once`; without it nobody is
    there to type. It ends with `code`."""
    ours, theirs = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM", "CLAW_TENANT")}
    token = Minter(services.key).mint("acme")
    base |= {"TERM": "xterm-256color", "COLUMNS": "150", "CLAW_TOKEN": token, "CLAW_ENDPOINT": services.address}
    try:
        with subprocess.Popen(
            [sys.executable, *(("-c", _WITH_A_TERMINAL) if once else ("-m", "cloudclaw.cli")), *arguments],
            stdin=theirs if typed else subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=base | environment,
            start_new_session=bool(once),
        ) as process:  # fmt: skip
            os.close(theirs)
            seen = b""
            try:
                while once.encode() not in seen:
                    seen += os.read(ours, 4096)
                if once:
                    _until_it_sleeps(process.pid)
                os.write(ours, typed)
                while piece := os.read(ours, 4096):
                    seen += piece
            except OSError:
                pass  # how a terminal says that nobody writes to it any more
            except BaseException:
                process.kill()  # before it is waited for
                raise
            assert process.wait(30) == code, seen
    finally:
        os.close(ours)
    return seen.decode()


def test_colours_are_for_terminals_that_want_them(services: Services, claw: Claw) -> None:
    claw("submit", "--", "x")
    assert "\x1b[32msucceeded" in on_a_terminal(services, "ls")
    assert "\x1b[3" not in on_a_terminal(services, "ls", NO_COLOR="1")
    assert "\x1b" not in claw("ls").out
    assert "\x1b" not in on_a_terminal(services, "ls", "--output", "json")


def test_the_live_view_is_for_terminals_only(services: Services, claw: Claw) -> None:
    once = on_a_terminal(services, "top", "--once")
    assert "leader 127.0.0.1:7401" in once
    assert "\x1b[?1049h" not in once


def test_progress_is_not_shown_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=False)
    with output.progress("reading", 100) as progress:
        progress.advance(50)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
