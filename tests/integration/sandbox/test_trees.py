"""Trees are attached and detached; their contents are hostile. And what one attempt leaves to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError, SlotPhase
from tests.support import slots
from tests.support.require import require_root
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox


@pytest.mark.parametrize("name", ["workspace", "home"])
async def test_a_link_in_place_of_a_directory_is_not_followed(node: Node, slot: Slot, name: str) -> None:
    secret = node.directory / "secret"
    secret.mkdir()
    (secret / "file").write_text("hunter2")
    tree = node.tree()
    (tree / name).rmdir()
    (tree / name).symlink_to(secret)
    with pytest.raises(SlotFailedError):
        await slots.start(node, slot, "cat", "file", tree=tree)
    assert (await slot.status()).phase is SlotPhase.IDLE
    assert (await slots.run(node, slot, "ls", "-A")).stdout == b"", "nothing was left half attached"


async def test_a_missing_tree_is_refused_and_the_slot_stays_usable(node: Node, slot: Slot) -> None:
    with pytest.raises(SlotFailedError, match="attached"):
        await slots.start(node, slot, "true", tree=node.directory / "nowhere")
    assert (await slots.run(node, slot, "echo", "fine")).stdout == b"fine\n"


async def test_links_in_the_tree_lead_nowhere_outside(node: Node, slot: Slot) -> None:
    tree = node.tree()
    outside = node.directory / "outside"
    outside.write_text("hunter2")
    (tree / "workspace/absolute").symlink_to(outside)
    (tree / "workspace/relative").symlink_to("../../../outside")
    (tree / "workspace/up").symlink_to("..")
    ended = await slots.run(node, slot, "sh", "-c", "cat absolute relative ../outside; ls up", tree=tree)
    assert "hunter2" not in ended.text
    assert "workspace" in ended.text, "`..` of the workspace is the sandbox's root"


async def test_setuid_and_device_files_have_no_effect(node: Node, slot: Slot) -> None:
    require_root()
    tree = node.tree({"workspace/id": Path("/usr/bin/id").read_bytes()})
    os.chown(tree / "workspace/id", node.config.files_uid, node.config.files_uid)
    (tree / "workspace/id").chmod(0o6755)
    os.mknod(tree / "workspace/null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "workspace/disk", 0o60666, os.stat("/").st_dev)
    ended = await slots.run(node, slot, "sh", "-c", "./id -u; cat null; head -c 1 disk", tree=tree)
    assert ended.text == "1000\n"
    assert ended.stderr.count(b"Permission denied") == 2


async def test_files_of_other_owners_are_nobodys(node: Node, slot: Slot) -> None:
    require_root()
    tree = node.tree({"workspace/theirs": b"x"})
    os.chown(tree / "workspace/theirs", 0, 0)
    (tree / "workspace/theirs").chmod(0o600)
    ended = await slots.run(node, slot, "sh", "-c", "stat -c %u theirs; cat theirs", tree=tree)
    assert ended.text == "65534\n"
    assert b"Permission denied" in ended.stderr


async def test_release_leaves_the_tree_intact_and_unreachable(node: Node, slot: Slot) -> None:
    """Trap 9: an open working directory kept a tree reachable after it was renamed away."""
    tree = node.tree({"workspace/file": b"tenant one"})
    identity, _ = await slots.start(node, slot, "sh", "-c", "setsid -f sleep 60; echo up; exec sleep 60", tree=tree)
    await slots.printed(slot, identity.uid, b"up")
    with pytest.raises(SlotFailedError):
        await slot.release(identity.uid)  # it still runs
    await slot.stop(identity.uid, KillReason.CANCELED, 0)
    attached = (tree / "workspace").stat()
    await slot.release(identity.uid)
    await slot.release(identity.uid)  # once more does no harm
    assert (tree / "workspace/file").read_bytes() == b"tenant one"
    box = node.config.node_dir / "slots/slot-0/box"
    for place in (box / "workspace", box / "home/agent"):
        assert list(place.iterdir()) == []
        found = place.stat()
        assert (found.st_dev, found.st_ino) != (attached.st_dev, attached.st_ino)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts = (process / "mountinfo").read_text()
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
        assert f"{tree.name}/workspace" not in mounts, f"{process} still has the tree"
    ended = await slots.run(node, slot, "ls", "-A", "/workspace", "/home/agent")
    assert b"file" not in ended.stdout


async def test_the_tree_can_be_renamed_and_used_again_after_release(node: Node, slot: Slot) -> None:
    tree = node.tree()
    await slots.run(node, slot, "sh", "-c", "echo one > file", tree=tree)
    moved = tree.rename(tree.with_name("moved"))
    ended = await slots.run(node, slot, "sh", "-c", "cat file", tree=moved)
    assert ended.stdout == b"one\n"


LEAVE = """
import ctypes, os, socket, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
shm = libc.shmget(0x1234, 4096, 0o1666); sem = libc.semget(0x1234, 1, 0o1666); msg = libc.msgget(0x1234, 0o1666)
assert min(shm, sem, msg) >= 0
rt = ctypes.CDLL('librt.so.1', use_errno=True)
assert rt.mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
s = socket.socket(socket.AF_UNIX); s.bind('\\0left'); s.listen()
for path in ('/dev/shm/left', '/tmp/left', '/var/tmp/left'): open(path, 'w').write('x')
subprocess.Popen(['sleep', '60'], start_new_session=True)
print('left')
"""

LOOK = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
rt = ctypes.CDLL('librt.so.1', use_errno=True)
found = []
if libc.shmget(0x1234, 0, 0) >= 0: found.append('shm')
if libc.semget(0x1234, 0, 0) >= 0: found.append('sem')
if libc.msgget(0x1234, 0) >= 0: found.append('msg')
if rt.mq_open(b'/left', os.O_RDWR) >= 0: found.append('mq')
try: socket.socket(socket.AF_UNIX).connect('\\0left'); found.append('abstract socket')
except ConnectionRefusedError: pass
for place in ('/dev/shm', '/tmp', '/var/tmp', '/workspace', '/home/agent', '/dev/mqueue'):
    if os.path.isdir(place): found += [place + '/' + name for name in os.listdir(place)]
found += [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid())]
print(found)
"""


async def test_nothing_of_one_attempt_is_there_for_the_next(node: Node, slot: Slot) -> None:
    assert (await slots.python(node, slot, LEAVE)).stdout == b"left\n"
    assert (await slots.python(node, slot, LOOK)).stdout == b"[]\n"


async def test_nothing_of_one_slot_is_there_for_another(node: Node) -> None:
    pool = node.pool()
    one, two = await pool.provision(0), await pool.provision(1)
    identity, _ = await slots.start(node, one, slots.PYTHON, "-c", LEAVE + "print(flush=True); time.sleep(60)")
    await slots.printed(one, identity.uid, b"left")
    assert (await slots.python(node, two, LOOK)).stdout == b"[]\n"
    await slots.ended(node, one, identity)
