"""What a node keeps on its disk."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.adapters.node_dir import NodeDirectory
from cloudclaw_pool_manager.ports.state import Drain, Started


def started(uid: str) -> Started:
    return Started(uid, b"\x00assignment", "default", "slot-0", 123, 1.5, 2.5)


async def test_everything_survives_the_process(tmp_path: Path) -> None:
    first = NodeDirectory(tmp_path / "node")
    assert (await first.lease(), await first.incarnation(), await first.term()) == (None, 0, 0)
    await first.remember_lease(77, 3)
    await first.remember_term(12)
    await first.remember_drain(Drain.HAND_OVER)
    await first.remember_attempt(started("att-a"))
    await first.remember_attempt(started("att-b"))
    await first.remember_forgotten("att-a", 5)
    await first.remember_forgotten("att-b", 1 << 40)
    await first.forget_attempt("att-a")
    await first.forget_attempt("att-never")
    first.close()
    again = NodeDirectory(tmp_path / "node")
    assert (await again.lease(), await again.incarnation(), await again.term()) == (77, 3, 12)
    assert await again.drain() is Drain.HAND_OVER
    await again.remember_drain(Drain.NONE)
    assert await again.drain() is Drain.NONE
    assert await again.attempts() == [started("att-b")]
    assert (await again.forgotten("att-a"), await again.forgotten("att-b")) == (0, 1 << 40)
    again.close()


async def test_a_damaged_note_is_dropped_and_the_others_are_kept(tmp_path: Path) -> None:
    there = NodeDirectory(tmp_path)
    await there.remember_attempt(started("att-a"))
    (tmp_path / "attempts" / "att-b").write_bytes(b"\xff\xff torn")
    (tmp_path / "attempts" / "att-c").write_bytes(b"")
    (tmp_path / "lease.json").write_bytes(b"{")
    assert await there.attempts() == [started("att-a")]
    assert await there.lease() is None
    assert sorted(p.name for p in (tmp_path / "attempts").iterdir()) == ["att-a"]
    there.close()


async def test_the_file_of_a_note_that_was_forgotten_holds_nothing_and_takes_the_next(tmp_path: Path) -> None:
    there = NodeDirectory(tmp_path)
    await there.remember_attempt(replace(started("att-a"), assignment=b"a secret" * 100))
    file = (tmp_path / "attempts" / "att-a").stat().st_ino
    await there.forget_attempt("att-a")
    (spare,) = (tmp_path / "spare").iterdir()
    assert (spare.stat().st_ino, spare.read_bytes()) == (file, b"")
    assert await there.attempts() == []
    await there.remember_attempt(started("att-b"))
    await there.remember_attempt(started("att-c"))
    assert (tmp_path / "attempts" / "att-b").stat().st_ino == file
    assert await there.attempts() == [started("att-b"), started("att-c")]
    await there.forget_attempt("att-b")
    there.close()
    again = NodeDirectory(tmp_path)
    assert list((tmp_path / "spare").iterdir()) == []
    assert await again.attempts() == [started("att-c")]
    again.close()


def test_a_second_process_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    first = NodeDirectory(tmp_path)
    script = (
        "import sys; from pathlib import Path; from cloudclaw_pool_manager.adapters.node_dir import NodeDirectory;"
        " NodeDirectory(Path(sys.argv[1]))"
    )
    second = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode != 0
    assert "another pool-manager" in second.stderr
    with pytest.raises(PreconditionError, match="another pool-manager") as refused:
        NodeDirectory(tmp_path)
    assert refused.value.reason == "NODE_DIR_LOCKED"
    first.close()
    NodeDirectory(tmp_path).close()
