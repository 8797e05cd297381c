"""A server that is out for the user's files: what `claw ws get` unpacks, and what `claw ws put` picks up."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudclaw.cli.archives import pack, unpack
from cloudclaw.errors import CloudClawError, InvalidArgumentError
from tests.support.trees import TAR_END, pax, tar_header, tar_member

SECRET = b"the user's own secret"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the target; at the end it must be as it was."""
    folder = tmp_path / "outside"
    folder.mkdir()
    canary = folder / "canary"
    canary.write_bytes(SECRET)
    canary.chmod(0o640)
    before = canary.stat()
    yield folder
    after = canary.stat()
    assert canary.read_bytes() == SECRET
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert [path.name for path in folder.iterdir()] == ["canary"]
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "target"}


def symlink(name: bytes, link: bytes) -> bytes:
    return pax({b"path": name, b"linkpath": link}) + tar_member(b"x", flag=b"2")


def hard(name: bytes, link: bytes) -> bytes:
    return tar_member(name, flag=b"1", link=link)


def folder(name: bytes, mode: int = 0o755) -> bytes:
    return pax({b"path": name}) + tar_member(b"x/", flag=b"5", mode=mode)


def get(tmp_path: Path, archive: bytes, *, outside_links: bool = False) -> list[str]:
    """Unpack into `target`; what was refused."""
    refused: list[str] = []
    unpack(io.BytesIO(archive + TAR_END), tmp_path / "target", refused.append, outside_links=outside_links)
    return refused


def _beyond_what_realpath_resolves() -> bytes:
    """Symlinks whose targets are longer than any path: a check that resolves names by itself loses its way in them,
    and takes what leads out for something inside."""
    archive, path, steps = b"", b"", b"abcdefghijklmnop"
    for step in steps:
        deep = path + b"d" * 247
        archive += folder(deep) + symlink(path + bytes([step]), b"d" * 247)
        path = deep + b"/"
    through = b"/".join(bytes([step]) for step in steps) + b"/" + b"l" * 254
    archive += symlink(through, b"../" * len(steps))
    archive += symlink(b"escape", through + b"/../outside")
    return archive


@pytest.mark.parametrize("outside_links", [False, True])
@pytest.mark.parametrize(
    "last",
    [symlink(b"escape/planted", b"x"), tar_member(b"escape/planted", b"evil"), folder(b"escape/planted")],
    ids=["symlink", "file", "folder"],
)
def test_nothing_is_made_through_symlinks_that_are_too_long_to_check(
    tmp_path: Path, outside: Path, last: bytes, outside_links: bool
) -> None:
    refused = get(tmp_path, _beyond_what_realpath_resolves() + last, outside_links=outside_links)
    assert any("escape" in one for one in refused)


@pytest.mark.parametrize("outside_links", [False, True])
def test_the_mode_of_a_folder_is_not_set_through_a_symlink(tmp_path: Path, outside: Path, outside_links: bool) -> None:
    outside.chmod(0o700)
    archive = _beyond_what_realpath_resolves() + folder(b"escape", 0o777) + symlink(b"late", b"escape")
    get(tmp_path, archive, outside_links=outside_links)
    assert outside.stat().st_mode & 0o777 == 0o700


CANARY = b"../outside/canary"


@pytest.mark.parametrize(
    "members",
    [
        symlink(b"x", CANARY) + tar_member(b"x", b"evil", mode=0o777),
        tar_member(b"x", b"evil", mode=0o777) + symlink(b"x", CANARY),
        symlink(b"x", b"../outside") + tar_member(b"x/canary", b"evil") + tar_member(b"x/planted", b"evil"),
        symlink(b"x", b"../outside") + folder(b"x", 0o777) + folder(b"x/planted"),
        folder(b"x", 0o777) + symlink(b"x", b"../outside"),
        symlink(b"x", b"../outside") + symlink(b"x/planted", b"y") + symlink(b"x/canary", b"y"),
        symlink(b"x", CANARY) + hard(b"y", b"x") + tar_member(b"y", b"evil"),
        symlink(b"x", CANARY) + symlink(b"y", b"x") + symlink(b"x", b"y") + tar_member(b"y", b"evil"),
    ],
    ids=["file", "file before", "below", "folder", "folder before", "symlinks below", "hard link", "row"],
)
def test_symlinks_that_lead_out_are_made_but_never_followed(tmp_path: Path, outside: Path, members: bytes) -> None:
    outside.chmod(0o700)
    before = outside.stat()
    absolute = symlink(b"absolute", os.fsencode(outside / "canary"))
    get(tmp_path, absolute + members + tar_member(b"absolute", b"evil", mode=0o777), outside_links=True)
    after = outside.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_the_times_of_a_symlink_are_its_own(tmp_path: Path, outside: Path) -> None:
    dated = pax({b"path": b"x", b"linkpath": CANARY, b"mtime": b"1000000.000000001"}) + tar_member(b"x", flag=b"2")
    assert not get(tmp_path, dated, outside_links=True)
    assert (tmp_path / "target" / "x").lstat().st_mtime_ns == 1_000_000_000_000_001


@pytest.mark.parametrize("outside_links", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        symlink(b"s", b"../outside") + hard(b"x", b"s") + tar_member(b"x/planted", b"evil"),
        hard(b"x", b"../outside/canary") + tar_member(b"x", b"evil"),
        hard(b"x", b"later") + tar_member(b"later", b"x"),
        folder(b"d") + hard(b"x", b"d"),
        hard(b"x", b"x"),
    ],
    ids=["symlink", "outside", "later", "folder", "itself"],
)
def test_hard_links_lead_to_files_of_the_archive_only(
    tmp_path: Path, outside: Path, members: bytes, outside_links: bool
) -> None:
    refused = get(tmp_path, members, outside_links=outside_links)
    assert any("x" in one for one in refused)
    assert not (tmp_path / "target" / "x").is_symlink()


@pytest.mark.parametrize(
    "links",
    [
        symlink(b"x", b"/etc/passwd"),
        symlink(b"x", b"../outside"),
        folder(b"d") + symlink(b"d/x", b"../../outside/canary"),
        symlink(b"up", b".") + symlink(b"x", b"up/../outside"),
        folder(b"d/e") + symlink(b"d/e/up", b"../..") + symlink(b"x", b"d/e/up/../outside"),
        _beyond_what_realpath_resolves() + symlink(b"x", b"escape/canary"),
    ],
    ids=["absolute", "up", "deeper", "through", "through a deep one", "long"],
)
def test_no_symlink_leads_out_of_the_folder(tmp_path: Path, outside: Path, links: bytes) -> None:
    """Whoever opens what came down should not have to look where it leads."""
    get(tmp_path, links + symlink(b"fine", b"x") + folder(b"f") + symlink(b"f/fine", b"../fine"))
    target = tmp_path / "target"
    assert (target / "f" / "fine").readlink() == Path("../fine")
    assert not os.path.exists(target / "x")


@pytest.mark.parametrize(
    "name", [b"/abs/planted", b"../planted", b"a/../../planted", b"..", b"a/..", b"./../planted", b"n" * 300]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, outside: Path, name: bytes) -> None:
    refused = get(tmp_path, pax({b"path": name}) + tar_member(b"x", b"evil") + tar_member(b"fine", b"x"))
    assert len(refused) == 1
    assert (tmp_path / "target" / "fine").read_bytes() == b"x"


def test_a_parent_swapped_for_a_symlink_while_unpacking_leads_nowhere(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else who may write to the folder waits for the moment before a file is made."""
    inside = tmp_path / "target" / "d"
    real = os.open

    def swap(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if os.path.basename(os.fsdecode(path)) in ("planted", "d") and inside.is_dir() and not inside.is_symlink():
            inside.rename(tmp_path / "target" / "moved")
            inside.symlink_to(outside)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    get(tmp_path, folder(b"d") + tar_member(b"d/planted", b"evil") + folder(b"d", 0o700))
    assert inside.is_symlink()


@pytest.mark.parametrize("flag", [b"3", b"4", b"6", b"Z"])
def test_what_is_no_file_is_refused(tmp_path: Path, outside: Path, flag: bytes) -> None:
    refused = get(tmp_path, tar_member(b"strange", flag=flag) + tar_member(b"setuid", b"x", mode=0o6755))
    assert len(refused) == 1
    assert "strange" in refused[0]
    assert (tmp_path / "target" / "setuid").stat().st_mode & 0o7000 == 0


def test_an_archive_that_only_unpacks_to_a_bomb_is_refused(tmp_path: Path, outside: Path) -> None:
    """Ours are never compressed, so one that is comes from somebody else."""
    with pytest.raises(InvalidArgumentError, match="archive"):
        unpack(io.BytesIO(gzip.compress(tar_header(b"bomb", size=1 << 30) + bytes(4096))), tmp_path / "target", print)


@pytest.mark.parametrize(
    "broken",
    [
        tar_header(b"a", size=1 << 40) + b"x" * 512,
        pax({b"path": b"x" * 100}) * 3000 + tar_member(b"a", b"x"),
        b"no archive at all" * 100,
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9" * 15})
        + tar_member(b"a", b"1\n0\n9\n" + bytes(506)),
    ],
    ids=["short", "chain", "junk", "sparse"],
)
def test_a_broken_archive_is_told_as_one(tmp_path: Path, outside: Path, broken: bytes) -> None:
    with contextlib.suppress(CloudClawError):
        assert get(tmp_path, broken)
    assert sum(p.stat().st_size for p in (tmp_path / "target").rglob("*")) < 1 << 20


# -- what goes up --


def packed(target: io.BytesIO) -> dict[str, bytes]:
    target.seek(0)
    with tarfile.open(fileobj=target) as tar:
        return {m.name: (f.read() if (f := tar.extractfile(m)) and m.isreg() else b"") for m in tar.getmembers()}


def _for_a_symlink(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "canary")


def _for_a_fifo(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _for_its_parent(path: Path, outside: Path) -> None:
    path.parent.rename(path.parent.parent / "moved")
    path.parent.symlink_to(outside)


@pytest.mark.parametrize("swap", [_for_a_symlink, _for_a_fifo, _for_its_parent])
def test_a_file_swapped_while_it_is_packed_takes_nothing_else_along(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], None]
) -> None:
    file = tmp_path / "target" / "folder" / "canary"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    real = os.open
    swapped: list[str | bytes] = []

    def late(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if os.path.basename(os.fsdecode(path)) == "canary" and not swapped:
            swapped.append(path)
            swap(file, outside)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", late)
    target = io.BytesIO()
    left_out: list[str] = []
    pack([tmp_path / "target"], target, left_out.append)
    assert swapped
    assert SECRET not in target.getvalue()
    assert packed(target).get("folder/canary", b"mine") == b"mine"
