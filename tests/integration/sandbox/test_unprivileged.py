"""Slots of a manager without root: they share its uid, and everything else holds."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.require import missing, require_bubblewrap, require_root

pytestmark = pytest.mark.sandbox

UID = 61_234
SYSTEM_PYTHON = "/usr/bin/python3"

# Loads everything as root, since the interpreter may be out of the ordinary user's reach, then becomes one.
AS_USER = """
import asyncio, encodings.idna, json, os, socket, sys
from pathlib import Path
from cloudclaw.clock import SystemClock
from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends.bubblewrap import BubblewrapPool
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.domain.attempt import AttemptId, KillReason, Launch, Limits
from cloudclaw_pool_manager.ports.backend import SlotPhase
import asyncio.unix_events, asyncio.selector_events, concurrent.futures.thread, structlog, subprocess

directory, uid = Path(sys.argv[1]), int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
ENV = {"PATH": "/usr/bin:/bin"}

async def way_out():
    pool = BubblewrapPool(BackendConfig(node_dir=directory / "node", slots=2, incarnation=2, python="/usr/bin/python3",
                                        egress=True), SystemClock())
    slot = await pool.provision(1)
    said = []
    for number in range(3):
        uid = f"e{number}"
        code = "import socket; socket.create_connection(('127.0.0.1', 8787)).sendall(b'hello')"
        await slot.start(AttemptId("t", "k", 1, uid, 1), Launch(("/usr/bin/python3", "-c", code), ENV),
                         Limits(pids=64), directory / "tree", SystemClock().boottime() + 60)
        with socket.socket(fileno=await slot.egress(uid)) as listener:
            listener.settimeout(20)
            sock, _ = await asyncio.to_thread(listener.accept)
            with sock:
                said.append((await asyncio.to_thread(sock.recv, 10)).decode())
        async for status in slot.updates():
            if status.exit: break
        await slot.release(uid)
    try:
        await slot.warm(Launch(("cat",), warm_key="cat"), Limits(), "ready")
    except PreconditionError as error:
        said.append(error.reason)
    await pool.destroy(slot)
    await pool.close()
    return said

async def main():
    (directory / "extra").mkdir()
    pool = BubblewrapPool(
        BackendConfig(node_dir=directory / "node", slots=2, incarnation=1, python="/usr/bin/python3",
                      read_only=(str(directory / "extra"),)), SystemClock())
    await pool.probe()
    slot = await pool.provision(0)
    out = {"uid": slot.uid, "shared": slot.uid_shared, "enforcement": slot.enforcement.memory, "runs": []}
    tree = directory / "tree"
    (tree / "workspace").mkdir(parents=True); (tree / "home").mkdir()
    async def run(number, script, limits=Limits(pids=64), stop=False):
        uid = f"u{number}"
        await slot.start(AttemptId("t", "k", 1, uid, 1), Launch(("sh", "-c", script), ENV), limits, tree,
                         SystemClock().boottime() + 60)
        async for status in slot.updates():
            if stop and status.log_end and not status.exit:
                stop = False
                await slot.freeze(uid)
                seen = await slot.status()
                assert seen.phase is SlotPhase.FROZEN, (seen, await slot.read_log(uid, 0, 1000))
                await slot.stop(uid, KillReason.CANCELED, 0)
            if status.exit: break
        frames = await slot.read_log(uid, 0, 1 << 20)
        out["runs"].append([status.exit.code, str(status.exit.killed), b"".join(f.data for f in frames).decode(),
                            status.exit.failed])
        await slot.release(uid)
    await run(1, "id -u; pwd -P; echo made > file; ls -A / | tr '\\\\n' ' '")
    await run(2, "cat file; for p in / /etc /run /usr; do touch $p/x 2>/dev/null && echo wrote $p; done; "
                 "cat /proc/1/environ 2>/dev/null && echo open; cat /etc/shadow 2>/dev/null; echo end")
    await run(3, "while :; do (sleep 9 &) ; echo up; sleep 1; done", stop=True)
    (directory / "extra").rmdir()
    await run(4, "echo never")
    await pool.destroy(slot)
    await pool.close()
    (directory / "extra").mkdir()
    out["egress"] = await way_out()
    await pool.close()
    print(json.dumps(out))

asyncio.run(main())
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="claw-user-"))
    made.chmod(0o755)
    os.chown(made, UID, UID)
    yield made
    shutil.rmtree(made)


async def test_a_manager_without_root_isolates_too(directory: Path) -> None:
    require_bubblewrap()
    require_root()  # to become somebody else
    if not Path(SYSTEM_PYTHON).exists():
        missing("the system's Python", "install python3")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AS_USER, str(directory), str(UID), stdout=asyncio.subprocess.PIPE, cwd="/"
    )
    stdout, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    found = json.loads(stdout)
    assert (found["uid"], found["shared"], found["enforcement"]) == (UID, True, "watched")
    first, second, third, fourth = found["runs"]
    assert first[:2] == [0, ""]
    assert first[2].startswith("1000\n/workspace\n")
    assert second == [0, "", "made\nend\n", ""], "nothing but its own places is writable, and nothing is open"
    assert third[:2] == [137, "canceled"]
    assert third[3] == ""
    assert fourth[1:3] == ["", ""]
    assert "could not be built: bwrap: Can't find source path" in fourth[3], "bubblewrap's words, not an exit code"
    assert found["egress"] == ["hello"] * 3 + ["NO_WARM"]
