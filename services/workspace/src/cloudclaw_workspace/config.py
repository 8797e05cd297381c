"""Settings of the workspace service: `CLAW_WORKSPACE_*`, or a TOML file given by `--config`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from cloudclaw.config import Group, ServerSettings, ServiceSettings
from cloudclaw.snapshots.settings import LimitSettings
from cloudclaw_workspace.domain.retention import MAX_DAILY, MAX_LAST, Retention


class RetentionSettings(Group):
    """How many snapshots a workspace keeps that says nothing itself."""

    keep_last: int = Field(default=20, gt=0, le=MAX_LAST, description="the newest ones")
    keep_daily: int = Field(
        default=7, ge=0, le=MAX_DAILY, description="and the newest of each of the last so many days (UTC)"
    )

    def retention(self) -> Retention:
        """As the domain has it."""
        return Retention(self.keep_last, self.keep_daily)


class GarbageSettings(Group):
    """Removal of objects that nothing refers to any more."""

    interval: float = Field(default=3600.0, gt=0, description="seconds between two rounds")
    grace: float = Field(
        default=86_400.0,
        ge=0,
        description="seconds that an object stays after it was first seen unreferenced, for those who still read it",
    )
    election_ttl: int = Field(
        default=30, ge=5, le=300, description="seconds after which another replica collects when this one died"
    )


class WorkspaceSettings(ServiceSettings):
    """The workspace service: keeps the tenants' file trees and their versions."""

    model_config = SettingsConfigDict(env_prefix="CLAW_WORKSPACE_")

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7403")
    data_dir: Path = Field(
        default=Path("/var/lib/cloudclaw/workspace"),
        description="directory for trees that are being written, and for those kept ready; of one process alone",
    )
    cache_bytes: int = Field(default=1 << 30, ge=0, description="bytes of trees kept ready for the next write")
    limits: LimitSettings = LimitSettings()
    retention: RetentionSettings = RetentionSettings()
    gc: GarbageSettings = GarbageSettings()
    max_writes: int = Field(default=32, gt=0, le=1024, description="user writes that are under way at once")
    write_idle_timeout: float = Field(
        default=60.0, gt=0, description="seconds that a write waits for the client's next message"
    )
    writer_ttl: int = Field(
        default=10, ge=5, le=300, description="seconds after which the writer key of a process that died is free"
    )
    health_interval: float = Field(default=2.0, gt=0, description="seconds between two looks at etcd and the store")
    stop_grace: float = Field(default=10.0, ge=0, description="seconds that running calls have to end on SIGTERM")
