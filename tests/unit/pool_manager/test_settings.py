"""Settings of the pool-manager."""

from __future__ import annotations

import json

import pytest

from cloudclaw.config import ConfigurationError, read
from cloudclaw_pool_manager.config import PoolManagerSettings


def settings(**environment: str) -> PoolManagerSettings:
    return read(PoolManagerSettings, environ={f"CLAW_POOL_MANAGER_{k}": v for k, v in environment.items()})


def test_the_defaults_are_usable() -> None:
    made = settings()
    assert made.server.listen.endswith(":7402")
    assert made.node_id
    assert [(pool.name, pool.backend, pool.slots, pool.hard_cap) for pool in made.pools] == [
        ("default", "bubblewrap", 2, 2)
    ]
    assert not made.stop_slots_on_exit


def test_pools_come_as_json() -> None:
    made = settings(POOLS=json.dumps([{"slots": 3, "max_slots": 5}, {"name": "big", "limits": {"cpu_millis": 4000}}]))
    assert [pool.hard_cap for pool in made.pools] == [5, 2]
    assert made.pools[1].limits.cpu_millis == 4000


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"NODE_ID": "Not A Name"}, "NODE_ID"),
        ({"POOLS": '[{"name": "a"}, {"name": "a"}]'}, "differ"),
        ({"POOLS": '[{"slots": 4, "max_slots": 2}]'}, "max_slots"),
        ({"POOLS": '[{"slotz": 4}]'}, "slotz"),
        ({"POOLS": "[]"}, "POOLS"),
        ({"NODEDIR": "/tmp"}, "NODE_DIR"),
        ({"POOLS": '[{"read_only_binds": ["/tmp/agents"]}]'}, "a sandbox has a /tmp of its own"),
        ({"POOLS": '[{"read_only_binds": ["agents"]}]'}, "no absolute path"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigurationError, match=names):
        settings(**environment)
