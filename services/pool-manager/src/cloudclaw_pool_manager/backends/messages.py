"""What goes between a slot and its supervisor, as the manager's own types."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from typing import Any

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits
from cloudclaw_pool_manager.ports.backend import SlotPhase, SlotStatus
from cloudclaw_supervisor import frames, protocol

_UID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_uid(uid: str) -> None:
    """Raises `InvalidArgumentError` for a uid that could be anything but one file's name."""
    if not _UID.fullmatch(uid):
        raise InvalidArgumentError("letters, digits, - and _ only", field="attempt.uid")


def check_launch(launch: Launch) -> None:
    """Raises `InvalidArgumentError` for what cannot be started."""
    if not launch.argv:
        raise InvalidArgumentError("at least the program", field="argv")
    for name in launch.env:
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name!r} is no name of a variable", field="env")
    if any("\0" in text for text in (*launch.argv, *launch.env.values(), launch.cwd)):
        raise InvalidArgumentError("no NUL bytes in arguments, variables and the directory", field="argv")
    if not launch.cwd.startswith("/"):
        raise InvalidArgumentError("an absolute path", field="cwd")
    check_note(launch.note)


def check_note(note: bytes) -> None:
    """Raises `InvalidArgumentError` for a note that is not one frame of whole lines."""
    if note and (len(note) > frames.MAX_PAYLOAD or not note.endswith(b"\n")):
        raise InvalidArgumentError(f"at most {frames.MAX_PAYLOAD} bytes that end with a newline", field="note")


def check_input(message_id: str, note: bytes, data: bytes) -> None:
    """Raises `InvalidArgumentError` for an input that no program could ever be given."""
    if not 0 < len(message_id) <= protocol.MAX_INPUT_ID:
        raise InvalidArgumentError(f"1 to {protocol.MAX_INPUT_ID} characters", field="message_id")
    check_note(note)
    if len(data) > protocol.MAX_INPUT:
        raise InvalidArgumentError(f"at most {protocol.MAX_INPUT} bytes", field="data")


def check_warm(key: str, ready: str) -> None:
    """Raises `InvalidArgumentError` for what cannot be kept warm."""
    if not 0 < len(key) <= protocol.MAX_INPUT_ID:
        raise InvalidArgumentError(f"1 to {protocol.MAX_INPUT_ID} characters", field="warm_key")
    try:
        re.compile(ready.encode())
    except (re.error, UnicodeError) as error:
        raise InvalidArgumentError(f"no regular expression: {error}", field="ready") from error


def launch_fields(launch: Launch, limits: Limits) -> dict[str, Any]:
    """What `start` and `warm` both say of a launch."""
    return {
        "argv": list(launch.argv),
        "env": dict(launch.env),
        "stdin": encode(launch.stdin),
        "cwd": launch.cwd,
        "limits": asdict(limits),
    }


def encode(data: bytes) -> str:
    """Bytes inside a message."""
    return base64.b64encode(data).decode()


def parse_exit(data: dict[str, Any]) -> Exit:
    """An exit as a supervisor tells it."""
    return Exit(**{**data, "killed": KillReason(data["killed"])})


def parse_status(data: dict[str, Any], before: SlotStatus) -> SlotStatus:
    """A status as a supervisor tells it.

    Args:
        before: the last one. What a pushed status leaves out is still as it was there.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    held, ended = data.get("attempt"), data.get("exit")
    attempt = AttemptId(**held) if held else None
    inputs = data.get("inputs", before.inputs if before.attempt == attempt else ())
    return SlotStatus(
        phase=SlotPhase(data["phase"]),
        attempt=attempt,
        log_end=int(data.get("log_end", 0)),
        last_output=float(data.get("last_output", 0.0)),
        exit=parse_exit(ended) if ended else None,
        sandbox_ready=bool(data.get("sandbox_ready", False)),
        paused=bool(data.get("paused", False)),
        input_open=bool(data.get("input_open", False)),
        inputs=tuple(str(name) for name in inputs),
        warm=str(data.get("warm", "")),
        warm_key=str(data.get("warm_key", "")),
    )
