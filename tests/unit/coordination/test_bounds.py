"""A task's record stays within 8 KiB, whatever its task lived through."""

from __future__ import annotations

import base64
import json
import random
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cloudclaw.coordination import life
from cloudclaw.coordination.bounds import cut, fit, room_for_result
from cloudclaw.coordination.records import (
    MAX_EVENTS,
    MAX_TASK_BYTES,
    AttemptState,
    EndReason,
    Mode,
    Plan,
    SnapshotPointer,
    TaskRecord,
    TaskState,
    Transition,
    decode,
    encode,
)
from cloudclaw.errors import DataLossError

NOW = 1_732_366_658.123


def lived(attempts: int, seed: int = 1, message: str = "x" * 300, plan: Plan | None = None) -> TaskRecord:
    """A task that failed `attempts` times, with checkpoints, long messages and many nodes."""
    chance = random.Random(seed)
    plan = plan or Plan(workspace="site", mode=Mode.EXCLUSIVE, labels={f"key-{n}": "v" * 40 for n in range(20)})
    task = life.queued(
        tenant="acme", task="task-1", plan=replace(plan, max_attempts=101), now=NOW, op_id="op", request="r" * 128
    )
    now = NOW
    for number in range(attempts):
        now += chance.random() * 1000
        head = SnapshotPointer(id=f"snap-{chance.getrandbits(80):016x}", manifest="a" * 64, parent="p" * 20)
        uid = f"att-{chance.getrandbits(80):020x}"
        task = life.claimed(task, f"node-{chance.randrange(30)}.rack.example", uid, head, now, f"op-{number}")
        task = life.checkpointed(task, now, head, op_id="op", frozen=chance.random())
        task = life.checkpoint_wanted(task, now, op_id="op")
        task = life.checkpoint_refused(task, now, message, op_id="op", request=task.checkpoint_wanted)
        task = life.reported(
            task,
            now + 10,
            AttemptState.FAILED,
            chance.choice((EndReason.INTERNAL, EndReason.DRAINED)),
            message,
            op_id="op",
            exit_code=number,
            log_end=chance.randrange(10**9),
            token=chance.randrange(10**9),
        )
        task = life.became_due(task, now + 20, op_id="op")
    return task


def test_a_hundred_attempts_fit_with_their_numbers_uids_nodes_and_ends() -> None:
    task = lived(100)
    data = encode(task)
    assert len(data) <= MAX_TASK_BYTES
    back = decode(data, TaskRecord)
    assert back == task
    assert [attempt.number for attempt in back.attempts] == list(range(1, 101))
    assert all(attempt.uid and attempt.node and attempt.log_end for attempt in back.attempts)
    assert back.attempts[-1].message
    assert not back.attempts[0].resumed
    assert all(attempt.resumed for attempt in back.attempts[1:])
    assert (back.events[0].time, back.events[0].state) == (NOW, TaskState.QUEUED)


@pytest.mark.parametrize("attempts", [0, 1, 5, 12, 40])
def test_a_record_reads_back_as_it_was_written(attempts: int) -> None:
    task = lived(attempts)
    assert len(encode(task)) <= MAX_TASK_BYTES
    assert decode(encode(task), TaskRecord) == task


def test_a_short_life_is_kept_word_for_word_and_readable() -> None:
    task = lived(3)
    assert all(len(attempt.message) == 200 for attempt in task.attempts)
    assert b"packed" not in encode(task)


def test_transitions_keep_the_first_and_the_latest() -> None:
    task = life.queued(tenant="acme", task="task-1", plan=Plan(), now=NOW, op_id="op")
    for step in range(100):
        task = life.claimed(task, "n", "u", None, NOW + step, "op")
        task = life.unclaimed(task, NOW + step, op_id="op")
    assert len(task.events) <= MAX_EVENTS
    assert task.events[0].time == NOW
    assert task.events[-1].time == NOW + 99


def test_the_room_for_a_result_can_be_used() -> None:
    task = lived(4)
    running = life.claimed(task, "node-1", "uid", None, NOW, "op")
    room = room_for_result(running)
    assert room > 0
    ended = life.reported(
        running, NOW, AttemptState.SUCCEEDED, EndReason.COMPLETED, "m" * 200, op_id="op", result="r" * room
    )
    assert len(encode(ended)) <= MAX_TASK_BYTES
    assert ended.attempts[0].message == task.attempts[0].message
    assert room_for_result(lived(100)) >= 0


@pytest.mark.parametrize("message", ["\0" * 300, "\U0001f980" * 300, '"' * 300])
def test_messages_of_any_characters_fit(message: str) -> None:
    """A character of a message can take six bytes in a record."""
    plan = Plan(workspace="w" * 63, mode=Mode.FORK, pool="p" * 63, labels={f"{n:02}" * 10: "v" * 80 for n in range(16)})
    for attempts in (1, 3, 30):
        task = lived(attempts, message=message, plan=plan)
        assert len(encode(task)) <= MAX_TASK_BYTES
        assert task.events[-1].message
        assert task.checkpoint_failure


def test_attempts_packed_before_they_said_whether_they_resumed_are_read() -> None:
    task = lived(60)
    packed = msgspec.json.decode(encode(task))
    columns = json.loads(zlib.decompress(base64.b85decode(packed["packed"])))
    packed["packed"] = base64.b85encode(zlib.compress(json.dumps(columns[:-1]).encode())).decode()
    back = decode(msgspec.json.encode(packed), TaskRecord)
    assert [replace(attempt, resumed=False) for attempt in task.attempts[:-2]] == list(back.attempts[:-2])
    assert task.attempts[-2:] == back.attempts[-2:]


def test_what_cannot_be_made_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError):
        fit(replace(lived(2), result="r" * MAX_TASK_BYTES))


def test_a_cut_message_says_so() -> None:
    assert cut("short") == "short"
    assert len(cut("x" * 500)) == 200
    assert cut("x" * 500).endswith("…")


@settings(max_examples=30, deadline=None)
@given(attempts=st.integers(0, 60), seed=st.integers(0, 99), message=st.text(max_size=300))
def test_any_life_fits_and_reads_back(attempts: int, seed: int, message: str) -> None:
    task = lived(attempts, seed, message, Plan())
    data = encode(task)
    assert len(data) <= MAX_TASK_BYTES
    assert decode(data, TaskRecord) == task


@pytest.mark.parametrize("data", [b"", b"{", b'{"tenant":1}', b"[]", b"\xff"])
def test_bytes_that_are_no_record_are_data_loss(data: bytes) -> None:
    with pytest.raises(DataLossError):
        decode(data, TaskRecord)


def test_packed_attempts_that_are_damaged_are_data_loss() -> None:
    data = encode(lived(60)).replace(b'"packed":"', b'"packed":"zz!')
    with pytest.raises(DataLossError):
        decode(data, TaskRecord)


def test_a_record_with_fields_of_a_later_version_is_read() -> None:
    event = Transition(time=NOW, state=TaskState.QUEUED)
    later = encode(event)[:-1] + b',"later":{"x":1}}'
    assert decode(later, Transition) == event
