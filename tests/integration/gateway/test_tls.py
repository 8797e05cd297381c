"""Upstreams are asked over verified TLS, or not at all."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.integration.rpc.test_tls import Authority
from tests.support.gateway import GatewayRig, PlayedUpstream


@pytest.mark.parametrize("believed", [True, False])
async def test_a_certificate_that_is_not_believed_ends_it_before_the_key_is_sent(
    tmp_path: Path, believed: bool
) -> None:
    theirs, other = Authority(tmp_path, "theirs"), Authority(tmp_path, "other")
    identity = theirs.issue("models.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity.cert, identity.key)
    upstream = PlayedUpstream()
    await upstream.start(context)
    rig = GatewayRig(tmp_path, CA=str((theirs if believed else other).ca))
    await rig.start(url=upstream.url)
    try:
        sandbox = await rig.sandbox()
        async with sandbox.session() as session, session.post("/anthropic/v1/messages", json={}) as response:
            if believed:
                assert response.status == 200
            else:
                assert response.status == 502
                assert "certificate" in (await response.json())["error"]["message"]
        assert len(upstream.requests) == (1 if believed else 0)
        assert (await rig.manager.detach("u")).requests == (1 if believed else 0)
    finally:
        await rig.close()
        await upstream.stop()
