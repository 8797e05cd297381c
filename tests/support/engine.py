"""A Docker engine of the tests' own: its own data, its own socket, stopped afterwards.

Its data stay in the user's cache, so that images are built once. One session of tests has it at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.require import CACHE, missing, require_root

REPOSITORY = Path(__file__).parents[2]
_UP_WITHIN = 60.0
_DOWN_WITHIN = 60.0


@dataclass
class Docker:
    """A running engine.

    Attributes:
        url: of its socket.
        image: of slots: a Debian with what a slot needs, and no agents.
    """

    directory: Path
    url: str
    image: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, *, live_restore: bool = True) -> None:
        """Start it, and return when it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # Nobody else would stop it when this session is killed.
                    *("setpriv", "--pdeathsig", "TERM", "dockerd"),
                    *("--data-root", str(CACHE / "docker" / "data"), "--exec-root", str(self.directory / "exec")),
                    *("--pidfile", str(self.directory / "pid"), "--host", self.url, "--storage-driver", "overlay2"),
                    *("--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
                    f"--live-restore={str(live_restore).lower()}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _UP_WITHIN
        while self.cli("version", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"dockerd did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL it, and what it started itself; containers have a parent of their own and go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(_DOWN_WITHIN)
        pid = self.directory / "exec/containerd/containerd.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        (self.directory / "pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it in order; without live-restore its containers go with it."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(_DOWN_WITHIN)

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker` on it."""
        return subprocess.run(
            ["docker", *words],
            env={**os.environ, "DOCKER_HOST": self.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        )

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        return self.cli("ps", "-a", "--format", "{{.Names}}").stdout.split()


def require_docker() -> None:
    """Skip unless an engine can be started here."""
    require_root()
    for name in ("dockerd", "docker", "mmdebstrap"):
        if shutil.which(name) is None:
            missing(name, "run `make setup`, which installs Debian's docker.io and mmdebstrap")


@contextlib.contextmanager
def engine() -> Iterator[Docker]:
    """A running engine with the slots' image."""
    require_docker()
    (CACHE / "docker").mkdir(parents=True, exist_ok=True)
    lock = os.open(CACHE / "docker" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    directory = Path(tempfile.mkdtemp(prefix="claw-dockerd-"))
    made = Docker(directory, f"unix://{directory}/sock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.start()
        try:
            for name in made.containers():  # of a session that was killed
                made.cli("rm", "-f", name)
            built = subprocess.run(
                [REPOSITORY / "deploy/images/build.sh", "slot"],
                env={**os.environ, "DOCKER_HOST": made.url, "BASE": "mmdebstrap"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            made.image = built.stdout.split()[-1]
            yield made
        finally:
            for name in made.containers():
                made.cli("rm", "-f", name, check=False)
            made.stop()
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)
