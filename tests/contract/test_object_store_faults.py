"""What the `ObjectStore` port promises when something breaks: outages, damage, lost answers, full disks."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from minio import Minio

from cloudclaw.errors import DataLossError, UnavailableError
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint
from tests.support.minio_server import MinioServer
from tests.support.stores import consume, is_unavailable, listed, pieces
from tests.support.tampering_proxy import TamperingProxy

MIB = 1024 * 1024


def s3(server: MinioServer, endpoint: str | None = None, read_timeout: float = 20.0) -> S3Objects:
    where = S3Endpoint(
        "faults",
        endpoint or server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        tls=False,
    )
    return S3Objects(where, threads=8, read_timeout=read_timeout)


@pytest.fixture
async def minio(tmp_path: Path) -> AsyncIterator[MinioServer]:
    async with MinioServer(tmp_path / "minio") as server:
        yield server


@pytest.mark.minio
async def test_a_killed_server_is_unavailable_and_serves_again_after_its_restart(minio: MinioServer) -> None:
    store = s3(minio)
    await store.put("kept", b"before")
    await asyncio.to_thread(minio.kill)
    await is_unavailable(store, 5.0)
    await asyncio.to_thread(minio.start)
    assert await store.get("kept") == b"before"
    await store.check()
    assert await store.put_stream("new", pieces(bytes(9 * MIB))) == 9 * MIB
    assert await listed(store) == ["kept", "new"]
    await store.close()


@pytest.mark.minio
async def test_a_server_that_is_cut_off_is_unavailable(minio: MinioServer) -> None:
    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address, read_timeout=0.5)
        await store.put("kept", b"before")
        await store.put("untouched", b"before")  # the delete of `kept`, given up meanwhile, may still arrive
        proxy.flowing.clear()
        await is_unavailable(store, 5.0)
        proxy.flowing.set()
        assert await store.get("untouched") == b"before"
        await store.close()


@pytest.mark.minio
async def test_a_first_call_without_a_server_is_unavailable(minio: MinioServer) -> None:
    await asyncio.to_thread(minio.kill)
    store = s3(minio)
    await is_unavailable(store, 5.0)
    await asyncio.to_thread(minio.start)
    assert await store.put("a", b"x") is True
    await store.close()


@pytest.mark.minio
async def test_wrong_keys_are_unavailable_and_say_so(minio: MinioServer) -> None:
    where = S3Endpoint("faults", minio.endpoint, access_key="tests", secret_key="wrong-secret", tls=False)
    store = S3Objects(where)
    with pytest.raises(UnavailableError, match="secret key") as caught:
        await store.put("a", b"x")
    assert caught.value.reason == "OBJECT_STORE_DENIED"
    await store.close()


@pytest.mark.minio
@pytest.mark.parametrize("size", [100_000, 20 * MIB], ids=["put", "multi-part"])
async def test_bytes_altered_on_the_way_are_found(minio: MinioServer, size: int) -> None:
    def flip(done: int, piece: bytes) -> bytes:
        return bytes([piece[0] ^ 1]) + piece[1:] if done == 0 else piece

    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address)
        assert await store.put_stream("big", pieces(bytes(size))) == size
        assert await store.get("big") == bytes(size)
        proxy.tamper = flip
        with pytest.raises(DataLossError, match="big"):
            await store.get("big")
        got = 0
        with pytest.raises(DataLossError, match="big"):
            async for chunk in store.stream("big"):
                got += len(chunk)
        assert got < size, "the last chunk must wait for the checksum"
        await store.close()


@pytest.mark.minio
async def test_an_object_that_does_not_match_its_checksum_is_found(minio: MinioServer) -> None:
    store = s3(minio)
    await store.put("good", b"right")
    sdk = Minio(minio.endpoint, access_key=minio.access_key, secret_key=minio.secret_key, secure=False)
    digest = (await asyncio.to_thread(sdk.stat_object, "faults", "good")).metadata
    assert digest is not None
    await asyncio.to_thread(
        lambda: sdk.put_object(
            "faults", "bad", io.BytesIO(b"wrong"), 5, metadata={"claw-sha256": digest["x-amz-meta-claw-sha256"]}
        )
    )
    with pytest.raises(DataLossError, match="bad"):
        await store.get("bad")
    with pytest.raises(DataLossError, match="bad"):
        await consume(store, "bad")
    await store.close()


@pytest.mark.minio
async def test_a_body_that_always_ends_early_is_truncated(minio: MinioServer) -> None:
    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address)
        await store.put("big", bytes(MIB))
        proxy.tamper = lambda done, piece: None if done else piece[:1000]
        with pytest.raises(DataLossError, match="truncated"):
            await store.get("big")
        with pytest.raises(DataLossError, match="truncated"):
            await store.get("big", offset=10, length=500_000)
        with pytest.raises(DataLossError, match="truncated"):
            await consume(store, "big")
        await store.close()


@pytest.mark.minio
async def test_a_body_that_breaks_once_is_resumed(minio: MinioServer) -> None:
    data = bytes(range(256)) * 8192
    breaks = 0

    def break_once(done: int, piece: bytes) -> bytes | None:
        nonlocal breaks
        if done > 300_000 and breaks == 0:
            breaks += 1
            return None
        return piece

    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address)
        await store.put("big", data)
        proxy.tamper = break_once
        assert await store.get("big") == data
        assert breaks == 1
        breaks = 0
        assert await store.get("big", offset=5, length=1_000_000) == data[5:1_000_005]
        assert breaks == 1
        await store.close()


@pytest.mark.minio
async def test_a_conditional_put_whose_answer_was_lost_still_says_who_won(minio: MinioServer) -> None:
    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address)
        await store.check()
        proxy.drop_answers = 1
        assert await store.put("a", b"mine", if_absent=True) is True
        assert proxy.drop_answers == 0
        assert await store.put("a", b"mine", if_absent=True) is False
        await store.close()


@pytest.mark.minio
async def test_an_upload_whose_completion_was_answered_into_the_void_is_whole(minio: MinioServer) -> None:
    async with TamperingProxy(minio.endpoint) as proxy:
        store = s3(minio, proxy.address)

        async def source() -> AsyncIterator[bytes]:
            yield bytes(8 * MIB)  # one full part; no more bytes follow, so completion comes next
            proxy.drop_answers = 1

        assert await store.put_stream("big", source()) == 8 * MIB
        assert proxy.drop_answers == 0
        assert await store.get("big") == bytes(8 * MIB)
        await store.close()


@pytest.mark.minio
async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    self_signed(certs)
    async with MinioServer(tmp_path / "minio", certs=certs) as server:

        def where(ca_file: Path | None) -> S3Endpoint:
            return S3Endpoint(
                "faults",
                server.endpoint,
                access_key=server.access_key,
                secret_key=server.secret_key,
                ca_file=ca_file,
            )

        store = S3Objects(where(certs / "public.crt"))
        await store.put("a", b"secret")
        assert await store.put_stream("b", pieces(bytes(9 * MIB))) == 9 * MIB
        assert await store.get("a") == b"secret"
        assert len(await store.get("b")) == 9 * MIB
        await store.close()
        distrustful = S3Objects(where(None))
        with pytest.raises(UnavailableError, match=r"(?i)certificate"):
            await distrustful.get("a")
        await distrustful.close()


def self_signed(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "public.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "private.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


async def test_what_is_said_of_a_store_out_of_reach_names_the_cause_and_not_the_server() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for address, cause in ((f"127.0.0.1:{port}", "closed connection"), ("127.0.0.1:1", "refused")):
            store = S3Objects(S3Endpoint("faults", address, access_key="tests", secret_key="tests-tests", tls=False))
            with pytest.raises(UnavailableError, match=f"^object store unreachable .*{cause}") as caught:
                await store.get("a")
            assert "127.0.0.1" not in caught.value.message
            await store.close()
