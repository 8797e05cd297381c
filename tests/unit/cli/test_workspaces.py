"""Commands on workspaces and pools; archives that are packed, and hostile ones that are unpacked."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from cloudclaw.cli.archives import pack, unpack
from cloudclaw.errors import InvalidArgumentError, PreconditionError
from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services


def tree(root: Path) -> dict[str, object]:
    """Every path below `root`: content, link target or None for a folder."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "deep" / "data").write_bytes(bytes(range(256)) * 5000)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "Ünïcode name").write_text("x")
    os.symlink("deep/data", root / "link")
    os.link(root / "run.sh", root / "same.sh")
    return root


def test_what_goes_up_comes_down_the_same(claw: Claw, source: Path, tmp_path: Path) -> None:
    assert claw("ws", "create", "up").code == 0
    ran = claw("ws", "put", str(source), "up")
    assert ran.code == 0, ran.err
    assert "snap-1" in ran.out
    down = tmp_path / "down"
    ran = claw("ws", "get", "up", str(down))
    assert ran.code == 0, ran.err
    assert tree(down) == tree(source)
    assert (down / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (down / "same.sh").samefile(down / "run.sh")


def test_files_go_to_the_top_and_replace_empties_first(claw: Claw, services: Services, source: Path) -> None:
    claw("ws", "put", "--create", str(source / "run.sh"), str(source / "deep"), "up")
    assert set(services.workspaces.trees["up"]) == {"run.sh", "data", "empty"}
    claw("ws", "put", "--create", "--replace", str(source / "run.sh"), "up")
    assert set(services.workspaces.trees["up"]) == {"run.sh"}
    assert claw("ws", "cat", "up", "run.sh").out == "#!/bin/sh\n"
    assert "run.sh" in claw("ws", "files", "up").out


@pytest.mark.parametrize("arguments", [("put", "only-a-name"), ("put", "/nonexistent/source", "up"), ("get", "up")])
def test_wrong_usage_writes_nothing(claw: Claw, services: Services, arguments: tuple[str, ...]) -> None:
    claw("ws", "create", "up")
    assert claw("ws", *arguments).code == 2
    assert services.workspaces.trees["up"] == {}


def test_a_folder_with_something_in_it_is_left_alone(claw: Claw, tmp_path: Path) -> None:
    claw("ws", "create", "up")
    (tmp_path / "mine").write_text("keep")
    ran = claw("ws", "get", "up", str(tmp_path))
    assert ran.code == 6
    assert (tmp_path / "mine").read_text() == "keep"


def test_names_that_are_taken_or_missing_have_their_codes(claw: Claw, tmp_path: Path) -> None:
    assert claw("ws", "create", "w").code == 0
    assert claw("ws", "create", "w").code == 6
    assert claw("ws", "get", "none", str(tmp_path / "x")).code == 3
    assert claw("ws", "rm", "w").code == 0
    assert claw("ws", "rm", "w").code == 3
    assert claw("ws", "ls", "-o", "json").objects == []


def test_sockets_and_fifos_are_left_out_and_told(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    os.mkfifo(root / "fifo")
    (root / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "sock"))
        skipped: list[str] = []
        target = io.BytesIO()
        assert pack([root], target, skipped.append) == 1
    assert {Path(p).name for p in skipped} == {"fifo", "sock"}
    target.seek(0)
    with tarfile.open(fileobj=target) as tar:
        (member,) = tar.getmembers()
    assert (member.name, member.uid, member.gid, member.uname) == ("file", 0, 0, "")


def test_a_source_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="/nonexistent"):
        pack([Path("/nonexistent")], io.BytesIO(), lambda _: None)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    packed.seek(0)
    return packed


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        [(member("../evil"), b"x")],
        [(member("a/../../evil"), b"x")],
        [(member("out", tarfile.SYMTYPE, "../../outside"), b""), (member("out/evil"), b"x")],
        [(member("out", tarfile.SYMTYPE, "/tmp"), b"")],
        [(member("hard", tarfile.LNKTYPE, "../secret"), b"")],
        [(member("device", tarfile.CHRTYPE), b"")],
        [(member("pipe", tarfile.FIFOTYPE), b"")],
        [
            (member("in", tarfile.DIRTYPE), b""),
            (member("in/up", tarfile.SYMTYPE, ".."), b""),
            (member("in/up/up2", tarfile.SYMTYPE, ".."), b""),
            (member("in/up/up2/evil"), b"x"),
        ],
    ],
)
def test_nothing_of_a_hostile_archive_lands_outside(
    tmp_path: Path, hostile: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep")
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "jail" / "target"
    target.parent.mkdir()
    refused: list[str] = []
    unpack(archive((member("fine"), b"ok"), *hostile), target, refused.append)
    assert (target / "fine").read_bytes() == b"ok"
    assert secret.read_text() == "keep"
    assert secret.stat().st_nlink == 1
    assert not list(outside.iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"secret", "outside", "jail"}
    assert {p.name for p in target.parent.iterdir()} == {"target"}
    for path in target.rglob("*"):
        assert path.is_symlink() or path.is_dir() or path.is_file()


def test_special_bits_are_dropped_and_read_only_folders_are_filled(tmp_path: Path) -> None:
    packed = archive(
        (member("setuid", mode=0o6755), b"x"),
        (member("locked", tarfile.DIRTYPE, mode=0o555), b""),
        (member("locked/file", mode=0o400), b"y"),
    )
    unpack(packed, tmp_path / "t", lambda _: None)
    assert (tmp_path / "t" / "setuid").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "t" / "locked" / "file").stat().st_size == 1


MODES = {"open": 0o777, "shared": 0o666, "private": 0o400, "shut": 0o000, "plain": 0o644}
FOLDERS = {"group": 0o775, "sealed": 0o500, "hidden": 0o700}


def test_modes_and_times_come_back_to_the_bit_and_the_nanosecond(tmp_path: Path) -> None:
    source, down = tmp_path / "source", tmp_path / "down"
    times = {name: 1_700_000_000_123_456_789 + number for number, name in enumerate((*MODES, *FOLDERS, "link", "in"))}
    times["plain"] = 1_700_000_000_000_000_000
    times["open"] = -1_500_000_001
    for name in FOLDERS:
        (source / name).mkdir(parents=True)
    for name in MODES:
        (source / name).write_text(name)
    (source / "sealed" / "in").write_text("x")
    os.symlink("plain", source / "link")
    paths = {name: source / name for name in (*MODES, *FOLDERS, "link")} | {"in": source / "sealed" / "in"}
    for name, path in paths.items():
        os.utime(path, ns=(times[name], times[name]), follow_symlinks=False)
    packed = io.BytesIO()
    for name, mode in (FOLDERS | {name: mode for name, mode in MODES.items() if name != "shut"}).items():
        paths[name].chmod(mode)
    pack([source], packed, print)
    packed.seek(0)
    umask = os.umask(0o077)
    try:
        unpack(packed, down, print)
    finally:
        os.umask(umask)
    came = {name: (down / path.relative_to(source)).lstat() for name, path in paths.items()}
    assert {name: state.st_mtime_ns for name, state in came.items()} == times
    assert {name: came[name].st_mode & 0o7777 for name in (*MODES, *FOLDERS)} == {
        name: paths[name].stat().st_mode & 0o7777 for name in (*MODES, *FOLDERS)
    }
    assert came["private"].st_mode & 0o7777 == 0o400
    assert came["sealed"].st_mode & 0o7777 == 0o500


def test_a_file_that_nobody_may_read_comes_down_as_one(tmp_path: Path) -> None:
    unpack(
        archive((member("shut", mode=0), b"x"), (member("none", tarfile.DIRTYPE, mode=0), b"")), tmp_path / "t", print
    )
    assert [(tmp_path / "t" / name).stat().st_mode & 0o7777 for name in ("shut", "none")] == [0, 0]


@pytest.mark.parametrize("text", ["nan", "inf", "1e9", "9" * 30, "", "x", "1_0", "٣", "0x10", "-"])
def test_times_that_are_none_are_1970(tmp_path: Path, text: str) -> None:
    strange = member("f")
    strange.pax_headers = {"mtime": text}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(strange)
    packed.seek(0)
    unpack(packed, tmp_path / "t", print)
    assert (tmp_path / "t" / "f").stat().st_mtime_ns == 0


@pytest.mark.parametrize(
    "data",
    [
        bytes(5 << 20),
        b"a" + bytes(3 << 20) + b"b",
        bytes(1 << 20) + b"middle" + bytes((1 << 20) + 17),
        bytes(100),
        (b"x" * 4096 + bytes(200 << 10)) * 9,
    ],
    ids=["zeros", "ends", "middle", "small", "many"],
)
def test_runs_of_zeros_become_holes_and_nothing_else_changes(tmp_path: Path, data: bytes) -> None:
    unpack(archive((member("f"), data)), tmp_path / "t", print)
    assert (tmp_path / "t" / "f").read_bytes() == data
    if not data.strip(b"\0") and len(data) > 1 << 20:
        assert (tmp_path / "t" / "f").stat().st_blocks * 512 < len(data) // 2


def test_symlinks_that_lead_out_are_made_when_asked_for(claw: Claw, services: Services, tmp_path: Path) -> None:
    links = [
        member("venv/python3", tarfile.SYMTYPE, "/usr/bin/python3"),
        member("venv/up", tarfile.SYMTYPE, "../../elsewhere"),
    ]
    claw("ws", "create", "w")
    services.workspaces.archive = archive(*((link, b"") for link in links)).getvalue()
    ran = claw("ws", "get", "w", str(tmp_path / "without"))
    assert ran.code == 6
    assert ran.err.count("leads out of the folder; --outside-links makes it all the same") == 2
    assert not os.path.lexists(tmp_path / "without" / "venv" / "python3")
    ran = claw("ws", "get", "w", str(tmp_path / "with"), "--outside-links")
    assert ran.code == 0, ran.err
    assert os.readlink(tmp_path / "with" / "venv" / "python3") == "/usr/bin/python3"
    assert os.readlink(tmp_path / "with" / "venv" / "up") == "../../elsewhere"


def test_unpacking_wants_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(PreconditionError):
        unpack(archive(), tmp_path, lambda _: None)


def test_what_was_refused_is_told_and_is_exit_code_six(claw: Claw, services: Services, tmp_path: Path) -> None:
    claw("ws", "create", "w")
    services.workspaces.archive = archive((member("../evil"), b"x"), (member("good"), b"y")).getvalue()
    ran = claw("ws", "get", "w", str(tmp_path / "new" / "down"))
    assert ran.code == 6
    assert "refused: ../evil" in ran.err
    assert (tmp_path / "new" / "down" / "good").read_bytes() == b"y"


def test_operators_reach_nodes_by_name_or_by_endpoint(operator: Claw, services: Services) -> None:
    assert {line.split()[0] for line in operator("pool", "slots").out.splitlines()[1:]} == {"node-1", "node-2"}
    assert len(operator("pool", "slots", "--endpoint", services.address, "-o", "json").objects) == 2
    assert operator("pool", "drain", "node-1").code == 0
    assert services.pool.history == ["drain"]
    assert operator("pool", "undrain", "--endpoint", services.address).code == 0
    assert services.pool.history == ["drain", "undrain"]
    assert operator("pool", "recycle", "slot-1", "--node", "node-2").code == 0
    assert services.pool.recycled == ["slot-1"]


def test_a_change_needs_one_node(operator: Claw, services: Services) -> None:
    several = operator("pool", "drain")
    assert several.code == 2
    assert "node-1, node-2" in several.err
    unknown = operator("pool", "drain", "node-9")
    assert unknown.code == 3
    assert "node-1, node-2" in unknown.err
    assert not services.pool.history


def test_users_are_told_that_operators_see_nodes(claw: Claw) -> None:
    ran = claw("pool", "get")
    assert ran.code == 4
    assert "operator" in ran.err


def test_hard_links_come_down_as_links_and_reach_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        first = tarfile.TarInfo("a")
        first.size = 1
        tar.addfile(first, io.BytesIO(b"x"))
        for name, target in (("same", "a"), ("evil", "../outside"), ("evil2", str(outside)), ("none", "b")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            tar.addfile(link)
    packed.seek(0)
    refused: list[str] = []
    assert unpack(packed, tmp_path / "down", refused.append) == 2
    assert (tmp_path / "down" / "same").samefile(tmp_path / "down" / "a")
    assert [line.split(":")[0] for line in refused] == ["evil", "evil2", "none"]
    assert outside.stat().st_nlink == 1


def test_a_source_may_be_named_by_a_symlink(tmp_path: Path) -> None:
    """Its files are packed: an empty archive in their place could empty a workspace."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    target = tmp_path / "archive.tar"
    with target.open("wb") as file:
        pack([tmp_path / "link"], file, pytest.fail)
    with tarfile.open(target) as archive:
        assert archive.getnames() == ["file"]
