"""Globs over paths of a workspace: which files to keep as artifacts.

`*` and `?` match within a name, `[…]` one of some bytes (`[!…]` any other, `a-z` a range), `**` as a whole name any
number of directories, none too. A pattern that matches a directory means all files below it. Everything is bytes
and the case counts. There is no way to escape but a class: `[*]`.

Patterns and trees are both hostile: a name is matched in time of its length times the pattern's, outside of Python's
bytecode, and a tree is never walked where no pattern can match.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cloudclaw.errors import InvalidArgumentError

MAX_BYTES: Final = 256

_STAR: Final = None
_Token = frozenset[int] | None
"""What one byte of a name may be; None is a star."""
_DEEP: Final = "**"
_Step = re.Pattern[bytes] | str
_ANY: Final = frozenset(range(256))

States = frozenset[int]
"""How far a path has come in a pattern: indexes of the steps that its next name may match."""


def check_pattern(pattern: str) -> None:
    """Raise `InvalidArgumentError(field="artifacts")` unless it is a glob relative to the workspace.

    Refused: empty ones, over `MAX_BYTES` bytes of UTF-8, with a NUL, absolute ones, with `.`, `..` or empty names.
    """
    Glob(pattern)


class Glob:
    """One pattern. Raises as `check_pattern`."""

    def __init__(self, pattern: str) -> None:
        try:
            raw = pattern.encode()
        except UnicodeEncodeError as error:
            raise _refused(pattern, "is not UTF-8") from error
        if not raw:
            raise _refused(pattern, "is empty")
        if len(raw) > MAX_BYTES:
            raise _refused(pattern, f"has {len(raw)} bytes; at most {MAX_BYTES} are allowed")
        if b"\0" in raw:
            raise _refused(pattern, "holds a NUL byte")
        if raw.startswith(b"/"):
            raise _refused(pattern, "is absolute; patterns are relative to the workspace")
        names = raw.removesuffix(b"/").split(b"/")
        if any(name in (b"", b".", b"..") for name in names):
            raise _refused(pattern, "has an empty name, or '.' or '..'")
        self._steps: list[_Step] = []
        for name in names:
            if name != b"**":
                self._steps.append(_compile(_parse(name)))
            elif not self._steps or self._steps[-1] != _DEEP:
                self._steps.append(_DEEP)  # several in a row say no more than one

    def start(self) -> States:
        """Before the first name."""
        return self._closed({0})

    def step(self, states: States, name: bytes) -> States:
        """After one more name; empty when nothing there, or below it, can match."""
        after = set()
        for state in states:
            if state == len(self._steps):
                after.add(state)  # below what matched
                continue
            step = self._steps[state]
            if isinstance(step, str):
                after.add(state)
            elif step.fullmatch(name):
                after.add(state + 1)
        return self._closed(after)

    def matched(self, states: States) -> bool:
        """Whether the path as it stands matches, or lies below one that does."""
        return len(self._steps) in states

    def _closed(self, states: set[int]) -> States:
        """With those that are reached by `**` standing for no directory."""
        closed = set(states)
        for state in sorted(states):
            while state < len(self._steps) and isinstance(self._steps[state], str):
                state += 1
                closed.add(state)
        return frozenset(closed)


class Globs:
    """Several patterns at once: a path is kept when one of them matches it."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._globs = [Glob(pattern) for pattern in patterns]

    def start(self) -> tuple[States, ...]:
        """At the workspace itself."""
        return tuple(glob.start() for glob in self._globs)

    def step(self, states: tuple[States, ...], name: bytes) -> tuple[States, ...]:
        """After one more name."""
        return tuple(
            glob.step(state, name) if state else state for glob, state in zip(self._globs, states, strict=True)
        )

    def matched(self, states: tuple[States, ...]) -> bool:
        """Whether a file at this path is kept."""
        return any(glob.matched(state) for glob, state in zip(self._globs, states, strict=True))


def _compile(tokens: tuple[_Token, ...]) -> re.Pattern[bytes]:
    """An expression that never goes back by more than one star: what comes after a star is taken where it is found
    first, in an atomic group, and only what comes after the last one must reach the end."""
    parts: list[bytes] = [b""]
    for token in tokens:
        if token is _STAR:
            parts.append(b"")
        else:
            parts[-1] += _one_of(token)
    first, *rest = parts
    if not rest:
        return re.compile(first, re.DOTALL)
    middle = b"".join(b"(?>.*?" + part + b")" for part in rest[:-1])
    return re.compile(first + middle + b".*" + rest[-1], re.DOTALL)


def _one_of(choice: frozenset[int]) -> bytes:
    if choice == _ANY:
        return b"."
    if not choice:
        return b"(?!)"
    if len(choice) == 1:
        return re.escape(bytes(choice))
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(choice)) + b"]"


def _parse(name: bytes) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    at = 0
    while at < len(name):
        byte = name[at : at + 1]
        at += 1
        if byte == b"*":
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif byte == b"?":
            tokens.append(_ANY)
        elif byte == b"[" and (end := _end_of_class(name, at)) >= 0:
            tokens.append(_class(name[at:end]))
            at = end + 1
        else:
            tokens.append(frozenset(byte))
    return tuple(tokens)


def _end_of_class(name: bytes, at: int) -> int:
    """Where the class that begins at `at` ends; -1 when it does not, and the bracket stands for itself."""
    first = at + 1 if name[at : at + 1] == b"!" else at
    return name.find(b"]", first + 1)


def _class(body: bytes) -> frozenset[int]:
    negated = body.startswith(b"!")
    body = body.removeprefix(b"!")
    found: set[int] = set()
    at = 0
    while at < len(body):
        if body[at + 1 : at + 2] == b"-" and at + 2 < len(body):
            found.update(range(body[at], body[at + 2] + 1))
            at += 3
        else:
            found.add(body[at])
            at += 1
    return _ANY - found if negated else frozenset(found)


def _refused(pattern: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the pattern {pattern[:80]!r} {why}", field="artifacts")
