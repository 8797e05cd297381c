"""Commands on what is kept how long, on garbage and on whole tenants."""

from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Claw
from tests.unit.cli.fakes import Services


def test_retention_is_set_and_shown_and_what_is_not_said_stays(claw: Claw, services: Services) -> None:
    assert claw("ws", "create", "up", "--keep-last", "5", "--keep-daily", "2").code == 0
    assert "last 5, daily 2" in claw("ws", "retention", "up").out
    assert claw("ws", "retention", "up", "--keep-last", "9").code == 0
    ran = claw("ws", "retention", "up", "--keep-daily", "0", "-o", "json")
    assert ran.objects[0]["retention"] == {"keep_last": 9, "keep_daily": 0}
    assert "last 9, daily (default)" in claw("ws", "show", "up").out
    assert claw("ws", "retention", "up", "--keep-last", "-1").code == 2


def test_a_round_is_of_all_tenants_or_of_the_one_named(operator: Claw, services: Services) -> None:
    assert "3 (3.0 MiB)" in operator("ws", "gc").out
    ran = operator("ws", "gc", "--tenant", "other", "--dry-run", "-o", "json")
    assert ran.objects[0]["tenant"] == "other"
    assert "WOULD REMOVE" in operator("ws", "gc", "--dry-run").out
    assert services.workspaces.rounds == [("", False), ("other", True), ("", True)]


def test_a_tenant_goes_only_when_it_is_said_twice(operator: Claw, services: Services) -> None:
    assert operator("tenant", "delete", "other").code == 2
    assert services.workspaces.deleted == []
    ran = operator("tenant", "delete", "other", "--yes")
    assert (ran.code, ran.out) == (0, "removed other: 2 objects (1.0 KiB) and 5 keys\n")
    assert operator("tenant", "delete", "other", "--yes", "-o", "json").objects[0]["keys_removed"] == "5"
    assert services.workspaces.deleted == ["other", "other"]


@pytest.mark.parametrize("arguments", [("ws", "gc"), ("tenant", "delete", "other", "--yes")])
def test_users_are_refused(claw: Claw, services: Services, arguments: tuple[str, ...]) -> None:
    assert claw(*arguments).code == 4
    assert (services.workspaces.rounds, services.workspaces.deleted) == ([], [])
