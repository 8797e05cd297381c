"""The seccomp filter of every sandbox, assembled here so that both backends load the same bytes.

Denied: new namespaces and mounts in every spelling, tracing other processes, keyrings, and kernel
interfaces with a large attack surface. `clone3` answers ENOSYS because its flags are behind a pointer
that a filter cannot read; libc then falls back to `clone`, whose flags are checked.
"""

from __future__ import annotations

import errno
import struct

# Linux' classic BPF, see linux/filter.h and linux/seccomp.h.
_LD_W_ABS = 0x20
_ALU_AND_K = 0x54
_JMP_JEQ_K = 0x15
_JMP_JGE_K = 0x35
_RET_K = 0x06
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_RET_KILL_PROCESS = 0x80000000

_NR = 0
_ARCH = 4

# Every CLONE_NEW* flag: time, mount, cgroup, uts, ipc, user, pid, net. CLONE_NEWTIME (0x80) lies in the
# low byte, which clone(2) uses for the exit signal, so only unshare and clone3 know it: both are denied.
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0

_X32_BIT = 0x40000000

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# fmt: off
_X86_64 = {
    "socket": 41, "socketpair": 53, "clone": 56, "ptrace": 101, "pivot_root": 155, "mount": 165, "umount2": 166,
    "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "bpf": 321, "userfaultfd": 323, "pidfd_getfd": 438,
}
_AARCH64 = {
    "umount2": 39, "mount": 40, "pivot_root": 41, "unshare": 97, "ptrace": 117, "socket": 198, "socketpair": 199,
    "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "perf_event_open": 241,
    "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "bpf": 280, "userfaultfd": 282, "pidfd_getfd": 438,
}
# Numbers from 424 on are the same on every architecture.
_COMMON = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435,
    "mount_setattr": 442, "open_tree_attr": 467,
}
# fmt: on

_DENIED = (
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "mount_setattr",
    "open_by_handle_at",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "ptrace",
    "kcmp",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "userfaultfd",
    "perf_event_open",
)
_TRACING = frozenset(("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"))
_ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")


def numbers(machine: str) -> dict[str, int]:
    """System call numbers that the filter names, for `machine` as `os.uname` spells it.

    Raises:
        KeyError: no table for this machine.
    """
    return {**{"x86_64": _X86_64, "aarch64": _AARCH64}[machine], **_COMMON}


class _Assembler:
    """Instructions with forward jumps to named labels."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | int, str | int]] = []
        self._labels: dict[str, int] = {}

    def op(self, code: int, k: int) -> None:
        self._code.append((code, k, 0, 0))

    def jump(self, code: int, k: int, yes: str | int = 0, no: str | int = 0) -> None:
        """Jump by comparing the accumulator with `k`; 0 means the next instruction."""
        self._code.append((code, k, yes, no))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        def distance(at: int, target: str | int) -> int:
            return target if isinstance(target, int) else self._labels[target] - at - 1

        return b"".join(
            struct.pack("=HBBI", code, distance(at, yes), distance(at, no), k)
            for at, (code, k, yes, no) in enumerate(self._code)
        )


def _argument(index: int) -> int:
    """Offset of the low half of argument `index` in `struct seccomp_data` (both machines are little endian)."""
    return 16 + 8 * index


def program(machine: str, *, allow_tracing: bool = False) -> bytes:
    """The filter as an array of `struct sock_filter`, ready for `bwrap --seccomp`.

    Args:
        machine: `x86_64` or `aarch64`.
        allow_tracing: let processes of the sandbox trace each other; debuggers need it.

    Raises:
        KeyError: no table for this machine.
    """
    table = numbers(machine)
    asm = _Assembler()
    asm.op(_LD_W_ABS, _ARCH)
    asm.jump(_JMP_JEQ_K, _ARCHITECTURES[machine], no="kill")
    asm.op(_LD_W_ABS, _NR)
    if machine == "x86_64":
        asm.jump(_JMP_JGE_K, _X32_BIT, yes="enosys")
    for name in _DENIED:
        if not (allow_tracing and name in _TRACING):
            asm.jump(_JMP_JEQ_K, table[name], yes="eperm")
    for name in _ABSENT:
        asm.jump(_JMP_JEQ_K, table[name], yes="enosys")
    asm.jump(_JMP_JEQ_K, table["clone"], yes="clone")
    # The kernel makes the sockets, and loads their family's module, before it says that there are no pairs of them.
    asm.jump(_JMP_JEQ_K, table["socketpair"], yes="socket")
    asm.jump(_JMP_JEQ_K, table["socket"], yes="socket", no="allow")

    asm.label("clone")
    asm.op(_LD_W_ABS, _argument(0))
    asm.op(_ALU_AND_K, _NAMESPACES)
    asm.jump(_JMP_JEQ_K, 0, yes="allow", no="eperm")

    asm.label("socket")
    asm.op(_LD_W_ABS, _argument(0))
    for family in (_AF_UNIX, _AF_INET, _AF_INET6):
        asm.jump(_JMP_JEQ_K, family, yes="allow")
    asm.jump(_JMP_JEQ_K, _AF_NETLINK, no="eafnosupport")
    asm.op(_LD_W_ABS, _argument(2))
    asm.jump(_JMP_JEQ_K, _NETLINK_ROUTE, yes="allow", no="eafnosupport")

    for label, action in (
        ("allow", _RET_ALLOW),
        ("eperm", _RET_ERRNO | errno.EPERM),
        ("enosys", _RET_ERRNO | errno.ENOSYS),
        ("eafnosupport", _RET_ERRNO | errno.EAFNOSUPPORT),
        ("kill", _RET_KILL_PROCESS),
    ):
        asm.label(label)
        asm.op(_RET_K, action)
    return asm.assemble()
