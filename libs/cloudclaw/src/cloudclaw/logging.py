"""Logs of a service: one JSON object a line on standard output, with what it concerns bound to it.

`tenant`, `task`, `attempt`, `node` and `request_id` are bound as context variables
(`structlog.contextvars.bound_contextvars`), so that every line written while one of them is at work carries it.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cloudclaw.config import LogSettings

BOUND = ("tenant", "task", "attempt", "node", "request_id")
"""Names that lines carry when they apply."""
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal, and halves of characters, which nobody can write: lines quote what tenants wrote."""


def configure(settings: LogSettings, service: str) -> None:
    """Send every line, of structlog and of the standard library alike, to standard output.

    Args:
        settings: level and format.
        service: name that every line carries, such as `scheduler`.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _bind(service),
    ]
    # Plain tracebacks: those with the values of variables would tell keys and tokens.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    render: list[Processor] = [
        structlog.processors.format_exc_info,
        *(
            [structlog.processors.JSONRenderer(_json, ensure_ascii=False)]
            if settings.format == "json"
            else [_shown, console]
        ),
    ]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    # Libraries say at "info" what is of interest to their authors alone.
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.captureWarnings(capture=True)


def _bind(service: str) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add


def _json(value: Any, **how: Any) -> str:
    return _UNSEEN.sub(_escape, json.dumps(value, **how))


def _shown(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return {key: _shown_text(key, value) if isinstance(value, str) else value for key, value in event.items()}


def _shown_text(key: str, text: str) -> str:
    lines = text.split("\n") if key == "exception" else [text]
    return "\n".join(_UNSEEN.sub(_escape, line) for line in lines)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
