"""A Docker engine for the benchmarks: the one at `DOCKER_HOST`, or one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support import engine

_FRESH = "cloudclaw-bench=fresh"


@dataclass(frozen=True)
class Engine:
    """Attributes:
    url: of its socket.
    image: that slots and fresh containers are made of; the agents' programs are mounted into both.
    """

    url: str
    image: str

    @property
    def run(self) -> tuple[str, ...]:
        """Words of `docker run` up to the image."""
        return ("docker", "--host", self.url, "run", f"--label={_FRESH}", self.image)

    def containers(self, *, fresh: bool) -> int:
        """How many run: those of `run`, or all."""
        only = [f"--filter=label={_FRESH}"] if fresh else []
        words = ["docker", "--host", self.url, "ps", "-q", *only]
        return len(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


@contextlib.contextmanager
def docker() -> Iterator[Engine | None]:
    """An engine; None, and a word about it, where there is none and none can be started."""
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    answers = (
        shutil.which("docker")
        and not subprocess.run(["docker", "--host", url, "info"], capture_output=True, check=False).returncode
    )
    if answers:
        yield Engine(url, os.environ.get("CLAW_BENCH_AGENT_IMAGE", "cloudclaw/slot:latest"))
    elif os.geteuid() == 0 and all(map(shutil.which, ("dockerd", "docker", "mmdebstrap"))):
        with engine.engine() as own:
            yield Engine(own.url, own.image)
    else:
        print("bench: no Docker engine: agents are compared with fresh bubblewraps instead of fresh containers")
        yield None
