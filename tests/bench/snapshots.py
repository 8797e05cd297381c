"""Snapshots and restores, beside `restic` with a local repository and beside `tar | zstd -1`.

All trees are in the page cache, for everybody, and what was written before a step is on the disk when it begins.
Nothing is removed until all is measured: what a file system frees it frees in the background, at the cost of whoever
comes next.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.report import Row, percentile
from tests.bench.trees import ONE_GB, SMALL_FILES, Shape, TreeMaker, stored

ROUNDS: Final = 30
_PARTS_OF_ONE_GB: Final = (0.25, 0.5)
_EXTRAPOLATED: Final = 10
_STEPS: Final = {
    "first": "first",
    "unchanged": "unchanged",
    "changed": "1 % changed",
    "cold": "cold restore",
    "ready": "restore on the host that has it",
}
_BUDGETS: Final = {"first": 4.2, "changed": 0.4, "cold": 3.5, "ready": 0.010}


@dataclass(frozen=True)
class Figures:
    """Seconds of each step and bytes that it stored."""

    seconds: dict[str, float]
    bytes: dict[str, int]
    frozen: list[float]
    peak_mib: float


async def measure(directory: Path) -> list[Row]:
    """Rows for 1 GB in 20,000 files, for 100,000 small files, for 10 GB by extrapolation, and for the freeze."""
    return await asyncio.to_thread(_measure, directory)


def _measure(directory: Path) -> list[Row]:
    ours = _ours(directory / "ours", ONE_GB, ROUNDS)
    restic = _restic(directory / "restic", ONE_GB)
    rows = _compared("1 GB in 20,000 files", ours, restic, _BUDGETS)
    rows.append(
        Row(
            "1 GB: stored for 1 % changed, of what the first stored",
            100 * ours.bytes["changed"] / ours.bytes["first"],
            "%",
            budget=3,
            note=f"{_mib(ours.bytes['changed'])} of {_mib(ours.bytes['first'])}",
        )
    )
    rows += _tar(directory / "tar", ONE_GB, ours)
    rows.append(Row("1 GB: peak memory of the process that did all of ours", ours.peak_mib, "MiB"))
    note = f"{ROUNDS} checkpoints, 200 of 20,000 files changed, 8 processes stopped by SIGSTOP"
    rows.append(Row("freeze of a checkpoint, p50", percentile(ours.frozen, 0.5) * 1000, "ms", note=note))
    rows.append(Row("freeze of a checkpoint, p95", percentile(ours.frozen, 0.95) * 1000, "ms", budget=50))
    small = _ours(directory / "small", SMALL_FILES, 0)
    rows += _compared("100,000 small files", small, _restic(directory / "small-restic", SMALL_FILES), {})
    parts = [
        (
            share,
            _ours(directory / f"part-{share}", Shape(int(ONE_GB.files * share), ONE_GB.smallest, ONE_GB.largest), 0),
        )
        for share in _PARTS_OF_ONE_GB
    ]
    return rows + _extrapolated([*parts, (1.0, ours)])


def _compared(what: str, ours: Figures, restic: Figures | None, budgets: dict[str, float]) -> list[Row]:
    rows = []
    for step, name in _STEPS.items():
        unit, scale = ("ms", 1000.0) if step == "ready" else ("s", 1.0)
        # restic knows no trees on a host: it restores into an empty directory each time.
        theirs = restic.seconds.get("cold" if step == "ready" else step) if restic else None
        notes = [f"stored {_mib(ours.bytes[step])}"] if step in ours.bytes else []
        if theirs is not None and restic is not None:
            notes.append(f"restic {theirs:.2f} s: {theirs / ours.seconds[step]:.1f} × ours")
            if step in restic.bytes:
                notes.append(f"stored {_mib(restic.bytes[step])}")
        budget = budgets.get(step)
        value = ours.seconds[step] * scale
        limit = None if budget is None else budget * scale
        rows.append(Row(f"{what}: {name}", value, unit, budget=limit, note=", ".join(notes)))
    return rows


def _ours(directory: Path, shape: Shape, rounds: int) -> Figures:
    directory.mkdir()
    print(f"bench: snapshots of {shape.files} files", flush=True)
    child = [sys.executable, "-m", "tests.bench.snapshot_child", directory, "--rounds", rounds]
    child += [shape.files, shape.smallest, shape.largest]
    output = subprocess.run([str(part) for part in child], stdout=subprocess.PIPE, check=True).stdout
    return Figures(**json.loads(output))


def _restic(directory: Path, shape: Shape) -> Figures | None:
    restic = shutil.which("restic")
    if restic is None:
        print("bench: no restic here; its figures are left out (apt-get install restic)")
        return None
    tree, repository = directory / "tree", directory / "repository"
    tree.mkdir(parents=True)
    environment = {
        "RESTIC_PASSWORD": "bench",
        "RESTIC_REPOSITORY": str(repository),
        "RESTIC_CACHE_DIR": str(directory / "cache"),
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(directory),
    }

    def run(*argv: str) -> float:
        os.sync()
        start = time.perf_counter()
        subprocess.run([restic, "--quiet", *argv], env=environment, cwd=tree, check=True)
        return time.perf_counter() - start

    run("init")
    maker = TreeMaker(tree, shape)
    maker.fill()
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    before = stored(repository)
    for step, changed in (("first", 0), ("unchanged", 0), ("changed", shape.files // 100)):
        maker.change(changed)
        seconds[step] = run("backup", ".")
        after = stored(repository)
        sizes[step], before = after - before, after
    seconds["cold"] = run("restore", "latest", "--target", str(directory / "restored"))
    return Figures(seconds, sizes, [], 0)


def _tar(directory: Path, shape: Shape, ours: Figures) -> list[Row]:
    if shutil.which("zstd") is None:
        print("bench: no zstd here; `tar | zstd` is left out")
        return []
    tree, archive, restored = directory / "tree", directory / "archive", directory / "restored"
    for path in (tree, restored):
        path.mkdir(parents=True)
    TreeMaker(tree, shape).fill()
    packed = _shell(f"tar -C {tree} -cf - . | zstd -1 -q -o {archive}")
    unpacked = _shell(f"zstd -dcq {archive} | tar -C {restored} -xf -")
    size = archive.stat().st_size
    return [
        Row("1 GB: tar | zstd -1", packed, "s", note=f"{packed / ours.seconds['first']:.1f} × ours, {_mib(size)}"),
        Row("1 GB: zstd -d | tar -x", unpacked, "s", note=f"{unpacked / ours.seconds['cold']:.1f} × ours"),
    ]


def _shell(line: str) -> float:
    os.sync()
    start = time.perf_counter()
    subprocess.run(["sh", "-c", line], check=True)
    return time.perf_counter() - start


def _extrapolated(parts: list[tuple[float, Figures]]) -> list[Row]:
    """What ten times the largest tree would take, by a straight line through three sizes."""
    rows = []
    for step in ("first", "unchanged", "changed", "cold"):
        slope, start = statistics.linear_regression(
            [size for size, _ in parts], [figures.seconds[step] for _, figures in parts]
        )
        points = ", ".join(f"{size:g}: {figures.seconds[step]:.2f}" for size, figures in parts)
        rows.append(
            Row(
                f"10 GB in 200,000 files, {_STEPS[step]} (extrapolated)",
                start + slope * _EXTRAPOLATED,
                "s",
                note=f"{start:.2f} + {slope:.2f} × GB; GB: s measured {points}",
            )
        )
    return rows


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
