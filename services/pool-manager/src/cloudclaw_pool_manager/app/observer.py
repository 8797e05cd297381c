"""Follows what an attempt's agent says: its log, read from the spool as it grows, through the agent's parser.

What was understood is remembered before a spool forgets the bytes that it came from, so the next process of this node
goes on where this one was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from cloudclaw.agents.events import AnyEvent, Note
from cloudclaw.agents.pacing import Pace, pieces
from cloudclaw.agents.parser import PlainParser, StreamParser
from cloudclaw.agents.transcript import Transcript
from cloudclaw_pool_manager.app.logs import LogSource
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_pool_manager.ports.state import NodeState

_log = structlog.get_logger()

READ: Final = 256 << 10
"""Bytes that are read at once."""
_EVENTS: Final = msgspec.msgpack.Decoder(list[AnyEvent])


class _Note(msgspec.Struct, array_like=True):
    """What is remembered: everything below `position` is in `parser` and `transcript`."""

    position: int
    parser: bytes
    transcript: bytes


class Observer:
    """One attempt's.

    Args:
        uid, tenant: the attempt's.
        source: where its log is read.
        parser: new, of the attempt's runtime.
        on_events: told what was understood, after `transcript` holds it.
        pace: shared with the other observers of this node.

    Attributes:
        transcript: what it amounts to so far.
        position: every byte below was parsed.
        complete: set when all of an ended log was parsed, or no more of it can be had.
    """

    def __init__(
        self,
        uid: str,
        tenant: str,
        source: LogSource,
        parser: StreamParser,
        state: NodeState,
        on_events: Callable[[Sequence[AnyEvent]], None],
        pace: Pace,
    ):
        self.transcript = Transcript()
        self.position = 0
        self.complete = asyncio.Event()
        self._uid = uid
        self._source = source
        self._parser = parser
        self._state = state
        self._on_events = on_events
        self._turn = pace.turn(tenant)
        self._available = 0
        self._final: int | None = None
        self._wake = asyncio.Event()

    async def recall(self, begin: int) -> None:
        """Go on where an earlier process was, whose spool begins at `begin` now."""
        data = await self._state.transcript(self._uid)
        if data is not None:
            try:
                note = msgspec.msgpack.decode(data, type=_Note)
                self._parser.load(note.parser)
                self.transcript = Transcript.load(note.transcript)
                self.position = note.position
            except (msgspec.DecodeError, ValueError) as error:
                _log.error("what was understood of a log is lost", attempt=self._uid, error=str(error))
        self.position = max(self.position, begin)

    async def remember(self) -> None:
        """Before the spool forgets anything below `position`."""
        try:
            parser = self._parser.dump()
        except Exception as error:  # noqa: BLE001 - as in `_parsed`
            self._give_up(error)
            parser = self._parser.dump()
        note = _Note(self.position, parser, self.transcript.dump())
        await self._state.remember_transcript(self._uid, msgspec.msgpack.encode(note))

    def grown(self, available: int) -> None:
        """The spool holds so many bytes."""
        self._available = max(self._available, available)
        self._wake.set()

    def ended(self, final: int | None) -> None:
        """The log is over after `final` bytes; None when the rest of it is lost."""
        self._final = self.position if final is None else final
        self._available = max(self._available, self._final)
        self._wake.set()

    async def run(self) -> None:
        """Until `complete`."""
        try:
            while self._final is None or self.position < self._final:
                if self.position >= self._available:
                    self._wake.clear()
                    await self._wake.wait()
                elif not await self._read():
                    break
        except SlotFailedError as error:
            _log.warning("a log cannot be followed any more", attempt=self._uid, error=str(error))
        await self._turn.work(lambda: self._tell(self._parsed(self._parser.close)))
        self.complete.set()

    async def _read(self) -> bool:
        """Parse what comes next; False when the spool does not hold what it announced."""
        frames = await self._source.read_log(self._uid, self.position, READ)
        if not frames:
            if self._final is not None:
                return False
            self._available = self.position
            return True
        for frame in frames:
            for piece in pieces(frame.data[max(self.position - frame.offset, 0) :]):
                end = max(self.position, frame.offset) + len(piece)
                await self._turn.work(partial(self._take, int(frame.stream), piece, end))
        await asyncio.sleep(0)
        return True

    def _take(self, stream: int, piece: bytes, end: int) -> None:
        self.position = end
        self._tell(self._parsed(partial(self._parser.feed, stream, piece)))

    def _parsed(self, parse: Callable[[], Sequence[AnyEvent]]) -> Sequence[AnyEvent]:
        """What `parse` understands. A third party's parser may fail at what a task prints; the attempt goes on as one
        that says nothing of itself."""
        try:
            # What cannot be written down, or read back, can be neither remembered nor reported.
            return _EVENTS.decode(msgspec.msgpack.encode(parse()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not hold up the attempt's end
            self._give_up(error)
            return [Note("note", "its parser failed; the log has the rest")]

    def _give_up(self, error: Exception) -> None:
        _log.error("a parser of transcripts failed", attempt=self._uid, error=repr(error))
        self._parser = PlainParser()

    def _tell(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            self.transcript.apply(event)
        if events:
            self._on_events(events)
