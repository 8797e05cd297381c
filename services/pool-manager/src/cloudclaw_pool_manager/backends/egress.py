"""Fetching the descriptor of a sandbox's listener from its supervisor."""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, SlotFailedError
from cloudclaw_supervisor import protocol

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANSWER = 4096
_INT = array.array("i").itemsize


def fetch(control: Path, uid: str, incarnation: int, timeout: float) -> int:
    """A duplicate of the listener of attempt `uid`. Blocks; call it in a thread.

    The slot's uid stands behind the socket: what comes is looked at, and nothing but a listening TCP socket is taken.

    Raises:
        SlotFailedError: nobody answers, or it answers nonsense, or does not hold the attempt.
        FencedIncarnationError: a newer manager is obeyed.
        PreconditionError: reason `NO_EGRESS`: the slot was made without, or the sandbox has ended.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            directory = os.open(control, _DIRECTORY)
            try:
                try:
                    sock.connect(f"/proc/self/fd/{directory}/{protocol.EGRESS_SOCKET}")
                except FileNotFoundError:
                    raise _none(uid, "its slot was made without a way out; recycle it") from None
            finally:
                os.close(directory)
            sock.sendall(protocol.encode({"uid": uid, "incarnation": incarnation}))
            text, given = _receive(sock)
    except OSError as error:
        raise SlotFailedError(f"the listener of {uid} cannot be had: {error}") from error
    try:
        return _judge(uid, text, given)
    except BaseException:
        for fd in given:
            os.close(fd)
        raise


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(_ANSWER, socket.CMSG_SPACE(8 * _INT), socket.MSG_CMSG_CLOEXEC)
    given = array.array("i")
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            given.frombytes(body[: len(body) - len(body) % _INT])
    return data, list(given)


def _none(uid: str, why: str) -> PreconditionError:
    return PreconditionError(f"attempt {uid} has no listener: {why}", subject=uid, reason="NO_EGRESS")


def _judge(uid: str, text: bytes, given: list[int]) -> int:
    try:
        answer = json.loads(text)
        error, words = answer.get("error"), str(answer.get("message", ""))
    except (ValueError, AttributeError) as wrong:
        raise SlotFailedError(f"the supervisor sent nonsense: {wrong}") from wrong
    if error == protocol.FENCED:
        raise FencedIncarnationError(words)
    if error == protocol.NO_EGRESS:
        raise _none(uid, words)
    if error is not None:
        raise SlotFailedError(words)
    if len(given) != 1 or not _listens(given[0]):
        raise SlotFailedError("the supervisor sent no listener")
    return given[0]


def _listens(fd: int) -> bool:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # no socket at all
        return False
    try:
        kind = (sock.family, sock.type, sock.proto)
        wanted = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        return kind == wanted and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    finally:
        sock.detach()
