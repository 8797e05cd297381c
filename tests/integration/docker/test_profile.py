"""The container's seccomp profile against the engine's default, call by call."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends.containers import seccomp
from tests.support.engine import Docker

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's"),
]

# Makes every call with arguments that lead nowhere, each in a process of its own, and tells what came of it.
EVERY_CALL = """
import ctypes, json, os, signal
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for number in range(470):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.alarm(2)
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
        os.write(write, str(ctypes.get_errno() if result < 0 else 0).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    found[number] = os.read(read, 100).decode()
    os.close(read)
print(json.dumps(found))
"""
CALLS = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
found = []
for number, *arguments in json.loads(sys.argv[1]):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments + [0] * (6 - len(arguments))])
    if result == 0 and number == 56:
        os._exit(0)
    found.append(ctypes.get_errno() if result < 0 else 0)
print(json.dumps(found))
"""
EPERM, EBADF, ENOSYS = 1, 9, 38
CLONE, UNSHARE, SETNS, CLONE3, SETHOSTNAME, FSOPEN, SOCKET = 56, 272, 308, 435, 170, 430, 41

MOUNTS = {165, 166}
"""mount and umount2; the kernel itself refuses pivot_root here."""
NEWER = {
    # Calls that engines after 20.10 allow by default.
    303, 329, 330, 331, 424, 434, 437, 439, 440, 441, 444, 445, 446, 447, 448, 449, 451, 452, 453, 454, 455, 456,
}  # fmt: skip
STRICTER = {425, 426, 427}
"""io_uring, as engines from 25.0 on have it."""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(seccomp.profile("x86_64"))
    return path


def run(docker: Docker, source: str, *arguments: str, profile: Path | None = None) -> str:
    """Run Python in a container like a slot's, under the engine's default profile or another."""
    options = ["--security-opt", f"seccomp={profile}"] if profile else []
    return docker.cli(
        *("run", "--rm", "--user", "200000:200000", "--cap-drop", "ALL", "--network", "none", "--read-only"),
        *("--security-opt", "no-new-privileges", *options, docker.image, "python3", "-c", source, *arguments),
    ).stdout


def test_it_allows_what_the_default_allows_and_little_more(docker: Docker, profile: Path) -> None:
    default, ours = (json.loads(run(docker, EVERY_CALL, profile=given)) for given in (None, profile))
    denied = {str(EPERM), str(ENOSYS)}  # the latter for calls that are newer than a profile
    more = {int(n) for n, answer in default.items() if answer in denied and ours[n] not in denied}
    less = {int(n) for n, answer in default.items() if answer not in denied and ours[n] in denied}
    assert MOUNTS <= more <= MOUNTS | NEWER
    assert less <= STRICTER


def test_the_additions_hold_for_exactly_their_arguments(docker: Docker, profile: Path) -> None:
    user, mount, net = 0x10000000, 0x20000, 0x40000000
    calls = [
        (CLONE, 0x7C020011), (CLONE, 0x7E020011), (CLONE, user | 17), (CLONE, user | mount | 17),
        (CLONE, 0x7C020011 & ~net), (CLONE, 0x7C020011 | 0x100), (CLONE3, 0, 0),
        (UNSHARE, user), (UNSHARE, mount), (UNSHARE, user | mount), (UNSHARE, net),
        (SETNS, -1, user), (SETNS, -1, net), (SETNS, -1, 0), (SETNS, -1, mount), (SETNS, -1, user | net),
        (SETHOSTNAME, 0, 0), (FSOPEN, 0, 0), (SOCKET, 40, 1, 0),
    ]  # fmt: skip
    found = json.loads(run(docker, CALLS, json.dumps(calls), profile=profile))
    assert found == [
        0, 0, EPERM, EPERM, EPERM, EPERM, ENOSYS, 0, EPERM, EPERM, EPERM,
        EBADF, EBADF, EPERM, EPERM, EPERM, EPERM, EPERM, EPERM,
    ]  # fmt: skip
