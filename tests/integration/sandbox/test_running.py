"""Programs in a slot: arguments, input, output, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import signal

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.domain.attempt import KillReason, Launch
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError, SlotPhase
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox

ODD = 'it\'s "quoted" $HOME `id` \\n\n\ttab * ? é 日本 \udcff'


async def test_output_and_exit_code_arrive_and_the_slot_is_idle_again(node: Node, slot: Slot) -> None:
    ended = await slots.run(node, slot, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")
    assert (ended.exit.code, ended.exit.signal, ended.exit.killed) == (3, 0, KillReason.NONE)
    assert ended.exit.ended >= ended.exit.started
    assert (await slot.status()).phase is SlotPhase.IDLE


@pytest.mark.parametrize(
    ("argv", "code", "signal"),
    [
        (("true",), 0, 0),
        (("no-such-program",), 127, 0),
        (("/etc/passwd",), 126, 0),
        (("exit", "3"), 127, 0),  # a shell builtin is no program
        (("sh", "-c", "kill -9 $$"), 137, 9),
        (("sh", "-c", "kill -15 $$"), 143, 15),
        (("sh", "-c", "kill -11 $$"), 139, 11),
        (("sh", "-c", "kill -2 $$"), 130, 2),
        (("sh", "-c", "exit 137"), 137, 0),
    ],
)
async def test_exit_codes_and_signals_are_told_apart(
    node: Node, slot: Slot, argv: tuple[str, ...], code: int, signal: int
) -> None:
    ended = await slots.run(node, slot, *argv)
    assert (ended.exit.code, ended.exit.signal) == (code, signal)
    assert ended.exit.killed is KillReason.NONE


async def test_arguments_and_environment_arrive_unchanged_and_nothing_is_added(node: Node, slot: Slot) -> None:
    source = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    env = {"ODD": ODD, "EMPTY": "", "IFS": "x", "OPTIND": "abc", "PS1": "$"}
    identity, _ = await slots.start(node, slot, slots.PYTHON, "-I", "-c", source, ODD, "", "-n", env=env)
    await slots.exited(slot)
    argv, seen = json.loads((await slots.log(slot, identity.uid))[0])
    assert argv == [ODD, "", "-n"]
    seen.pop("LC_CTYPE", None)  # the interpreter's own doing
    assert seen == {**slots.ENV, **env}


async def test_standard_input_is_given_whole_and_ends(node: Node, slot: Slot) -> None:
    data = bytes(range(256)) * 4096
    ended = await slots.run(node, slot, "sha256sum", stdin=data)
    assert ended.text.split()[0] == hashlib.sha256(data).hexdigest()


async def test_a_program_that_ignores_its_input_ends_in_peace(node: Node, slot: Slot) -> None:
    ended = await slots.run(node, slot, "true", stdin=b"x" * (1 << 20))
    assert ended.exit.code == 0


async def test_output_is_kept_byte_for_byte(node: Node, slot: Slot) -> None:
    data = bytes(range(256)) * 1000
    ended = await slots.run(node, slot, "cat", stdin=data)
    assert ended.stdout == data


async def test_the_working_directory_is_the_one_asked_for(node: Node, slot: Slot) -> None:
    assert (await slots.run(node, slot, "/bin/pwd", "-P")).text == "/workspace\n"
    assert (await slots.run(node, slot, "/bin/pwd", "-P", cwd="/home/agent")).text == "/home/agent\n"
    assert (await slots.run(node, slot, "true", cwd="/nowhere")).exit.code == 126


async def test_files_of_the_tree_are_the_tasks_own(node: Node, slot: Slot) -> None:
    tree = node.tree({"workspace/in.txt": b"given", "home/.profile": b"kept"})
    script = "cat in.txt ~/.profile && stat -c %u in.txt . ~ && echo made > out.txt && echo more > ~/note"
    ended = await slots.run(node, slot, "sh", "-c", script, tree=tree)
    assert ended.text == "givenkept1000\n1000\n1000\n"
    assert (tree / "workspace/out.txt").read_bytes() == b"made\n"
    assert (tree / "workspace/out.txt").stat().st_uid == (tree / "workspace").stat().st_uid
    assert (tree / "home/note").read_bytes() == b"more\n"


async def test_large_output_waits_for_the_reader_and_loses_nothing(node: Node) -> None:
    slot = await node.pool(spool_limit=1 << 20, segment_bytes=1 << 18).provision(0)
    total = 8 << 20
    source = f"import os\nfor i in range({total} // 65536): os.write(1, i.to_bytes(2, 'big') * 32768)"
    identity, _ = await slots.start(node, slot, slots.PYTHON, "-I", "-c", source)
    status = await slots.until(slot, lambda status: status.log_end >= 1 << 20)
    assert status.phase is SlotPhase.RUNNING, "the task waits in its write"
    assert status.log_end < 3 << 20
    offset, digest = 0, hashlib.sha256()
    async for status in slot.updates():
        while frames := await slot.read_log(identity.uid, offset, 1 << 18):
            for frame in frames:
                assert frame.offset == offset
                digest.update(frame.data)
                offset += len(frame.data)
            await slot.forget_log(identity.uid, offset)
        if status.exit is not None and offset == status.exit.log_end:
            break
    expected = b"".join(i.to_bytes(2, "big") * 32768 for i in range(total // 65536))
    assert (offset, digest.digest()) == (total, hashlib.sha256(expected).digest())


async def test_reading_below_what_was_forgotten_is_an_error(node: Node) -> None:
    slot = await node.pool(segment_bytes=1 << 10).provision(0)
    tree = node.tree()
    identity, _ = await slots.start(
        node, slot, "sh", "-c", "printf %4096s a; until [ -e go ]; do sleep 0.01; done; printf %10s b", tree=tree
    )
    await slots.until(slot, lambda status: status.log_end == 4096)
    (tree / "workspace/go").touch()
    await slots.exited(slot)
    await slot.forget_log(identity.uid, 4096)
    with pytest.raises(SlotFailedError, match="dropped"):
        await slot.read_log(identity.uid, 0, 100)
    frames = await slot.read_log(identity.uid, 4100, 100)
    assert (frames[0].offset, frames[0].data) == (4100, b"     b")


async def test_start_is_idempotent_by_uid_and_refuses_another(node: Node, slot: Slot) -> None:
    identity, tree = await slots.start(node, slot, "sh", "-c", "echo once; exec sleep 60")
    again = Launch(("sh", "-c", "echo twice"), slots.ENV)
    await slot.start(identity, again, slots.LIMITS, tree, slots.soon())
    with pytest.raises(SlotFailedError, match="holds"):
        await slots.start(node, slot, "true")
    await slots.printed(slot, identity.uid, b"once\n")
    await slot.stop(identity.uid, KillReason.CANCELED, 0)
    assert (await slots.log(slot, identity.uid))[0] == b"once\n"


async def test_another_size_of_tmp_is_honoured(node: Node, slot: Slot) -> None:
    from dataclasses import replace

    limits = replace(slots.LIMITS, tmp_bytes=32 << 20)
    ended = await slots.run(node, slot, "df", "--output=size", "-B1", "/tmp", "/dev/shm", limits=limits)
    assert ended.text.split()[1:] == [str(32 << 20)] * 2


@pytest.mark.parametrize(
    ("launch", "field"),
    [
        (Launch(()), "argv"),
        (Launch(("true",), {"A=B": "x"}), "env"),
        (Launch(("true", "a\0b")), "argv"),
        (Launch(("true",), cwd="relative"), "cwd"),
    ],
)
async def test_what_cannot_be_started_is_refused_before_anything_happens(
    node: Node, slot: Slot, launch: Launch, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await slot.start(slots.attempt(), launch, slots.LIMITS, node.tree(), slots.soon())
    assert caught.value.field == field
    assert (await slot.status()).phase is SlotPhase.IDLE


async def test_an_attempts_uid_cannot_name_a_path(node: Node, slot: Slot) -> None:
    with pytest.raises(InvalidArgumentError):
        await slot.start(slots.attempt(uid="../x"), Launch(("true",)), slots.LIMITS, node.tree(), slots.soon())


async def test_a_sandbox_killed_from_outside_is_no_end_of_the_program(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, "sh", "-c", "echo up; exec sleep 60")
    await slots.printed(slot, identity.uid, b"up")
    first = descendants(descendants(slot.pid)[0])[0]
    os.kill(first, signal.SIGKILL)
    ended = await slots.exited(slot)
    assert (ended.killed, ended.failed) == (KillReason.NONE, "the sandbox broke: it ended with code 137")
    await slot.release(identity.uid)
    assert (await slots.run(node, slot, "false")).exit.failed == ""
