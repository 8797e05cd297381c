"""Which inputs are taken."""

from __future__ import annotations

import pytest

from cloudclaw_supervisor import inputs, protocol
from cloudclaw_supervisor.inputs import Inputs
from cloudclaw_supervisor.server import RequestError


class Pipe:
    """An outlet whose reader reads nothing."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.open = True

    @property
    def queued(self) -> int:
        return sum(len(piece) for piece in self.data)

    def write(self, data: bytes) -> None:
        self.data.append(data)

    def finish(self) -> None:
        self.open = False


def given(taken: Inputs, message_id: str, data: bytes = b"x", close: bool = False) -> None:
    taken.check(data)
    taken.take(message_id, data, close)


def test_what_is_taken_is_known_and_in_order() -> None:
    pipe = Pipe()
    taken = Inputs(pipe)  # type: ignore[arg-type]
    given(taken, "b", b"1")
    given(taken, "a", b"2", close=True)
    assert (list(taken.ids), pipe.data, taken.open) == (["b", "a"], [b"1", b"2"], False)
    assert taken.known("a")
    assert not taken.known("c")


@pytest.mark.parametrize(("closed", "size", "kind"), [(True, 1, "input_closed"), (False, 2, "input_full")])
def test_what_cannot_be_taken_is_refused(closed: bool, size: int, kind: str) -> None:
    pipe = Pipe()
    taken = Inputs(pipe)  # type: ignore[arg-type]
    given(taken, "first", b"x" * (protocol.MAX_INPUT - 1), close=closed)
    with pytest.raises(RequestError) as caught:
        given(taken, "second", b"x" * size)
    assert caught.value.kind == kind
    assert not taken.known("second")


def test_messages_without_data_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_MOST", 3)
    taken = Inputs(Pipe())  # type: ignore[arg-type]
    for number in range(3):
        given(taken, str(number), b"")
    with pytest.raises(RequestError) as caught:
        given(taken, "one more", b"")
    assert caught.value.kind == protocol.INPUT_CLOSED
