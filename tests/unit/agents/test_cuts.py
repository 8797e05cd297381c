"""Every parser, over every recording: the same events however the log is cut, and nothing that raises."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudclaw.agents.parser import STDERR, STDOUT, SYSTEM, StreamParser
from cloudclaw.agents.registry import parser_for
from tests.support.transcripts import RECORDINGS, cases, fold, parse, parse_cut, recorded

AGENTS = ("claude-code", "codex", "gemini", "openclaw", "opencode")
ALL = [(agent, case) for agent in AGENTS for case in cases(agent)]


def maker(agent: str) -> type[StreamParser]:
    return type(parser_for(agent))


def objects(agent: str) -> list[object]:
    """What it writes: one object a line, or one document."""
    written = recorded(agent, "success")[1][1]
    lines = [line for line in written.splitlines() if line.startswith(b"{")]
    return [json.loads(written)] if lines == [b"{"] else [json.loads(line) for line in lines]


def test_every_agent_has_recordings() -> None:
    assert {agent for agent, _ in ALL} == set(AGENTS)
    assert {path.name for path in RECORDINGS.iterdir() if (path / "success.json").exists()} >= set(AGENTS)


@pytest.mark.parametrize(("agent", "case"), ALL)
def test_a_log_gives_the_same_events_when_a_new_parser_goes_on_at_any_place(agent: str, case: str) -> None:
    make, pieces = maker(agent), recorded(agent, case)
    whole = parse(make(), pieces)
    length = max(len(data) for _, data in pieces)
    assert parse_cut(make, pieces, range(0, length, max(length // 60, 1))) == whole
    assert parse_cut(make, pieces, [at for at in range(length) if pieces[1][1][at : at + 1] == b"\n"]) == whole


@pytest.mark.parametrize("agent", AGENTS)
@given(cuts=st.lists(st.integers(0, 1 << 20), max_size=12))
@settings(max_examples=40, deadline=None)
def test_random_cuts_change_nothing(agent: str, cuts: list[int]) -> None:
    pieces = recorded(agent, "success")
    assert parse_cut(maker(agent), pieces, cuts) == parse(maker(agent)(), pieces)


@pytest.mark.parametrize("agent", AGENTS)
@given(data=st.binary(max_size=400), stream=st.sampled_from([STDOUT, STDERR, SYSTEM]))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_lines_of_json_raise_nothing(agent: str, data: bytes, stream: int) -> None:
    fold(parse(maker(agent)(), [(stream, data), (STDOUT, b"\n{}\n[]\nnull\n")]))


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("agent", AGENTS)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_lines_whose_fields_are_not_what_they_should_be_raise_nothing(agent: str, data: st.DataObject) -> None:
    lines = objects(agent)
    parser = maker(agent)()
    events = []
    for line in data.draw(st.lists(st.sampled_from(lines), min_size=1, max_size=4)):
        broken = _break(line, data)
        events += parser.feed(STDOUT, json.dumps(broken).encode() + b"\n")
        state = parser.dump()
        parser = maker(agent)()
        parser.load(state)
    fold([*events, *parser.close()])


def _break(value: object, data: st.DataObject) -> object:
    """`value` with one part of it replaced by something else."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _break(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], _break(value[at], data), *value[at + 1 :]]
    return data.draw(_values)


@pytest.mark.parametrize("agent", AGENTS)
def test_half_a_surrogate_pair_can_be_remembered(agent: str) -> None:
    lines = recorded(agent, "success")[1][1].splitlines()
    for line in lines:
        parser = maker(agent)()
        events = parser.feed(STDOUT, re.sub(rb'": ?"', rb'":"\\ud800', line) + b"\n")
        parser.dump()
        msgspec.msgpack.encode([*events, *parser.close()])


@pytest.mark.parametrize("agent", AGENTS)
def test_a_state_of_something_else_is_refused(agent: str) -> None:
    with pytest.raises(ValueError, match="no state"):
        maker(agent)().load(b"\xc1nonsense")


@pytest.mark.parametrize("agent", AGENTS)
def test_what_is_remembered_stays_small(agent: str) -> None:
    parser = maker(agent)()
    for number in range(200):
        parser.feed(STDERR, b"a warning\n" * 100)
        parser.feed(STDOUT, b'{"type": "noise", "number": %d}\n' % number)
    assert len(parser.dump()) < 16 << 10
