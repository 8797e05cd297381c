"""Logs of a service: one JSON object a line on standard output, with what it concerns bound to it.

`tenant`, `task`, `attempt`, `node` and `request_id` are bound as context variables
(`structlog.contextvars.bound_contextvars`), so that every line written while one of them is at work carries it.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import Callable

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cloudclaw.config import LogSettings

BOUND = ("tenant", "task", "attempt", "node", "request_id")
"""Names that lines carry when they apply."""


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
    render: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if settings.format == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    )
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
