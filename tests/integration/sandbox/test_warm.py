"""Programs that wait in a slot, started, for an attempt to go on in them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError, PreconditionError
from cloudclaw_pool_manager.backends.attach import MountedTrees
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.domain.attempt import AttemptId, KillReason, Launch, Limits
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError, SlotPhase, SlotStatus
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.require import require_root
from tests.support.slots import ENV, LIMITS, PYTHON, Node

pytestmark = pytest.mark.sandbox

# Says that it is ready, then carries out each line of its input as a statement.
PROGRAM = """
import os, socket, sys
print("starting"); print("noise", file=sys.stderr, flush=True)
mine = bytearray(int(os.environ.get("MIB", "0")) << 20)
print("I am ready now", flush=True)
for line in sys.stdin:
    exec(line)
    sys.stdout.flush()
print("end")
"""
KEY = "program-1"
READY = "am ready"


@pytest.fixture(autouse=True)
def root() -> None:
    require_root()


def program(*, key: str = KEY, env: Mapping[str, str] | None = None, cwd: str = "/", stdin: bytes = b"") -> Launch:
    return Launch((PYTHON, "-I", "-u", "-c", PROGRAM), {**ENV, **(env or {})}, stdin, cwd, warm_key=key)


def settled(status: SlotStatus) -> bool:
    return status.warm not in ("", "warming")


async def warmed(slot: Slot, launch: Launch | None = None, limits: Limits = LIMITS, ready: str = READY) -> None:
    """Warm a program and wait until it is ready."""
    await slot.warm(launch or program(), limits, ready)
    status = await slots.until(slot, settled)
    assert (status.warm, status.warm_key) == ("ready", (launch or program()).warm_key)


async def failed(slot: Slot) -> str:
    """Why what was warmed failed, once the slot is cold again."""
    status = await slots.until(slot, lambda status: status.warm.startswith("failed: ") and status.sandbox_ready)
    return status.warm.removeprefix("failed: ")


async def goes_on(node: Node, slot: Slot, source: str, **how: object) -> AttemptId:
    """Start an attempt in the warm program, with `source` as its first input."""
    how = {"stdin": source.encode() + b"\n", "warm_key": KEY, **how}
    identity, _ = await slots.start(node, slot, "never", "run", **how)  # type: ignore[arg-type]
    return identity


async def test_an_attempt_goes_on_in_the_program_that_waits(node: Node, slot: Slot) -> None:
    await warmed(slot)
    (waits,) = descendants(descendants(slot.pid)[1])
    tree = node.tree({"workspace/in.txt": b"given", "home/note": b"kept"})
    source = "print(open('/workspace/in.txt').read(), open('/home/agent/note').read())"
    identity = await goes_on(node, slot, source, tree=tree, keep_stdin=True, note=b'{"said": 1}\n')
    await slots.printed(slot, identity.uid, b"given kept")
    assert waits in descendants(slot.pid), "it is the very process"
    status = await slot.status()
    assert (status.phase, status.input_open, status.warm) == (SlotPhase.RUNNING, True, "")
    await slot.input(identity.uid, "m-1", data=b"open('/workspace/out.txt', 'w').write('made')\n", close=True)
    assert (await slots.exited(slot)).code == 0
    stdout, stderr, system = await slots.log(slot, identity.uid)
    assert (stdout, stderr, system) == (b"given kept\nend\n", b"", b'{"said": 1}\n'), "nothing from before the attempt"
    assert (await slot.read_log(identity.uid, 0, 100))[0].data == b'{"said": 1}\n'
    assert (tree / "workspace/out.txt").read_bytes() == b"made"
    assert (tree / "workspace/out.txt").stat().st_uid == (tree / "workspace").stat().st_uid
    await slot.release(identity.uid)
    assert (
        await slots.run(node, slot, "ls", "-A", "/workspace", "/home/agent")
    ).text == "/home/agent:\n\n/workspace:\n"


async def test_without_keeping_it_open_the_input_ends(node: Node, slot: Slot) -> None:
    await warmed(slot)
    identity = await goes_on(node, slot, "print('once')")
    assert (await slots.exited(slot)).code == 0
    assert (await slots.log(slot, identity.uid))[0] == b"once\nend\n"


async def test_each_attempt_needs_a_program_of_its_own(node: Node, slot: Slot) -> None:
    for number in range(3):
        await warmed(slot)
        identity = await goes_on(node, slot, f"print(globals().get('left')); left = {number}")
        await slots.exited(slot)
        assert (await slots.log(slot, identity.uid))[0] == b"None\nend\n"
        await slot.release(identity.uid)
        assert ((await slot.status()).warm, (await slot.status()).warm_key) == ("", "")


async def test_a_start_without_its_key_discards_it(node: Node, slot: Slot) -> None:
    await warmed(slot)
    (waits,) = descendants(descendants(slot.pid)[1])
    ended = await slots.run(node, slot, "sh", "-c", "echo cold; ls /proc | grep -c '^[0-9]'")
    assert ended.stdout.startswith(b"cold\n")
    await slots.gone([waits])
    assert (await slot.status()).warm == ""


@pytest.mark.parametrize("why", ["nothing", "another", "warming", "file_bytes", "tmp_bytes"])
async def test_a_start_with_a_key_that_is_not_ready_does_nothing(node: Node, slot: Slot, why: str) -> None:
    limits = LIMITS
    if why == "warming":
        await slot.warm(program(), LIMITS, "never said")
    elif why != "nothing":
        await warmed(slot)
    if why.endswith("bytes"):
        limits = replace(LIMITS, **{why: 32 << 20})
    before = await slot.status()
    with pytest.raises(PreconditionError, match="not ready under these limits") as caught:
        await goes_on(node, slot, "print('never')", warm_key="other" if why == "another" else KEY, limits=limits)
    assert caught.value.reason == "NOT_WARM"
    now = await slot.status()
    assert (now.phase, now.warm, now.warm_key) == (SlotPhase.IDLE, before.warm, before.warm_key)
    ended = await slots.run(node, slot, "echo", "cold", limits=limits)
    assert ended.stdout == b"cold\n"


async def test_a_program_that_dies_between_is_noticed_and_the_tree_taken_back(
    node: Node, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warmed(slot)
    sandbox, _, waits = descendants(slot.pid)
    attach = MountedTrees.attach

    def dies_meanwhile(trees: MountedTrees, tree: Path) -> None:
        attach(trees, tree)
        os.kill(waits, signal.SIGKILL)
        while os.path.exists(f"/proc/{sandbox}"):
            time.sleep(0.001)  # until the supervisor has noticed

    with monkeypatch.context() as patch:
        patch.setattr(MountedTrees, "attach", dies_meanwhile)
        with pytest.raises(PreconditionError) as caught:
            await goes_on(node, slot, "print('never')")
    assert caught.value.reason == "NOT_WARM"
    assert list((node.config.node_dir / "slots/slot-0/box/workspace").iterdir()) == []
    assert (await slots.run(node, slot, "echo", "well")).text == "well\n"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("sh", "-c", "echo no such model >&2; exit 3"), "it ended with code 3: no such model"),
        (("no-such-program",), "it ended with code 127"),
        (("sh", "-c", "kill -9 $$"), "it ended with code 137"),
        (("sh", "-c", "yes | head -c 300000; exec sleep 60"), "it printed 262144 bytes before it was ready: y"),
        (("sh", "-c", "echo waiting; exec sleep 60"), "it was not ready within 0.3 s"),
    ],
)
async def test_a_program_that_does_not_get_ready_leaves_the_slot_cold(
    node: Node, slot: Slot, argv: tuple[str, ...], reason: str
) -> None:
    within = 0.3 if "waiting" in argv[-1] else 20
    await slot.warm(Launch(argv, ENV, warm_key=KEY, cwd="/"), LIMITS, READY, within=within)
    assert (await failed(slot)).startswith(reason)
    assert (await slot.status()).warm_key == KEY
    assert (await slots.run(node, slot, "echo", "well")).text == "well\n"
    await warmed(slot)


@pytest.mark.parametrize("watched", [False, True])
async def test_the_limits_given_hold_from_its_start(node: Node, watched: bool) -> None:
    slot = await node.pool(use_cgroups=not watched, watch_interval=0.05).provision(0)
    limits = replace(LIMITS, memory_bytes=64 << 20)
    await slot.warm(program(env={"MIB": "400"}), limits, READY)
    assert await failed(slot) == "memory_limit"
    if not watched:
        await warmed(slot, program(env={"MIB": "20"}), limits)
        assert (20 << 20) < (await slot.usage("")).memory_bytes <= (64 << 20)


async def test_a_program_that_ends_while_it_waits_is_told(node: Node, slot: Slot) -> None:
    await warmed(slot)
    (waits,) = descendants(descendants(slot.pid)[1])
    os.kill(waits, signal.SIGTERM)
    assert await failed(slot) == "it ended with code 143"
    await warmed(slot)
    await asyncio.to_thread(os.kill, descendants(slot.pid)[1], signal.SIGKILL)
    assert await failed(slot) == "it was killed"


async def test_what_it_prints_while_it_waits_is_dropped_without_end(node: Node, slot: Slot) -> None:
    chatty = "import sys\nprint('am ready', flush=True)\nfor _ in range(8): print('x' * (1 << 20), flush=True)\n"
    source = chatty + "print('done', flush=True, file=open('/tmp/done', 'w'))\nprint(sys.stdin.read())"
    launch = Launch((PYTHON, "-I", "-c", source), ENV, warm_key=KEY, cwd="/")
    await warmed(slot, launch)
    done = f"/proc/{descendants(slot.pid)[2]}/root/tmp/done"
    async with asyncio.timeout(slots.WITHIN):
        while not os.path.exists(done):  # noqa: ASYNC110 - a file tells nobody when it is made
            await asyncio.sleep(0.01)
    identity = await goes_on(node, slot, "mine")
    await slots.exited(slot)
    assert (await slots.log(slot, identity.uid))[0] == b"mine\n\n"


async def test_warming_again_is_idempotent_by_key_and_another_key_replaces_it(node: Node, slot: Slot) -> None:
    await warmed(slot)
    first = descendants(slot.pid)
    await slot.warm(program(), LIMITS, READY)
    assert descendants(slot.pid) == first
    await warmed(slot, program(key="program-2"))
    await slots.gone(first)


async def test_the_next_manager_knows_what_is_warm_and_uses_it(node: Node) -> None:
    first = node.pool(incarnation=1)
    await warmed(await first.provision(0))
    await first.close()
    (adopted,) = await node.pool(incarnation=2).adopt()
    status = await adopted.status()
    assert (status.phase, status.warm, status.warm_key) == (SlotPhase.IDLE, "ready", KEY)
    identity = await goes_on(node, adopted, "print('adopted')")
    await slots.exited(adopted)
    assert (await slots.log(adopted, identity.uid))[0] == b"adopted\nend\n"


async def test_it_dies_with_its_supervisor(node: Node) -> None:
    pool = node.pool()
    slot = await pool.provision(0)
    await warmed(slot)
    inside = descendants(slot.pid)
    os.kill(slot.pid, signal.SIGKILL)
    await slots.gone(inside)


async def test_a_slot_at_work_warms_nothing(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, "sleep", "60")
    with pytest.raises(SlotFailedError, match="holds"):
        await slot.warm(program(), LIMITS, READY)
    await slots.ended(node, slot, identity)


async def test_deadline_limits_and_stops_hold_for_what_was_warm(node: Node, slot: Slot) -> None:
    await warmed(slot)
    identity = await goes_on(node, slot, "print('up')", keep_stdin=True, deadline=slots.soon(0.2))
    await slots.until(slot, lambda status: status.phase is SlotPhase.FROZEN)
    await slot.thaw(identity.uid, slots.soon())
    ended = await slot.stop(identity.uid, KillReason.CANCELED, 0)
    assert ended.killed is KillReason.CANCELED
    await slot.release(identity.uid)
    await warmed(slot)
    await goes_on(node, slot, "mine = bytearray(900 << 20)", keep_stdin=True)
    assert (await slots.exited(slot)).killed is KillReason.MEMORY_LIMIT


async def test_a_warm_program_has_the_way_out_of_its_sandbox(node: Node) -> None:
    slot = await node.pool(egress=True).provision(0)
    await warmed(slot)
    source = "s = socket.create_connection(('127.0.0.1', 8787)); s.sendall(b'hello'); print(s.recv(10))"
    identity = await goes_on(node, slot, source)
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=await slot.egress(identity.uid)) as listener:
        listener.setblocking(False)
        sock, _ = await loop.sock_accept(listener)
        assert await loop.sock_recv(sock, 10) == b"hello"
        await loop.sock_sendall(sock, b"well")
        sock.close()
    await slots.exited(slot)
    assert (await slots.log(slot, identity.uid))[0] == b"b'well'\nend\n"


async def test_before_the_tree_there_is_nothing_to_write_but_tmp(node: Node, slot: Slot) -> None:
    touch = 'for p in / /workspace /home/agent /run /tmp; do touch $p/x 2>/dev/null && wrote="$wrote $p"; done'
    script = f"{touch}; echo ready; read go; echo $wrote"
    await warmed(slot, Launch(("sh", "-c", script), ENV, warm_key=KEY, cwd="/"), ready="ready")
    identity = await goes_on(node, slot, "go")
    await slots.exited(slot)
    assert (await slots.log(slot, identity.uid))[0] == b"/tmp\n"


async def test_a_working_directory_from_before_stays_the_old_one_and_absolute_paths_lead_into_the_tree(
    node: Node, slot: Slot
) -> None:
    """What an agent that was started in /workspace meets when its task's tree arrives."""
    await warmed(slot, program(cwd="/workspace"))
    tree = node.tree({"workspace/in.txt": b"given"})
    tries = {
        "os.getcwd()": "/workspace",
        "os.listdir('.')": [],
        "os.listdir('/workspace')": ["in.txt"],
        "os.path.abspath('in.txt')": "/workspace/in.txt",
        "os.popen('ls').read()": "",
        "os.popen('cd . && ls').read()": "in.txt\n",  # a shell goes by the name
        "__import__('subprocess').check_output('ls', cwd='/workspace')": b"in.txt\n",
        "__import__('subprocess').check_output('ls', cwd=os.getcwd())": b"in.txt\n",
        "os.chdir(os.getcwd()) or os.listdir('.')": ["in.txt"],
    }
    identity = await goes_on(node, slot, "\n".join(f"print({source})" for source in tries), tree=tree)
    await slots.exited(slot)
    assert (await slots.log(slot, identity.uid))[0].decode() == "".join(
        f"{value}\n" for value in tries.values()
    ) + "end\n"


@pytest.mark.parametrize(("key", "ready", "field"), [("", READY, "warm_key"), (KEY, "(", "ready")])
async def test_what_cannot_be_kept_warm_is_refused(slot: Slot, key: str, ready: str, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await slot.warm(program(key=key), LIMITS, ready)
    assert caught.value.field == field


async def test_a_supervisor_of_an_earlier_release_warms_nothing(slot: Slot) -> None:
    assert isinstance(slot, BubblewrapSlot)
    slot._version_spoken = 2
    with pytest.raises(PreconditionError) as caught:
        await slot.warm(program(), LIMITS, READY)
    assert caught.value.reason == "OLD_SUPERVISOR"
