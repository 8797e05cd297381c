"""Settings of the gateway: `CLAW_GATEWAY_*`, or a TOML file given by `--config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict
from yarl import URL

from cloudclaw.config import Group, ProcessSettings
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.sealing import SealingSettings
from cloudclaw_gateway.domain.prices import Price, PriceList
from cloudclaw_gateway.domain.refusal import Kind
from cloudclaw_gateway.domain.upstream import Upstream

_PATH = re.compile(r"(GET|POST|DELETE) [A-Za-z0-9._~:@+=,*-]+(/[A-Za-z0-9._~:@+=,*-]+)*")
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_VALUE = re.compile(r"[ -~]*")


class PriceSettings(Group):
    """US dollars for a million tokens of one model, and for a thousand of its searches."""

    input: float = Field(ge=0, description="read at full price")
    output: float = Field(ge=0, description="written")
    cache_read: float | None = Field(default=None, ge=0, description="read from a prompt cache; default: as `input`")
    cache_write: float | None = Field(default=None, ge=0, description="put into a prompt cache; default: as `input`")
    search: float = Field(default=0.0, ge=0, description="a thousand searches of the web that the upstream makes")

    def price(self) -> Price:
        """As the domain has it."""
        return Price(
            self.input,
            self.output,
            self.input if self.cache_read is None else self.cache_read,
            self.input if self.cache_write is None else self.cache_write,
            self.search,
        )


class UpstreamSettings(Group):
    """One endpoint."""

    kind: Kind = Field(description="protocol: anthropic, openai or gemini")
    url: str = Field(description="where it is: scheme, host, and maybe port and base path")
    anonymous: bool = Field(default=False, description="it wants no key, such as an endpoint of one's own")
    paths: list[str] = Field(
        default_factory=list, description="`METHOD path` of what may be called; `*` is within one step"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="headers that every request is given")
    prices: dict[str, PriceSettings] = Field(default_factory=dict, description="by model, or by a glob over models")

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parsed = URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"must be http://HOST… or https://HOST…, got {url!r}")
        if parsed.user or parsed.password or parsed.query_string or parsed.fragment or "?" in url or "#" in url:
            raise ValueError("must have neither user, password, query nor fragment")
        return str(parsed).rstrip("/")

    @field_validator("paths")
    @classmethod
    def _paths(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not _PATH.fullmatch(path):
                raise ValueError(f"must be like `POST chat/completions` or `GET models/*`, got {path!r}")
        return paths

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"{name!r} is no header")
        return headers


class GatewaySettings(ProcessSettings):
    """The gateway: carries the model calls of a node's sandboxes, and adds the keys."""

    model_config = SettingsConfigDict(env_prefix="CLAW_GATEWAY_")

    socket: Path = Field(
        default=Path("/run/cloudclaw/gateway/control.sock"),
        description="Unix socket that this node's pool-manager connects to; in a directory of its own",
    )
    upstreams: dict[str, UpstreamSettings] = Field(
        default_factory=lambda: {
            "anthropic": UpstreamSettings(kind=Kind.ANTHROPIC, url="https://api.anthropic.com"),
            "openai": UpstreamSettings(kind=Kind.OPENAI, url="https://api.openai.com"),
            "gemini": UpstreamSettings(kind=Kind.GEMINI, url="https://generativelanguage.googleapis.com"),
        },
        description="endpoints by name, the first step of the path inside sandboxes; replaces the default ones",
    )
    ca: Path | None = Field(
        default=None, description="PEM certificates that upstreams' own are checked against, beside the system's"
    )
    sealing: SealingSettings = SealingSettings()
    max_connections: int = Field(default=64, ge=1, le=1024, description="connections of one sandbox at once")
    max_body: int = Field(default=32 << 20, ge=1 << 10, description="bytes of one request's body")
    client_timeout: float = Field(
        default=120.0, gt=0, description="seconds that a sandbox may take for a request's head, or leave it idle"
    )
    body_timeout: float = Field(default=60.0, gt=0, description="seconds between two pieces of a request's body")
    connect_timeout: float = Field(default=10.0, gt=0, description="seconds to connect to an upstream")
    idle_timeout: float = Field(
        default=600.0, gt=0, description="seconds that an upstream may be silent; a stream may last longer"
    )
    turn_timeout: float = Field(
        default=300.0, gt=0, description="seconds that a request near a limit waits for those of its task before it"
    )
    unnamed_output: int = Field(
        default=128 << 10, ge=1, description="tokens that an answer may have when its request names no most"
    )
    keep_warm: float = Field(default=90.0, ge=0, description="seconds that an unused connection to an upstream stays")
    unclaimed: float = Field(
        default=600.0, gt=0, description="seconds without a pool-manager after which attempts are forgotten"
    )
    stop_grace: float = Field(default=30.0, ge=0, description="seconds that streams have to end on SIGTERM")

    @field_validator("upstreams")
    @classmethod
    def _names(cls, upstreams: dict[str, UpstreamSettings]) -> dict[str, UpstreamSettings]:
        try:
            for name in upstreams:
                check_name(name, "upstreams")
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return upstreams

    def endpoints(self) -> Mapping[str, Upstream]:
        """As the domain has them."""
        return {
            name: Upstream(
                name=name,
                kind=given.kind,
                url=given.url,
                anonymous=given.anonymous,
                paths=tuple(given.paths),
                headers=given.headers,
                prices=PriceList({model: price.price() for model, price in given.prices.items()}),
            )
            for name, given in self.upstreams.items()
        }
