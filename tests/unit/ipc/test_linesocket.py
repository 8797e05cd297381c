"""Messages with descriptors over a Unix socket, however the bytes are cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudclaw.linesocket import LineSocket, LineSocketError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def _open(path: Path) -> int:
    path.write_text("")
    return os.open(path, os.O_RDONLY)


async def test_messages_and_descriptors_arrive_together_and_in_order(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    sender, receiver = LineSocket(ends[0]), LineSocket(ends[1])
    first, second = _open(tmp_path / "a"), _open(tmp_path / "b")
    inodes = [os.fstat(first).st_ino, os.fstat(second).st_ino]
    await sender.send({"n": 0})
    await sender.send({"n": 1}, [first])
    await sender.send({"n": 2})
    await sender.send({"n": 3}, [second])
    os.close(first)
    os.close(second)
    received = []
    for _ in range(4):
        message = await receiver.receive()
        assert message is not None
        received.append((message.fields["n"], [os.fstat(d).st_ino for d in message.descriptors]))
        assert not any(os.get_inheritable(d) for d in message.descriptors)
        message.close()
    assert received == [(0, []), (1, inodes[:1]), (2, []), (3, inodes[1:])]
    sender.close()
    assert await receiver.receive() is None
    receiver.close()


async def test_a_large_message_waits_for_its_reader_and_keeps_its_descriptor(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    sender, receiver = LineSocket(ends[0]), LineSocket(ends[1], limit=8 << 20)
    descriptor = _open(tmp_path / "a")
    text = "x" * (4 << 20)
    sending = asyncio.create_task(sender.send({"text": text}, [descriptor]))
    message = await receiver.receive()
    await sending
    os.close(descriptor)
    assert message is not None
    assert message.fields["text"] == text
    assert len(message.descriptors) == 1
    message.close()
    sender.close()
    receiver.close()


@pytest.mark.parametrize("cut", range(1, 24))
async def test_a_message_cut_anywhere_keeps_its_descriptor(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, cut: int
) -> None:
    receiver = LineSocket(ends[1])
    descriptor = _open(tmp_path / "a")
    line = b'{"op": "attach", "n": 1}\n'
    ends[0].sendall(b'{"op": "use"}\n')
    socket.send_fds(ends[0], [line[:cut]], [descriptor])
    ends[0].sendall(line[cut:] + b'{"op": "detach"}\n')
    os.close(descriptor)
    counts = []
    for _ in range(3):
        message = await receiver.receive()
        assert message is not None
        counts.append((message.fields["op"], len(message.descriptors)))
        message.close()
    assert counts == [("use", 0), ("attach", 1), ("detach", 0)]
    receiver.close()


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'"x"\n', b"[" * 100_000 + b"\n", b"\xff\n", b"\n"])
async def test_nonsense_is_refused_and_its_descriptor_closed(
    ends: tuple[socket.socket, socket.socket], line: bytes
) -> None:
    receiver = LineSocket(ends[1])
    reader, writer = os.pipe()
    socket.send_fds(ends[0], [line[:1]], [writer])
    os.close(writer)
    sending = asyncio.create_task(asyncio.to_thread(ends[0].sendall, line[1:]))
    with pytest.raises(LineSocketError):
        await receiver.receive()
    receiver.close()
    with contextlib.suppress(OSError):
        await sending
    # The pipe ends: nobody holds its writing end any more.
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_a_line_without_an_end_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    receiver = LineSocket(ends[1], limit=1000)
    ends[0].sendall(b"x" * 1001)
    with pytest.raises(LineSocketError):
        await receiver.receive()
    receiver.close()


async def test_closing_wakes_who_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = LineSocket(ends[0]), LineSocket(ends[1])
    waiting = asyncio.create_task(receiver.receive())
    # Nobody reads what it sends, so it waits.
    full = asyncio.create_task(sender.send({"text": "x" * (4 << 20)}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sender.close()
    with pytest.raises(OSError, match="closed"):
        await full
    receiver.close()
    with contextlib.suppress(LineSocketError):
        assert await waiting is None


async def test_a_cancelled_send_leaves_no_half_message_behind(ends: tuple[socket.socket, socket.socket]) -> None:
    sender = LineSocket(ends[0])
    full = asyncio.create_task(sender.send({"text": "x" * (4 << 20)}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    full.cancel()
    with pytest.raises(asyncio.CancelledError):
        await full
    with pytest.raises(OSError, match="closed"):
        await sender.send({"n": 1})
