"""Page tokens and paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots.safe import show
from cloudclaw_workspace.domain import paging, paths


@given(st.lists(st.text(max_size=50), max_size=3), st.lists(st.text(max_size=50), min_size=1, max_size=3))
def test_a_token_carries_its_cursor(scope: list[str], cursor: list[str]) -> None:
    token = paging.encode(tuple(scope), tuple(cursor))
    assert paging.decode(tuple(scope), token, len(cursor)) == tuple(cursor)


def test_no_token_means_the_first_page() -> None:
    assert paging.decode(("a",), "", 1) is None


@pytest.mark.parametrize("token", ["x", "!!!!", "é", "bm90IGpzb24", "W10", "WzEsMl0", "A" * 5000])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        paging.decode(("files",), token, 1)
    assert refused.value.field == "page_token"


def test_a_token_of_another_request_or_tenant_is_refused() -> None:
    token = paging.encode(("files", "acme", "ws"), ("x",))
    for scope in (("files", "other", "ws"), ("files", "acme", "ws2"), ("diff", "acme", "ws")):
        with pytest.raises(InvalidArgumentError):
            paging.decode(scope, token, 1)


@pytest.mark.parametrize(("wanted", "size"), [(0, 100), (1, 1), (1000, 1000)])
def test_page_sizes(wanted: int, size: int) -> None:
    assert paging.page_size(wanted) == size


@pytest.mark.parametrize("wanted", [-1, 1001])
def test_page_sizes_out_of_range_are_refused(wanted: int) -> None:
    with pytest.raises(InvalidArgumentError):
        paging.page_size(wanted)


@given(st.binary(min_size=1, max_size=40).filter(lambda n: not set(n) & {0, 0x2F} and n not in (b".", b"..")))
def test_a_path_as_shown_finds_its_file(name: bytes) -> None:
    assert paths.PREFIX + name in paths.candidates(show(name))


def test_a_literal_percent_is_itself_first() -> None:
    assert paths.candidates("100%E9") == [b"workspace/100%E9", b"workspace/100\xe9"]
    assert paths.candidates("50%25") == [b"workspace/50%25"]


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a/", ".", "a\0", "n" * 256, "a/" * 2048 + "a"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        paths.to_tree(path)
    assert refused.value.field == "path"


@pytest.mark.parametrize("path", ["a/%C0%AE%C0%AE/b", "%AF"])
def test_escapes_cannot_make_a_step_up(path: str) -> None:
    for place in paths.candidates(path):
        assert b".." not in place.split(b"/")
