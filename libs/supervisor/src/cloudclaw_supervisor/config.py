"""What the manager tells a supervisor at its start, as JSON on its standard input."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Config:
    """Fields of the JSON object; every one is given by the manager.

    Attributes:
        slot: the slot's name.
        hostname: the host name inside; the slot's name when not given, the one that is set already when empty.
        directory: the slot's directory, with `ctl` and `box`.
        uid: become this uid and gid before anything else; None to stay (a manager without root).
        stage: give the supervisor mounts of its own, with `box` and what is read-only in it where any uid reaches
            them, see `staging` (needs root and ctypes).
        bwrap: path of bubblewrap.
        read_only: (source, destination) pairs that every sandbox sees read-only.
        extra: the same for the template's own, whose sources the slot's uid may be unable to reach.
        prebuild: build the next sandbox while idle; trees then arrive as propagated mounts.
        debug: let tasks trace each other.
        lock_fd: inherited descriptor of the slot's lock.
        groups: see `cgroup.Groups`.
        enter: `cgroup.procs` files that the supervisor itself enters.
        watch_memory: no group limits memory; add up resident sizes instead.
        count_processes: no group counts processes; use RLIMIT_NPROC.
        tmp_bytes: /tmp of a sandbox built ahead.
        open_files: RLIMIT_NOFILE.
        orphan_ttl: seconds without a manager after which a frozen sandbox past its deadline is killed.
        log_limit: bytes of one attempt's log.
        spool_limit: bytes of spool that nobody has made durable; beyond it the task's output waits.
        segment_bytes: size at which a spool file is closed.
        watch_interval: seconds between two looks at the limits.
        egress: every sandbox gets a listener, see `listener`.
    """

    def __init__(self, data: dict[str, Any]):
        self.slot: str = data["slot"]
        self.hostname: str = data.get("hostname", self.slot)
        self.directory: str = data["directory"]
        self.uid: int | None = data["uid"]
        self.stage: bool = data["stage"]
        self.bwrap: str = data["bwrap"]
        self.read_only: list[tuple[str, str]] = [(a, b) for a, b in data["read_only"]]
        self.extra: list[tuple[str, str]] = [(a, b) for a, b in data["extra"]]
        self.prebuild: bool = data["prebuild"]
        self.debug: bool = data["debug"]
        self.lock_fd: int = data["lock_fd"]
        self.groups: dict[str, Any] = data["groups"]
        self.enter: list[str] = data["enter"]
        self.watch_memory: bool = data["watch_memory"]
        self.count_processes: bool = data["count_processes"]
        self.tmp_bytes: int = data["tmp_bytes"]
        self.open_files: int = data["open_files"]
        self.orphan_ttl: float = data["orphan_ttl"]
        self.log_limit: int = data["log_limit"]
        self.spool_limit: int = data["spool_limit"]
        self.segment_bytes: int = data["segment_bytes"]
        self.watch_interval: float = data["watch_interval"]
        self.egress: bool = data["egress"]
