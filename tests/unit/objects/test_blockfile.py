"""The file format: what is written comes back by any range, and no damage passes."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudclaw.errors import DataLossError
from cloudclaw.objects.blockfile import BLOCK, BlockReader, BlockWriter, payload_size

SIZES = st.one_of(
    st.integers(0, 300),
    st.builds(lambda blocks, off: max(0, blocks * BLOCK + off), st.integers(0, 4), st.integers(-2, 2)),
)


def write(fd: int, data: bytes, step: int) -> int:
    writer = BlockWriter(fd)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
    return writer.finish()


@settings(max_examples=150, deadline=None)
@given(size=SIZES, step=st.integers(1000, 3 * BLOCK), data=st.data())
def test_any_range_of_any_object_comes_back(size: int, step: int, data: st.DataObject) -> None:
    payload = os.urandom(size)
    with tempfile.TemporaryFile() as file:
        assert write(file.fileno(), payload, step) == size
        assert payload_size(os.fstat(file.fileno()).st_size) == size
        reader = BlockReader(file.fileno(), "x")
        assert reader.size == size
        assert reader.read(0, size) == payload
        offset = data.draw(st.integers(0, size + 1))
        length = data.draw(st.integers(0, size + 1))
        assert reader.read(offset, length) == payload[offset : offset + length]


@settings(max_examples=300, deadline=None)
@given(size=SIZES, data=st.data())
def test_no_flipped_bit_and_no_cut_passes(size: int, data: st.DataObject) -> None:
    payload = os.urandom(size)
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        write(fd, payload, BLOCK)
        whole = os.fstat(fd).st_size
        if data.draw(st.booleans(), label="flip"):
            position = data.draw(st.integers(0, whole - 1))
            bit = 1 << data.draw(st.integers(0, 7))
            os.pwrite(fd, bytes([os.pread(fd, 1, position)[0] ^ bit]), position)
        else:
            os.ftruncate(fd, data.draw(st.integers(0, whole - 1)))
        with pytest.raises(DataLossError, match="object x"):
            BlockReader(fd, "x").read(0, size + 1)


def test_an_object_appended_to_is_found() -> None:
    with tempfile.TemporaryFile() as file:
        write(file.fileno(), b"payload", BLOCK)
        os.write(file.fileno(), b"\0" * 40)
        with pytest.raises(DataLossError):
            BlockReader(file.fileno(), "x")
