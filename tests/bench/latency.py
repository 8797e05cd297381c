"""Submit → first byte of output, on an idle stack, against starting a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.bench.report import Row, percentile
from tests.support.stack import Stack

SAMPLES = 200


async def measure(directory: Path) -> list[Row]:
    """Rows for p50, p99 and the ratios to bubblewrap and Docker."""
    async with Stack(directory, nodes=1, slots=2) as stack:
        tenant = stack.tenant("bench")
        for _ in range(20):
            await tenant.wait(await tenant.submit("echo", "warm"))
        taken = []
        for _ in range(SAMPLES):
            start = time.perf_counter()
            task_id = await tenant.submit("echo", "hi")
            async for response in tenant.tail(task_id):
                if response.chunk.data:
                    break
            taken.append((time.perf_counter() - start) * 1000)
            await tenant.wait(task_id)
    p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
    rows = [
        Row("submit → first output byte, p50", p50, "ms", budget=15, note=f"{SAMPLES} tasks, one at a time"),
        Row("submit → first output byte, p99", p99, "ms", budget=50),
    ]
    if bwrap := shutil.which("bwrap"):
        rows.append(_baseline("bubblewrap → echo, p50", [bwrap, "--ro-bind", "/", "/", "--unshare-all", "echo"], p50))
    return rows + _docker(p50)


def _docker(p50: float) -> list[Row]:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        print("bench: no Docker engine answers; `docker run` and `docker exec` are left out")
        return []
    image = os.environ.get("CLAW_BENCH_IMAGE", "debian:stable-slim")
    run = _baseline("docker run → echo, p50", [docker, "run", "--rm", image, "echo"], p50, samples=15)
    name = f"claw-bench-{os.getpid()}"
    subprocess.run(
        [docker, "run", "-d", "--rm", "--name", name, image, "sleep", "600"], check=True, capture_output=True
    )
    try:
        execute = _baseline("docker exec → echo, p50", [docker, "exec", name, "echo"], p50, samples=15)
    finally:
        subprocess.run([docker, "kill", name], check=True, capture_output=True)
    return [run, execute, Row("times faster than docker run", run.value / p50, "×", budget=30, at_least=True)]


def _baseline(what: str, argv: list[str], p50: float, samples: int = 50) -> Row:
    taken = []
    for _ in range(samples):
        start = time.perf_counter()
        with subprocess.Popen([*argv, "hi"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            taken.append((time.perf_counter() - start) * 1000)
    value = percentile(taken, 0.5)
    return Row(what, value, "ms", note=f"{value / p50:.2f} × ours")
