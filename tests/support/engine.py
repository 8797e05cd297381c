"""A Docker engine of the tests' own: its own data, its own socket, stopped afterwards.

Its data stay in the user's cache, so that images are built once. Sessions of tests at the same time have one each.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.require import CACHE, missing, require_root

REPOSITORY = Path(__file__).parents[2]
_UP_WITHIN = 60.0
_DOWN_WITHIN = 60.0
_MOST = 8


@dataclass
class Docker:
    """A running engine.

    Attributes:
        directory: of this run: socket, log.
        data: images and containers.
        url: of its socket.
        image: of slots: a Debian with what a slot needs, and no agents.
    """

    directory: Path
    data: Path
    url: str
    image: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def _state(self) -> Path:
        # Beside the data: the engine of the next session finds the containers of one that was killed.
        return self.data.with_suffix(".run")

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.launch()
        self.until_up()

    def launch(self, *, live_restore: bool = True, runtimes: Mapping[str, Path] | None = None) -> None:
        """Start it, with further OCI runtimes by name. Call it in the main thread: it ends with the thread that started
        it."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # Nobody else would stop it when this session is killed.
                    *("setpriv", "--pdeathsig", "TERM", "dockerd"),
                    *("--data-root", str(self.data), "--exec-root", str(self._state)),
                    *("--pidfile", str(self.directory / "pid"), "--host", self.url, "--storage-driver", "overlay2"),
                    *("--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
                    f"--live-restore={str(live_restore).lower()}",
                    *(f"--add-runtime={name}={path}" for name, path in (runtimes or {}).items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until_up(self) -> None:
        """Return when it answers."""
        assert self.process is not None
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
        pid = self._state / "containerd/containerd.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        # Where nobody reaps it at once, the next dockerd would take a dead process for one that lives.
        for stale in (self.directory / "pid", pid, pid.with_name("containerd.sock")):
            stale.unlink(missing_ok=True)

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

    def build(self, *images: str) -> list[str]:
        """Tags of images of `deploy/images`, built where they are not there yet."""
        built = subprocess.run(
            [REPOSITORY / "deploy/images/build.sh", *images],
            env={**os.environ, "DOCKER_HOST": self.url, "BASE": "mmdebstrap"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return built.stdout.split()

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
    directory = Path(tempfile.mkdtemp(prefix="claw-dockerd-"))
    data, lock = _own_data()
    made = Docker(directory, data, f"unix://{directory}/sock")
    try:
        made.start()
        try:
            for name in made.containers():  # of a session that was killed
                made.cli("rm", "-f", name)
            (made.image,) = made.build("slot")
            yield made
        finally:
            for name in made.containers():
                made.cli("rm", "-f", name, check=False)
            made.stop()
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def _own_data() -> tuple[Path, int]:
    """A folder for an engine's data that no other has now, and the descriptor that holds it."""
    (CACHE / "docker").mkdir(parents=True, exist_ok=True)
    for number in range(_MOST):
        data = CACHE / "docker" / f"data-{number}"
        lock = os.open(data.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return data, lock
    raise AssertionError(f"{_MOST} engines of tests run already")
