"""Archives that are out for something: each is refused whole, by a name, and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zstandard

from cloudclaw.errors import CloudClawError, InvalidArgumentError, NotFoundError, QuotaExceededError
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.trees import TAR_END, pax, tar_header, tar_member
from tests.support.workspace_service import User, WorkspaceStack


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("the host's")
    return folder


async def refused(stack: WorkspaceStack, user: User, archive: bytes, *, replace: bool = False) -> CloudClawError:
    """Upload what must be refused; check that nothing of it is left."""
    before = await user.get("ws")
    with pytest.raises((InvalidArgumentError, QuotaExceededError)) as error:
        await user.upload("ws", archive, replace=replace)
    assert await user.get("ws") == before
    assert await stack.writers() == []
    assert await stack.trees() == []
    assert (stack.folder / "outside" / "secret").read_text() == "the host's"
    assert len(list((stack.folder / "outside").iterdir())) == 1
    return error.value


@pytest.fixture(autouse=True)
def _outside(outside: Path) -> None:
    pass


@pytest.mark.parametrize(
    "name",
    [b"/etc/planted", b"../planted", b"a/../../planted", b"..", b"a/..", b"//planted", b"./../planted", b"/"],
)
async def test_names_that_lead_out_are_refused(stack: WorkspaceStack, user: User, name: bytes) -> None:
    error = await refused(stack, user, tar_member(b"good", b"x") + tar_member(name, b"evil") + TAR_END)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "path"


@pytest.mark.parametrize("carrier", [b"path", b"L"])
async def test_long_names_that_lead_out_are_refused(stack: WorkspaceStack, user: User, carrier: bytes) -> None:
    name = b"a/" * 60 + b"../" * 80 + b"planted"
    before = pax({b"path": name}) if carrier == b"path" else tar_member(b"././@LongLink", name + b"\0", b"L")
    await refused(stack, user, before + tar_member(b"harmless", b"x") + TAR_END)


async def test_a_file_through_a_symlink_of_the_archive_is_refused(stack: WorkspaceStack, user: User) -> None:
    link = tar_member(b"link", flag=b"2", link=b"../../../outside")
    error = await refused(stack, user, link + tar_member(b"link/planted", b"evil") + TAR_END)
    assert "link/planted" in error.message


async def test_a_file_through_a_symlink_of_the_workspace_is_refused(stack: WorkspaceStack, user: User) -> None:
    await user.upload("ws", tar_member(b"link", flag=b"2", link=b"/etc") + TAR_END)
    before = await user.get("ws")
    with pytest.raises(InvalidArgumentError, match="link/planted"):
        await user.upload("ws", tar_member(b"link/planted", b"evil") + TAR_END)
    with pytest.raises(InvalidArgumentError, match="link/planted"):
        await user.write("ws", {"link/planted": b"evil"})
    with pytest.raises((InvalidArgumentError, NotFoundError)):
        await user.write("ws", {}, remove=["link/hostname"])
    assert Path("/etc/hostname").exists()
    assert await user.get("ws") == before


async def test_a_symlink_is_replaced_and_not_written_through(stack: WorkspaceStack, user: User) -> None:
    link = tar_member(b"file", flag=b"2", link=os.fsencode(stack.folder / "outside" / "secret"))
    await user.upload("ws", link + tar_member(b"file", b"mine") + TAR_END)
    assert await user.contents("ws") == {"file": b"mine"}
    await user.upload("ws", link + TAR_END)
    await user.write("ws", {"file": b"again"})
    assert await user.contents("ws") == {"file": b"again"}
    assert (stack.folder / "outside" / "secret").read_text() == "the host's"


async def test_symlinks_are_kept_as_they_stand(user: User) -> None:
    targets = {"abs": b"/etc/passwd", "up": b"../../..", "dangling": b"nowhere"}
    await user.upload("ws", b"".join(tar_member(n.encode(), flag=b"2", link=t) for n, t in targets.items()) + TAR_END)
    files = await user.files("ws")
    assert {f.path: f.target.encode() for f in files} == targets
    assert {f.type for f in files} == {pb.FILE_TYPE_SYMLINK}


@pytest.mark.parametrize(
    "source",
    [b"../../outside/secret", b"/etc/passwd", b"missing", b"folder", b"later", b"link", b"link/secret", b"old"],
)
async def test_hard_links_to_anything_but_a_file_brought_before_are_refused(
    stack: WorkspaceStack, user: User, source: bytes
) -> None:
    await user.write("ws", {"old": b"of an earlier version"})
    archive = (
        tar_member(b"folder/", flag=b"5")
        + tar_member(b"link", flag=b"2", link=b"../../../outside")
        + tar_member(b"hard", flag=b"1", link=source)
        + tar_member(b"later", b"x")
        + TAR_END
    )
    before = await user.get("ws")
    with pytest.raises(InvalidArgumentError, match="'hard'"):
        await user.upload("ws", archive)
    assert await user.get("ws") == before


async def test_a_hard_link_within_the_archive_is_a_second_name_until_one_is_written(user: User) -> None:
    archive = (
        tar_member(b"a", b"content")
        + tar_member(b"b/hard", flag=b"1", link=b"./a")
        + tar_member(b"a", flag=b"1", link=b"a")
        + tar_member(b"c", flag=b"1", link=b"b/hard")
        + TAR_END
    )
    await user.upload("ws", archive)
    assert await user.contents("ws") == {"a": b"content", "b/hard": b"content", "c": b"content"}
    await user.write("ws", {"a": b"changed"})
    assert await user.contents("ws") == {"a": b"changed", "b/hard": b"content", "c": b"content"}


async def test_a_link_swapped_in_for_a_file_brought_before_is_not_linked_to(stack: WorkspaceStack, user: User) -> None:
    archive = (
        tar_member(b"a", b"x")
        + tar_member(b"a", flag=b"2", link=b"../../../outside/secret")
        + tar_member(b"hard", flag=b"1", link=b"a")
        + TAR_END
    )
    await refused(stack, user, archive)


async def test_the_bytes_of_a_file_with_many_names_count_once(stack: WorkspaceStack, user: User) -> None:
    links = b"".join(tar_member(b"h%d" % n, flag=b"1", link=b"a") for n in range(5))
    file = tar_member(b"a", b"x" * 900_000) + links
    await user.upload("ws", file + TAR_END)
    # Taking names away again frees nothing while one is left: three more such files do not fit.
    unlinked = b"".join(tar_member(b"h%d" % n) for n in range(5))
    more = b"".join(tar_member(b"more%d" % n, b"x" * 900_000) for n in range(3))
    error = await refused(stack, user, file + unlinked + more + TAR_END)
    assert "more2" in error.message


async def test_many_hard_links_count_as_many_files(stack: WorkspaceStack, user: User) -> None:
    links = b"".join(tar_member(b"h%d" % n, flag=b"1", link=b"a") for n in range(60))
    error = await refused(stack, user, tar_member(b"a", b"x") + links + TAR_END)
    assert "files" in error.message


@pytest.mark.parametrize("flag", [b"3", b"4", b"6", b"S"])
async def test_devices_fifos_and_sparse_files_are_refused(stack: WorkspaceStack, user: User, flag: bytes) -> None:
    error = await refused(stack, user, tar_member(b"strange", flag=flag) + TAR_END)
    assert "strange" in error.message


async def test_setuid_bits_are_dropped(user: User) -> None:
    await user.upload("ws", tar_member(b"su", b"x", mode=0o6755) + TAR_END)
    assert [file.mode for file in await user.files("ws")] == [0o755]


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.ZstdCompressor(level=19).compress])
async def test_a_compression_bomb_is_refused_after_the_limit(
    stack: WorkspaceStack, user: User, squeeze: object
) -> None:
    member = tar_header(b"bomb", size=900 << 20)
    bomb = squeeze(member + bytes(900 << 20))  # type: ignore[operator]
    assert len(bomb) < 2 << 20
    error = await refused(stack, user, bomb)
    assert isinstance(error, QuotaExceededError)
    assert "bomb" in error.message


async def test_zeros_after_the_end_do_not_go_on_for_ever(stack: WorkspaceStack, user: User) -> None:
    tail = gzip.compress(tar_member(b"a", b"x") + bytes(200 << 20))
    assert isinstance(await refused(stack, user, tail), QuotaExceededError)


async def test_sizes_that_claim_more_than_comes_are_refused(stack: WorkspaceStack, user: User) -> None:
    await refused(stack, user, tar_header(b"a", size=1000) + b"x" * 512)
    await refused(stack, user, tar_header(b"a", size=8 << 30) + b"x" * 512)
    await refused(stack, user, pax({b"size": b"99999999999"}) + tar_member(b"a", b"x") + TAR_END)


async def test_a_file_over_the_limit_is_refused_by_name(stack: WorkspaceStack, user: User) -> None:
    error = await refused(stack, user, tar_member(b"large", bytes((1 << 20) + 1)) + TAR_END)
    assert "large" in error.message
    with pytest.raises(QuotaExceededError, match="large"):
        await user.write("ws", {"large": bytes((1 << 20) + 1)})


async def test_a_workspace_over_the_limit_is_refused(stack: WorkspaceStack, user: User) -> None:
    files = b"".join(tar_member(b"f%d" % n, os.urandom(1 << 20)) for n in range(4))
    error = await refused(stack, user, files + TAR_END)
    assert "f3" in error.message


@pytest.mark.parametrize("flag", [b"0", b"5", b"2"])
async def test_too_many_members_are_refused(stack: WorkspaceStack, user: User, flag: bytes) -> None:
    members = b"".join(tar_member(b"m%d" % n, flag=flag, link=b"x" if flag == b"2" else b"") for n in range(51))
    await refused(stack, user, members + TAR_END)


async def test_parents_made_on_the_way_count_too(stack: WorkspaceStack, user: User) -> None:
    await refused(stack, user, tar_member(b"d/" * 49 + b"file", b"x") + tar_member(b"e/f", b"x") + TAR_END)


async def test_what_was_there_counts_against_the_limit(user: User) -> None:
    await user.write("ws", {f"f{n}": os.urandom(1 << 20) for n in range(2)})
    with pytest.raises(QuotaExceededError):
        await user.write("ws", {f"g{n}": os.urandom(1 << 20) for n in range(2)})
    await user.write("ws", {"g": os.urandom(1 << 20)})
    await user.write("ws", {"h": os.urandom(1 << 20)}, remove=["f0"])
    await user.write("ws", {"h": os.urandom(1 << 20)})
    await user.upload(
        "ws", b"".join(tar_member(b"n%d" % n, os.urandom(1 << 20)) for n in range(3)) + TAR_END, replace=True
    )


async def test_deep_and_long_names_are_refused(stack: WorkspaceStack, user: User) -> None:
    await refused(stack, user, pax({b"path": b"d/" * 200 + b"x"}) + tar_member(b"x") + TAR_END)
    await refused(stack, user, pax({b"path": b"n" * 256}) + tar_member(b"x") + TAR_END)
    await refused(stack, user, pax({b"path": b"/".join([b"n" * 200] * 21)}) + tar_member(b"x") + TAR_END)


async def test_a_name_with_a_zero_byte_is_refused(stack: WorkspaceStack, user: User) -> None:
    await refused(stack, user, pax({b"path": b"a\0b"}) + tar_member(b"x") + TAR_END)


@pytest.mark.parametrize("target", [b"", b"a\0b"])
async def test_symlink_targets_that_cannot_be_are_refused(stack: WorkspaceStack, user: User, target: bytes) -> None:
    await refused(stack, user, pax({b"linkpath": target}) + tar_member(b"x", flag=b"2") + TAR_END)


async def test_the_last_of_several_members_wins_whatever_they_are(user: User) -> None:
    archive = (
        tar_member(b"a", b"first")
        + tar_member(b"a", b"second")
        + tar_member(b"b/", flag=b"5")
        + tar_member(b"b", b"a file now")
        + tar_member(b"c", b"a file")
        + tar_member(b"c/", flag=b"5")
        + tar_member(b"c/inside", b"x")
        + TAR_END
    )
    await user.upload("ws", archive)
    assert await user.contents("ws") == {"a": b"second", "b": b"a file now", "c/inside": b"x"}


async def test_a_file_in_place_of_a_full_directory_is_refused(stack: WorkspaceStack, user: User) -> None:
    error = await refused(stack, user, tar_member(b"d/file", b"x") + tar_member(b"d", b"x") + TAR_END)
    assert "'d'" in error.message


async def test_closed_directories_take_their_files_first(user: User) -> None:
    archive = (
        tar_member(b"d/", flag=b"5", mode=0o500, mtime=1_000_000)
        + tar_member(b"d/file", b"x", mode=0o400, mtime=2_000_000)
        + TAR_END
    )
    await user.upload("ws", archive)
    files = {file.path: file for file in await user.files("ws")}
    assert (files["d"].mode, files["d"].modify_time.seconds) == (0o500, 1_000_000)
    assert (files["d/file"].mode, files["d/file"].modify_time.seconds) == (0o400, 2_000_000)
    await user.write("ws", {"d/more": b"y"})
    assert await user.contents("ws") == {"d/file": b"x", "d/more": b"y"}


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("piece", [1, 700, 256 << 10])
async def test_archives_come_in_any_packing_and_any_pieces(user: User, squeeze: object, piece: int) -> None:
    archive = tar_member(b"./a", b"1" * 1000) + tar_member(b"./", flag=b"5") + tar_member(b"b/c", b"2") + TAR_END
    await user.upload("ws", squeeze(archive), piece=piece)  # type: ignore[operator]
    assert await user.contents("ws") == {"a": b"1" * 1000, "b/c": b"2"}


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
async def test_archives_cut_short_are_refused(stack: WorkspaceStack, user: User, squeeze: object) -> None:
    whole = squeeze(tar_member(b"a", os.urandom(3000)) + tar_member(b"b", os.urandom(100)) + TAR_END)  # type: ignore[operator]
    for end in (0, 1, 5, 400, len(whole) // 2, len(whole) - 1100 if squeeze is bytes else len(whole) - 9):
        await refused(stack, user, whole[:end])


@pytest.mark.parametrize("content", [b"", TAR_END])
@pytest.mark.parametrize(("squeeze", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
async def test_other_compressions_are_refused_by_their_names(
    stack: WorkspaceStack, user: User, squeeze: Callable[[bytes], bytes], name: str, content: bytes
) -> None:
    error = await refused(stack, user, squeeze(content))
    assert error.message == f"{name} is not accepted; send the tar plain, or compressed by gzip or zstd"


async def test_a_file_named_like_a_compression_is_none(user: User) -> None:
    await user.upload("ws", tar_member(b"BZh91AY", b"x") + TAR_END)
    assert await user.contents("ws") == {"BZh91AY": b"x"}


async def test_damaged_compression_is_refused(stack: WorkspaceStack, user: User) -> None:
    for squeeze in (gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress):
        whole = bytearray(squeeze(tar_member(b"a", os.urandom(3000)) + TAR_END))
        whole[len(whole) // 2] ^= 0xFF
        await refused(stack, user, bytes(whole))


async def test_a_bad_archive_does_not_replace_a_good_tree(stack: WorkspaceStack, user: User) -> None:
    await user.write("ws", {"keep": b"me"})
    with pytest.raises(InvalidArgumentError):
        await user.upload("ws", tar_member(b"a", b"x"), replace=True)
    assert await user.contents("ws") == {"keep": b"me"}
    await user.upload("ws", tar_member(b"a", b"x") + TAR_END)
    assert await user.contents("ws") == {"keep": b"me", "a": b"x"}
    await user.upload("ws", tar_member(b"b", b"y") + TAR_END, replace=True)
    assert await user.contents("ws") == {"b": b"y"}


async def test_what_was_downloaded_can_be_uploaded(user: User) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        for name, kind in (("dir", tarfile.DIRTYPE), ("dir/" + "n" * 150, tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname = kind, 0o750, 1_234_567, "dir"
            archive.addfile(info)
    await user.upload("ws", output.getvalue())
    await user.create("copy")
    await user.upload("copy", await user.download("ws"))
    assert await user.files("copy") == await user.files("ws")


async def test_messages_out_of_order_are_refused(stack: WorkspaceStack, user: User) -> None:
    async def send(*messages: pb.UploadArchiveRequest) -> None:
        async def stream() -> AsyncIterator[pb.UploadArchiveRequest]:
            for message in messages:
                yield message

        await user.stub.UploadArchive(stream())

    header = pb.UploadArchiveRequest(header=pb.ArchiveHeader(workspace="ws"))
    data = pb.UploadArchiveRequest(data=tar_member(b"a") + TAR_END)
    for messages in ((), (data,), (header, header), (header, pb.UploadArchiveRequest())):
        with pytest.raises(InvalidArgumentError):
            await send(*messages)
    with pytest.raises(InvalidArgumentError, match="262144"):
        await send(header, pb.UploadArchiveRequest(data=bytes((256 << 10) + 1)))
    assert (await user.get("ws")).generation == 0
    assert await stack.trees() == []
