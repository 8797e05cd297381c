"""Which files a pattern means, and that no pattern is slow."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots.globs import Glob, Globs, check_pattern


def matches(pattern: str, path: str) -> bool:
    glob = Glob(pattern)
    states = glob.start()
    for name in path.encode().split(b"/"):
        states = glob.step(states, name)
    return glob.matched(states)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("a.txt", "a.txt"),
        ("*.txt", "a.txt"),
        ("?.txt", "a.txt"),
        ("*", ".hidden"),
        ("*", "a/b/c"),
        ("out", "out/deep/file"),
        ("out/", "out/deep/file"),
        ("out/*/x", "out/a/x"),
        ("**", "a/b"),
        ("**/*.py", "a.py"),
        ("**/*.py", "a/b/c.py"),
        ("src/**/test_*", "src/test_a"),
        ("src/**/test_*", "src/x/y/test_a"),
        ("**/a/**/b", "x/a/y/z/b"),
        ("[ab]?[!c-e]", "bxf"),
        ("[]]", "]"),
        ("[*]", "*"),
        ("[x", "[x"),
        ("caf?" + "?", "café"),
        ("a**b", "axxb"),
    ],
)
def test_a_pattern_matches(pattern: str, path: str) -> None:
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("a.txt", "A.txt"),
        ("*.txt", "a/b.txt"),
        ("*.txt", "a.txt2"),
        ("?", "ab"),
        ("out/*/x", "out/x"),
        ("out", "outer/file"),
        ("**/*.py", "a/b"),
        ("src/**/x", "lib/src/x"),
        ("[!a]", "a"),
        ("[a-c]", "d"),
        ("a*b", "a/b"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, path: str) -> None:
    assert not matches(pattern, path)


@pytest.mark.parametrize(
    "pattern", ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/.", "x" * 257, "é" * 129, "a\0b", "\udc80"]
)
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_pattern(pattern)
    assert refused.value.field == "artifacts"


@given(st.text("ab*?", min_size=1, max_size=8).filter(lambda p: p not in ("**",)), st.text("ab", max_size=8))
def test_stars_within_a_name_are_those_of_the_shell(pattern: str, name: str) -> None:
    assert matches(pattern, name or "c") == fnmatch.fnmatchcase(name or "c", pattern)


def test_a_hostile_pattern_costs_no_more_than_its_length_times_the_names() -> None:
    started = time.process_time()
    assert not matches("a*" * 127 + "b", "a" * 255)
    assert not matches("/".join(["**", "a"] * 40) + "/x", "/".join(["a"] * 128))
    assert time.process_time() - started < 2


def test_nothing_is_walked_where_no_pattern_leads() -> None:
    globs = Globs(["src/*.py", "docs"])
    assert not any(globs.step(globs.start(), b"node_modules"))
    assert any(globs.step(globs.start(), b"src"))
