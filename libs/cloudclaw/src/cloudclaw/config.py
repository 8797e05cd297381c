"""Settings of a service: frozen, typed, documented field by field, and refused when a key is unknown.

They come, lowest first, from the defaults, from the TOML file given by `--config`, and from the environment
(`CLAW_SCHEDULER_ETCD__ENDPOINTS=127.0.0.1:2379`: the service's prefix, then the path of the field with `__` between
its steps). Building a settings object directly, as tests do, reads neither file nor environment.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

S = TypeVar("S", bound="ProcessSettings")


CLIENT_VARIABLES = frozenset({"CLAW_WORKSPACE_ENDPOINT"})
"""Variables of the command line that happen to begin with a service's prefix."""


class ConfigurationError(Exception):
    """The configuration was refused; the message has one line for each problem, naming field and variable."""


def _host_port(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"must be host:port, got {value!r}")
    return value


def _both_or_neither(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise ValueError("`cert` and `key` go together: give both or neither")


class Group(BaseModel):
    """Base of the groups of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EtcdSettings(Group):
    """Where etcd is, and how to speak to it."""

    endpoints: list[str] = Field(
        default=["127.0.0.1:2379"], min_length=1, description="host:port of each member of etcd"
    )
    ca: Path | None = Field(
        default=None, description="PEM certificates that etcd's own is checked against; turns TLS on"
    )
    cert: Path | None = Field(default=None, description="PEM client certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM key of that certificate")

    @field_validator("endpoints")
    @classmethod
    def _bare(cls, endpoints: list[str]) -> list[str]:
        return [_host_port(e.removeprefix("http://").removeprefix("https://").rstrip("/")) for e in endpoints]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _both_or_neither(self.cert, self.key)
        if self.cert and not self.ca:
            raise ValueError("`cert` without `ca`: give the certificates that etcd's own is checked against")
        return self


class ObjectSettings(Group):
    """Where the bytes are kept."""

    url: str = Field(
        default="",
        description="file:///DIR for a local folder, s3://BUCKET?endpoint=HOST:PORT[&region=…][&tls=false] for S3",
    )
    access_key: str = Field(default="", repr=False, description="S3 access key")
    secret_key: str = Field(default="", repr=False, description="S3 secret key")
    ca: Path | None = Field(default=None, description="PEM certificates that sign the S3 server's; else the system's")
    cert: Path | None = Field(default=None, description="PEM client certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM key of that certificate")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _both_or_neither(self.cert, self.key)
        return self


class AuthSettings(Group):
    """Who is believed."""

    keys: list[Path] = Field(
        default_factory=list,
        description="key files that tokens are checked with: PEM public keys, or secrets of at least 32 bytes",
    )
    issuer: str = Field(default="cloudclaw", description="the `iss` that a token must carry; empty accepts any")


class ServerTls(Group):
    """TLS of a service's own port; off while `cert` is not set."""

    cert: Path | None = Field(default=None, description="PEM certificate chain; turns TLS on")
    key: Path | None = Field(default=None, description="PEM key of that certificate")
    client_ca: Path | None = Field(default=None, description="PEM certificates clients must be signed by (mutual TLS)")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _both_or_neither(self.cert, self.key)
        if self.client_ca and not self.cert:
            raise ValueError("`client_ca` without `cert`: mutual TLS needs a certificate of the server too")
        return self


class ServerSettings(Group):
    """A service's gRPC port."""

    listen: str = Field(default="127.0.0.1:7401", description="host:port, or unix:/PATH; port 0 takes a free one")
    advertise: str = Field(
        default="", description="host:port that others reach it by; default: the address it listens on"
    )
    tls: ServerTls = ServerTls()

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        return value if value.startswith("unix:") else _host_port(value)


class ClientTls(Group):
    """TLS towards other services; off while nothing of it is set."""

    ca: Path | None = Field(default=None, description="PEM certificates that a server's own is checked against")
    cert: Path | None = Field(default=None, description="PEM client certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM key of that certificate")
    server_name: str = Field(
        default="", description="name expected in the server's certificate, when not its host name"
    )

    @property
    def enabled(self) -> bool:
        """Whether channels use TLS."""
        return self.ca is not None or self.cert is not None or bool(self.server_name)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _both_or_neither(self.cert, self.key)
        return self


class MetricsSettings(Group):
    """The Prometheus endpoint."""

    listen: str = Field(default="", description="host:port of /metrics; empty turns it off")

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        return _host_port(value) if value else value


class LogSettings(Group):
    """What is logged to standard output, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )
    format: Literal["json", "console"] = Field(default="json", description="one JSON object a line, or text for people")


class ProcessSettings(BaseSettings):
    """What every process is told. It derives its own, sets `env_prefix`, and adds its fields."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `read` merges file and environment, and refuses what is unknown."""
        return (init_settings,)


class ServiceSettings(ProcessSettings):
    """What every service of the API is told beyond that."""

    etcd: EtcdSettings = EtcdSettings()
    objects: ObjectSettings = ObjectSettings()
    auth: AuthSettings = AuthSettings()
    server: ServerSettings = ServerSettings()
    client_tls: ClientTls = ClientTls()


def load(cls: type[S], argv: Sequence[str] | None = None) -> S:
    """The settings of a service's process: `argv` (default: the command line), environment and file.

    Ends the process with status 2 and the problems on standard error when they are refused, and with
    status 0 after `--help`, which lists every field.
    """
    parser = argparse.ArgumentParser(
        description=(cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else None,
        epilog=_help(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    arguments = parser.parse_args(argv)
    try:
        return read(cls, file=arguments.config, environ=os.environ)
    except ConfigurationError as e:
        _refuse(str(e))


def read(cls: type[S], *, file: Path | None = None, environ: Mapping[str, str]) -> S:
    """The settings from `file` and `environ`. Raises `ConfigurationError`."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise ConfigurationError(f"{file}: {e}") from e
    problems: list[str] = []
    _merge_environment(cls, values, environ, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    try:
        return cls(**values)
    except ValidationError as e:
        raise ConfigurationError("\n".join(_describe(cls, values, e))) from e


def fields(cls: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every leaf of a settings class as (path, field)."""
    for name, field in cls.model_fields.items():
        group = _group(field)
        if group is None:
            yield (*path, name), field
        else:
            yield from fields(group, (*path, name))


def environment_name(cls: type[ProcessSettings], path: Sequence[str]) -> str:
    """The variable that sets the field at `path`."""
    return (cls.model_config.get("env_prefix") or "") + "__".join(path).upper()


def _merge_environment(
    cls: type[ProcessSettings], values: dict[str, Any], environ: Mapping[str, str], problems: list[str]
) -> None:
    """Put the variables with the service's prefix over `values`, and name those that mean nothing."""
    prefix = cls.model_config.get("env_prefix") or ""
    if not prefix:
        return
    known = {environment_name(cls, path): (path, field) for path, field in fields(cls)}
    for variable in sorted(v for v in environ if v.startswith(prefix) and v not in CLIENT_VARIABLES):
        if variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            problems.append(f"{variable}: no such setting" + (f"; did you mean {close[0]}?" if close else ""))
            continue
        path, field = known[variable]
        try:
            value = _parse(environ[variable], field)
        except json.JSONDecodeError as e:
            problems.append(f"{variable}: not valid JSON: {e}")
            continue
        target = values
        for step in path[:-1]:
            inner = target.setdefault(step, {})
            if not isinstance(inner, dict):
                problems.append(f"{step}: must be a table")
                break
            target = inner
        else:
            target[path[-1]] = value


def _parse(text: str, field: FieldInfo) -> object:
    """A variable's text as the field's type wants it: lists and tables in JSON, lists also with commas."""
    origin = get_origin(field.annotation)
    if origin in (list, tuple, set, frozenset, dict):
        if text.lstrip()[:1] in ("[", "{"):
            return json.loads(text)
        if origin is dict:
            return dict(pair.partition("=")[::2] for pair in text.split(",") if pair)
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _group(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _describe(cls: type[ProcessSettings], values: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    known = {".".join(path) for path, _ in fields(cls)}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path = [str(step) for step in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, known, n=1)
            yield f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else "")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            variable = environment_name(cls, path[: _depth(cls, path)])
            yield f"{name} ({variable}): {message[:1].lower()}{message[1:]}"


def _depth(cls: type[BaseModel], path: Sequence[str]) -> int:
    """How many steps of an error's location are names of settings, not indices inside one."""
    for leaf, _ in fields(cls):
        if tuple(path[: len(leaf)]) == leaf:
            return len(leaf)
    return len(path)


def _help(cls: type[ProcessSettings]) -> str:
    lines = ["settings (variable, TOML path, meaning; default):"]
    for path, field in fields(cls):
        default = _default(cls, path)
        shown = "required" if field.is_required() else "" if default in ("", None) else f"default {default}"
        lines.append(f"  {environment_name(cls, path)}  [{'.'.join(path)}]")
        lines.append("      " + "; ".join(part for part in (field.description or "", shown) if part))
    return "\n".join(lines)


def _default(cls: type[BaseModel], path: Sequence[str]) -> object:
    """The value of the field at `path` when nobody sets it: a service may have its own default of a group."""
    field = cls.model_fields[path[0]]
    value = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    for step in path[1:]:
        value = getattr(value, step, None)
    return value


def _refuse(problems: str) -> NoReturn:
    sys.stderr.write("configuration refused:\n" + "".join(f"  {line}\n" for line in problems.splitlines()))
    raise SystemExit(2)
