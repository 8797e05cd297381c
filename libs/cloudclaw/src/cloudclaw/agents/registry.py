"""Parsers by the runtime's name. A third party registers a class under the entry point group `cloudclaw.transcripts`,
which is to be installed wherever a scheduler runs; a runtime without one has CloudClaw's own events only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import structlog

from cloudclaw.agents.parser import PlainParser, StreamParser

_log = structlog.get_logger()

GROUP: Final = "cloudclaw.transcripts"


@functools.cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@functools.cache
def _maker(point: EntryPoint) -> Callable[[], StreamParser]:
    try:
        maker: Callable[[], StreamParser] = point.load()
    except Exception as error:  # noqa: BLE001 - a third party's package; its runtime has no events then
        _log.error("a parser of transcripts cannot be loaded", runtime=point.name, error=repr(error))
        return PlainParser
    return maker


def parser_for(runtime: str) -> StreamParser:
    """A new parser for an attempt of `runtime`. A package is loaded when its runtime is first asked for."""
    point = _points().get(runtime)
    return PlainParser() if point is None else _maker(point)()
