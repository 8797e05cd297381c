"""Resolution beneath a directory: what it lets through, and what not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots import safe
from tests.support.trees import give_away, without_rights


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    fd = os.open(inside, safe.DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def folder(tmp_path: Path, root: int) -> Path:
    return tmp_path / "root"


@pytest.mark.parametrize(
    "path", [b"", b"/etc/passwd", b"../secret", b"a/../../secret", b"a//b", b"./a", b"a/.", b"a\0b"]
)
def test_malformed_paths_are_refused(path: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        safe.check_path(path)
    assert refused.value.field == "path"


def test_over_long_names_and_paths_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="256 bytes"):
        safe.check_path(b"n" * 256)
    with pytest.raises(InvalidArgumentError, match="at most 4096"):
        safe.check_path(b"/".join([b"n" * 200] * 21))
    assert safe.check_path(b"/".join([b"n" * 255] * 16))


@pytest.mark.parametrize("path", [b"../secret", b"/etc/passwd", b"a/../../secret"])
def test_the_kernel_refuses_to_leave_the_directory(root: int, folder: Path, path: bytes) -> None:
    (folder / "a").mkdir()
    with pytest.raises(InvalidArgumentError):
        safe.open_beneath(root, path, safe.READ)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "file"])
def test_a_symlink_is_followed_neither_at_the_end_nor_on_the_way(root: int, folder: Path, target: str) -> None:
    (folder / "file").write_text("inside")
    (folder / "link").symlink_to(target)
    (folder / "up").symlink_to("..")
    for path in (b"link", b"up/secret"):
        with pytest.raises(InvalidArgumentError, match="symlink"):
            safe.open_beneath(root, path, safe.READ)
    with pytest.raises(InvalidArgumentError, match="symlink"):
        safe.open_child(root, b"link", safe.READ)


def test_a_magic_link_is_not_followed(root: int) -> None:
    with safe.closing(os.open("/proc/self", safe.DIRECTORY)) as proc, pytest.raises(InvalidArgumentError):
        safe.open_beneath(proc, b"fd/%d" % root, safe.DIRECTORY)


def test_creating_through_a_dangling_symlink_creates_nothing(root: int, folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path / "planted")
    with pytest.raises((InvalidArgumentError, FileExistsError)):
        safe.open_beneath(root, b"link", safe.CREATE)
    with pytest.raises((InvalidArgumentError, FileExistsError)):
        safe.open_child(root, b"link", safe.CREATE)
    assert not (tmp_path / "planted").exists()


def test_a_path_through_a_file_is_refused_by_name(root: int, folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="'file/below'"):
        safe.open_beneath(root, b"file/below", safe.READ)


def test_a_missing_path_is_the_callers_to_judge(root: int) -> None:
    with pytest.raises(FileNotFoundError):
        safe.open_beneath(root, b"missing/below", safe.READ)


def test_paths_longer_than_one_call_takes_are_resolved(root: int) -> None:
    steps = [b"n" * 250] * 20
    fd = os.dup(root)
    for step in steps:
        os.mkdir(step, dir_fd=fd)
        below = safe.open_child(fd, step, safe.DIRECTORY)
        os.close(fd)
        fd = below
    with safe.closing(fd), safe.closing(safe.open_beneath(root, b"/".join(steps), safe.DIRECTORY)) as found:
        assert os.path.sameopenfile(fd, found)


def test_opening_a_fifo_does_not_block_and_is_refused(root: int, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with pytest.raises(InvalidArgumentError, match="FIFO"):
        safe.open_regular(root, b"fifo")


def test_a_socket_is_refused(root: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises((InvalidArgumentError, OSError)):
            safe.open_regular(root, b"socket")


@pytest.mark.parametrize("name", [b"a/b", b"..", b".", b"", b"a\0"])
def test_a_child_is_one_name(root: int, name: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        safe.open_child(root, name, safe.READ)


def test_a_file_whose_owner_may_not_read_it_is_read_and_keeps_its_mode(root: int, folder: Path) -> None:
    (folder / "closed").write_text("content")
    (folder / "closed").chmod(0o000)
    give_away(folder)

    def work() -> None:
        with safe.closing(safe.open_regular(root, b"closed")) as file:
            assert os.read(file, 100) == b"content"
        assert os.stat(b"closed", dir_fd=root).st_mode & 0o777 == 0

    without_rights(work)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o311, 0o100])
def test_a_directory_whose_owner_may_not_enter_it_is_opened_to_walk(root: int, folder: Path, mode: int) -> None:
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_text("content")
    (folder / "closed").chmod(mode)
    give_away(folder)

    def work() -> None:
        fd, bits = safe.open_directory(root, b"closed")
        with safe.closing(fd):
            assert bits == mode
            assert [entry.name for entry in safe.names(fd)] == ["file"]
            os.unlink(b"file", dir_fd=fd)

    without_rights(work)


def test_a_name_is_shown_with_its_strange_bytes_escaped() -> None:
    assert safe.show(b"caf\xe9/\xc3\xa9") == "caf%E9/é"
    assert safe.brief(b"a\nb") == "'a\\nb'"
    assert len(safe.brief(b"x" * 4096)) < 250
