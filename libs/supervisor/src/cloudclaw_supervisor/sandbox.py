"""One sandbox: bubblewrap with a shell in it that waits for its script, and the pipes to it."""

from __future__ import annotations

import fcntl
import os
import resource
import selectors
import signal

from cloudclaw_supervisor import command, linux, processes, script
from cloudclaw_supervisor.listener import Listener
from cloudclaw_supervisor.outlet import Outlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.loop import Loop

_FIRST_FREE_FD = 32


class Sandbox:
    """A started bubblewrap. The owner is told through the callbacks it sets.

    Args:
        loop: serves the pipes.
        bwrap: path of bubblewrap.
        options: as `command.options` makes them.
        seccomp_fd: memory file with the filter.
        lock_fd: the slot's lock; held open by the sandbox's first process, so that the slot stays
            locked until that is gone, or -1.
        groups: control groups to enter.
        open_files: `RLIMIT_NOFILE`.
        on_ready: called when the first process runs.
        egress: make a listener inside, see `listener`; the options let the first process wait for it.

    Attributes:
        pid: of bubblewrap itself, outside.
        tmp_bytes: what its owner built it with.
        status: what the first process said.
        stdin: the task's standard input.
        stdout, stderr: read ends of the task's output.
        listener: the way out, None without.
    """

    def __init__(
        self,
        loop: Loop,
        bwrap: str,
        options: bytes,
        seccomp_fd: int,
        lock_fd: int,
        groups: Groups,
        open_files: int,
        on_ready: Callable[[], None],
        egress: bool = False,
    ):
        self._loop = loop
        self.status = script.StatusLines()
        self._on_ready = on_ready
        args_read, args = os.pipe()
        script_read, script_write = os.pipe()
        self.stdout, stdout = os.pipe()
        self._status, status = os.pipe()
        stdin, stdin_write = os.pipe()
        self.stderr, stderr = os.pipe()
        inherited = [script_read, stdout, status, stdin, stderr, lock_fd, args_read, seccomp_fd]
        made = [script_read, stdout, status, stdin, stderr, args_read, args]
        if egress:
            info, info_write = _lasting_pipe()
            block_read, block = os.pipe()
            inherited += [info_write, block_read]
            made += [info_write, block_read]
        os.lseek(seccomp_fd, 0, os.SEEK_SET)
        if linux.AVAILABLE:
            linux.new_session_keyring()  # which it inherits; the next one does not
        self.pid = _spawn(bwrap, inherited, status)
        try:
            # It waits for its options, so all that it makes is in the groups and has the limits.
            groups.take(self.pid)
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            limit = min(open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, limit))
            _write_whole(args, options)
        except OSError as error:
            self.status.messages.append(f"the sandbox could not be started: {error}")
            os.kill(self.pid, signal.SIGKILL)  # it is reaped later
        for fd in made:
            os.close(fd)
        for fd in (script_write, stdin_write, self.stdout, self.stderr, self._status):
            os.set_blocking(fd, False)
        loop.watch(self._status, selectors.EVENT_READ, self._read_status)
        self.stdin = Outlet(loop, stdin_write)
        self._script = Outlet(loop, script_write)
        self._script.write(script.READY)
        self.listener = Listener(loop, self.pid, info, block, self._no_listener) if egress else None

    def run(self, text: bytes, on_started: Callable[[], None]) -> None:
        """Hand over the task; `on_started` is called when the script was written."""
        self._script.write(text)
        self._script.finish(on_started)

    def terminate(self) -> None:
        """SIGTERM to everything inside but the first process, which has no use for it."""
        processes.send(self.inside()[1:], signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the first process; the kernel takes the rest. Bubblewrap then ends by itself."""
        first = processes.children(self.pid)
        processes.send(first or [self.pid], signal.SIGKILL)

    def inside(self) -> list[int]:
        """All processes inside, the first one first."""
        return processes.descendants(self.pid)

    def task_ended(self) -> bool:
        """The task's end was told, though the sandbox's may not have been noticed yet."""
        self._read_status()
        return self.status.code is not None

    def close(self) -> None:
        """After the end: take the last status lines and close the pipes but the task's output."""
        if self._status >= 0:
            self._read_status()
            self._loop.unwatch(self._status)
            os.close(self._status)
            self._status = -1
        self._script.close()
        self.stdin.close()
        if self.listener is not None:
            self.listener.close()

    def close_output(self) -> None:
        """Close the task's output too."""
        for fd in (self.stdout, self.stderr):
            self._loop.unwatch(fd)
            os.close(fd)

    def _no_listener(self, words: str) -> None:
        self.status.messages.append(f"its way out cannot be made: {words}")
        self.kill()

    def _read_status(self) -> None:
        while True:
            try:
                data = os.read(self._status, 4096)
            except BlockingIOError:
                return
            if not data:
                self._loop.unwatch(self._status)
                return
            was_ready = self.status.ready
            self.status.feed(data)
            if self.status.ready and not was_ready:
                self._on_ready()


def _lasting_pipe() -> tuple[int, int]:
    """A pipe whose writer is a reader too, so that it can always be written to.

    bubblewrap would otherwise end when nobody reads any more what it tells, and leave the process that it made waiting
    for ever.
    """
    read, write = os.pipe()
    try:
        return read, os.open(f"/proc/self/fd/{write}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(write)


def _spawn(bwrap: str, inherited: list[int], status: int) -> int:
    """Start bubblewrap with `inherited` as descriptors 0, 1, … (-1: none there), and answer its pid.

    Not by a fork: that copies this process's memory for nothing, which takes longer than all else here.
    """
    # Above the targets first, so that none is overwritten before it is copied.
    copies = [
        (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD), at) for at, fd in enumerate(inherited) if fd >= 0
    ]
    try:
        return os.posix_spawn(
            bwrap,
            ["bwrap", "--args", str(command.ARGS_FD), "--", command.INIT],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for fd, at in copies],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD],
        )
    except OSError as error:
        return _fail(status, f"the sandbox could not be started: {error}")
    finally:
        for fd, _ in copies:
            os.close(fd)


def _fail(status: int, words: str) -> int:
    """A process in place of bubblewrap, which tells where bubblewrap's own messages go why there is none, and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.write(status, f"{words}\n".encode())
        finally:
            os._exit(125)
    return pid


def _write_whole(fd: int, data: bytes) -> None:
    """Options are far smaller than a pipe, so this does not wait for their reader."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
