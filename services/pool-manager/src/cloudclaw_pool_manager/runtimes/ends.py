"""How agents end, in CloudClaw's words: one table for all of them."""

from __future__ import annotations

from typing import Final

from cloudclaw.agents.events import ErrorKind
from cloudclaw.agents.transcript import Transcript
from cloudclaw_pool_manager.domain.attempt import Exit
from cloudclaw_pool_manager.ports.runtime import Verdict

ENDS: Final[dict[ErrorKind, tuple[str, bool]]] = {
    ErrorKind.AUTHENTICATION: ("MODEL_AUTHENTICATION", False),
    ErrorKind.RATE_LIMIT: ("MODEL_RATE_LIMIT", True),
    ErrorKind.OVERLOADED: ("MODEL_OVERLOADED", True),
    ErrorKind.CONTEXT: ("MODEL_CONTEXT", False),
    ErrorKind.NOT_FOUND: ("MODEL_NOT_FOUND", False),
    ErrorKind.UNREACHABLE: ("MODEL_UNREACHABLE", True),
    ErrorKind.SERVER: ("MODEL_FAILED", True),
    ErrorKind.REJECTED: ("MODEL_FAILED", False),
    ErrorKind.TURN_LIMIT: ("TURN_LIMIT", False),
    ErrorKind.BUDGET: ("SPEND_LIMIT", False),
    ErrorKind.PERMISSION: ("PERMISSION_DENIED", False),
    ErrorKind.CONFIGURATION: ("BAD_CONFIGURATION", False),
    ErrorKind.UNKNOWN: ("AGENT_FAILED", True),
}
"""Reason (an `EndReason` name) and whether another attempt may do better."""


def judge(agent: str, exit: Exit, transcript: Transcript) -> Verdict:
    """What an agent's exit means, given what it said.

    An answer counts only with exit code 0, and exit code 0 only with an answer. What the agent said went wrong comes
    before how its process ended.
    """
    finished = transcript.finished
    if finished is not None and not finished.ok:
        return _failed(finished.error or ErrorKind.UNKNOWN, finished.message, transcript)
    if exit.signal or exit.code > 128:
        number = exit.signal or exit.code - 128
        return _verdict("KILLED_BY_SIGNAL", f"{agent} was ended by signal {number}", transcript, retryable=True)
    if finished is not None and exit.code == 0 and transcript.answered:
        return Verdict(
            True,
            "COMPLETED",
            f"{agent} answered",
            final_message=finished.text or transcript.last_text,
            session_id=transcript.session_id,
        )
    if exit.code in (126, 127) and not transcript.session_id:
        how = "not found" if exit.code == 127 else "not executable"
        said = f": {transcript.error.message}" if transcript.error else ""
        return _verdict("START_FAILED", f"{agent} is {how} (exit code {exit.code}){said}", transcript)
    if transcript.error is not None and exit.code:
        return _failed(transcript.error.kind, transcript.error.message, transcript)
    if finished is not None and exit.code:
        message = f"{agent} answered, and then ended with exit code {exit.code}"
    else:
        message = f"{agent} ended without a result (exit code {exit.code})"
    return _verdict("AGENT_FAILED", message, transcript, retryable=True)


def _failed(kind: ErrorKind, message: str, transcript: Transcript) -> Verdict:
    reason, retryable = ENDS[kind]
    return _verdict(reason, message or f"{kind.value.replace('_', ' ')}", transcript, retryable=retryable)


def _verdict(reason: str, message: str, transcript: Transcript, *, retryable: bool = False) -> Verdict:
    return Verdict(
        False,
        reason,
        message,
        retryable=retryable,
        final_message=transcript.last_text,
        session_id=transcript.session_id,
    )
