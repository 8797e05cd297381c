"""The way out of one sandbox: a TCP listener in its network namespace, made before its task runs.

bubblewrap tells the pid of the process it made (`--info-fd`) and lets that process wait before its last exec
(`--block-fd`). Meanwhile a short-lived fork of the supervisor enters the sandbox's user and network namespace, makes
the listener there and passes it back; a fork, because nobody comes back out of a user namespace. The task finds the
port taken. The descriptor stays with the supervisor, which hands out duplicates (`egress`).

The namespaces are opened while the process waits: after the exec it is not dumpable, and `/proc/PID/ns` is closed.
`--disable-userns` nests a second user namespace into the first, and the network belongs to the first, so its owner
is asked for and not guessed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket

from cloudclaw_supervisor import linux, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudclaw_supervisor.loop import Loop

ADDRESS = ("127.0.0.1", 8787)
BACKLOG = 128

_NS_GET_USERNS = 0xB701
_IP_FREEBIND = 15
_MADE = b"+"
_WORDS = 1024


class Listener:
    """Makes the listener of one sandbox, and lets its first process go on then.

    Args:
        loop: serves the pipes.
        bwrap: pid of bubblewrap, which is not reaped before `close`.
        info: reading end of bubblewrap's `--info-fd`; owned from now on.
        block: writing end of its `--block-fd`; owned from now on. A byte lets the first process go on, and so would
            closing it: `on_failed` must have killed it before.
        on_failed: called with words when there can be no listener.

    Attributes:
        fd: the listener, -1 before it was made and after `close`.
    """

    def __init__(self, loop: Loop, bwrap: int, info: int, block: int, on_failed: Callable[[str], None]):
        self._loop = loop
        self._bwrap = bwrap
        self._info = info
        self._block = block
        self._on_failed = on_failed
        self._told = b""
        self._channel: socket.socket | None = None
        self.fd = -1
        os.set_blocking(info, False)
        loop.watch(info, selectors.EVENT_READ, self._read_info)

    def close(self) -> None:
        """The sandbox is gone, or was killed: close everything."""
        self._end_info()
        self._end_channel()
        for fd in (self._block, self.fd):
            if fd >= 0:
                os.close(fd)
        self._block = self.fd = -1

    def _read_info(self) -> None:
        try:
            data = os.read(self._info, 4096)
        except BlockingIOError:
            return
        self._told += data
        try:
            pid = int(json.loads(self._told)["child-pid"])
        except (ValueError, KeyError):
            if not data:  # bubblewrap ended before it told; its end is noticed elsewhere
                self._end_info()
            return
        self._end_info()
        try:
            self._make(pid)
        except OSError as error:
            self._on_failed(str(error))

    def _make(self, pid: int) -> None:
        network, user = _namespaces(self._bwrap, pid)
        try:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                child = os.fork()
                if child == 0:
                    _listen_inside(there, user, network)
            except OSError:
                here.close()
                raise
            finally:
                there.close()
        finally:
            os.close(network)
            os.close(user)
        here.setblocking(False)
        self._channel = here
        self._loop.watch(here.fileno(), selectors.EVENT_READ, self._receive)

    def _receive(self) -> None:
        assert self._channel is not None
        try:
            said, fds, _, _ = socket.recv_fds(self._channel, _WORDS, 1)
        except BlockingIOError:
            return
        self._end_channel()
        if said == _MADE and fds:
            self.fd = fds[0]
            os.set_inheritable(self.fd, False)
            self._let_go()
        else:
            for fd in fds:
                os.close(fd)
            self._on_failed(said.decode("utf-8", "replace") or "whoever makes it was killed")

    def _let_go(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the first process was killed meanwhile
            os.write(self._block, b"+")
        os.close(self._block)
        self._block = -1

    def _end_info(self) -> None:
        if self._info >= 0:
            self._loop.unwatch(self._info)
            os.close(self._info)
            self._info = -1

    def _end_channel(self) -> None:
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None


def _namespaces(bwrap: int, pid: int) -> tuple[int, int]:
    """Descriptors of the network namespace of `pid`, and of the user namespace that it belongs to.

    Raises:
        OSError: they cannot be opened, or are none of a sandbox.
    """
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if pid not in processes.children(bwrap) or _is_own(network):
            raise ProcessLookupError(f"process {pid} is no sandbox's")
        return network, fcntl.ioctl(network, _NS_GET_USERNS)
    except OSError:
        os.close(network)
        raise


def _is_own(network: int) -> bool:
    return os.path.samestat(os.fstat(network), os.stat("/proc/self/ns/net"))


def _listen_inside(channel: socket.socket, user: int, network: int) -> None:
    """In the forked child: make the listener and pass it on. Never returns."""
    try:
        try:
            linux.setns(user, linux.CLONE_NEWUSER)
            linux.setns(network, linux.CLONE_NEWNET)
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # bubblewrap may be about to give the loopback device its address; without it no sandbox starts at all.
            listener.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
            listener.bind(ADDRESS)
            listener.listen(BACKLOG)
            socket.send_fds(channel, [_MADE], [listener.fileno()])
        except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
            channel.sendall(str(error).encode()[:_WORDS] or b"?")
    finally:
        os._exit(0)
