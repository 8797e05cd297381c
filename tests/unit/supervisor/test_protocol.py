"""Messages cut out of a byte stream."""

from __future__ import annotations

import pytest

from cloudclaw_supervisor import protocol


def test_messages_survive_any_cut() -> None:
    sent: list[dict[str, object]] = [{"id": 1, "text": "a\nb \udcff é"}, {"id": 2}]
    data = b"".join(map(protocol.encode, sent))
    for cut in range(1, 9):
        lines = protocol.Lines()
        found = [message for at in range(0, len(data), cut) for message in lines.feed(data[at : at + cut])]
        assert found == sent


@pytest.mark.parametrize("data", [b"[1]\n", b"nonsense\n", b"x" * 101])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.Lines(limit=100).feed(data)
