"""Archives and downloads at the workspace service that cost more than they bring."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import CloudClawError, InvalidArgumentError, QuotaExceededError
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import HOME, WORKSPACE, TreeLimits
from cloudclaw_workspace.domain.paths import to_tree
from tests.attacks.hostile import no_object_has
from tests.support.trees import TAR_END, pax, tar_header, tar_member
from tests.support.workspace_service import User, WorkspaceStack, workspace_service

SECRET = b"the host's own secret"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[WorkspaceStack]:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_bytes(SECRET)
    limits = TreeLimits(file_bytes=1 << 20, total_bytes=4 << 20, files=2000)
    objects = MemoryObjects()
    async with workspace_service(tmp_path, MemoryKeyValue(SystemClock()), objects, limits=limits) as running:
        yield running
    assert (outside / "canary").read_bytes() == SECRET
    assert [path.name for path in outside.iterdir()] == ["canary"]
    await no_object_has(objects, SECRET)


@pytest.fixture
async def user(stack: WorkspaceStack) -> User:
    user = stack.user()
    await user.create("ws")
    return user


def gzip_with_a_name(name: bytes, content: bytes) -> bytes:
    """One gzip member with a file name in its header."""
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(content) + deflate.flush()
    tail = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return b"\x1f\x8b\x08\x08" + bytes(6) + name + b"\0" + body + tail


@pytest.mark.timeout(60)
async def test_a_name_of_megabytes_in_a_gzip_header_costs_no_time(user: User) -> None:
    """Read byte by byte it took minutes of this service's interpreter."""
    await user.upload("ws", gzip_with_a_name(b"n" * (32 << 20), tar_member(b"a", b"x") + TAR_END))
    assert await user.contents("ws") == {"a": b"x"}


@pytest.mark.timeout(60)
async def test_gzip_members_that_hold_nothing_cost_no_time(user: User) -> None:
    await user.upload("ws", gzip.compress(b"") * 100_000 + gzip.compress(tar_member(b"a", b"x") + TAR_END))
    assert await user.contents("ws") == {"a": b"x"}


async def test_gzip_members_and_the_zeros_after_them_are_one_stream(user: User) -> None:
    whole = tar_member(b"a", os.urandom(100_000)) + tar_member(b"b", b"y" * 50_000) + TAR_END
    pieces = [gzip.compress(whole[at : at + 7000]) for at in range(0, len(whole), 7000)]
    await user.upload("ws", b"".join(pieces) + bytes(5000), piece=999)
    assert (await user.contents("ws"))["b"] == b"y" * 50_000
    for tail in (b"x", bytes(3000) + b"x", pieces[0][:-1]):
        with pytest.raises(InvalidArgumentError, match="decompress"):
            await user.upload("ws", b"".join(pieces) + tail)


def frame_that_claims(size: int, content: bytes) -> bytes:
    """A zstd frame of `content` whose header says that it has `size` bytes."""
    whole = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(content))
    told = zstandard.get_frame_parameters(bytes(whole))
    assert told.content_size == len(content)
    assert 65_792 <= len(content) < 1 << 32, "four bytes of size"
    at = whole.index(len(content).to_bytes(4, "little"))
    whole[at : at + 4] = size.to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.parametrize("claim", [70_000, 1 << 31])
async def test_a_zstd_frame_of_another_size_than_it_claims_is_refused(
    stack: WorkspaceStack, user: User, claim: int
) -> None:
    archive = tar_member(b"a", os.urandom(900_000)) + TAR_END
    with pytest.raises((InvalidArgumentError, QuotaExceededError)):
        await user.upload("ws", frame_that_claims(claim, archive))
    assert await user.contents("ws") == {}
    assert await stack.trees() == []


@pytest.mark.timeout(60)
async def test_zstd_frames_that_hold_nothing_cost_no_time(user: User) -> None:
    squeeze = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18" + (0).to_bytes(4, "little")
    filler = squeeze(b"") * 10_000 + skippable * 10_000
    await user.upload("ws", squeeze(tar_member(b"a", b"x")) + filler + squeeze(TAR_END))
    assert await user.contents("ws") == {"a": b"x"}


async def test_members_over_the_limit_are_refused_before_any_is_kept(stack: WorkspaceStack, user: User) -> None:
    members = b"".join(tar_member(b"d/%d" % n) for n in range(2001))
    with pytest.raises(QuotaExceededError, match="d/1999"):
        await user.upload("ws", members + TAR_END)
    with pytest.raises(QuotaExceededError, match="more than 2000"):
        await user.write("ws", {f"f{n}": b"" for n in range(2001)})
    assert await user.contents("ws") == {}
    assert await stack.trees() == []


async def test_names_for_terminals_and_logs_are_escaped_in_errors(user: User) -> None:
    name = b"a\n2026-01-01 [error] forged\x1b[2J\xff"
    with pytest.raises(InvalidArgumentError) as refused:
        await user.upload("ws", pax({b"path": name}) + tar_member(b"x", flag=b"6") + TAR_END)
    assert "\n" not in refused.value.message
    assert "\x1b" not in refused.value.message
    assert "%FF" in refused.value.message


async def test_odd_names_come_back_exactly_and_quoted(user: User) -> None:
    names = [b"new\nline", b"100%", b"%41", b"-rf", b" ", b"\x1b]0;title\x07", b"caf\xe9", b"c:\\evil", b"n" * 255]
    await user.upload("ws", b"".join(pax({b"path": n}) + tar_member(b"x", n) for n in names) + TAR_END)
    with tarfile.open(fileobj=io.BytesIO(await user.download("ws"))) as archive:
        found = {m.name.encode("utf-8", "surrogateescape"): archive.extractfile(m) for m in archive}
        assert {name: file.read() for name, file in found.items() if file} == {name: name for name in names}
        assert not [m.name for m in archive if m.name.startswith("/") or ".." in m.name.split("/")]
    for file in await user.files("ws"):
        assert await user.read("ws", file.path) in names


@pytest.mark.parametrize("path", ["/etc/passwd", "../canary", "a/../../canary", "", "a//b", ".", "n" * 5000, "a\0b"])
async def test_paths_that_lead_elsewhere_are_refused_by_every_read(user: User, path: str) -> None:
    await user.write("ws", {"a": b"x"})
    with pytest.raises(InvalidArgumentError):
        await user.read("ws", path)
    if path:
        with pytest.raises(InvalidArgumentError):
            await user.files("ws", path)
        with pytest.raises(InvalidArgumentError):
            to_tree(path)


async def test_a_symlink_is_not_read_through(stack: WorkspaceStack, user: User) -> None:
    canary = os.fsencode(stack.folder / "outside" / "canary")
    links = {b"file": canary, b"folder": os.path.dirname(canary), b"up": b"../../../outside"}
    await user.upload("ws", b"".join(tar_member(n, flag=b"2", link=t) for n, t in links.items()) + TAR_END)
    for path in ("file", "folder/canary", "up/canary"):
        with pytest.raises(CloudClawError, match=r"no regular file|no file"):
            await user.read("ws", path)
    assert SECRET not in await user.download("ws")


@pytest.mark.parametrize("top", [WORKSPACE, HOME])
async def test_many_names_of_one_large_file_download_it_once(stack: WorkspaceStack, user: User, top: str) -> None:
    """A hundred thousand names of a file of 256 MiB are 25 TB as files of their own."""
    await user.write("ws", {"start": b"x"})
    tree = await stack.engine.checkout("acme", None, "attempt-1")
    first = tree.path / top / "a"
    first.write_bytes(os.urandom(1 << 20))
    for number in range(1000):
        (tree.path / WORKSPACE / f"name{number:04}").hardlink_to(first)
    saved = (await stack.engine.snapshot("acme", tree, "snap-links")).pointer
    await stack.engine.release("acme", tree, None)
    await user.upload("ws", tar_member(b"y", b"") + TAR_END)
    size = 0
    browser_pieces = [piece async for piece in _archive(stack, saved)]
    size = sum(map(len, browser_pieces))
    assert size < 3 << 20
    with tarfile.open(fileobj=io.BytesIO(b"".join(browser_pieces))) as archive:
        members = {m.name: m for m in archive}
        last = archive.extractfile("name0999")
        assert last is not None
        assert len(last.read()) == 1 << 20
    assert sum(m.islnk() for m in members.values()) >= 999


async def _archive(stack: WorkspaceStack, saved: object) -> AsyncIterator[bytes]:
    from cloudclaw_workspace.app.browsing import Browser

    class Registry:
        async def get(self, tenant: str, name: str) -> object:
            record = type("Record", (), {"head": saved})
            return type("Versioned", (), {"record": record})

    async for piece in Browser(Registry(), stack.engine).archive("acme", "ws", ""):  # type: ignore[arg-type]
        yield piece


async def test_a_header_that_claims_a_file_over_the_limit_is_refused_by_name(user: User) -> None:
    with pytest.raises((InvalidArgumentError, QuotaExceededError), match="claims"):
        await user.upload("ws", tar_header(b"claims", size=1 << 40) + bytes(2 << 20))
