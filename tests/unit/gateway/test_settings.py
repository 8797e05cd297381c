"""Settings of the gateway, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudclaw.config import ConfigurationError, read
from cloudclaw_gateway.config import GatewaySettings
from cloudclaw_gateway.domain.refusal import Kind


def test_by_default_every_protocol_goes_to_its_maker() -> None:
    upstreams = read(GatewaySettings, environ={}).endpoints()
    assert {name: (u.kind, u.url, u.anonymous) for name, u in upstreams.items()} == {
        "anthropic": (Kind.ANTHROPIC, "https://api.anthropic.com", False),
        "openai": (Kind.OPENAI, "https://api.openai.com", False),
        "gemini": (Kind.GEMINI, "https://generativelanguage.googleapis.com", False),
    }


def test_upstreams_come_from_the_environment_with_prices() -> None:
    given = {
        "local": {
            "kind": "openai",
            "url": "http://127.0.0.1:8000/v1/",
            "anonymous": True,
            "prices": {"llama-*": {"input": 1, "output": 2, "cache_read": 0.5, "search": 10}},
        }
    }
    upstreams = read(GatewaySettings, environ={"CLAW_GATEWAY_UPSTREAMS": json.dumps(given)}).endpoints()
    assert list(upstreams) == ["local"]
    assert upstreams["local"].url == "http://127.0.0.1:8000/v1"
    price = upstreams["local"].prices.find("llama-3")
    assert price is not None
    assert (price.input, price.output, price.cache_read, price.cache_write, price.search) == (1, 2, 0.5, 1, 10)


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ({"url": "ftp://x"}, "must be http"),
        ({"url": "models.example"}, "must be http"),
        ({"url": "https://user:pass@x"}, "neither user"),
        ({"url": "https://x/?key=1"}, "neither user"),
        ({"url": "https://x/?"}, "neither user"),
        ({"url": "https://x", "kind": "cohere"}, "kind"),
        ({"url": "https://x", "paths": ["POST /../x"]}, "must be like"),
        ({"url": "https://x", "paths": ["messages"]}, "must be like"),
        ({"url": "https://x", "headers": {"a b": "c"}}, "is no header"),
        ({"url": "https://x", "headers": {"a": "c\r\nd: e"}}, "is no header"),
        ({"url": "https://x", "prices": {"m": {"input": -1, "output": 1}}}, "prices"),
        ({"url": "https://x", "price": {}}, "no such setting"),
    ],
)
def test_what_is_wrong_is_refused(upstream: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(GatewaySettings, environ={"CLAW_GATEWAY_UPSTREAMS": json.dumps({"a": {"kind": "openai"} | upstream})})


def test_a_name_that_is_no_step_of_a_path_is_refused() -> None:
    given = {"../x": {"kind": "openai", "url": "https://x"}}
    with pytest.raises(ConfigurationError, match="lower-case letters"):
        read(GatewaySettings, environ={"CLAW_GATEWAY_UPSTREAMS": json.dumps(given)})


def test_settings_of_other_services_mean_nothing_here() -> None:
    with pytest.raises(ConfigurationError, match="no such setting"):
        read(GatewaySettings, environ={"CLAW_GATEWAY_ETCD__ENDPOINTS": "a:1"})
