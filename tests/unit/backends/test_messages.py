"""What goes between a slot and its supervisor."""

from __future__ import annotations

import base64
from dataclasses import asdict, replace

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.backends import messages
from cloudclaw_pool_manager.domain.attempt import AttemptId, Launch, Limits
from cloudclaw_pool_manager.ports.backend import SlotPhase, SlotStatus

ATTEMPT = AttemptId("acme", "task", 1, "u1", 7)
IDLE = SlotStatus(SlotPhase.IDLE)


def test_a_status_of_an_earlier_release_says_nothing_of_what_it_does_not_know() -> None:
    status = messages.parse_status({"phase": "running", "attempt": asdict(ATTEMPT), "log_end": 3}, IDLE)
    assert status == SlotStatus(SlotPhase.RUNNING, ATTEMPT, log_end=3)


def test_a_push_leaves_the_inputs_as_they_were_for_the_same_attempt_only() -> None:
    whole = {"phase": "running", "attempt": asdict(ATTEMPT), "input_open": True, "inputs": ["a", "b"]}
    status = messages.parse_status(whole, IDLE)
    assert (status.inputs, status.input_open) == (("a", "b"), True)
    pushed = {key: value for key, value in whole.items() if key != "inputs"}
    assert messages.parse_status(pushed, status).inputs == ("a", "b")
    other = {**pushed, "attempt": asdict(replace(ATTEMPT, uid="u2"))}
    assert messages.parse_status(other, status).inputs == ()
    assert messages.parse_status({"phase": "idle"}, status).inputs == ()


def test_what_is_warm_is_told() -> None:
    status = messages.parse_status({"phase": "idle", "warm": "failed: because", "warm_key": "k"}, IDLE)
    assert (status.warm, status.warm_key) == ("failed: because", "k")


@pytest.mark.parametrize("data", [{}, {"phase": "asleep"}, {"phase": "idle", "inputs": 3}])
def test_nonsense_is_an_error(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        messages.parse_status(data, IDLE)


def test_bytes_of_any_kind_travel() -> None:
    data = bytes(range(256))
    fields = messages.launch_fields(Launch(("cat",), stdin=data), Limits())
    assert base64.b64decode(fields["stdin"]) == data


def test_a_note_is_whole_lines() -> None:
    messages.check_note(b"")
    messages.check_note(b"a\nb\n")
    with pytest.raises(InvalidArgumentError):
        messages.check_launch(Launch(("cat",), note=b"half a line"))
