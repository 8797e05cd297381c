"""The filter, call by call, as the kernel applies it inside a sandbox."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from cloudclaw_pool_manager.ports.backend import Slot
from cloudclaw_supervisor import seccomp
from tests.support import slots
from tests.support.require import missing
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox

MACHINE = os.uname().machine
NR = seccomp.numbers(MACHINE) if MACHINE in ("x86_64", "aarch64") else {}

NEW = {
    "time": 0x80,
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
DENIED = (
    "unshare", "setns", "mount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree",
    "move_mount", "mount_setattr", "open_by_handle_at", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "ptrace", "kcmp", "keyctl", "add_key", "request_key", "bpf", "userfaultfd", "perf_event_open",
)  # fmt: skip
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")

# Calls each (number, first argument) with zeros for the rest and prints errno, 0 for success.
CALLS = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
out = []
for number, first in json.loads(sys.argv[1]):
    r = libc.syscall(ctypes.c_long(number), ctypes.c_long(first), *[ctypes.c_long(0)] * 5)
    out.append(ctypes.get_errno() if r < 0 else 0)
print(json.dumps(out))
"""


async def errnos(node: Node, slot: Slot, calls: list[tuple[int, int]]) -> list[int]:
    ended = await slots.run(node, slot, slots.PYTHON, "-I", "-c", CALLS, json.dumps(calls))
    assert ended.exit.code == 0, (ended.exit, ended.stderr)
    found: list[int] = json.loads(ended.stdout)
    return found


async def test_each_denied_call_is_refused(node: Node, slot: Slot) -> None:
    found = await errnos(node, slot, [(NR[name], 0) for name in DENIED])
    # `unshare(0)` and the like would succeed or fail otherwise: EPERM can only be the filter's.
    assert dict(zip(DENIED, found, strict=True)) == dict.fromkeys(DENIED, errno.EPERM)


async def test_each_absent_call_looks_absent(node: Node, slot: Slot) -> None:
    found = await errnos(node, slot, [(NR[name], 0) for name in ABSENT])
    assert dict(zip(ABSENT, found, strict=True)) == dict.fromkeys(ABSENT, errno.ENOSYS)


async def test_clone_with_any_namespace_flag_is_refused(node: Node, slot: Slot) -> None:
    flags = {name: flag for name, flag in NEW.items() if name != "time"}
    found = await errnos(node, slot, [(NR["clone"], flag | 17) for flag in flags.values()])
    assert dict(zip(flags, found, strict=True)) == dict.fromkeys(flags, errno.EPERM)


async def test_unshare_with_any_namespace_flag_is_refused(node: Node, slot: Slot) -> None:
    found = await errnos(node, slot, [(NR["unshare"], flag) for flag in NEW.values()])
    assert found == [errno.EPERM] * len(NEW)


@pytest.mark.parametrize("make", ["socket.socket", "socket.socketpair"])
async def test_every_socket_family_but_four_is_refused(node: Node, slot: Slot, make: str) -> None:
    source = """
import errno, json, socket
out = {}
for family in range(0, 64):
    try: MAKE(family, socket.SOCK_DGRAM, 0); out[family] = 0
    except OSError as e: out[family] = e.errno
print(json.dumps(out))
"""
    ended = await slots.python(node, slot, source.replace("MAKE", make))
    found = {int(family): number for family, number in json.loads(ended.stdout).items()}
    assert {family for family, number in found.items() if number != errno.EAFNOSUPPORT} == {1, 2, 10, 16}


async def test_ordinary_programs_still_thread_and_fork(node: Node, slot: Slot) -> None:
    source = """
import threading, subprocess, multiprocessing.pool
t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()
print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout, end='')
print(multiprocessing.pool.ThreadPool(2).map(str, [1, 2]))
"""
    ended = await slots.python(node, slot, source)
    assert ended.text.splitlines() == ["thread", "child", "['1', '2']"], ended.stderr


async def test_a_debugging_template_may_trace_and_nothing_more(node: Node) -> None:
    slot = await node.pool(debug=True).provision(0)
    ended = await slots.python(node, slot, "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))")  # TRACEME
    assert ended.text == "0\n"
    tracing = {"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"}
    others = [name for name in DENIED if name not in tracing]
    assert await errnos(node, slot, [(NR[name], 0) for name in others]) == [errno.EPERM] * len(others)


@pytest.mark.skipif(MACHINE != "x86_64", reason="these ways in exist on x86_64 alone")
async def test_other_entries_into_the_kernel_are_closed(node: Node, slot: Slot, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        missing("gcc", "install a C compiler")
    source = tmp_path / "entry.c"
    source.write_text(
        r"""
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(int argc, char **argv) {
    long r = syscall(0x40000000 + 39);                 /* x32 getpid */
    printf("x32 %d\n", r < 0 ? errno : 0);
    fflush(stdout);
    int pid; __asm__ volatile("int $0x80" : "=a"(pid) : "a"(20));   /* i386 getpid */
    printf("i386 %d\n", pid);
    return 0;
}
"""
    )
    compiler = await asyncio.create_subprocess_exec("gcc", "-O1", "-o", tmp_path / "entry", source)
    assert await compiler.wait() == 0
    tree = node.tree({"workspace/entry": (tmp_path / "entry").read_bytes()})
    (tree / "workspace/entry").chmod(0o755)
    ended = await slots.run(node, slot, "./entry", tree=tree)
    assert ended.text == f"x32 {errno.ENOSYS}\n"
    assert ended.exit.signal == 31  # SIGSYS
