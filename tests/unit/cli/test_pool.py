"""What operators see of pools with agents."""

from __future__ import annotations

from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services


def test_pools_say_which_agents_can_run_and_why_one_cannot(operator: Claw, services: Services) -> None:
    shown = operator("pool", "get", "--endpoint", services.address).out
    rows = [line.split() for line in shown.splitlines()]
    assert ["node-1", "default", "claude-code", "ready", "2.1.330", "-"] in rows
    assert "not ready" in shown
    assert "it needs Node 24.16 or later" in shown


def test_slots_say_which_agent_waits_warm_in_them(operator: Claw, services: Services) -> None:
    shown = operator("pool", "slots", "--endpoint", services.address).out
    assert "claude-code 168.0 MiB" in shown
    warm, cold = operator("pool", "slots", "--endpoint", services.address, "-o", "json").objects
    assert (warm["warm"], cold["warm"]) == ("claude-code", "")
