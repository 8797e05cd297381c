"""Programs in a slot: arguments, input, output, exit codes."""

from __future__ import annotations

import pytest

from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.backend import Slot, SlotPhase
from tests.support import slots
from tests.support.slots import Node

pytestmark = pytest.mark.sandbox


async def test_program_runs_and_its_output_and_exit_code_arrive(node: Node, slot: Slot) -> None:
    ended = await slots.run(node, slot, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")
    assert (ended.exit.code, ended.exit.signal, ended.exit.killed) == (3, 0, KillReason.NONE)
    assert (await slot.status()).phase is SlotPhase.IDLE
