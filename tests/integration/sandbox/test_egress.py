"""The way out: a listener inside each sandbox, whose descriptor is outside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import limits
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.slots import PYTHON, Node

pytestmark = pytest.mark.sandbox

SAY = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", 8787))
sock.sendall(sys.argv[1].encode())
sock.shutdown(socket.SHUT_WR)
print(sock.makefile().read(), flush=True)
"""
# Runs each expression and tells what came of it.
TRY = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def bind(address, *options, family=socket.AF_INET):
    sock = socket.socket(family)
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind(address)
    sock.listen()
def connect(*address):
    socket.create_connection(address, timeout=5)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
out = {}
for source in json.loads(sys.argv[1]):
    try:
        exec(source)
        out[source] = "ok"
    except OSError as error:
        out[source] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(out))
"""


@pytest.fixture
async def slot(node: Node) -> Slot:
    return await node.pool(egress=True).provision(0)


async def saying(node: Node, slot: Slot, words: str) -> AttemptId:
    """A task that says `words` to who accepts, and prints the answer."""
    identity, _ = await slots.start(node, slot, PYTHON, "-I", "-c", SAY, words)
    return identity


async def answered(fd: int, answer: str) -> str:
    """Accept one connection, answer it, close the listener; returns what was said."""
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=fd) as listener:
        listener.setblocking(False)
        async with asyncio.timeout(slots.WITHIN):
            sock, peer = await loop.sock_accept(listener)
            assert peer[0] == "127.0.0.1"
            said = b""
            while data := await loop.sock_recv(sock, 1000):
                said += data
            await loop.sock_sendall(sock, answer.encode())
            sock.close()
    return said.decode()


async def tried(node: Node, slot: Slot, *sources: str) -> dict[str, str]:
    """What came of each Python statement inside."""
    ended = await slots.run(node, slot, PYTHON, "-I", "-c", TRY, json.dumps(sources))
    assert ended.exit.code == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def sockets_of(pid: int) -> int:
    """How many sockets a process holds."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return sum(link.startswith("socket:") for link in links)


async def test_what_a_task_says_is_accepted_outside_and_answered(node: Node, slot: Slot) -> None:
    for words in ("first", "second"):  # each in a sandbox of its own
        identity = await saying(node, slot, words)
        assert await answered(await slot.egress(identity.uid), f"{words}!") == words
        await slots.exited(slot)
        assert (await slots.log(slot, identity.uid))[0] == f"{words}!\n".encode()
        await slot.release(identity.uid)


async def test_two_sandboxes_at_once_have_a_listener_each(node: Node) -> None:
    pool = node.pool(egress=True)
    both = [await pool.provision(number) for number in (0, 1)]
    held = [await saying(node, slot, slot.name) for slot in both]
    # Asked in the other order, so that a shared listener would be found out.
    for slot, identity in reversed(list(zip(both, held, strict=True))):
        assert await answered(await slot.egress(identity.uid), "well") == slot.name
    for slot, identity in zip(both, held, strict=True):
        await slots.exited(slot)
        assert (await slots.log(slot, identity.uid))[0] == b"well\n"


async def test_a_connection_made_before_anybody_accepts_waits(node: Node, slot: Slot) -> None:
    source = """
import socket
socks = [socket.create_connection(("127.0.0.1", 8787)) for _ in range(100)]
for number, sock in enumerate(socks):
    sock.sendall(b"%d" % number)
print("said", flush=True)
print(b"".join(sock.recv(10) for sock in socks) == b"ok" * 100)
"""
    identity, _ = await slots.start(node, slot, PYTHON, "-I", "-c", source)
    await slots.printed(slot, identity.uid, b"said")
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=await slot.egress(identity.uid)) as listener:
        listener.setblocking(False)
        for number in range(100):
            sock, _ = await loop.sock_accept(listener)
            assert await loop.sock_recv(sock, 10) == b"%d" % number
            await loop.sock_sendall(sock, b"ok")
            sock.close()
    await slots.exited(slot)
    assert (await slots.log(slot, identity.uid))[0] == b"said\nTrue\n"


async def test_the_port_is_taken_and_nothing_else_is_reachable(node: Node, slot: Slot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        expected = {
            "bind(('127.0.0.1', 8787))": "EADDRINUSE",
            "bind(('0.0.0.0', 8787))": "EADDRINUSE",
            "bind(('127.0.0.1', 8787), socket.SO_REUSEADDR, socket.SO_REUSEPORT)": "EADDRINUSE",
            "bind(('0.0.0.0', 8787), socket.SO_REUSEADDR, socket.SO_REUSEPORT)": "EADDRINUSE",
            "bind(('127.0.0.1', 8788))": "ok",
            "connect('127.0.0.1', 8787)": "ok",
            f"connect('127.0.0.1', {host.getsockname()[1]})": "ECONNREFUSED",
            "connect('10.0.0.1', 80)": "ENETUNREACH",
            "connect('192.0.2.1', 443)": "ENETUNREACH",
        }
        assert await tried(node, slot, *expected) == expected


async def test_the_filter_and_the_missing_rights_are_as_without_it(node: Node, slot: Slot) -> None:
    calls = {"setns": 308, "unshare": 272, "pidfd_getfd": 438, "ptrace": 101}
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    sources = [f"call({number}, 0, 0x40000000, 0, 0)" for number in calls.values()]
    bare = await node.pool(incarnation=2).provision(1)
    assert await tried(node, slot, *sources) == await tried(node, bare, *sources)
    rights = ("grep", "-E", "Cap|Seccomp|NoNewPrivs", "/proc/self/status")
    assert (await slots.run(node, slot, *rights)).text == (await slots.run(node, bare, *rights)).text


async def test_neither_the_descriptor_nor_the_socket_that_hands_it_out_is_inside(node: Node, slot: Slot) -> None:
    look = (
        "ls -l /proc/[0-9]*/fd 2>/dev/null | grep socket; find / -xdev -name egress -o -xdev -type s;"
        "echo up; exec sleep 60"
    )
    identity, _ = await slots.start(node, slot, "sh", "-c", look)
    await slots.printed(slot, identity.uid, b"up\n")
    assert (await slots.log(slot, identity.uid))[0] == b"up\n"
    assert [pid for pid in descendants(slot.pid) if sockets_of(pid)] == []
    control = node.config.node_dir / "slots/slot-0/ctl/egress"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    await slots.ended(node, slot, identity)


async def test_the_listener_goes_with_its_sandbox(node: Node, slot: Slot) -> None:
    await slots.until(slot, lambda status: status.sandbox_ready)
    before = sockets_of(slot.pid)
    for _ in range(3):
        identity, _ = await slots.start(node, slot, "true")
        await slots.exited(slot)
        assert sockets_of(slot.pid) == before - 1
        with pytest.raises(PreconditionError, match="has ended") as caught:
            await slot.egress(identity.uid)
        assert caught.value.reason == "NO_EGRESS"
        await slot.release(identity.uid)
        await slots.until(slot, lambda status: status.sandbox_ready)
        assert sockets_of(slot.pid) == before


async def test_a_slot_made_without_has_none(node: Node) -> None:
    slot = await node.pool().provision(0)
    identity, _ = await slots.start(node, slot, "sleep", "60")
    with pytest.raises(PreconditionError, match="recycle") as caught:
        await slot.egress(identity.uid)
    assert caught.value.reason == "NO_EGRESS"
    refused = await tried(node, await node.pool(incarnation=1).provision(1), "connect('127.0.0.1', 8787)")
    assert list(refused.values()) == ["ECONNREFUSED"]


async def test_the_next_manager_is_handed_the_same_listener_and_an_older_one_none(node: Node) -> None:
    first = node.pool(egress=True)
    slot = await first.provision(0)
    identity = await saying(node, slot, "hello")
    with pytest.raises(SlotFailedError, match="does not hold"):
        await slot.egress("another")
    (adopted,) = await node.pool(incarnation=2, egress=True).adopt()
    with pytest.raises(FencedIncarnationError):
        await slot.egress(identity.uid)
    await first.close()
    assert await answered(await adopted.egress(identity.uid), "welcome") == "hello"


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)  # an interpreter of this host
async def test_a_listener_that_cannot_be_made_is_a_sandbox_that_could_not_be_built(node: Node, tmp_path: Path) -> None:
    """The kernel, or a container's filter, may refuse setns."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{PYTHON} -IS\n"
        "import sys\n"
        "path, main = sys.argv[-1].split('from', 1)\n"
        "exec(path)\n"
        "from cloudclaw_supervisor import linux\n"
        "def setns(fd, kind): raise PermissionError(1, 'setns: not permitted here')\n"
        "linux.setns = setns\n"
        "exec('from' + main)\n"
    )
    python.chmod(0o755)
    slot = await node.pool(egress=True, python=str(python)).provision(0)
    with pytest.raises(SlotFailedError, match=r"its way out cannot be made: .*setns: not permitted here"):
        await slots.start(node, slot, "true")


async def test_a_slot_destroyed_while_it_builds_leaves_nothing(node: Node) -> None:
    pool = node.pool(egress=True)
    for number in range(20):
        slot = await pool.provision(number % 4)
        await pool.destroy(slot)
    assert list(Path("/sys/fs/cgroup").glob(f"*/{limits.node_group(node.config.node_dir)}/*")) == []
    assert await pool.adopt() == []
