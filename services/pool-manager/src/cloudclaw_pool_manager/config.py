"""Settings of the pool-manager: `CLAW_POOL_MANAGER_*`, or a TOML file given by `--config`."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from cloudclaw.config import Group, ServerSettings, ServiceSettings
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.snapshots.settings import LimitSettings


def _host_name() -> str:
    """This host's name as a node id: lower case, with what a name may not hold replaced."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-") or "node"


def _name(value: str, field: str) -> str:
    try:
        return check_name(value, field)
    except InvalidArgumentError as error:
        raise ValueError(error.message) from error


class LimitDefaults(Group):
    """Limits of an attempt whose task asks for none."""

    cpu_millis: int = Field(default=2000, gt=0, description="thousandths of a core")
    memory_bytes: int = Field(default=2 << 30, ge=4 << 20, description="bytes of memory")
    pids: int = Field(default=512, gt=0, description="processes and threads")
    disk_bytes: int = Field(default=2 << 30, gt=0, description="bytes of workspace and home together")
    file_bytes: int = Field(default=256 << 20, gt=0, description="bytes of one file")
    tmp_bytes: int = Field(default=256 << 20, gt=0, description="bytes of each of /tmp and /dev/shm")


_OF_A_SANDBOX: Final = ("/tmp", "/var/tmp", "/dev", "/proc", "/workspace", "/home/agent")
"""Where sandboxes see something of their own."""


class PoolSettings(Group):
    """One pool: a template, and how many slots of it this node keeps warm."""

    name: str = Field(default="default", description="pool that tasks name")
    backend: str = Field(default="bubblewrap", description="where its slots live; an entry point of cloudclaw.backends")
    slots: int = Field(default=2, ge=0, le=1024, description="slots kept warm")
    max_slots: int = Field(
        default=0, ge=0, le=1024, description="hard cap that ResizePool cannot pass; 0 means the same as `slots`"
    )
    runtimes: list[str] = Field(
        default=["command"], min_length=1, description="runtimes it offers; entry points of cloudclaw.runtimes"
    )
    runtime_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of these runtimes by name, as each documents them"
    )
    warm: str = Field(default="", description="which of them waits warm in idle slots; empty for none")
    egress: bool = Field(
        default=True, description="with a gateway: let its agents reach models through it; nothing else is reachable"
    )
    limits: LimitDefaults = LimitDefaults()
    read_only_binds: list[Path] = Field(
        default_factory=list, description="host paths that its sandboxes see, read-only, beside the system's"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further settings, as the backend documents them")

    @field_validator("name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        return _name(value, "name")

    @field_validator("read_only_binds")
    @classmethod
    def _seen(cls, paths: list[Path]) -> list[Path]:
        for path in paths:
            if not path.is_absolute():
                raise ValueError(f"{path} is no absolute path")
            for own in _OF_A_SANDBOX:
                if path.is_relative_to(own):
                    raise ValueError(f"{path} would be hidden: a sandbox has a {own} of its own")
        return paths

    @model_validator(mode="after")
    def _cap_holds(self) -> Self:
        if self.max_slots and self.max_slots < self.slots:
            raise ValueError(f"`max_slots` ({self.max_slots}) is below `slots` ({self.slots})")
        return self

    @model_validator(mode="after")
    def _offers(self) -> Self:
        strangers = {*self.runtime_options, *([self.warm] if self.warm else [])} - set(self.runtimes)
        if strangers:
            raise ValueError(f"`runtimes` of pool {self.name!r} lacks {', '.join(sorted(strangers))}")
        return self

    @property
    def hard_cap(self) -> int:
        """The number of slots that is never exceeded."""
        return self.max_slots or self.slots


class PoolManagerSettings(ServiceSettings):
    """The pool-manager: keeps the slots of one host warm and runs attempts in them."""

    model_config = SettingsConfigDict(env_prefix="CLAW_POOL_MANAGER_")

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7402")
    node_id: str = Field(default_factory=_host_name, description="name of this node; unique in the cluster")
    node_dir: Path = Field(
        default=Path("/var/lib/cloudclaw/node"),
        description="directory of this node: slots, trees, attempts; one file system, owned by one pool-manager",
    )
    scheduler_endpoints: list[str] = Field(
        default=["127.0.0.1:7401"], min_length=1, description="host:port of each scheduler replica"
    )
    token_file: Path | None = Field(
        default=None, description="file with a token of role `node`; read again at every connect"
    )
    pools: list[PoolSettings] = Field(default_factory=lambda: [PoolSettings()], min_length=1, description="the pools")
    gateway_socket: Path | None = Field(
        default=None, description="control socket of this node's model gateway; without it sandboxes have no way out"
    )
    gateway_uid: int | None = Field(
        default=None, gt=0, description="user whose the gateway may be, beside root and this process's own"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="labels that operators see")
    lease_ttl: int = Field(default=10, ge=5, le=300, description="seconds that the node's lease outlives its renewal")
    grace: float = Field(
        default=3.0, gt=0.5, description="seconds without contact that the leader grants, until it says so itself"
    )
    stop_slots_on_exit: bool = Field(
        default=False, description="on SIGTERM end attempts and slots; otherwise leave them to be adopted"
    )
    drain_grace: float = Field(
        default=5.0, ge=0, description="seconds that running attempts have to end on SIGTERM, with stop_slots_on_exit"
    )
    cancel_grace: float = Field(default=2.0, ge=0, description="seconds between SIGTERM and SIGKILL of an attempt")
    log_limit: int = Field(default=256 << 20, gt=0, description="bytes of log that one attempt may write")
    log_rate: int = Field(
        default=16 << 20,
        ge=0,
        description="bytes of log a second that one attempt may send on average; a louder one is slowed. 0: no limit",
    )
    limits: LimitSettings = Field(
        default=LimitSettings(),
        description="what a task may leave in its tree; as the workspace service has it",
    )
    cache_bytes: int = Field(default=4 << 30, ge=0, description="bytes of trees kept ready for tasks that come again")
    files_uid: int | None = Field(
        default=None, gt=0, description="owner of the files in trees, as root; default: what the backend wants"
    )
    slot_wait: float = Field(default=10.0, gt=0, description="seconds that an assignment waits for a slot to be ready")
    store_patience: float = Field(
        default=900.0,
        ge=0,
        description="seconds that a checkout, artifacts and a snapshot each wait for an object store that is away or"
        " full, before the attempt fails; 0: not at all",
    )

    turn_checkpoints: bool = Field(default=True, description="take a checkpoint after an agent's turns")
    turn_spacing: float = Field(
        default=1.0,
        ge=0,
        description="seconds of running after a checkpoint without one at an agent's turn: five times what it took, and"
        " at most so many",
    )

    @field_validator("node_id")
    @classmethod
    def _valid_node(cls, value: str) -> str:
        return _name(value, "node_id")

    @field_validator("pools")
    @classmethod
    def _distinct(cls, pools: list[PoolSettings]) -> list[PoolSettings]:
        names = [pool.name for pool in pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pool names must differ: {', '.join(sorted(names))}")
        return pools
