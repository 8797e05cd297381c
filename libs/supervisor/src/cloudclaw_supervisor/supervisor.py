"""The slot's state machine: build the next sandbox, run an attempt in it, keep its end until released."""

from __future__ import annotations

import base64
import os

from cloudclaw_supervisor import loop as loops
from cloudclaw_supervisor import protocol, script
from cloudclaw_supervisor.attempt import Attempt
from cloudclaw_supervisor.cgroup import Groups
from cloudclaw_supervisor.egress import Egress
from cloudclaw_supervisor.loop import Loop
from cloudclaw_supervisor.server import Connection, RequestError, Server
from cloudclaw_supervisor.spool import Spool
from cloudclaw_supervisor.workshop import Workshop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.config import Config
    from cloudclaw_supervisor.loop import Timer

    Request = dict[str, Any]

_COALESCE = 0.005
_LOOK_FOR_SOCKET = 3.0


class Supervisor:
    """Serves one slot until it is told to shut down.

    Args:
        config: as the manager gave it.
        root: where the skeleton of the sandbox's `/` is.
        listener: bound in the control directory, which is the present directory.
        egress: the same, for `egress.Egress`; None without.
    """

    def __init__(self, config: Config, root: str, listener: socket.socket, egress: socket.socket | None = None):
        self._config = config
        self._root = root
        self._groups = Groups(config.groups)
        self._loop = Loop(self._reap)
        self._server = Server(self._loop, listener, self._handle, self._greet)
        self._egress = Egress(self._loop, egress, self._listening) if egress is not None else None
        self._workshop = Workshop(self._loop, config, root, self._groups, self._built)
        self._attempt: Attempt | None = None
        self._contact = loops.boottime()
        self._push: Timer | None = None
        self._pushed = 0.0
        self._waiting_exit: list[tuple[Connection, Request]] = []
        self._operations: dict[str, Callable[[Connection, Request], None]] = {
            "status": lambda connection, request: connection.reply(request, status=self._status(True)),
            "prepare": self._prepare,
            "warm": self._warm,
            "start": self._start,
            "deadline": self._deadline,
            "freeze": self._freeze,
            "resume": self._resume,
            "thaw": self._thaw,
            "stop": self._stop,
            "input": self._input,
            "forget": self._forget,
            "usage": self._usage,
            "release": self._release,
            "shutdown": self._shutdown,
        }
        self._workshop.rebuild()
        self._loop.call_in(_LOOK_FOR_SOCKET, self._end_when_unreachable)

    def run(self) -> None:
        """Serve until `shutdown`."""
        self._loop.run()

    # Sandboxes

    def _built(self) -> None:
        """A sandbox is ready, or what is warm in it has changed."""
        if self._egress is not None:
            self._egress.look_again()
        self._changed()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # Other pids are orphans of a bubblewrap that was killed before its child.
            sandbox = self._workshop.sandbox
            if sandbox is not None and pid == sandbox.pid:
                self._sandbox_ended(status)

    def _sandbox_ended(self, status: int) -> None:
        attempt = self._attempt
        if attempt is None or attempt.exit is not None:
            self._workshop.lost(status)
            return
        self._workshop.sandbox = None
        if self._egress is not None:
            self._egress.look_again()
        attempt.ended(status)
        waiting, self._waiting_exit = self._waiting_exit, []
        for connection, request in waiting:
            connection.reply(request, attempt.exit)

    # Requests

    def _greet(self) -> dict[str, Any]:
        self._contact = loops.boottime()
        return {"ok": {"version": protocol.VERSION, "pid": os.getpid()}, "status": self._status(True)}

    def _handle(self, connection: Connection, request: Request) -> None:
        self._contact = loops.boottime()
        operation = self._operations.get(request.get("op", ""))
        if operation is None:
            raise RequestError(f"unknown operation {request.get('op')!r}")
        operation(connection, request)

    def _prepare(self, connection: Connection, request: Request) -> None:
        if self._attempt is not None:
            connection.reply(request)  # `start` says what is in the way
        else:
            self._workshop.prepare(connection, request)

    def _warm(self, connection: Connection, request: Request) -> None:
        if self._attempt is not None:
            raise RequestError(f"the slot holds attempt {self._attempt.uid}")
        self._workshop.warm_up(request)
        connection.reply(request, status=self._status())

    def _start(self, connection: Connection, request: Request) -> None:
        identity, limits = request["attempt"], request["limits"]
        if self._attempt is not None:
            if self._attempt.uid != identity["uid"]:
                raise RequestError(f"the slot holds attempt {self._attempt.uid}")
            connection.reply(request, status=self._status())
            return
        roots = [f"{self._root}/workspace", f"{self._root}/home/agent"]
        if not self._config.prebuild:
            roots = [f"{request['tree']}/workspace", f"{request['tree']}/home"]
            for path in roots:  # the trees' contents are hostile, and so may be what stands in their place
                os.close(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
        sandbox, warm = self._workshop.take(request, roots)
        self._attempt = Attempt(
            self._loop,
            self._config,
            self._groups,
            sandbox,
            Spool(f"{protocol.SPOOL}/{identity['uid']}", self._config.segment_bytes),
            identity,
            roots,
            limits,
            request["deadline"],
            lambda: self._contact,
            self._changed,
            self._grown,
        )
        self._attempt.note(base64.b64decode(request.get("note", "")))
        sandbox.stdin.write(base64.b64decode(request["stdin"]))
        if not request.get("keep_stdin"):
            sandbox.stdin.finish()
        if warm:
            connection.reply(request, status=self._status())
            return
        pids = limits["pids"] if self._config.count_processes else 0
        text = script.compose(request["argv"], request["env"], request["cwd"], limits["file_bytes"], pids)
        sandbox.run(text, lambda: connection.reply(request, status=self._status()))

    def _of(self, request: Request) -> Attempt:
        if self._attempt is None or self._attempt.uid != request["uid"]:
            raise RequestError(f"the slot does not hold attempt {request['uid']}")
        return self._attempt

    def _deadline(self, connection: Connection, request: Request) -> None:
        self._of(request).set_deadline(request["deadline"])
        connection.reply(request)

    def _freeze(self, connection: Connection, request: Request) -> None:
        attempt = self._of(request)
        if attempt.exit is not None:
            connection.reply(request)  # nothing runs any more
            return

        def done() -> None:
            connection.reply(request)
            self._changed()

        attempt.freezer.freeze(done)

    def _resume(self, connection: Connection, request: Request) -> None:
        connection.reply(request, self._of(request).resume(request["deadline"]))

    def _thaw(self, connection: Connection, request: Request) -> None:
        self._of(request).thaw(request["deadline"])
        connection.reply(request)

    def _stop(self, connection: Connection, request: Request) -> None:
        attempt = self._of(request)
        if attempt.exit is not None:
            connection.reply(request, attempt.exit)
            return
        self._waiting_exit.append((connection, request))
        attempt.stop(request["reason"], request["grace"])

    def _input(self, connection: Connection, request: Request) -> None:
        attempt = self._of(request)
        note, data = base64.b64decode(request["note"]), base64.b64decode(request["data"])
        new = attempt.input(request["message_id"], note, data, request["close"])
        connection.reply(request, new, status=self._status())

    def _listening(self, request: Request) -> int:
        """The listener that a manager asks for."""
        self._server.obeys(request["incarnation"])
        self._contact = loops.boottime()
        self._of(request)
        sandbox = self._workshop.sandbox
        if sandbox is None or sandbox.listener is None:
            raise RequestError("its sandbox has ended", protocol.NO_EGRESS)
        return sandbox.listener.fd

    def _forget(self, connection: Connection, request: Request) -> None:
        self._of(request).forget(request["upto"])
        connection.reply(request)

    def _usage(self, connection: Connection, request: Request) -> None:
        watch = self._of(request).watch
        connection.reply(request, {"disk_bytes": watch.disk_used})

    def _release(self, connection: Connection, request: Request) -> None:
        attempt = self._of(request)
        if attempt.exit is None:
            raise RequestError("the attempt still runs: stop comes first")
        attempt.spool.remove()
        self._attempt = None
        connection.reply(request, status=self._status())
        self._workshop.rebuild()

    def _shutdown(self, connection: Connection, request: Request) -> None:
        connection.reply(request)
        self._loop.stop()  # the sandbox dies with this process

    def _end_when_unreachable(self) -> None:
        """End when no manager is here and none can come: somebody removed the slot's directory."""
        if self._server.manager is None and not os.path.exists(protocol.SOCKET):
            self._loop.stop()
        self._loop.call_in(_LOOK_FOR_SOCKET, self._end_when_unreachable)

    # Statuses

    def _status(self, whole: bool = False) -> dict[str, Any]:
        """The slot's status; `whole` with what may be long and is not pushed."""
        attempt, warm = self._attempt, self._workshop.warm
        if attempt is None:
            state, key = (warm.state, warm.key) if warm is not None else (protocol.COLD, "")
            ready = self._workshop.ready and state != protocol.WARMING
            return {"phase": "idle", "sandbox_ready": ready, "warm": state, "warm_key": key}
        status = {
            "phase": attempt.phase,
            "paused": attempt.paused,
            "attempt": attempt.identity,
            "log_end": attempt.spool.end,
            "last_output": attempt.last_output,
            "exit": attempt.exit,
            "input_open": attempt.input_open,
        }
        return {**status, "inputs": attempt.inputs} if whole else status

    def _changed(self) -> None:
        """Push a status now."""
        if self._push is not None:
            self._push.cancel()
        self._push_now()

    def _grown(self) -> None:
        """Push that the log grew: at once after a pause, else one in 5 ms."""
        if self._push is None:
            self._push = self._loop.call_at(self._pushed + _COALESCE, self._push_growth)

    def _push_growth(self) -> None:
        self._pushed = loops.boottime()
        self._push_now()

    def _push_now(self) -> None:
        self._push = None
        if self._server.manager is not None:
            self._server.manager.send({"status": self._status()})
