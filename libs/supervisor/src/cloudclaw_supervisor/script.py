"""The shell script that a waiting sandbox is given: the task as a child of the sandbox's first process.

The first process is a dash that was started while the slot was idle. Its descriptors:

    0  pipe with this script        3  pipe with the task's standard input
    1  the task's standard output   4  the task's standard error
    2  pipe for status lines        5  the slot's lock

The task gets 3, 1 and 4 as 0, 1 and 2, and none of the others. Status lines are `r` (ready) and
`x CODE`; a line that dash writes in between (`Killed`, `Segmentation fault`) says that the program
ended by a signal and not by an exit code above 128.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY = b"echo r >&2\n"
"""Sent when the sandbox is made; its answer says that the first process runs."""

# dash gives these a meaning of its own and refuses some values; env(1) sets them instead.
_SPECIAL = frozenset(("OPTIND",))


def quote(value: str) -> bytes:
    """One shell word that stands for exactly `value`, whatever bytes it holds."""
    return b"'" + value.encode("utf-8", "surrogateescape").replace(b"'", b"'\\''") + b"'"


def compose(argv: Sequence[str], env: Mapping[str, str], cwd: str, file_bytes: int, processes: int) -> bytes:
    """The script for one task.

    Args:
        argv: program and arguments. `exec` keeps shell builtins and functions out of the search.
        env: the task's whole environment.
        cwd: where it starts; a directory that is not there ends it with code 126.
        file_bytes: size of one file at most.
        processes: for `RLIMIT_NPROC`, 0 when a cgroup counts them.
    """
    lines = [b"ulimit -f %d" % (max(file_bytes, 512) // 512)]
    if processes:
        lines.append(b"ulimit -p %d" % processes)
    # The supervisor's own files are nobody else's business; a task's are made as everywhere.
    lines += [b"(", b"umask 022", b"cd %s || exit 126" % quote(cwd), b"unset PWD OLDPWD"]
    special = [f"{name}={value}" for name, value in env.items() if name in _SPECIAL]
    lines += [b"export %s=%s" % (name.encode(), quote(env[name])) for name in env if name not in _SPECIAL]
    words = ["/usr/bin/env", *special, *argv] if special else argv
    lines.append(b"exec " + b" ".join(quote(word) for word in words))
    lines.append(b") <&3 2>&4 3<&- 4>&- 5>&-")
    return b"\n".join([*lines, b'echo "x $?" >&2', b"exit", b""])


class StatusLines:
    """Reads what the first process says on its status pipe."""

    def __init__(self) -> None:
        self.ready = False
        self.code: int | None = None
        self.messages: list[str] = []
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the pipe."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line == b"r":
                self.ready = True
            elif line.startswith(b"x ") and line[2:].isdigit():
                self.code = int(line[2:])
            elif len(self.messages) < 16:
                self.messages.append(line[:512].decode("utf-8", "replace"))

    def signal(self) -> int:
        """The signal that ended the program, 0 for none.

        dash is silent about SIGINT and SIGPIPE, so 130 and 141 are read as these two.
        """
        if self.code is None or self.code <= 128:
            return 0
        return self.code - 128 if self.messages or self.code in (130, 141) else 0
