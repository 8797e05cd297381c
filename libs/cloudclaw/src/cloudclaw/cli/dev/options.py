"""What `claw dev` was asked for, and the folder it keeps everything in."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from cloudclaw.errors import InvalidArgumentError, PreconditionError

DEFAULT_ENGINE = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of design §11.

    Attributes:
        directory: everything is below it.
        nodes, slots: pool-managers, and warm slots of each.
        backend: `bubblewrap` or `docker`.
        objects: `filesystem`, `minio`, or the URL of an S3 store of your own.
        base_port: the scheduler's; 0 takes free ports for everything.
        restart: start a child that died again after a second.
        agents: folder of the agents' programs; None for where set-up installs them, or, with `docker`, for those of
            the image.
        no_agents: offer the runtime `command` only.
        warm: runtime of an agent that waits in idle slots; empty for none.
        image: of the slots' containers, with `docker`; empty for the agents' image.
        engine: socket of the Docker engine.
        scripted_model: script of a scripted model, which then answers all calls to models; None for the real endpoints.
    """

    directory: Path
    nodes: int = 1
    slots: int = 2
    backend: str = "bubblewrap"
    objects: str = "filesystem"
    base_port: int = 7401
    restart: bool = True
    agents: Path | None = None
    no_agents: bool = False
    warm: str = ""
    scripted_model: Path | None = None
    image: str = ""
    engine: str = DEFAULT_ENGINE

    def check(self) -> None:
        """Raise `InvalidArgumentError` naming the first option that cannot be."""
        if not 1 <= self.nodes <= 16:
            raise InvalidArgumentError("give 1 to 16 nodes", field="--nodes")
        if not 1 <= self.slots <= 256:
            raise InvalidArgumentError("give 1 to 256 slots", field="--slots")
        if self.backend not in ("bubblewrap", "docker"):
            raise InvalidArgumentError("give bubblewrap or docker", field="--backend")
        if self.base_port and not 1024 <= self.base_port <= 65000:
            raise InvalidArgumentError("give 0, or a port from 1024 to 65000", field="--base-port")
        if self.objects not in ("filesystem", "minio") and not self.objects.startswith("s3://"):
            raise InvalidArgumentError("give filesystem, minio, or an s3:// URL", field="--objects")
        if self.no_agents and self.agents is not None:
            raise InvalidArgumentError("give --agents or --no-agents, not both", field="--no-agents")
        if self.backend != "docker" and self.image:
            raise InvalidArgumentError("only slots of --backend docker have an image", field="--image")
        if self.backend == "docker" and not self.engine.startswith("unix:///"):
            raise InvalidArgumentError("give an engine on this host, as unix:///PATH", field="DOCKER_HOST")
        if self.scripted_model is not None:
            _check_script(self.scripted_model)


def _check_script(file: Path) -> None:
    """Raise `InvalidArgumentError` that says where the script is wrong."""
    try:
        from cloudclaw.testing.scripted_model import ScriptError, load
    except ImportError as error:
        raise PreconditionError(f"the scripted model needs the extra cloudclaw[testing]: {error}") from error
    try:
        load(file)
    except ScriptError as error:
        raise InvalidArgumentError(str(error), field="--scripted-model") from error


class DevDirectory:
    """The folder of one `claw dev`, locked while it runs.

    Raises `PreconditionError` when another `claw dev` has it, `InvalidArgumentError` when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self._lock = self._lay_out()
        except OSError as error:
            raise InvalidArgumentError(
                f"{error.filename or self.path}: {error.strerror}; give a folder of your own",
                field="--data-dir",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise PreconditionError(
                f"another `claw dev` runs in {self.path}; stop it, or give another --data-dir", subject=str(self.path)
            ) from None
        for stale in (self.path / "run").glob("*.pid"):
            stale.unlink()
        (self.path / "ready.json").unlink(missing_ok=True)

    def _lay_out(self) -> int:
        """Make the folders; answers the lock's descriptor."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        for name in ("run", "log", "keys", "etcd", "objects", "nodes", "gateways", "workspace"):
            (self.path / name).mkdir(exist_ok=True, mode=0o700)
        return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def key(self) -> Path:
        """The signing key of development tokens, made at the first start."""
        return self.path / "keys" / "dev.key"

    def secret(self, name: str) -> str:
        """A random secret that stays the same in this folder."""
        path = self.path / "keys" / name
        if not path.exists():
            self.write_private(path, secrets.token_hex(32))
        return path.read_text()

    def write_private(self, path: Path, content: str) -> None:
        """Replace a file whole, readable by its owner only."""
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        temporary.replace(path)

    def write_ready(self, facts: dict[str, object]) -> None:
        """Tell scripts that everything is up, and where."""
        self.write_private(self.path / "ready.json", json.dumps(facts, indent=2) + "\n")

    def close(self) -> None:
        """Unlock the folder."""
        (self.path / "ready.json").unlink(missing_ok=True)
        os.close(self._lock)


class Ports:
    """Which port each part listens on: fixed distances from the base, or free ones."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._held: list[socket.socket] = []

    def address(self, distance: int) -> str:
        """`host:port` of the part at `distance` from the base. Raises `PreconditionError` when the port is taken."""
        if self._base:
            _check_free(self._base + distance)
            return f"127.0.0.1:{self._base + distance}"
        # Held until all are chosen, so that no two parts get the same one.
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        self._held.append(holder)
        return f"127.0.0.1:{holder.getsockname()[1]}"

    def release(self) -> None:
        """All are chosen: let the parts have them."""
        for holder in self._held:
            holder.close()
        self._held.clear()


def _check_free(port: int) -> None:
    """A part that cannot listen would say so only in its log, after some tries."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PreconditionError(
                f"port {port} cannot be had: {error.strerror}; give another --base-port, or 0 for free ones",
                subject=str(port),
            ) from error
