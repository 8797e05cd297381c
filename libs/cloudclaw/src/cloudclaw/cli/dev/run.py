"""The life of one `claw dev`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudclaw.cli.dev.children import Child, ChildGaveUpError, ChildSpec, say
from cloudclaw.cli.dev.components import Components
from cloudclaw.cli.dev.options import DevDirectory, DevOptions
from cloudclaw.errors import CloudClawError, PreconditionError
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.keys import write_development_key
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc

READY_SECONDS = 90.0
CLEAN_SECONDS = 20.0
_POLL = 0.05

SERVICES = {
    "scheduler": "cloudclaw.v1.SchedulerService",
    "workspace": "cloudclaw.v1.WorkspaceService",
    "pool-manager": "cloudclaw.v1.PoolManagerService",
}


async def run_dev(options: DevOptions) -> int:
    """Start everything, print `ready`, and keep it running until SIGINT or SIGTERM. Answers the exit code.

    Raises `InvalidArgumentError` and `PreconditionError` before anything is started.
    """
    options.check()
    directory = DevDirectory(options.directory)
    try:
        if not directory.key.exists():
            write_development_key(directory.key)
        return await _Dev(options, directory, Components(options, directory)).run()
    finally:
        directory.close()


class _Dev:
    def __init__(self, options: DevOptions, directory: DevDirectory, components: Components) -> None:
        self._options = options
        self._directory = directory
        self._components = components
        self._children: list[Child] = []
        self._lives: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        stopped = asyncio.create_task(stop.wait())
        try:
            if not await self._until(stopped, asyncio.create_task(self._start())):
                return 130
            await self._until(stopped, None)
            return 0
        except ChildGaveUpError as error:
            say(str(error))
            return 5
        finally:
            stopped.cancel()
            await self._stop()

    async def _until(self, stopped: asyncio.Task[bool], work: asyncio.Task[None] | None) -> bool:
        """True when `work` is done, False when dev was told to stop. A child that gave up raises."""
        while True:
            waiting: set[asyncio.Task[None] | asyncio.Task[bool]] = {stopped, *self._lives}
            if work is not None:
                waiting.add(work)
            # The short timeout notices children that `work` has started since.
            done, _ = await asyncio.wait(waiting, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            for life in [life for life in self._lives if life in done]:
                self._lives.remove(life)
                if life.exception() is not None and work is not None:
                    work.cancel()
                life.result()
            if stopped in done:
                if work is not None:
                    work.cancel()
                return False
            if work is not None and work in done:
                work.result()
                return True

    async def _start(self) -> None:
        async with asyncio.timeout(READY_SECONDS):
            for spec in self._components.stores():
                child = self._launch(spec)
                await self._listening(spec.name)
                child.ready.set()
            started = [self._launch(spec) for spec in self._components.services()]
            for child in started:
                await self._serving(child.spec.name)
                child.ready.set()
            facts = self._components.facts()
            await self._joined(str(facts["operator_token"]))
        self._directory.write_ready(facts)
        if self._options.scripted_model is not None:
            say("a SCRIPTED model answers all calls to models: test support, no model")
        listed = " ".join(f"{name}={address}" for name, address in self._components.endpoints.items())
        sys.stdout.write(f"ready {listed}\n")
        sys.stdout.flush()

    def _launch(self, spec: ChildSpec) -> Child:
        child = Child(spec, self._directory.path, restart=self._options.restart)
        self._children.append(child)
        self._lives.append(asyncio.create_task(child.run(), name=spec.name))
        return child

    async def _listening(self, name: str) -> None:
        """Wait until a store's port is open; the services wait for the rest by themselves."""
        host, _, port = self._components.endpoints[name].rpartition(":")
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(_POLL)

    async def _serving(self, name: str) -> None:
        """Wait until the service's health says SERVING; a gateway has none, and serves once it listens."""
        kind, _, node = name.partition("@")
        if kind == "gateway":
            await self._connected(self._components.gateway_socket(node))
            return
        request = health_pb2.HealthCheckRequest(service=SERVICES[kind])
        async with grpc.aio.insecure_channel(self._components.endpoints[name]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(request, timeout=1.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(_POLL)

    async def _connected(self, path: Path) -> None:
        """Wait until somebody listens on the Unix socket, reached by descriptor: its path may be too long for one."""
        while True:
            with contextlib.suppress(OSError):
                directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
                finally:
                    os.close(directory)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(_POLL)

    async def _joined(self, token: str) -> None:
        """Wait until the leader sees every node, with its slots idle."""
        channel = open_channel(self._components.endpoints["scheduler"], None, token)
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        try:
            while True:
                with contextlib.suppress(CloudClawError):
                    status = await stub.GetClusterStatus(scheduler_pb2.GetClusterStatusRequest(), timeout=2.0)
                    if _complete(status.nodes, self._options):
                        return
                await asyncio.sleep(_POLL)
        finally:
            await channel.close()

    async def _stop(self) -> None:
        """Pool-managers first (they end what runs), then the services, then the stores."""
        await asyncio.gather(*(self._clean_after(child) for child in self._children))
        order = ("pool-manager", "gateway", "workspace", "scheduler", "scripted-model", "objects", "etcd")
        for kind in order:
            group = [child for child in self._children if child.spec.name.partition("@")[0] == kind]
            await asyncio.gather(*(child.stop() for child in group))
        for life in self._lives:
            with contextlib.suppress(ChildGaveUpError):
                await life

    async def _clean_after(self, child: Child) -> None:
        """A pool-manager that is dead left slots, mounts and cgroups: it is started once more, to take them down."""
        if not child.spec.name.startswith("pool-manager@") or not child.left_dead:
            return
        say(f"{child.spec.name} is dead; starting it again to take its slots down")
        self._lives.append(asyncio.create_task(child.run(), name=child.spec.name))
        try:
            async with asyncio.timeout(CLEAN_SECONDS):
                await self._serving(child.spec.name)
        except TimeoutError:
            say(f"{child.spec.name} did not come up; what its slots left is in {self._directory.path / 'nodes'}")


def _complete(nodes: Sequence[scheduler_pb2.NodeStatus], options: DevOptions) -> bool:
    # A node with attempts left over from before has fewer idle slots, and is complete all the same.
    connected = [n for n in nodes if n.connected and sum(p.idle for p in n.pools) + n.attempts >= options.slots]
    return len(connected) >= options.nodes


def main(options: DevOptions) -> int:
    """Run it; a refusal is one line on standard error."""
    try:
        return asyncio.run(run_dev(options))
    except TimeoutError:
        say(f"not ready within {READY_SECONDS:g} s; see {options.directory / 'log'}")
        return 5
    except PreconditionError as error:
        say(error.message)
        return 6
