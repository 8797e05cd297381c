"""Globs over paths of a workspace: which files to keep as artifacts.

`*` and `?` match within a name, `[…]` one of some bytes (`[!…]` any other, `a-z` a range), `**` as a whole name any
number of directories, none too. A pattern that matches a directory means all files below it. Everything is bytes
and the case counts. There is no way to escape but a class: `[*]`.

Patterns and trees are both hostile: a name is matched in time of its length times the pattern's, and a tree is never
walked where no pattern can match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloudclaw.errors import InvalidArgumentError

MAX_BYTES: Final = 256

_STAR: Final = None
_Token = frozenset[int] | None
"""What one byte of a name may be; None is a star."""
_DEEP: Final = "**"
_Step = tuple[_Token, ...] | str
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
        self._steps: list[_Step] = [_DEEP if name == b"**" else _parse(name) for name in names]

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
            elif _matches(step, name):
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


def _matches(tokens: tuple[_Token, ...], name: bytes) -> bool:
    """Greedy with one point to come back to, the latest star: no pattern takes more than length times length."""
    at = token = 0
    star, mark = -1, 0
    while at < len(name):
        if token < len(tokens) and tokens[token] is _STAR:
            star, mark = token, at
            token += 1
        elif token < len(tokens) and name[at] in (tokens[token] or ()):
            at += 1
            token += 1
        elif star >= 0:
            mark += 1
            at, token = mark, star + 1
        else:
            return False
    return all(left is _STAR for left in tokens[token:])


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
