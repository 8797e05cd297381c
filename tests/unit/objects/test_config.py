"""Which store a URL names, and which URLs are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudclaw.config import ObjectSettings
from cloudclaw.errors import InvalidArgumentError, UnavailableError
from cloudclaw.objects.config import open_objects
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint


def named(url: str, **more: object) -> ObjectStore:
    return open_objects(ObjectSettings.model_validate({"url": url, **more}))


async def test_each_scheme_has_its_store(tmp_path: Path) -> None:
    memory = named("memory:")
    files = named(f"file://{tmp_path}/with%20space")
    bucket = named(
        "s3://bucket?endpoint=127.0.0.1:9000&region=eu-west-1&tls=false", access_key="key", secret_key="hush"
    )
    assert isinstance(memory, MemoryObjects)
    assert isinstance(files, FilesystemObjects)
    assert isinstance(bucket, S3Objects)
    assert (tmp_path / "with space" / "objects").is_dir()
    for store in (memory, files, bucket):
        await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/objects",
        "http://127.0.0.1:9000/bucket",
        "memory:x",
        "memory://x",
        "file:relative",
        "file://host/path",
        "file:///path?x=1",
        "s3:",
        "s3://bucket",
        "s3://bucket?endpoint=",
        "s3://?endpoint=h:1",
        "s3://bucket/prefix?endpoint=h:1",
        "s3://bucket?endpoint=http://h:1",
        "s3://bucket?endpoint=h:1&tls=yes",
        "s3://bucket?endpoint=h:1&access_key=k",
        "s3://key:hush@bucket?endpoint=h:1",
        "s3://bucket?endpoint=key:hush@h:1",
    ],
)
def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        named(url)
    assert caught.value.field == "url"
    assert "hush" not in caught.value.message


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        named("s3://bucket?endpoint=h:1", access_key="key")


def test_the_secret_key_is_not_shown() -> None:
    assert "hush" not in repr(S3Endpoint("bucket", "h:1", access_key="key", secret_key="hush"))


async def test_keys_come_from_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"):
        monkeypatch.setenv(name, "ambient")
    store = named("s3://bucket?endpoint=127.0.0.1:1&tls=false")
    assert isinstance(store, S3Objects)
    assert store._client._minio._provider is None
    with pytest.raises(UnavailableError):
        await store.check()
    await store.close()


def test_a_missing_certificate_authority_is_an_argument(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"missing\.pem"):
        named("s3://bucket?endpoint=h:1", ca=tmp_path / "missing.pem")
