"""What the `ObjectStore` port promises when something breaks: outages, damage, lost answers, full disks."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import io
import ipaddress
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from minio import Minio

from cloudclaw.errors import DataLossError, QuotaExceededError, UnavailableError
from cloudclaw.objects import blockfile
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint
from tests.support.minio_server import MinioServer
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


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def consume(store: ObjectStore, name: str) -> bytes:
    return b"".join([chunk async for chunk in store.stream(name)])


async def listed(store: ObjectStore) -> list[str]:
    return [info.name async for info in store.list("")]


def every_call(store: ObjectStore) -> list[Callable[[], Coroutine[object, object, object]]]:
    return [
        lambda: store.put("new", b"x"),
        lambda: store.put("new", b"x", if_absent=True),
        lambda: store.put_stream("new", pieces(b"x")),
        lambda: store.put_stream("new", pieces(bytes(9 * MIB))),
        lambda: store.get("kept"),
        lambda: store.get("kept", offset=1, length=1),
        lambda: consume(store, "kept"),
        lambda: store.head("kept"),
        lambda: listed(store),
        lambda: store.delete("kept"),
        store.check,
    ]


async def is_unavailable(store: ObjectStore, seconds: float) -> None:
    """Every call says so, each within `seconds`."""
    for call in every_call(store):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(call(), seconds)


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
        proxy.flowing.clear()
        await is_unavailable(store, 5.0)
        proxy.flowing.set()
        assert await store.get("kept") == b"before"
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


async def test_a_directory_that_vanished_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path / "root")
    await store.put("kept", b"before")
    shutil.move(tmp_path / "root", tmp_path / "away")
    await is_unavailable(store, 5.0)
    assert not (tmp_path / "root").exists(), "an unmounted disk's place must stay empty"
    shutil.move(tmp_path / "away", tmp_path / "root")
    assert await store.get("kept") == b"before"
    await store.put("new", b"x")
    await store.close()


async def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError):
        FilesystemObjects(tmp_path / "file" / "root")


async def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


SIZE = 3 * 65_536 + 1000
FILE_SIZE = SIZE + 4 * 4 + 20


@pytest.mark.parametrize("position", [0, 65_536, SIZE - 1, SIZE, SIZE + 15, SIZE + 16, SIZE + 24, FILE_SIZE - 1])
async def test_a_flipped_bit_in_a_file_is_found(tmp_path: Path, position: int) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a/b", bytes(SIZE))
    path = tmp_path / "objects" / "a" / "b@"
    assert path.stat().st_size == FILE_SIZE
    await damage(path, position)
    with pytest.raises(DataLossError, match="a/b"):
        await store.get("a/b")
    with pytest.raises(DataLossError, match="a/b"):
        await consume(store, "a/b")
    await store.close()


async def test_a_range_is_judged_by_its_own_blocks(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a", bytes(SIZE))
    await damage(tmp_path / "objects" / "a@", 70_000)
    assert await store.get("a", offset=0, length=65_536) == bytes(65_536)
    assert await store.get("a", offset=131_072) == bytes(SIZE - 131_072)
    with pytest.raises(DataLossError):
        await store.get("a", offset=65_535, length=2)
    await store.close()


@pytest.mark.parametrize("left", [0, 1, 19, 20, 1000, 65_560, 65_561, SIZE, SIZE + 16, FILE_SIZE - 1])
async def test_a_truncated_file_is_found(tmp_path: Path, left: int) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("a", bytes(SIZE))
    with (tmp_path / "objects" / "a@").open("r+b") as file:
        file.truncate(left)
    for call in (store.get("a"), store.get("a", offset=0, length=1), consume(store, "a"), store.head("a")):
        with pytest.raises(DataLossError, match="a"):
            await call
    await store.close()


async def test_a_full_disk_is_a_quota_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemObjects(tmp_path)
    await store.put("kept", b"before")

    def full(fd: int, view: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(blockfile, "_write_all", full)
        for call in (store.put("kept", b"x"), store.put_stream("new", pieces(b"x"))):
            with pytest.raises(QuotaExceededError) as caught:
                await call
            assert caught.value.reason == "OBJECT_STORE_FULL"
        with pytest.raises(UnavailableError):
            await store.check()
    assert await listed(store) == ["kept"]
    assert await store.get("kept") == b"before"
    assert list((tmp_path / "tmp").iterdir()) == []
    await store.close()


async def test_a_start_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        begun.set()
        await go_on.wait()
        yield b"end"

    writing = asyncio.create_task(store.put_stream("slow", slow()))
    await asyncio.wait_for(begun.wait(), 10)
    abandoned = tmp_path / "tmp" / "abandoned"
    abandoned.write_bytes(b"half")
    other = FilesystemObjects(tmp_path)
    assert not abandoned.exists()
    go_on.set()
    assert await writing == 2 * MIB + 3
    assert len(await other.get("slow")) == 2 * MIB + 3
    await store.close()
    await other.close()


async def test_emptied_directories_go_and_racing_writers_do_not_mind(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)

    async def put_and_delete(number: int) -> None:
        for _ in range(25):
            await store.put(f"x/y/z/{number}", b"x")
            await store.delete(f"x/y/z/{number}")

    await asyncio.gather(*(put_and_delete(number) for number in range(8)))
    assert list((tmp_path / "objects").iterdir()) == []
    await store.close()


async def test_an_object_and_a_directory_may_share_a_name_in_files(tmp_path: Path) -> None:
    store = FilesystemObjects(tmp_path)
    everything = sorted(["a", "a-b", "a.b", "a/b", "a/b/c", "a0"])
    for name in everything:
        await store.put(name, name.encode())
    assert await listed(store) == everything
    assert [await store.get(name) for name in everything] == [name.encode() for name in everything]
    await store.close()


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
