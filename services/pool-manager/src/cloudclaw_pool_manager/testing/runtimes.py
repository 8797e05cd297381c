"""The tests that every runtime passes. To run them on yours, subclass in a test module:

    from cloudclaw_pool_manager.testing.runtimes import AgentContract

    class TestMyAgent(AgentContract):
        recordings = Path(__file__).parent / "recordings"

        def adapter(self, **options):
            return MyAgent(**options)

`RuntimeContract` is for programs, `AgentContract` for agents: what `AgentAdapter` asks beyond `RuntimeAdapter`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import AnyEvent, Error, ErrorKind, Finished, Message, Started
from cloudclaw.agents.parser import STDERR, STDOUT, mark
from cloudclaw.agents.registry import parser_for
from cloudclaw.agents.transcript import Transcript
from cloudclaw.coordination.records import EndReason
from cloudclaw.errors import InvalidArgumentError, PreconditionError
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason, Launch
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Input, RunRequest, RuntimeAdapter, Verdict
from cloudclaw_pool_manager.runtimes.environment import EGRESS

FIRST, SECOND = "Paint the shed green", "And then the fence"


def ended(code: int = 0, signal: int = 0) -> Exit:
    """A program that ended by itself."""
    code = 128 + signal if signal else code
    return Exit(code, signal, KillReason.NONE, oom_killed=False, log_end=0, started=0.0, ended=1.0)


def folded(*events: AnyEvent) -> Transcript:
    """What `events` amount to."""
    transcript = Transcript()
    for event in events:
        transcript.apply(event)
    return transcript


def given(launch: Launch, text: str) -> bool:
    """`text`, plain words, is told to the program: on its command line, in its environment or on standard input."""
    return any(text in place for place in (*launch.argv, *launch.env.values(), launch.stdin.decode()))


class RuntimeContract:
    """For every `RuntimeAdapter`."""

    argv: ClassVar[tuple[str, ...]] = ()
    """A command line that it takes."""
    session: ClassVar[str] = "11111111-2222-4333-8444-555555555555"
    """A session's id as its agent gives them."""

    def adapter(self, **options: Any) -> RuntimeAdapter:
        """A new adapter."""
        raise NotImplementedError

    def request(self, **changes: Any) -> RunRequest:
        """A request for a first attempt."""
        first = RunRequest(
            argv=self.argv,
            prompt=FIRST,
            env={"MINE": "of the task"},
            session_id="",
            resumes=False,
            identity={"CLAW_TASK_ID": "task-1", "CLAW_ATTEMPT": "1"},
            uid="att-1",
            egress=EGRESS,
            memory_bytes=2 << 30,
        )
        return replace(first, **changes)

    def test_its_name_can_be_used_everywhere(self) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,40}", self.adapter().name)

    def test_it_takes_what_its_users_give_it(self) -> None:
        self.adapter().validate(self.argv, FIRST)

    def test_a_launch_is_complete(self) -> None:
        launch = self.adapter().launch(self.request())
        assert launch.argv
        assert launch.argv[0]
        assert launch.cwd.startswith("/")
        assert launch.env["HOME"] == "/home/agent"
        assert "/usr/bin" in launch.env["PATH"].split(":")
        for name, value in launch.env.items():
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
            assert "\0" not in value

    def test_nothing_of_the_nodes_own_environment_gets_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NODES_SECRET", "hush")
        launch = self.adapter().launch(self.request())
        assert "NODES_SECRET" not in launch.env
        assert not given(launch, "hush")

    def test_the_same_request_gives_the_same_launch(self) -> None:
        assert self.adapter().launch(self.request()) == self.adapter().launch(self.request())

    def test_the_task_has_its_variables_and_cannot_take_cloudclaws(self) -> None:
        launch = self.adapter().launch(self.request(env={"MINE": "of the task", "CLAW_TASK_ID": "another"}))
        assert launch.env["MINE"] == "of the task"
        assert launch.env["CLAW_TASK_ID"] == "task-1"
        assert launch.env["CLAW_ATTEMPT"] == "1"

    def test_it_is_told_its_prompt_and_its_input_ends(self) -> None:
        launch = self.adapter().launch(self.request())
        assert given(launch, FIRST)
        assert not launch.keep_stdin

    def test_every_exit_has_a_verdict_in_known_words(self) -> None:
        for exit, transcript in self._ends():  # noqa: A001 - as the port names it
            verdict = self.adapter().judge(self.request(), exit, transcript)
            assert EndReason(verdict.reason)
            assert verdict.message
            assert verdict.succeeded == (verdict.reason == "COMPLETED")
            assert not (verdict.succeeded and verdict.retryable)
            if verdict.succeeded:
                assert exit.code == 0

    def _ends(self) -> Iterator[tuple[Exit, Transcript]]:
        exits = [ended(), ended(1), ended(2), ended(126), ended(127), ended(signal=9), ended(signal=15)]
        said: list[Transcript] = [Transcript(), folded(Started("s")), folded(Message("assistant", "hm"))]
        said += [folded(Finished(True, text="done")), folded(Finished(False)), folded(Error(ErrorKind.UNKNOWN, ""))]
        said += [folded(Finished(False, kind)) for kind in ErrorKind]
        said += [folded(Error(kind, "trouble")) for kind in ErrorKind]
        yield from itertools.product(exits, said)


class AgentContract(RuntimeContract):
    """For every `AgentAdapter`."""

    recordings: ClassVar[Path | None] = None
    """A folder of `NAME.stdout`, `NAME.stderr`, `NAME.json` (with the exit `code`, null for one that had to be
    killed); `success` among them."""
    expected: ClassVar[dict[str, str]] = {"success": "COMPLETED"}
    """What the recordings by these names end with."""
    good_version: ClassVar[str] = "999.0.0"
    """What the probe prints for a version that is new enough."""
    old_version: ClassVar[str] = "0.0.1"

    def adapter(self, **options: Any) -> AgentAdapter:
        raise NotImplementedError

    def verdict(self, exit: Exit, *events: AnyEvent) -> Verdict:
        return self.adapter().judge(self.request(), exit, folded(*events))

    # -- options and probes --

    def test_it_is_an_agent(self) -> None:
        assert isinstance(self.adapter(), AgentAdapter)

    def test_options_that_it_does_not_know_are_refused_by_name(self) -> None:
        with pytest.raises(InvalidArgumentError, match="'colour'"):
            self.adapter(colour="green")
        with pytest.raises(InvalidArgumentError, match="model"):
            self.adapter(model=["a", "list"])

    def test_the_options_of_all_agents_have_an_effect(self) -> None:
        options = {"path": ["/opt/agents/bin"], "env": {"EXTRA": "yes"}, "binary": "/opt/agents/bin/mine"}
        adapter = self.adapter(**options)
        for launch in (adapter.launch(self.request()), adapter.probe()):
            assert launch.env["PATH"].split(":")[0] == "/opt/agents/bin"
            assert launch.env["EXTRA"] == "yes"
            assert given(launch, "/opt/agents/bin/mine")

    def test_the_probe_tells_the_version_and_asks_no_model(self) -> None:
        adapter = self.adapter()
        probe = adapter.probe()
        assert not given(probe, EGRESS)
        assert adapter.version(ended(), self.good_version + "\n", "") in self.good_version

    @pytest.mark.parametrize(
        ("exit", "stdout"),
        [(ended(127), ""), (ended(126), ""), (ended(1), ""), (ended(), "hello"), (ended(signal=11), "")],
    )
    def test_a_probe_that_fails_says_why(self, exit: Exit, stdout: str) -> None:
        with pytest.raises(PreconditionError) as caught:
            self.adapter().version(exit, stdout, "some words")
        assert len(caught.value.message) > 20

    def test_a_version_that_is_too_old_is_refused(self) -> None:
        with pytest.raises(PreconditionError, match="too old"):
            self.adapter().version(ended(), self.old_version, "")

    # -- launches --

    def test_it_finds_the_model_through_the_gateway_and_has_no_key(self) -> None:
        launch = self.adapter(upstream="mine").launch(self.request())
        assert given(launch, f"{EGRESS}/mine")

    def test_a_task_may_choose_the_model(self) -> None:
        launch = self.adapter(model="usual-model").launch(self.request(model="special-model"))
        assert given(launch, "special-model")
        assert not given(launch, "usual-model")
        assert given(self.adapter(model="usual-model").launch(self.request()), "usual-model")

    def test_messages_follow_the_prompt(self) -> None:
        launch = self.adapter().launch(self.request(inputs=(Input(1, "m1", SECOND),)))
        assert given(launch, FIRST)
        assert given(launch, SECOND)

    def test_an_interrupted_session_goes_on_with_a_word_about_that(self) -> None:
        adapter = self.adapter(resume_prompt="You were interrupted")
        launch = adapter.launch(self.request(session_id=self.session, resumes=True))
        assert given(launch, self.session)
        assert given(launch, "You were interrupted")
        assert not given(launch, FIRST), "the session holds the prompt already"

    def test_a_session_that_waited_goes_on_with_the_message(self) -> None:
        adapter = self.adapter(resume_prompt="You were interrupted")
        inputs = (Input(1, "m1", SECOND),)
        launch = adapter.launch(self.request(session_id=self.session, resumes=True, inputs=inputs))
        assert given(launch, SECOND)
        assert not given(launch, FIRST)
        assert not given(launch, "You were interrupted")

    def test_a_session_that_the_user_continues_gets_the_prompt(self) -> None:
        launch = self.adapter().launch(self.request(session_id=self.session))
        assert given(launch, self.session)
        assert given(launch, FIRST)

    def test_a_task_that_lost_its_session_begins_anew(self) -> None:
        launch = self.adapter().launch(self.request(resumes=True))
        assert given(launch, FIRST)

    def test_input_stays_open_for_conversations_that_can_take_some(self) -> None:
        adapter = self.adapter()
        encoded = adapter.encode_input(Input(2, "m2", SECOND))
        launch = adapter.launch(self.request(conversation=True))
        assert launch.keep_stdin == (encoded is not None)
        if encoded is not None:
            assert encoded == adapter.encode_input(Input(2, "m2", SECOND))
            assert SECOND in encoded.decode()
            assert encoded.endswith(b"\n")

    def test_nothing_to_say_is_refused(self) -> None:
        with pytest.raises(InvalidArgumentError):
            self.adapter().launch(self.request(prompt=""))

    def test_where_a_turn_shows_is_a_file_of_the_home_folder(self) -> None:
        adapter = self.adapter()
        assert adapter.settles >= 0
        for session, call in itertools.product((self.session, "", "../../etc", "/etc"), ("call-1", "")):
            trace = adapter.trace(session, call)
            if trace is not None:
                assert trace.text
                assert not {"", ".", ".."} & set(trace.path.split("/"))
                assert adapter.settles > 0, "what shows is looked for within that time"

    # -- verdicts --

    def test_an_answer_is_a_success_with_exit_code_0_only(self) -> None:
        said = (
            Started(self.session),
            Message("user", FIRST),
            Message("assistant", "Hm."),
            Finished(True, text="Done."),
        )
        verdict = self.verdict(ended(), *said)
        assert verdict.succeeded
        assert (verdict.final_message, verdict.session_id) == ("Done.", self.session)
        assert not self.verdict(ended(1), *said).succeeded
        assert not self.verdict(ended(signal=15), *said).succeeded

    def test_exit_code_0_without_an_answer_is_a_failure(self) -> None:
        for said in [(), (Started(self.session),), (Started(self.session), Message("assistant", "Hm."))]:
            verdict = self.verdict(ended(), *said)
            assert not verdict.succeeded
            assert verdict.reason == "AGENT_FAILED"
            assert verdict.retryable

    @pytest.mark.parametrize("kind", list(ErrorKind))
    def test_an_error_is_no_success_whatever_the_exit_code(self, kind: ErrorKind) -> None:
        for code in (0, 1):
            verdict = self.verdict(ended(code), Started(self.session), Finished(False, kind, "so it was", "text"))
            assert not verdict.succeeded
            assert verdict.session_id == self.session

    def test_what_is_worth_another_attempt(self) -> None:
        again = {kind for kind in ErrorKind if self.verdict(ended(1), Finished(False, kind, "so it was")).retryable}
        assert again >= {ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED, ErrorKind.UNREACHABLE, ErrorKind.SERVER}
        assert not again & {
            ErrorKind.AUTHENTICATION,
            ErrorKind.CONTEXT,
            ErrorKind.NOT_FOUND,
            ErrorKind.TURN_LIMIT,
            ErrorKind.BUDGET,
            ErrorKind.PERMISSION,
            ErrorKind.CONFIGURATION,
        }

    def test_a_signal_is_told(self) -> None:
        verdict = self.verdict(ended(signal=11), Started(self.session))
        assert verdict.reason == "KILLED_BY_SIGNAL"
        assert verdict.retryable

    # -- waiting warm --

    def test_one_that_waits_warm_can_be_joined_by_a_first_attempt_only(self) -> None:
        adapter = self.adapter()
        warmth = adapter.warmth()
        fresh = adapter.join(self.request(env={}))
        if warmth is None:
            assert fresh is None
            return
        assert fresh is not None
        assert warmth.launch.warm_key
        assert fresh.warm_key == warmth.launch.warm_key == self.adapter().warmth().launch.warm_key  # type: ignore[union-attr]
        assert warmth.memory_bytes > 0
        re.compile(warmth.ready)
        assert FIRST in fresh.stdin.decode()
        assert "task-1" in fresh.stdin.decode()
        assert not fresh.keep_stdin
        assert adapter.join(self.request(env={}, session_id=self.session, resumes=True)) is None
        assert adapter.join(self.request(env={}, egress="http://127.0.0.1:1")) is None

    def test_waiting_warm_can_be_switched_off(self) -> None:
        adapter = self.adapter(warm=False)
        assert adapter.warmth() is None
        assert adapter.join(self.request(env={})) is None

    # -- transcripts --

    def test_the_scheduler_reads_its_log_as_the_node_does(self) -> None:
        assert type(self.adapter().parser()) is type(parser_for(self.adapter().name))

    def test_recordings_end_as_expected(self) -> None:
        for name, reason in self.expected.items() if self.recordings else ():
            verdict = self._replayed(name)[1]
            assert verdict.reason == reason, f"{name}: {verdict}"

    def test_a_recorded_success_tells_session_answer_and_use(self) -> None:
        if self.recordings is None:
            pytest.skip("no recordings")
        transcript, verdict = self._replayed("success")
        assert transcript.begun
        assert transcript.answered
        assert transcript.turns >= 1
        assert transcript.session_id
        assert transcript.usage is not None
        assert verdict.final_message

    def test_no_recording_is_a_success_without_an_answer(self) -> None:
        for path in sorted(self.recordings.glob("*.json")) if self.recordings else ():
            transcript, verdict = self._replayed(path.stem)
            if verdict.succeeded:
                assert transcript.begun, path.stem

    def _replayed(self, name: str) -> tuple[Transcript, Verdict]:
        assert self.recordings is not None
        code = json.loads((self.recordings / f"{name}.json").read_text())["code"]
        code = -9 if code is None else int(code)  # it did not end by itself
        parser = self.adapter().parser()
        events = parser.feed(3, mark("prompt", text=FIRST))
        events += parser.feed(STDERR, (self.recordings / f"{name}.stderr").read_bytes())
        events += parser.feed(STDOUT, (self.recordings / f"{name}.stdout").read_bytes())
        transcript = folded(*events, *parser.close())
        exit = ended(code) if code >= 0 else ended(signal=-code)  # noqa: A001
        return transcript, self.adapter().judge(self.request(), exit, transcript)
