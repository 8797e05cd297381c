"""A whole CloudClaw whose services run in the containers of their images, one node of one slot, a scripted model."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from cloudclaw.cli.dev.children import ChildSpec
from cloudclaw.cli.dev.components import Components
from cloudclaw.cli.dev.options import DevDirectory, DevOptions
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.keys import write_development_key
from tests.support.agents import AgentStack
from tests.support.engine import Docker

SERVICE_UID = 65_532
"""Of the services' images, but for the pool-manager's."""

HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""Flags under which every service but the pool-manager runs."""

_SETTINGS: Final = {
    "pool-manager": [f"CLAW_POOL_MANAGER_GATEWAY_UID={SERVICE_UID}", "CLAW_POOL_MANAGER_LEASE_TTL=120"],
    # Containers of a busy machine may take longer than a node may be silent.
    "scheduler": ["CLAW_SCHEDULER_GRACE=60"],
}
"""Settings beside those of `claw dev`."""


class ImageStack(AgentStack):
    """What `claw dev` would start, with `docker run` in place of its services. Stores and model are processes of this
    host. Use as an async context manager.

    Args:
        images: by service, and under `agent` the slots'.
    """

    def __init__(self, directory: Path, script: Path, docker: Docker, images: Mapping[str, str]):
        super().__init__(directory, script)
        self._docker = docker
        self._images = images
        self._options = DevOptions(
            directory=self.directory,
            slots=1,
            backend="docker",
            objects="minio",
            base_port=0,
            scripted_model=script,
            image=images["agent"],
            engine=docker.url,
        )
        self._folder: DevDirectory | None = None
        self._started: list[str] = []
        self._shared = False
        self._stores: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def start(self) -> None:
        """Start everything, and return when the services take calls."""
        self._folder = DevDirectory(self.directory)
        write_development_key(self._folder.key)
        components = Components(self._options, self._folder)
        facts = components.facts()
        self.endpoints = components.endpoints
        self.token, self.operator_token = str(facts["token"]), str(facts["operator_token"])
        for spec in components.stores():
            self._store(spec)
        # The services' own user reads the keys and writes its folder and the gateway's socket, and nothing else.
        self.directory.chmod(0o711)
        for name in ("keys", "workspace", "gateways"):
            own(self.directory / name, SERVICE_UID)
        # What the manager mounts for slots must arrive on the host, where the engine takes it from.
        await asyncio.to_thread(self._share, self.directory / "nodes")
        self._shared = True
        for spec in components.services():
            await asyncio.to_thread(self._service, spec)
        for spec in components.services():
            if spec.name in self.endpoints:
                await self._serves(spec.name.partition("@")[0], self.endpoints[spec.name])

    async def stop(self) -> None:
        """Stop everything, the services in order, and fail when one did not end well."""
        ends = [await asyncio.to_thread(self._end, name) for name in reversed(self._started)]
        for process in self._stores:
            process.terminate()
        for process in self._stores:
            await asyncio.to_thread(process.wait, 20)
        if self._shared:
            await asyncio.to_thread(self._unshare, self.directory / "nodes")
        if self._folder is not None:
            self._folder.close()
        problems = [end for end in ends if end]
        assert not problems, problems

    async def killed_and_started_again(self, service: str) -> None:
        """SIGKILL, and a new process in the same container; returns when it takes calls."""
        await asyncio.to_thread(self._docker.cli, "kill", f"claw-{service}")
        await asyncio.to_thread(self._docker.cli, "start", f"claw-{service}")
        (address,) = (at for name, at in self.endpoints.items() if name.partition("@")[0] == service)
        await self._serves(service, address)

    def log_of(self, service: str) -> str:
        """What a service wrote so far."""
        done = self._docker.cli("logs", f"claw-{service}")
        return done.stdout + done.stderr

    async def _serves(self, service: str, address: str) -> None:
        """Wait until it takes calls; fail with what it said when it does not."""
        channel = open_channel(address, None, self.token)
        try:
            async with asyncio.timeout(60.0):
                await channel.channel_ready()
        except TimeoutError:
            raise AssertionError(f"{service} does not serve: {self.log_of(service)[-3000:]}") from None
        finally:
            await channel.close()

    def _share(self, directory: Path) -> None:
        subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
        subprocess.run(["mount", "--make-shared", str(directory)], check=True)

    def _unshare(self, directory: Path) -> None:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)

    def _store(self, spec: ChildSpec) -> None:
        with (self.directory / "log" / f"{spec.name}.log").open("ab") as log:
            self._stores.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *spec.argv],
                    env=dict(spec.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _service(self, spec: ChildSpec) -> None:
        name = spec.name.partition("@")[0]
        flags = self._manager_flags() if name == "pool-manager" else self._flags()
        settings = [f"{key}={value}" for key, value in spec.environment.items() if key.startswith("CLAW_")]
        settings += _SETTINGS.get(name, ())
        done = self._docker.cli(
            *("run", "--detach", "--name", f"claw-{name}", "--network", "host", *flags),
            *(word for setting in settings for word in ("--env", setting)),
            self._images[name],
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self._started.append(name)

    def _flags(self) -> Sequence[str]:
        folders = [str(self.directory / name) for name in ("keys", "workspace", "gateways")]
        return [*HARDENED, *(word for folder in folders for word in ("--volume", f"{folder}:{folder}"))]

    def _manager_flags(self) -> Sequence[str]:
        """As `deploy/README.md` has them."""
        nodes, engine = self.directory / "nodes", self._docker.url.removeprefix("unix://")
        return [
            *("--pid", "host", "--cgroupns", "host", "--cap-add", "SYS_ADMIN"),
            *("--security-opt", "apparmor=unconfined"),
            *("--volume", f"{nodes}:{nodes}:rshared", "--volume", f"{engine}:{engine}"),
            *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
            *("--volume", f"{self.directory / 'keys'}:{self.directory / 'keys'}:ro"),
            *("--volume", f"{self.directory / 'gateways'}:{self.directory / 'gateways'}"),
        ]

    def _end(self, name: str) -> str:
        """Stop a service as `docker stop` does; what is wrong with how it ended, empty when nothing is."""
        self._docker.cli("stop", "--time", "60", f"claw-{name}")
        code = self._docker.cli("inspect", "--format", "{{.State.ExitCode}}", f"claw-{name}").stdout.strip()
        log = self.log_of(name)
        (self.directory / "log" / f"{name}.log").write_text(log)
        self._docker.cli("rm", f"claw-{name}")
        return "" if code == "0" else f"{name} ended with code {code}: {log[-2000:]}"


def own(directory: Path, uid: int) -> None:
    """Give a folder and what is in it to a user."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, uid, uid)


def agents_image(docker: Docker, prefix: Path) -> str:
    """The agents' image with Claude Code alone: all of them are 2 GB, and get there in the same way."""
    hash_of_pins = prefix.resolve().name
    files, image = f"claw-test-agents:{hash_of_pins}", f"claw-test-agent:{hash_of_pins}"
    if docker.cli("image", "inspect", files, check=False).returncode:
        parts = ["./bin", "./lib/node_modules/@anthropic-ai"]
        packing = subprocess.Popen(
            [
                *("tar", "-C", str(prefix), "--owner=0", "--group=0"),
                *("--transform", "s,^\\.,usr/local/lib/cloudclaw/agents,S", "-c", *parts),
            ],
            stdout=subprocess.PIPE,
        )
        subprocess.run(
            [shutil.which("docker") or "docker", "--host", docker.url, "import", "-", files],
            stdin=packing.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        assert packing.stdout is not None
        packing.stdout.close()
        assert packing.wait() == 0
    docker.cli(
        *("build", "--tag", image, "--build-arg", f"BASE={docker.image}", "--build-arg", f"AGENTS={files}"),
        str(Path(__file__).parents[2] / "deploy/images/agent"),
    )
    return image
