"""The seccomp profile of slot containers: what Docker's default profile allows a container without capabilities, and
what bubblewrap needs on top of that to build its sandboxes.

Docker takes a profile whole or not at all, and an engine does not tell its default, so it is spelled out here. A test
compares the two call by call. Inside a sandbox the supervisor's own filter (`cloudclaw_supervisor.seccomp`) forbids the
additions again.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import Any, Final

from cloudclaw.errors import InvalidArgumentError

ALLOWED: Final = tuple(
    """
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall
    mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat
    readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto
    set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget
    shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs
    statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname
    unlink unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
    """.split()  # noqa: SIM905 - as one list it is read and compared more easily
)
"""Calls without conditions, in all spellings; an engine leaves out those that it or its machine does not know."""

_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_NEW_NAMESPACES: Final = 0x7E020000
_AF_VSOCK: Final = 40

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
SANDBOX_CLONES: Final = (0x7C020011, 0x7E020011)
"""How bubblewrap starts a sandbox, SIGCHLD included: new user, mount, pid, ipc, uts and network namespaces, and with
them a cgroup namespace where the kernel has those."""

_MACHINES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", ["SCMP_ARCH_X86", "SCMP_ARCH_X32"], ("arch_prctl", "modify_ldt")),
    "aarch64": ("SCMP_ARCH_AARCH64", ["SCMP_ARCH_ARM"], ()),
}


def profile(machine: str, extra: Sequence[str] = ()) -> str:
    """The profile as the engine takes it, for `machine` as `os.uname` spells it.

    Args:
        extra: names of further calls that the template allows in the container, though not in its sandboxes.

    Raises:
        KeyError: no table for this machine.
        InvalidArgumentError: a name is none.
    """
    architecture, variants, own = _MACHINES[machine]
    for name in extra:
        if not (name.isascii() and name.replace("_", "").isalnum()):
            raise InvalidArgumentError(f"{name!r} is no system call", field="seccomp_extra")
    rules = [
        _rule([*ALLOWED, *own, *extra]),
        *(_rule(["personality"], _equals(0, value)) for value in _PERSONALITIES),
        _rule(["socket"], _compare(0, "SCMP_CMP_NE", _AF_VSOCK)),
        _rule(["clone"], _masked(0, _NEW_NAMESPACES, 0)),
        # What it is told lies behind a pointer, so libc is made to fall back to clone.
        {**_rule(["clone3"]), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        *additions(),
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": errno.EPERM,
            "archMap": [{"architecture": architecture, "subArchitectures": variants}],
            "syscalls": rules,
        }
    )


def additions() -> list[dict[str, Any]]:
    """What is allowed beyond Docker's default, and nothing else is."""
    return [
        *(_rule(["clone"], _masked(0, 0xFFFFFFFF, flags)) for flags in SANDBOX_CLONES),
        # For /dev/pts, a uid that is not 0, and --disable-userns.
        _rule(["unshare"], _equals(0, CLONE_NEWUSER)),
        _rule(["mount", "umount2", "pivot_root"]),
        # The supervisor enters a sandbox's user and network namespaces to make its listener there.
        *(_rule(["setns"], _equals(1, kind)) for kind in (CLONE_NEWUSER, CLONE_NEWNET)),
    ]


def _rule(names: list[str], *conditions: dict[str, int | str]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _equals(index: int, value: int) -> dict[str, int | str]:
    return _compare(index, "SCMP_CMP_EQ", value)


def _compare(index: int, how: str, value: int) -> dict[str, int | str]:
    return {"index": index, "value": value, "valueTwo": 0, "op": how}


def _masked(index: int, mask: int, value: int) -> dict[str, int | str]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
