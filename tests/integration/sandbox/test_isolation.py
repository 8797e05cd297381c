"""What a task must not reach or change: the traps of the sandbox, each tried from inside."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.ports.backend import Slot
from cloudclaw_supervisor.processes import descendants
from tests.support import slots
from tests.support.require import require_root
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox

# Runs each expression and tells what came of it: "ok" or the name of the error.
TRY = """
import ctypes, errno, fcntl, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    if libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in a]) < 0:
        n = ctypes.get_errno()
        raise OSError(n, os.strerror(n))
out = {}
for source in json.loads(sys.argv[1]):
    try:
        exec(source)
        out[source] = "ok"
    except OSError as error:
        out[source] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(out))
"""


async def attempts(node: Node, slot: Slot, *sources: str) -> dict[str, str]:
    """What came of each Python statement inside the sandbox."""
    ended = await slots.run(node, slot, slots.PYTHON, "-I", "-c", TRY, json.dumps(sources))
    assert ended.exit.code == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


async def test_the_uid_outside_is_never_root(node: Node, slot: Slot) -> None:
    """Trap 1."""
    identity, _ = await slots.start(node, slot, "sh", "-c", "id -u; exec sleep 60")
    await slots.printed(slot, identity.uid, b"1000\n")
    pids = [slot.pid, *descendants(slot.pid)]
    assert len(pids) >= 4  # supervisor, bubblewrap, the first process, the task
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        uids = status.split("Uid:")[1].split("\n")[0].split()
        assert set(uids) == {str(slot.uid)}
        assert "0" not in uids
        assert "NoNewPrivs:\t1" in status
    await slots.ended(node, slot, identity)


async def test_kernel_settings_are_not_writable(node: Node, slot: Slot) -> None:
    """Trap 1: a root sandbox could rewrite core_pattern."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    found = await attempts(
        node,
        slot,
        "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')",
        "open('/proc/sys/kernel/hostname', 'w').write('x')",
        "open('/proc/sysrq-trigger', 'w').write('h')",
        "os.listdir('/sys/fs/cgroup')",
    )
    assert set(found.values()) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, found
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


async def test_the_first_process_tells_nothing(node: Node, slot: Slot) -> None:
    """Traps 2 and 3: environment and memory closed, command line without a secret."""
    env = {"SECRET": "hunter2"}
    source = """
import os
print(open('/proc/1/cmdline').read())
for name in ('environ', 'mem', 'maps', 'fd', 'cwd', 'root', 'exe', 'ns/pid'):
    path = '/proc/1/' + name
    try:
        (os.listdir if name == 'fd' else os.readlink if name in ('cwd', 'root', 'exe', 'ns/pid') else open)(path)
        print(name, 'OPEN')
    except PermissionError:
        print(name, 'closed')
"""
    ended = await slots.python(node, slot, source, env=env)
    assert "OPEN" not in ended.text
    assert ended.text.count("closed") == 8
    assert "hunter2" not in ended.text
    assert ended.text.splitlines()[0].rstrip("\0") == "/run/init"


async def test_no_process_inside_carries_the_hosts_environment(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 2: bubblewrap itself starts with nothing."""
    monkeypatch.setenv("HOST_SECRET", "hunter2")
    slot = await node.pool().provision(0)
    await slots.until(slot, lambda status: status.sandbox_ready or slot.uid_shared)
    for pid in [slot.pid, *descendants(slot.pid)]:
        environment = Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0")
        assert b"SECRET" not in environment
        # A container's first process has what its image says.
        assert environment in (b"", b"PWD=/") or (isinstance(node.config, DockerConfig) and pid == slot.pid)
    assert "SECRET" not in (await slots.run(node, slot, "env")).text


async def test_the_first_process_cannot_be_written_to(node: Node, slot: Slot) -> None:
    """Trap 3."""
    found = await attempts(
        node,
        slot,
        "open('/proc/1/mem', 'r+b')",
        "call(101, 16, 1, 0, 0)",  # PTRACE_ATTACH
        "os.kill(1, 0)",
        "open('/run/init', 'rb')",
        "os.chmod('/run/init', 0o755)",
    )
    assert found.pop("os.kill(1, 0)") == "ok"  # a signal is harmless: the first process has no handlers
    assert "ok" not in found.values(), found


async def test_the_first_process_survives_signals_of_the_task(node: Node, slot: Slot) -> None:
    ended = await slots.run(
        node, slot, "sh", "-c", "kill -9 1; kill -TERM 1; kill -STOP 1; kill -HUP 1; echo alive; exit 5"
    )
    assert (ended.stdout, ended.exit.code) == (b"alive\n", 5)


async def test_output_already_written_cannot_be_changed(node: Node, slot: Slot) -> None:
    """Trap 4: output is a pipe, so there is no file to truncate."""
    source = """
import os, sys
print('evidence', flush=True)
for fd in (1, 2):
    for name, call in (('truncate', lambda: os.ftruncate(fd, 0)), ('seek', lambda: os.lseek(fd, 0, 0)),
                       ('reopen', lambda: os.close(os.open(f'/proc/self/fd/{fd}', os.O_RDONLY | os.O_NONBLOCK)))):
        try: call(); print(name, 'worked')
        except OSError as e: print(name, 'refused')
print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:4])
"""
    ended = await slots.python(node, slot, source)
    lines = ended.text.splitlines()
    assert lines[0] == "evidence"
    assert "truncate worked" not in lines
    assert "seek worked" not in lines
    # A pipe can be opened for reading by who holds its end: it gives back unread bytes of this very
    # task's own output, which it could as well not have written.
    assert lines[-1].startswith("[0, 1, 2, 3]"), "no descriptor of the first process is inherited"


async def test_nothing_but_the_tasks_own_places_is_writable(node: Node, slot: Slot) -> None:
    """Trap 5."""
    places = (
        "/",
        "/dev",
        "/etc",
        "/usr",
        "/run",
        "/home",
        "/var",
        "/root",
        "/dev/pts",
        "/proc/1",
        "/bin",
        slots.PYTHON_PREFIX,
    )
    found = await attempts(node, slot, *(f"open('{place}/x', 'w')" for place in places))
    assert "ok" not in found.values(), found
    found = await attempts(
        node,
        slot,
        *(f"open('{place}/x', 'w')" for place in ("/tmp", "/var/tmp", "/dev/shm", "/workspace", "/home/agent")),
    )
    assert set(found.values()) == {"ok"}, found
    found = await attempts(
        node,
        slot,
        "os.rename('/workspace', '/w')",
        "os.rmdir('/home/agent')",
        "os.chmod('/', 0o777)",
        "os.mknod('/tmp/d', 0o20666, 0x103)",
    )
    assert "ok" not in found.values(), found


async def test_tmp_and_shm_have_a_size(node: Node, slot: Slot) -> None:
    """Trap 5."""
    found = await attempts(
        node,
        slot,
        *(
            f"os.posix_fallocate(os.open('{place}/big', os.O_CREAT | os.O_RDWR), 0, {(64 << 20) + 1})"
            for place in ("/tmp", "/dev/shm")
        ),
    )
    assert set(found.values()) == {"ENOSPC"}, found


async def test_only_local_socket_families_open(node: Node, slot: Slot) -> None:
    """Trap 6."""
    found = await attempts(
        node,
        slot,
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.socket(40, socket.SOCK_STREAM)",  # vsock
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)",  # audit
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(38, socket.SOCK_SEQPACKET)",  # AF_ALG
        "socket.socket(31, socket.SOCK_RAW)",  # bluetooth
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    )
    assert list(found.values()) == ["ok"] * 4 + ["EAFNOSUPPORT"] * 5 + ["EPERM"], found


async def test_there_is_no_network_but_loopback(node: Node, slot: Slot) -> None:
    source = """
import socket
print([name for _, name in socket.if_nameindex()])
s = socket.socket(); s.settimeout(2)
try: s.connect(('1.1.1.1', 53)); print('connected')
except OSError as e: print(e.errno)
l = socket.create_server(('127.0.0.1', 8787)); c = socket.create_connection(('127.0.0.1', 8787)); print('lo up')
"""
    ended = await slots.python(node, slot, source)
    assert ended.text.splitlines() == ["['lo']", "101", "lo up"]


async def test_a_server_on_the_hosts_loopback_is_not_reached(node: Node, slot: Slot) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0claw-{os.getpid()}")
        abstract.listen()
        found = await attempts(
            node,
            slot,
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            f"socket.socket(socket.AF_UNIX).connect('\\0claw-{os.getpid()}')",
        )
    assert set(found.values()) == {"ECONNREFUSED"}, found


async def test_slots_do_not_share_the_kernels_accounting_of_a_uid(node: Node) -> None:
    """Trap 7: 128 inotify instances of one slot left its neighbour none."""
    require_root()
    pool = node.pool()
    greedy, other = await pool.provision(0), await pool.provision(1)
    assert greedy.uid != other.uid
    assert not greedy.uid_shared
    source = """
import ctypes, time
libc = ctypes.CDLL(None)
n = 0
while libc.inotify_init() >= 0: n += 1
print(n, 'taken', flush=True)
time.sleep(60)
"""
    identity, _ = await slots.start(node, greedy, slots.PYTHON, "-I", "-c", source)
    await slots.printed(greedy, identity.uid, b"taken")
    ended = await slots.python(node, other, "import ctypes; print(ctypes.CDLL(None).inotify_init() >= 0)")
    assert ended.text == "True\n"
    await slots.ended(node, greedy, identity)


async def test_keys_of_the_manager_are_not_reached(require_bwrap: None) -> None:
    """Trap 8: a session keyring is inherited, unless each attempt gets a new one."""
    require_root()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(ctypes.c_long(250), 1, None) > 0  # a keyring of this test's own
    assert libc.syscall(ctypes.c_long(248), b"user", b"claw-canary", b"secret", 6, -3) > 0
    assert "claw-canary" in Path("/proc/keys").read_text()
    async with slots.node() as node:
        slot = await node.pool().provision(0)
        for _ in range(2):
            assert "claw-canary" not in (await slots.run(node, slot, "cat", "/proc/keys")).text


async def test_a_task_can_leave_nothing_in_a_keyring(node: Node, slot: Slot) -> None:
    """Trap 8."""
    found = await attempts(
        node, slot, "call(250, 1, 0)", "call(248, b'user', b'k', b'v', 1, -3)", "call(249, b'user', b'k', 0, 0)"
    )
    assert set(found.values()) == {"EPERM"}, found


async def test_files_of_the_host_are_not_there(node: Node, slot: Slot) -> None:
    other = node.directory / "secret"
    other.write_text("hunter2")
    other.chmod(0o644)
    paths = (
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/ssh",
        "/root/.ssh",
        "/var/lib",
        "/boot",
        "/srv",
        "/sys",
        str(other),
        str(node.directory),
        "/run/docker.sock",
    )
    found = await attempts(node, slot, *(f"os.stat('{path}')" for path in paths))
    assert set(found.values()) <= {"ENOENT", "EACCES"}, found
    ended = await slots.run(node, slot, "cat", "/proc/self/mountinfo", "/etc/passwd")
    assert "/ctl" not in ended.text
    assert "hunter2" not in ended.text


async def test_processes_of_other_slots_and_the_host_are_not_there(node: Node) -> None:
    pool = node.pool()
    one, two = await pool.provision(0), await pool.provision(1)
    identity, _ = await slots.start(node, one, "sh", "-c", "echo up; exec sleep 4242")
    await slots.printed(one, identity.uid, b"up")
    source = """
import os
print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))
print(any(b'42' + b'42' in open(f'/proc/{p}/cmdline', 'rb').read() for p in os.listdir('/proc') if p.isdigit()))
try: os.kill(-1, 9)
except OSError: pass
"""
    ended = await slots.python(node, two, source)
    assert ended.text.splitlines()[1] == "False"
    assert len(json.loads(ended.text.splitlines()[0])) <= 3
    assert (await one.status()).exit is None, "kill -1 elsewhere does not reach it"
    await slots.ended(node, one, identity)


async def test_there_are_no_capabilities_and_no_new_namespaces(node: Node, slot: Slot) -> None:
    ended = await slots.run(
        node,
        slot,
        "sh",
        "-c",
        "grep -E '^Cap|NoNewPrivs|Seccomp:' /proc/self/status; unshare -U true; unshare -m true; ulimit -c",
    )
    caps = [line.split()[1] for line in ended.text.splitlines() if line.startswith("Cap")]
    assert set(caps) == {"0" * 16}
    assert "NoNewPrivs:\t1" in ended.text
    assert "Seccomp:\t2" in ended.text
    assert ended.stderr.count(b"Operation not permitted") == 2, ended.stderr
    assert ended.text.splitlines()[-1] == "0"  # no core files


async def test_the_host_name_and_users_are_the_sandboxs_own(node: Node, slot: Slot) -> None:
    ended = await slots.run(node, slot, "sh", "-c", "uname -n; whoami; hostname -f 2>/dev/null; getent passwd | wc -l")
    assert ended.text.splitlines()[:2] == ["slot-0", "agent"]
    assert ended.text.splitlines()[-1] == "3"


async def test_a_terminal_of_the_host_is_not_reached(node: Node, slot: Slot) -> None:
    found = await attempts(node, slot, "os.open('/dev/tty', os.O_RDWR)", "os.ttyname(0)")
    assert set(found.values()) == {"ENXIO", "ENOTTY"}, found
