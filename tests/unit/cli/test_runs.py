"""How an agent's run is shown: as lines for people, as objects for programs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc

import pytest

from cloudclaw.cli.output import Output
from cloudclaw.cli.runs import FOLDED, RunView
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services
from tests.unit.cli.test_terminal import on_a_terminal

TASK = "task-0000000000000000"


def said(text: str, role: str = "assistant") -> pb.RunEvent:
    return pb.RunEvent(message=pb.RunMessage(role=role, text=text))


def called(tool: str, arguments: str, call_id: str = "c1") -> pb.RunEvent:
    return pb.RunEvent(tool_call=pb.RunToolCall(call_id=call_id, tool=tool, arguments=arguments))


def gave(output: str, call_id: str = "c1", *, is_error: bool = False) -> pb.RunEvent:
    return pb.RunEvent(tool_result=pb.RunToolResult(call_id=call_id, output=output, is_error=is_error))


def used(attempt: int = 1, **usage: float) -> pb.RunEvent:
    return pb.RunEvent(attempt=attempt, usage=task_pb2.Usage(**usage))  # type: ignore[arg-type]


def progress(phase: str, message: str = "", attempt: int = 1) -> pb.RunEvent:
    return pb.RunEvent(attempt=attempt, progress=pb.RunProgress(phase=phase, message=message))


def started(attempt: int = 1, *, resumed: bool = False) -> pb.RunEvent:
    about = pb.RunStarted(session_id="s-1", agent="claude-code", model="sonnet", resumed=resumed)
    return pb.RunEvent(attempt=attempt, started=about)


def lines(*events: pb.RunEvent, full: bool = False) -> list[str]:
    written: list[str] = []
    view = RunView(lambda line, style: written.append(line), full=full)
    for event in events:
        view.show(event)
    return written


def test_a_run_reads_as_it_happened() -> None:
    assert lines(
        started(), said("fix the bug", "user"), said("I look at it.\nThen I fix it."),
        called("Bash", '{"command": "ls -la", "description": "list"}'), gave("a\nb"),
        called("Edit", '{"file_path": "a.py", "old_string": "x"}'), gave("no such file", is_error=True),
        progress("turn"), said("Done."), pb.RunEvent(finished=pb.RunFinished(ok=True)),
    ) == [
        "claude-code, sonnet, session s-1",
        "> fix the bug",
        "I look at it.",
        "Then I fix it.",
        "  → Bash  ls -la",
        "    │ a",
        "    │ b",
        "  → Edit  file_path=a.py  old_string=x",
        "    ✗ no such file",
        "Done.",
    ]  # fmt: skip


def test_results_of_tools_that_were_called_at_once_say_whose_they_are() -> None:
    first, second = called("Read", '{"path": "a"}', "c1"), called("Bash", '{"command": "b"}', "c2")
    later = called("Bash", '{"command": "c"}', "c3")
    shown = lines(first, second, gave("B", "c2"), gave("A", "c1"), later, gave("C", "c3"))
    assert shown[:2] == ["  → Read  a", "  → Bash  b"]
    assert shown[2:6] == ["  ← Bash", "    │ B", "  ← Read", "    │ A"]
    assert shown[6:] == ["  → Bash  c", "    │ C"]


def test_trouble_and_lost_attempts_are_shown() -> None:
    finished = pb.RunFinished(ok=False, reason=task_pb2.END_REASON_MODEL_OVERLOADED, message="529")
    assert lines(
        started(),
        pb.RunEvent(retry=pb.RunRetry(kind="overloaded", message="529", attempt=2)),
        pb.RunEvent(error=pb.RunError(kind="overloaded", message="529", retryable=True)),
        pb.RunEvent(finished=finished),  # the same again: said once
        pb.RunEvent(finished=pb.RunFinished(ok=False, reason=task_pb2.END_REASON_AGENT_FAILED, message="other")),
        progress("attempt", "attempt 1 on node-1 ended LOST"),
        started(2, resumed=True),
        progress("parked", attempt=2),
    ) == [
        "claude-code, sonnet, session s-1",
        "↻ the agent asks its model again, try 2: overloaded: 529",
        "! overloaded: 529 (worth another attempt)",
        "! agent-failed: other",
        "--- attempt 1 on node-1 ended LOST ---",
        "--- attempt 2 ---",
        "claude-code, sonnet, session s-1, continued",
        "--- parked ---",
    ]


def test_long_output_is_folded_unless_all_is_wanted() -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    folded = lines(gave(text))
    assert len(folded) == FOLDED + 1
    assert folded[-1] == f"    │ … {100 - FOLDED} more lines"
    assert len(lines(gave(text), full=True)) == 100
    assert len(lines(said(text))) == 100  # what the agent says is what one came for
    assert len(lines(gave("x" * 5000))[0]) < 250


def test_what_agents_write_cannot_move_the_cursor() -> None:
    nasty = "\x1b[2J\x1b[31mowned\r\u202eevil\u061c\x9b2J"
    shown = lines(
        said(nasty), said(nasty, "user"), called(nasty, nasty), called("T", f'{{"a": "{nasty}", "b": 1}}'), gave(nasty),
        progress(nasty, nasty), pb.RunEvent(error=pb.RunError(kind=nasty, message=nasty)),
        pb.RunEvent(started=pb.RunStarted(session_id=nasty, agent=nasty)),
        pb.RunEvent(finished=pb.RunFinished(ok=False, message=nasty)),
        pb.RunEvent(retry=pb.RunRetry(kind=nasty, message=nasty)),
    )  # fmt: skip
    assert not {"\x1b", "\r", "\u202e", "\u061c", "\x9b", "\n"} & set("".join(shown))


def test_a_text_of_many_lines_stays_below_its_field(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).record(
        {"state": "failed", "final message": "one\n\nstate:  succeeded\x1b[2J\r\n\tlast", "empty": ""}
    )
    assert capsys.readouterr().out.split("\n") == [
        "state:         failed",
        "final message: one",
        "",
        "               state:  succeeded\ufffd[2J",
        "                   last",
        "",
    ]


def test_calls_that_never_return_fill_no_memory() -> None:
    view = RunView(lambda line, style: None)
    tracemalloc.start()
    try:
        for number in range(20_000):
            view.show(pb.RunEvent(tool_call=pb.RunToolCall(call_id=f"{number:0200}", tool="t" * 200)))
        assert tracemalloc.get_traced_memory()[0] < 2 << 20  # 12 MiB before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("arguments", ["[" * 60_000, '{"a": ' * 9000 + "1" + "}" * 9000, '{"a": ' + "9" * 5000 + "}"])
def test_arguments_that_no_parser_takes_are_shown_as_they_are(arguments: str) -> None:
    (line,) = lines(called("Bash", arguments))
    assert line.startswith("  → Bash  " + arguments[:20])


def test_json_for_programs_leaves_a_terminal_alone_too(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "a\x9b2J\x7f\u202e\u2028\u061c\x1b\\é✓"
    output = Output(json=True)
    output.message(said(nasty))
    output.fields({"x": nasty})
    first, second = capsys.readouterr().out.split("\n")[:2]
    assert not {"\x9b", "\x7f", "\u202e", "\u2028", "\x1b"} & set(first + second)
    assert json.loads(first)["message"]["text"] == json.loads(second)["x"] == nasty
    assert "é✓" in first


def test_use_is_summed_over_attempts_and_only_what_was_reported() -> None:
    view = RunView(lambda line, style: None)
    assert str(view.totals) == ""
    for event in (
        progress("turn"),
        used(1, input_tokens=100, output_tokens=5),
        used(1, input_tokens=1000, output_tokens=50),  # of the attempt so far
        progress("turn"),
        used(2, input_tokens=500, cost_usd=0.25),
    ):
        view.show(event)
    assert str(view.totals) == "2 turns · tokens 1,500 in, 50 out · $0.2500"


@pytest.fixture
def run(services: Services) -> None:
    """What the agent of the first task does."""
    services.scheduler.play(
        TASK, started(), said("go", "user"), called("Bash", '{"command": "make"}'), gave("ok"), said("All done.")
    )
    result = task_pb2.Result(usage=task_pb2.Usage(input_tokens=1200, output_tokens=90, turns=2), session_id="s-1")
    result.changed_files.add(path="src/a.py", change=task_pb2.ChangedFile.CHANGE_MODIFIED, new_size=10)
    services.scheduler.results[TASK] = result


@pytest.mark.usefixtures("run")
def test_wait_shows_the_run_the_changed_files_and_the_end(claw: Claw) -> None:
    ran = claw("submit", "--runtime", "claude-code", "--prompt", "go", "--wait")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [
        TASK, "claude-code, sonnet, session s-1", "> go", "  → Bash  make", "    │ ok", "All done.",
        "", "changed 1 file:", "  modified src/a.py  10 B",
        "", f"{TASK} succeeded: completed · 2 turns · tokens 1,200 in, 90 out",
    ]  # fmt: skip


@pytest.mark.usefixtures("run")
def test_json_is_the_task_its_events_and_its_result(claw: Claw) -> None:
    ran = claw("submit", "--runtime", "claude-code", "--prompt", "go", "--wait", "-o", "json")
    task, *events, result = ran.objects
    assert (task["task_id"], task["runtime"]) == (TASK, "claude-code")
    assert [event["sequence"] for event in events] == ["1", "2", "3", "4", "5"]
    assert events[2]["tool_call"] == {"call_id": "c1", "tool": "Bash", "arguments": '{"command": "make"}'}
    assert (result["state"], result["usage"]["turns"]) == ("TASK_STATE_SUCCEEDED", 2)
    assert "cost_usd" not in result["usage"]  # nobody reported it


@pytest.mark.usefixtures("run")
def test_raw_is_the_log(claw: Claw, services: Services) -> None:
    services.scheduler.breaks = 0
    ran = claw("submit", "--runtime", "claude-code", "--wait", "--raw", "--prompt", "go")
    assert (ran.code, ran.out) == (0, f"{TASK}\ngo\n")
    assert claw("submit", "--runtime", "claude-code", "--prompt", "go", "--raw").code == 2


def test_a_refused_key_names_the_command_that_sets_one(claw: Claw, services: Services) -> None:
    services.scheduler.results[TASK] = task_pb2.Result(
        state=task_pb2.TASK_STATE_FAILED, reason=task_pb2.END_REASON_MODEL_AUTHENTICATION, message="no key"
    )
    ran = claw("submit", "--runtime", "claude-code", "--wait", "--prompt", "go")
    assert ran.code == 1
    assert "failed: model-authentication: no key" in ran.out
    assert "claw tenant set-key" in ran.out
    assert "claw tenant set-key" in claw("result", TASK).err


@pytest.mark.usefixtures("run")
def test_events_begin_anywhere_and_go_on_after_a_break(claw: Claw, services: Services) -> None:
    claw("submit", "--runtime", "claude-code", "--prompt", "go")
    assert claw("events", TASK).out.splitlines()[0] == "claude-code, sonnet, session s-1"
    services.scheduler.event_breaks = 2
    numbers = [event["sequence"] for event in claw("events", TASK, "--follow", "--from", "3", "-o", "json").objects]
    assert numbers == ["3", "4", "5"]
    assert claw("events", "task-none").code == 3


@pytest.mark.usefixtures("run")
def test_on_a_terminal_a_status_line_is_shown_and_taken_away(claw: Claw, services: Services) -> None:
    claw("submit", "--runtime", "claude-code", "--prompt", "go")
    seen = on_a_terminal(services, "events", TASK, "--follow")
    assert "\x1b[35m  → Bash  make" in seen
    assert "\x1b[2K" in seen  # the line is erased at the end
    assert "\x1b" not in claw("events", TASK, "--follow").out


def test_an_interrupt_leaves_the_task_alone_and_says_how_to_see_it_again(claw: Claw, services: Services) -> None:
    services.scheduler.play(TASK, said("I begin."))
    arguments = ["submit", "--runtime", "claude-code", "--conversation", "--wait"]
    with subprocess.Popen(
        [sys.executable, "-m", "cloudclaw.cli", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while process.stdout.readline() != "I begin.\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"claw events {TASK} --follow" in err
    assert "Traceback" not in err
    assert not services.scheduler.tasks[TASK].cancel_requested
