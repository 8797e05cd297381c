"""Recordings of agents, and what their parsers make of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cloudclaw.agents.events import AnyEvent, Event
from cloudclaw.agents.parser import STDERR, STDOUT, StreamParser
from cloudclaw.agents.transcript import Transcript

RECORDINGS = Path(__file__).parent / "recordings"
_E = TypeVar("_E", bound=Event)


def recorded(agent: str, case: str) -> list[tuple[int, bytes]]:
    """What an agent wrote, by stream."""
    folder = RECORDINGS / agent
    return [(STDERR, (folder / f"{case}.stderr").read_bytes()), (STDOUT, (folder / f"{case}.stdout").read_bytes())]


def exit_code(agent: str, case: str) -> int:
    """How it ended; minus the signal, when one ended it."""
    return int(json.loads((RECORDINGS / agent / f"{case}.json").read_text())["code"])


def cases(agent: str) -> list[str]:
    """Names of an agent's recordings."""
    return sorted(path.stem for path in (RECORDINGS / agent).glob("*.json"))


def parse(parser: StreamParser, pieces: Iterable[tuple[int, bytes]]) -> list[AnyEvent]:
    """All events."""
    events = [event for stream, data in pieces for event in parser.feed(stream, data)]
    return events + parser.close()


def parse_cut(
    make: Callable[[], StreamParser], pieces: Sequence[tuple[int, bytes]], cuts: Sequence[int]
) -> list[AnyEvent]:
    """All events, when the log comes in pieces that end at `cuts`, and a new parser goes on after each."""
    parser = make()
    events: list[AnyEvent] = []
    for stream, data in pieces:
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for begin, end in itertools.pairwise(edges):
            events += parser.feed(stream, data[begin:end])
            state = parser.dump()
            parser = make()
            parser.load(state)
    return events + parser.close()


def fold(events: Iterable[AnyEvent]) -> Transcript:
    """What they amount to."""
    transcript = Transcript()
    for event in events:
        transcript.apply(event)
    return transcript


def only(events: Iterable[Any], kind: type[_E]) -> list[_E]:
    """Those of one kind."""
    return [event for event in events if isinstance(event, kind)]
