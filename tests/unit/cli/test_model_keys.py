"""A tenant's keys for models: kept, listed, forgotten; never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Claw, Ran
from tests.unit.cli.fakes import Services

KEY = "sk-very-secret-0123456789-wxyz"


def unseen(ran: Ran) -> Ran:
    """It printed nothing of the key but, at most, its end."""
    assert KEY[:-4] not in ran.out + ran.err
    assert KEY[5:15] not in ran.out + ran.err
    return ran


def test_a_key_comes_from_standard_input_or_a_file(claw: Claw, services: Services, tmp_path: Path) -> None:
    ran = unseen(claw("tenant", "set-key", "anthropic", stdin=f"{KEY}\n"))
    assert ran.code == 0, ran.err
    file = tmp_path / "key"
    file.write_text(f"{KEY}-2\n")
    unseen(claw("tenant", "set-key", "openai", "--key-file", str(file), "-o", "json"))
    assert services.scheduler.keys == {("acme", "anthropic"): KEY, ("acme", "openai"): f"{KEY}-2"}


def test_keys_are_listed_without_themselves_and_can_be_forgotten(claw: Claw, services: Services) -> None:
    assert "claw tenant set-key" in claw("tenant", "keys").err
    claw("tenant", "set-key", "anthropic", stdin=KEY)
    shown = unseen(claw("tenant", "keys"))
    assert "anthropic" in shown.out
    assert "…wxyz" in shown.out
    (key,) = unseen(claw("tenant", "keys", "-o", "json")).objects
    assert (key["upstream"], key["hint"]) == ("anthropic", "wxyz")
    assert claw("tenant", "rm-key", "anthropic").code == 0
    gone = claw("tenant", "rm-key", "anthropic")
    assert gone.code == 3
    assert "claw tenant keys" in gone.err


@pytest.mark.parametrize("given", ["", "\n", "with\x00zero", "schlüssel", "x" * 5000])
def test_what_is_no_key_is_refused_without_repeating_it(claw: Claw, services: Services, given: str) -> None:
    ran = claw("tenant", "set-key", "anthropic", stdin=given)
    assert ran.code == 2
    assert not services.scheduler.keys
    assert not given.strip() or given.strip() not in ran.err


def test_a_key_on_the_command_line_is_refused_without_repeating_it(claw: Claw, services: Services) -> None:
    ran = unseen(claw("tenant", "set-key", "anthropic", KEY))
    assert ran.code == 2
    assert "--key-file" in ran.err
    assert not services.scheduler.keys


def test_where_no_key_can_be_kept_the_operator_is_told_what_to_set(claw: Claw, services: Services) -> None:
    services.scheduler.sealing = False
    ran = unseen(claw("tenant", "set-key", "anthropic", stdin=KEY))
    assert ran.code == 6
    assert "CLAW_SCHEDULER_SEALING__KEYS" in ran.err
