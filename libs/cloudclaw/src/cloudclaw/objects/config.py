"""From a URL and typed settings to an object store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from cloudclaw.config import ObjectSettings
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore

if TYPE_CHECKING:
    from cloudclaw.objects.s3_client import S3Endpoint

_S3_OPTIONS = ("endpoint", "region", "tls")


def open_objects(settings: ObjectSettings) -> ObjectStore:
    """The object store that `settings.url` names:

    - `memory:` – gone with the process
    - `file:///absolute/path` – a directory, created when missing
    - `s3://bucket?endpoint=host:port&region=us-east-1&tls=true` – `endpoint` is required; `region` and
      `tls` have these defaults. Credentials are `settings.access_key` and `secret_key`, never ambient ones.
      Nothing is connected yet: the bucket is created, where it is absent, by the first call.

    Raises `InvalidArgumentError(field="url")` for anything else, credentials in the URL included, the same with
    `field="objects"` for keys or certificates that cannot be used, and `UnavailableError` when the directory
    cannot be used.
    """
    parts = urlsplit(settings.url)
    if "@" in parts.netloc:
        raise _bad("it holds credentials; give them as objects.access_key and objects.secret_key")
    match parts.scheme:
        case "memory":
            if parts.netloc or parts.path or parts.query:
                raise _bad("'memory:' takes nothing more")
            return MemoryObjects()
        case "file":
            path = Path(unquote(parts.path))
            if parts.netloc or parts.query or not path.is_absolute():
                raise _bad("a directory is 'file:///absolute/path'")
            return FilesystemObjects(path)
        case "s3":
            # Only here: its SDK takes 7 MiB, which services without S3 need not carry.
            from cloudclaw.objects.s3 import S3Objects

            return S3Objects(_endpoint(parts.netloc, parts.path, parts.query, settings))
        case _:
            raise _bad("it begins with none of 'memory:', 'file:///' and 's3://'")


def _endpoint(bucket: str, path: str, query: str, settings: ObjectSettings) -> S3Endpoint:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(_S3_OPTIONS)):
        raise _bad(f"unknown option {unknown[0]!r}; there are {', '.join(_S3_OPTIONS)}")
    if not bucket or path.strip("/"):
        raise _bad("a bucket is 's3://bucket?endpoint=host:port', without a path")
    endpoint = options.get("endpoint", "")
    if not endpoint or "/" in endpoint or "@" in endpoint:
        raise _bad("'endpoint' must be host:port")
    tls = options.get("tls", "true")
    if tls not in ("true", "false"):
        raise _bad("'tls' must be true or false")
    if bool(settings.access_key) != bool(settings.secret_key):
        raise InvalidArgumentError("objects.access_key and objects.secret_key go together", field="objects")
    from cloudclaw.objects.s3_client import S3Endpoint

    return S3Endpoint(
        bucket=bucket,
        endpoint=endpoint,
        region=options.get("region", "us-east-1"),
        access_key=settings.access_key or None,
        secret_key=settings.secret_key or None,
        tls=tls == "true",
        ca_file=settings.ca,
        cert_file=settings.cert,
        key_file=settings.key,
    )


def _bad(why: str) -> InvalidArgumentError:
    # The URL itself is not repeated: it may hold a secret.
    return InvalidArgumentError(f"not an object store's URL: {why}", field="url")
