"""Agents' events in the API's words. What an agent wrote is hostile: whatever it says, there is an event for it, and so
the numbers of those after it stay what they are."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.agents import events
from cloudclaw.agents.events import MAX_TEXT, ErrorKind, cut
from cloudclaw.coordination.records import AttemptEnd, EndReason
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.results import timestamp
from cloudclaw_scheduler.app.use import sane

RETRYABLE: Final = frozenset((ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED, ErrorKind.UNREACHABLE, ErrorKind.SERVER))
"""Kinds of errors that may be over when the agent tries again."""
REASONS: Final = {
    ErrorKind.AUTHENTICATION: EndReason.MODEL_AUTHENTICATION,
    ErrorKind.RATE_LIMIT: EndReason.MODEL_RATE_LIMIT,
    ErrorKind.OVERLOADED: EndReason.MODEL_OVERLOADED,
    ErrorKind.CONTEXT: EndReason.MODEL_CONTEXT,
    ErrorKind.NOT_FOUND: EndReason.MODEL_NOT_FOUND,
    ErrorKind.UNREACHABLE: EndReason.MODEL_UNREACHABLE,
    ErrorKind.SERVER: EndReason.MODEL_FAILED,
    ErrorKind.TURN_LIMIT: EndReason.TURN_LIMIT,
    ErrorKind.BUDGET: EndReason.SPEND_LIMIT,
    ErrorKind.PERMISSION: EndReason.PERMISSION_DENIED,
    ErrorKind.CONFIGURATION: EndReason.BAD_CONFIGURATION,
}
_PHASES: Final = ("checkpoint", "parked")


def event_message(event: events.AnyEvent, attempt: int, time: Timestamp) -> pb.RunEvent:
    """An event of an attempt, without its number."""
    message = pb.RunEvent(attempt=attempt, time=time)
    try:
        message.MergeFrom(_body(event))
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        message.MergeFrom(_progress("note", f"an event that cannot be shown: {error}"))
    return message


def attempt_event(end: AttemptEnd) -> pb.RunEvent:
    """An attempt ended: how, for people."""
    if end.reason is EndReason.PARKED:
        said = f"attempt {end.number} waits for input, and gave its slot on {end.node} back"
    else:
        why = f" ({end.reason})" if end.reason else ""
        said = f"attempt {end.number} on {end.node} ended {end.state}{why}"
        said += f": {end.message}" if end.message else ""
    message = pb.RunEvent(attempt=end.number, time=timestamp(end.ended))
    message.MergeFrom(_progress("attempt", said))
    return message


def _body(event: events.AnyEvent) -> pb.RunEvent:
    match event:
        case events.Started():
            started = pb.RunStarted(
                session_id=_text(event.session_id),
                agent=_text(event.agent),
                model=_text(event.model),
                resumed=bool(event.resumed),
            )
            return pb.RunEvent(started=started)
        case events.Message():
            said = pb.RunMessage(role=_text(event.role), text=_text(event.text), message_id=_text(event.message_id))
            return pb.RunEvent(message=said)
        case events.ToolCall():
            call = pb.RunToolCall(
                call_id=_text(event.call_id), tool=_text(event.tool), arguments=_text(event.arguments)
            )
            return pb.RunEvent(tool_call=call)
        case events.ToolResult():
            result = pb.RunToolResult(
                call_id=_text(event.call_id), output=_text(event.output), is_error=bool(event.is_error)
            )
            return pb.RunEvent(tool_result=result)
        case events.UsageReport():
            return pb.RunEvent(usage=_usage(event.usage))
        case events.Turn():
            return _progress("turn", f"turn {event.number}")
        case events.Retry():
            retry = pb.RunRetry(
                kind=_kind(event.kind), message=_text(event.message), attempt=min(int(sane(event.attempt)), 2**31)
            )
            return pb.RunEvent(retry=retry)
        case events.Error():
            kind = _kind(event.kind)
            error = pb.RunError(kind=kind, message=_text(event.message), retryable=event.kind in RETRYABLE)
            return pb.RunEvent(error=error)
        case events.Finished():
            return pb.RunEvent(finished=_finished(event))
        case events.Note():
            phase = event.phase if event.phase in _PHASES else "note"
            return _progress(phase, _text(event.message or event.phase))


def _finished(event: events.Finished) -> pb.RunFinished:
    reason = EndReason.COMPLETED
    if not event.ok:
        reason = REASONS.get(event.error or ErrorKind.UNKNOWN, EndReason.AGENT_FAILED)
    return pb.RunFinished(ok=bool(event.ok), reason=f"END_REASON_{reason}", message=_text(event.message))


def _progress(phase: str, message: str) -> pb.RunEvent:
    return pb.RunEvent(progress=pb.RunProgress(phase=phase, message=_text(message)))


def _usage(usage: events.Usage) -> task_pb2.Usage:
    told: dict[str, Any] = {}
    for name in usage.__struct_fields__:
        value = getattr(usage, name)
        if value is not None:
            told[name] = sane(value) if name == "cost_usd" else int(sane(value))
    told["turns"] = min(told["turns"], 2**31) if "turns" in told else None
    return task_pb2.Usage(**told)


def _kind(kind: ErrorKind) -> str:
    return _text(kind.value if isinstance(kind, ErrorKind) else str(kind))


def _text(text: str) -> str:
    """`text` as a message can carry it: JSON can name code points that are no characters."""
    return cut(str(text), MAX_TEXT + 200).encode("utf-8", "replace").decode()
