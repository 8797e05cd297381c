"""A node's pool-manager and its gateway, which outlives it."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.errors import FencedError
from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway
from tests.integration.pool_manager.cluster import Cluster, Node
from tests.support.gateway import GatewayProcess
from tests.support.processes import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.sandbox]


def obeyed(gateway: GatewayProcess) -> list[int]:
    """Incarnations of the managers that it obeyed, in order."""
    said: list[dict[str, Any]] = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    return [line["incarnation"] for line in said if line["event"] == "obeying"]


async def test_a_manager_whose_directory_was_removed_is_obeyed_and_an_older_one_still_not(cluster: Cluster) -> None:
    gateway = GatewayProcess(cluster.folder, {"local": {"kind": "openai", "url": "http://127.0.0.1:1"}})
    await gateway.start()

    async def start(node: Node, times: int) -> None:
        await node.start()
        await eventually("the gateway obeys it", lambda: len(obeyed(gateway)) == times)

    try:
        node = cluster.node(GATEWAY_SOCKET=str(gateway.socket), STOP_SLOTS_ON_EXIT="true", DRAIN_GRACE="0.1")
        await start(node, 1)
        await node.stop(signal.SIGKILL)
        await start(node, 2)
        assert await node.stop() == 0
        shutil.rmtree(cluster.folder / "node-1")
        await start(node, 3)
        first, second, third = obeyed(gateway)
        assert first < second < third
        # One that was before it is told why it is not obeyed, and what to do when there is no other.
        older = UnixModelGateway(gateway.socket, lambda: second, SystemClock())
        with pytest.raises(FencedError, match="restart the gateway"):
            await anext(older.events())
        assert await node.stop() == 0
    finally:
        await gateway.stop()
