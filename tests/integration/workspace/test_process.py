"""`python -m cloudclaw_workspace` as operators run it: real etcd, real process, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloudclaw.coordination import keys
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.rpc.auth import Minter
from cloudclaw.rpc.channel import open_channel
from cloudclaw.rpc.keys import write_development_key
from cloudclaw.v1 import workspace_pb2 as pb
from cloudclaw_workspace.server.servicer import SERVICE
from tests.support.etcd_server import EtcdServer
from tests.support.workspace_service import User

pytestmark = pytest.mark.etcd

WITHIN = 30.0
_Health = health_pb2.HealthCheckResponse


class Service:
    """One process of the service, and a client of it."""

    def __init__(self, folder: Path, etcd: EtcdServer) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "CLAW_WORKSPACE_DATA_DIR": str(folder / "data"),
            "CLAW_WORKSPACE_ETCD__ENDPOINTS": etcd.endpoint,
            "CLAW_WORKSPACE_OBJECTS__URL": f"file://{folder / 'objects'}",
            "CLAW_WORKSPACE_AUTH__KEYS": str(folder / "dev.key"),
            "CLAW_WORKSPACE_SERVER__LISTEN": "127.0.0.1:0",
            "CLAW_WORKSPACE_WRITER_TTL": "5",
            "CLAW_WORKSPACE_HEALTH_INTERVAL": "0.1",
        }
        folder.mkdir(exist_ok=True)
        if not (folder / "dev.key").exists():
            write_development_key(folder / "dev.key")
        self.lines: list[dict[str, object]] = []
        self.process: asyncio.subprocess.Process
        self.address = ""

    async def start(self) -> None:
        await self.launch()
        self.address = str((await self.line("serving"))["address"])
        await self.health(_Health.SERVING)

    async def launch(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cloudclaw_workspace", env=self.environment, stdout=asyncio.subprocess.PIPE
        )

    async def line(self, event: str) -> dict[str, object]:
        """The next line of the log that says `event`."""
        assert self.process.stdout is not None
        while data := await self.process.stdout.readline():
            line: dict[str, object] = json.loads(data)
            self.lines.append(line)
            if line["event"] == event:
                return line
        pytest.fail(f"the service ended without {event!r}: {self.lines[-5:]}")

    async def health(self, wanted: int) -> None:
        """Wait until the service's health is `wanted`."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            async for answer in watch:
                if answer.status == wanted:
                    break
            watch.cancel()

    @contextlib.asynccontextmanager
    async def user(self, tenant: str = "acme") -> AsyncIterator[User]:
        token = Minter(self.folder / "dev.key").mint(tenant, ["user"], 600)
        async with open_channel(self.address, None, token) as channel:
            yield User(channel)

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal, and answer the exit code."""
        self.process.send_signal(number)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def service(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path, etcd)
    async with asyncio.timeout(WITHIN):
        await service.start()
    yield service
    if service.process.returncode is None:
        await service.stop(signal.SIGKILL)


async def test_the_process_serves_reflects_and_stops_in_order(service: Service) -> None:
    async with asyncio.timeout(WITHIN):
        async with service.user() as user:
            await user.create("life")
            await user.write("life", {"a": b"1"})
            assert await user.contents("life") == {"a": b"1"}
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = stub.ServerReflectionInfo(iter([request]))
            listed = {s.name async for answer in answers for s in answer.list_services_response.service}
        assert SERVICE in listed
        assert await service.stop(signal.SIGTERM) == 0


async def test_what_was_committed_survives_kill_9(service: Service) -> None:
    async with asyncio.timeout(WITHIN):
        async with service.user() as user:
            await user.create("kept")
            await user.write("kept", {"a": b"1"})
        await service.stop(signal.SIGKILL)
        await service.start()
        async with service.user() as user:
            assert await user.contents("kept") == {"a": b"1"}
            await user.write("kept", {"b": b"2"})


async def test_kill_9_within_a_write_leaves_nothing_and_frees_the_workspace(service: Service, etcd: EtcdServer) -> None:
    kv = etcd.open()
    trees = service.folder / "data" / "trees"
    async with asyncio.timeout(WITHIN), service.user() as user:
        await user.create("hit")
        start = (await kv.range(keys.WRITERS)).revision
        watch = kv.watch(keys.WRITERS, start)
        call = user.stub.WriteFiles()
        await call.write(pb.WriteFilesRequest(header=pb.WriteHeader(workspace="hit")))
        await call.write(pb.WriteFilesRequest(file=pb.FileHeader(path="half")))
        await call.write(pb.WriteFilesRequest(data=b"x" * 100_000))
        while not (await anext(watch)).events:
            pass
        await service.stop(signal.SIGKILL)
        call.cancel()
        # The lease runs out: the key goes without anybody's help.
        while not [event for event in (await anext(watch)).events if event.op.value == "delete"]:
            pass
        await service.start()
        assert not list((trees / "live").iterdir())
        while list((trees / "trash").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # emptied by another process, which tells nobody
    async with asyncio.timeout(WITHIN), service.user() as user:
        assert (await user.get("hit")).generation == 0
        await user.write("hit", {"whole": b"1"})
        assert await user.contents("hit") == {"whole": b"1"}
    await kv.close()


async def test_health_follows_etcd(tmp_path: Path) -> None:
    async with EtcdServer() as etcd, asyncio.timeout(60):
        service = Service(tmp_path, etcd)
        await service.start()
        try:
            etcd.kill()
            await service.health(_Health.NOT_SERVING)
            await asyncio.to_thread(etcd.start)
            await service.health(_Health.SERVING)
            async with service.user() as user:
                await user.create("after")
        finally:
            await service.stop(signal.SIGKILL)


async def test_a_second_process_on_the_same_directory_is_refused(service: Service, etcd: EtcdServer) -> None:
    second = Service(service.folder, etcd)
    async with asyncio.timeout(WITHIN):
        await second.launch()
        refused = await second.line("failed")
        assert refused["reason"] == "DATA_DIR_LOCKED"
        await second.process.communicate()
        assert second.process.returncode == 1


async def test_an_unknown_setting_is_refused(tmp_path: Path, etcd: EtcdServer) -> None:
    service = Service(tmp_path, etcd)
    service.environment["CLAW_WORKSPACE_DATADIR"] = "/x"
    async with asyncio.timeout(WITHIN):
        await service.launch()
        await service.process.communicate()
    assert service.process.returncode == 2


async def test_metrics_count_snapshots(tmp_path: Path, etcd: EtcdServer) -> None:
    service = Service(tmp_path, etcd)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service.environment["CLAW_WORKSPACE_METRICS__LISTEN"] = f"127.0.0.1:{port}"
    async with asyncio.timeout(WITHIN):
        await service.start()
        try:
            async with service.user() as user:
                await user.create("counted")
                await user.write("counted", {"a": b"12345"})
                await user.read("counted", "a")
            url = f"http://127.0.0.1:{port}/metrics"
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        finally:
            await service.stop(signal.SIGTERM)
    assert "cloudclaw_workspace_snapshots_total 1.0" in text
    assert "cloudclaw_workspace_snapshot_bytes_total 5.0" in text
    assert "cloudclaw_workspace_read_bytes_total 5.0" in text
    assert 'cloudclaw_workspace_tree_seconds_count{operation="checkout"} 1.0' in text
    assert "cloudclaw_workspace_cached_trees 1.0" in text


async def test_one_replica_collects_and_the_other_takes_over(tmp_path: Path) -> None:
    # An etcd of its own: no candidate of another test is still on its way out.
    objects = FilesystemObjects(tmp_path / "objects")
    async with EtcdServer() as etcd, asyncio.timeout(60):
        services = []
        for name in ("one", "two"):
            service = Service(tmp_path / name, etcd)
            service.environment |= {
                "CLAW_WORKSPACE_OBJECTS__URL": f"file://{tmp_path / 'objects'}",
                "CLAW_WORKSPACE_GC__INTERVAL": "0.1",
                "CLAW_WORKSPACE_GC__GRACE": "0",
                "CLAW_WORKSPACE_GC__ELECTION_TTL": "5",
            }
            services.append(service)
        await services[0].start()
        await objects.put("tenants/nobody/packs/op-dead/up-0", b"1")
        while (await services[0].line("garbage collected"))["removed"] != 1:
            pass
        await services[1].start()
        await services[0].stop(signal.SIGKILL)
        await objects.put("tenants/nobody/packs/op-dead/up-1", b"1")
        await services[1].line("leading")
        while (await services[1].line("garbage collected"))["removed"] != 1:
            pass
        assert [info.name async for info in objects.list("tenants/nobody/")] == []
        assert await services[1].stop(signal.SIGTERM) == 0
    await objects.close()
