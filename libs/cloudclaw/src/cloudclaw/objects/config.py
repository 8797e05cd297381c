"""From a URL and typed settings to an object store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.objects.filesystem import FilesystemObjects
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.objects.s3 import S3Objects
from cloudclaw.objects.s3_client import S3Endpoint

_S3_OPTIONS = ("endpoint", "region", "tls")


class S3Settings(BaseModel):
    """What an S3 store needs beyond its URL. None of it comes from the URL or from AWS's own files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    access_key: SecretStr | None = Field(default=None, description="Access key; none: anonymous.")
    secret_key: SecretStr | None = Field(default=None, description="Secret key of the access key.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities to trust instead of the system's."
    )
    cert_file: Path | None = Field(default=None, description="PEM file of the client certificate (mutual TLS).")
    key_file: Path | None = Field(default=None, description="PEM file of the client certificate's key.")


def open_objects(url: str, s3: S3Settings | None = None) -> ObjectStore:
    """The object store that `url` names:

    - `memory:` – gone with the process
    - `file:///absolute/path` – a directory, created when missing
    - `s3://bucket?endpoint=host:port&region=us-east-1&tls=true` – `endpoint` is required; `region` and
      `tls` have these defaults. Nothing is connected yet: the bucket is created, where it is absent, by
      the first call.

    Raises `InvalidArgumentError(field="url")` for anything else, credentials in the URL included, and
    `UnavailableError` when the directory cannot be used.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise _bad("it holds credentials; give them as s3.access_key and s3.secret_key")
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
            return S3Objects(_endpoint(parts.netloc, parts.path, parts.query, s3 or S3Settings()))
        case _:
            raise _bad("it begins with none of 'memory:', 'file:///' and 's3://'")


def _endpoint(bucket: str, path: str, query: str, s3: S3Settings) -> S3Endpoint:
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
    if (s3.access_key is None) != (s3.secret_key is None):
        raise InvalidArgumentError("s3.access_key and s3.secret_key go together", field="s3")
    return S3Endpoint(
        bucket=bucket,
        endpoint=endpoint,
        region=options.get("region", "us-east-1"),
        access_key=s3.access_key.get_secret_value() if s3.access_key else None,
        secret_key=s3.secret_key.get_secret_value() if s3.secret_key else None,
        tls=tls == "true",
        ca_file=s3.ca_file,
        cert_file=s3.cert_file,
        key_file=s3.key_file,
    )


def _bad(why: str) -> InvalidArgumentError:
    # The URL itself is not repeated: it may hold a secret.
    return InvalidArgumentError(f"not an object store's URL: {why}", field="url")
