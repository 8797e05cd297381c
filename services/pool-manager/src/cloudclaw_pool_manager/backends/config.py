"""What a pool of supervised slots is constructed with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cloudclaw_pool_manager.domain.attempt import Limits


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """One node's slots.

    Attributes:
        node_dir: the node's directory; `slots/` is made in it. It and the attempts' trees lie on file
            systems that allow idmapped mounts when the manager is root.
        slots: how many slots at most, ever.
        incarnation: of this manager; supervisors obey only the highest.
        files_uid: owner of all workspace files on disk, when the manager is root; uid and gid.
        uid_base: slot `n` runs as uid and gid `uid_base + n`, when the manager is root.
        python: interpreter of the supervisors, 3.9 or newer; empty for the manager's own. A shared uid must
            be able to run it.
        read_only: absolute directories that tasks also see, read-only and at the same path
            (toolchains outside `/usr`).
        defaults: limits for a sandbox that is built ahead; only `tmp_bytes` matters.
        debug: let tasks trace each other; debuggers need it.
        use_cgroups: False leaves limits to rlimits and to the supervisor's watch.
        cgroup_parent: group, relative to each hierarchy's mount, below which the slots' groups are made.
        open_files: RLIMIT_NOFILE of tasks.
        log_limit: bytes of one attempt's log; beyond it the attempt ends with `LOG_LIMIT`.
        spool_limit: bytes of log held on this node and not durable yet; beyond it the task waits in
            its write.
        segment_bytes: size of a spool file.
        orphan_ttl: seconds without a manager after which a sandbox frozen at its deadline is killed.
        watch_interval: seconds between two looks at what a task has used.
        call_timeout: seconds that a supervisor has to answer.
        single_use: replace a slot after each attempt.
        node, pool: names for people, on what can be labelled.
        egress: every sandbox gets a TCP listener on 127.0.0.1:8787, see `Slot.egress`.
    """

    node_dir: Path
    slots: int
    incarnation: int
    files_uid: int = 199_999
    uid_base: int = 200_000
    python: str = ""
    read_only: tuple[str, ...] = ()
    defaults: Limits = field(default_factory=Limits)
    debug: bool = False
    use_cgroups: bool = True
    cgroup_parent: str = ""
    open_files: int = 4096
    log_limit: int = 256 << 20
    spool_limit: int = 64 << 20
    segment_bytes: int = 4 << 20
    orphan_ttl: float = 10.0
    watch_interval: float = 0.5
    call_timeout: float = 10.0
    egress: bool = False
    single_use: bool = False
    node: str = ""
    pool: str = ""
