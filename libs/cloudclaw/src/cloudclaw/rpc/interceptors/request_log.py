"""Every call has an id, and every line written during it carries that id."""

from __future__ import annotations

import re
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.ids import new_id
from cloudclaw.rpc.call import Call

REQUEST_ID_KEY: Final = "x-request-id"
_VALID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")

_log = structlog.get_logger()


class RequestLog:
    """Takes the client's `x-request-id` when it is well formed, else makes one; logs how each call ended.

    Calls that succeed are logged at `debug`: on a busy service the lines would cost more than the calls.
    """

    def __init__(self, clock: Clock):
        self._clock = clock

    def enter(self, call: Call) -> None:
        call.started = self._clock.boottime()
        for key, value in call.metadata:
            if key == REQUEST_ID_KEY and isinstance(value, str) and _VALID.fullmatch(value):
                call.request_id = value
                break
        else:
            call.request_id = new_id("req")
        structlog.contextvars.bind_contextvars(request_id=call.request_id)

    def leave(self, call: Call, error: BaseException | None) -> None:
        write = _log.debug if call.status is None else _log.info
        write(
            "call",
            method=call.method,
            code=call.code,
            milliseconds=round((self._clock.boottime() - call.started) * 1000, 3),
            error=call.status.message if call.status is not None else None,
        )
