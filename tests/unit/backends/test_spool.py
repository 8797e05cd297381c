"""The spool as the manager reads it: written by the supervisor's own code, and by an enemy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends.spool import SpoolReader
from cloudclaw_pool_manager.ports.backend import SlotFailedError
from cloudclaw_supervisor import frames
from cloudclaw_supervisor.spool import Spool


@pytest.fixture
def control(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path


def spool_in(control: Path, segment_bytes: int = 100) -> Spool:
    return Spool(str(control / "spool/u"), segment_bytes)


def read_all(reader: SpoolReader, offset: int = 0, step: int = 1 << 20) -> bytes:
    data = b""
    while found := reader.read(offset + len(data), step):
        for frame in found:
            assert frame.offset == offset + len(data)
            data += frame.data
    return data


def test_every_offset_reads_the_same_bytes(control: Path) -> None:
    spool = spool_in(control)
    expected = b""
    for number in range(40):
        piece = bytes([number]) * (number % 7 + 1)
        spool.append(1 + number % 2, piece)
        expected += piece
    for offset in range(len(expected) + 1):
        assert read_all(SpoolReader(control, "u"), offset) == expected[offset:]
    assert read_all(SpoolReader(control, "u"), 0, step=1) == expected


def test_reading_goes_on_where_it_ended_while_the_log_grows(control: Path) -> None:
    spool, reader, seen = spool_in(control), SpoolReader(control, "u"), b""
    for number in range(30):
        spool.append(1, bytes([number]) * 9)
        seen += read_all(reader, len(seen))
    assert len(seen) == 270


def test_forgetting_removes_whole_files_below_the_mark_only(control: Path) -> None:
    spool = spool_in(control)
    for _ in range(20):
        spool.append(1, b"x" * 10)
    held = spool.held
    spool.forget(95)
    assert spool.held < held
    with pytest.raises(SlotFailedError, match="dropped"):
        SpoolReader(control, "u").read(0, 10)
    assert read_all(SpoolReader(control, "u"), 95) == b"x" * 105
    spool.forget(200)
    assert spool.held == 0
    spool.append(2, b"more")
    assert read_all(SpoolReader(control, "u"), 200) == b"more"


def test_an_incomplete_frame_is_not_there_yet(control: Path) -> None:
    spool_in(control).append(1, b"whole")
    file = control / "spool/u" / frames.file_name(0)
    with file.open("ab") as out:
        out.write(frames.HEADER.pack(5, 1, 10, 0) + b"half")
    assert read_all(SpoolReader(control, "u")) == b"whole"


@pytest.mark.parametrize(
    "frame",
    [
        frames.HEADER.pack(7, 1, 1, 0) + b"x",  # a gap
        frames.HEADER.pack(0, 1, 1 << 31, 0) + b"x",  # too long
        frames.HEADER.pack(0, 9, 1, 0) + b"x",  # no such stream
    ],
)
def test_nonsense_is_refused(control: Path, frame: bytes) -> None:
    (control / "spool/u").mkdir()
    (control / "spool/u" / frames.file_name(0)).write_bytes(frame)
    with pytest.raises(SlotFailedError, match="damaged"):
        SpoolReader(control, "u").read(0, 100)


def test_nothing_outside_is_read_through_a_link(control: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / frames.file_name(0)).write_bytes(frames.HEADER.pack(0, 1, 6, 0) + b"secret")
    (control / "spool/u").symlink_to(secret)
    with pytest.raises(SlotFailedError):
        SpoolReader(control, "u").read(0, 100)
    (control / "spool/v").mkdir()
    (control / "spool/v" / frames.file_name(0)).symlink_to(secret / frames.file_name(0))
    with pytest.raises(SlotFailedError):
        SpoolReader(control, "v").read(0, 100)


def test_a_fifo_in_the_spool_does_not_block(control: Path) -> None:
    (control / "spool/u").mkdir()
    os.mkfifo(control / "spool/u" / frames.file_name(0))
    with pytest.raises(SlotFailedError, match="no file"):
        SpoolReader(control, "u").read(0, 100)


def test_the_exit_record_is_complete_or_absent(control: Path) -> None:
    spool = spool_in(control)
    spool.write_exit(b"{}")
    assert (control / "spool/u/exit.json").read_bytes() == b"{}"
    assert not (control / "spool/u/exit.tmp").exists()
    spool.remove()
    assert not (control / "spool/u").exists()
