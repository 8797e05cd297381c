"""Settings of the scheduler."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from cloudclaw.config import Group, ServerSettings, ServiceSettings
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.sealing import SealingSettings


class HistorySettings(Group):
    """How long ended tasks stay at hand, before they move to the object store."""

    retention: float = Field(default=3600.0, ge=0.0, description="seconds that an ended task stays in etcd at least")
    batch_window: float = Field(
        default=600.0, ge=0.0, description="seconds beyond that, in which a tenant's tasks are gathered into one bundle"
    )
    request_retention: float = Field(
        default=86_400.0, ge=60.0, description="seconds that the request id of an archived task still answers for it"
    )
    consumer_hold: float = Field(
        default=7 * 86400.0,
        ge=0.0,
        description="seconds that results stay at hand for a consumer that acknowledges nothing",
    )


class SchedulerSettings(ServiceSettings):
    """The control plane: tasks, dispatch, recovery, live logs, results.

    Environment variables begin with `CLAW_SCHEDULER_`.
    """

    model_config = SettingsConfigDict(env_prefix="CLAW_SCHEDULER_")

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7401")
    pools: dict[str, str] = Field(
        default={"default": "command"},
        description="pools that tasks are accepted for before a node offers them, each with its runtimes,"
        " separated by spaces",
    )
    grace: float = Field(
        default=3.0, ge=0.5, le=60.0, description="seconds that a silent node has before its attempts run elsewhere"
    )
    heartbeat: float = Field(default=0.5, ge=0.1, le=5.0, description="seconds between two heartbeats of a node")
    election_ttl: int = Field(
        default=10, ge=2, le=120, description="seconds after which a leader that vanished is replaced"
    )
    log_limit: int = Field(
        default=256 << 20, ge=0, description="bytes of log of one task, all attempts together; 0: only the nodes' limit"
    )
    history: HistorySettings = HistorySettings()
    sealing: SealingSettings = SealingSettings()
    drain_timeout: float = Field(
        default=1.0, ge=0.0, le=300.0, description="seconds that running calls have to end when the service stops"
    )

    @field_validator("pools")
    @classmethod
    def _names(cls, pools: dict[str, str]) -> dict[str, str]:
        try:
            for pool, runtimes in pools.items():
                check_name(pool, "pools")
                for runtime in runtimes.split():
                    check_name(runtime, "pools")
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return pools
