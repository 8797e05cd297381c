"""Text that a person gives: as an argument, in a file, or on standard input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudclaw.errors import InvalidArgumentError

STANDARD_INPUT: Final = "-"


def text_of(file: Path, option: str) -> str:
    """The text in `file`, or on standard input when it is `-`. Raises `InvalidArgumentError(field=option)`."""
    named = "standard input" if str(file) == STANDARD_INPUT else str(file)
    try:
        data = _standard_input() if str(file) == STANDARD_INPUT else file.read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{named} is not UTF-8 text, at byte {error.start}", field=option) from error
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {named}: {error.strerror}", field=option) from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what blocks in here at once. Asyncio's own handler only notes it for when the loop runs again."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _standard_input() -> bytes:
    if sys.stdin is None:
        return b""
    with interruptible():
        binary = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read().encode() if binary is None else bytes(binary.read())
