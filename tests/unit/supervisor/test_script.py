"""The script that a waiting sandbox is given, run by a real shell."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudclaw_supervisor import script

WORDS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def run(text: bytes, **how: object) -> tuple[int, bytes, list[str]]:
    """Run `text` as the first process does, and return its code, output and status lines."""
    out_read, out = os.pipe()
    status_read, status = os.pipe()

    def wire() -> None:
        os.dup2(out, 1)
        os.dup2(status, 2)
        for fd, source in ((3, os.open(os.devnull, os.O_RDONLY)), (4, out), (5, out)):
            os.dup2(source, fd)

    done = subprocess.run(["dash"], input=text, preexec_fn=wire, close_fds=False, env={}, check=False)
    os.close(out)
    os.close(status)
    with os.fdopen(out_read, "rb") as output, os.fdopen(status_read) as lines:
        return done.returncode, output.read(), lines.read().splitlines()


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, max_size=4), WORDS)
def test_any_argument_and_variable_survives_the_shell(words: list[str], value: str) -> None:
    argv = [
        "python3",
        "-S",
        "-c",
        "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, [*sys.argv[1:], os.environ['V']])))",
    ]
    text = script.compose([*argv, *words], {"V": value, "PATH": os.environ["PATH"]}, "/", 1 << 30, 0)
    code, output, lines = run(text)
    assert (code, lines) == (0, ["x 0"])
    assert output == b"\0".join(word.encode() for word in [*words, value])


def test_every_byte_survives_the_shell() -> None:
    raw = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    code, output, _ = run(script.compose(["printf", "%s", raw], {"PATH": "/usr/bin:/bin"}, "/", 1 << 30, 0))
    assert (code, output) == (0, bytes(range(1, 256)))


@pytest.mark.parametrize(
    ("fed", "code", "signal"),
    [
        (b"r\nx 0\n", 0, 0),
        (b"r\nKilled\nx 137\n", 137, 9),
        (b"r\nx 137\n", 137, 0),
        (b"r\nx 130\n", 130, 2),
        (b"r\nx 3\n", 3, 0),
        (b"r\n", None, 0),
    ],
)
def test_status_lines_tell_a_signal_from_a_code(fed: bytes, code: int | None, signal: int) -> None:
    status = script.StatusLines()
    for at in range(len(fed)):
        status.feed(fed[at : at + 1])
    assert (status.ready, status.code, status.signal()) == (True, code, signal)
