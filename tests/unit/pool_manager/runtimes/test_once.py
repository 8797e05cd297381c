"""Launches of agents that take one prompt and end with its answer, beyond the contract of all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.ports.runtime import Input, RunRequest
from cloudclaw_pool_manager.runtimes.codex import Codex
from cloudclaw_pool_manager.runtimes.gemini import Gemini
from cloudclaw_pool_manager.runtimes.openclaw import OpenClaw

REQUEST = RunRequest((), "Paint the shed", {}, "", resumes=False, identity={}, uid="att-1", egress="http://way:1")
SESSION = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize("adapter", [Codex(), Gemini(), OpenClaw()])
def test_a_session_that_could_be_an_option_or_a_path_is_refused(adapter: Codex | Gemini | OpenClaw) -> None:
    for session in ("--all", "../../etc", "a b", "*", "x" * 200):
        with pytest.raises(InvalidArgumentError, match="session"):
            adapter.launch(replace(REQUEST, session_id=session))


@pytest.mark.parametrize("adapter", [Codex(), Gemini(), OpenClaw()])
def test_the_prompt_comes_on_standard_input_where_it_can_be_long(adapter: Codex | Gemini | OpenClaw) -> None:
    launch = adapter.launch(replace(REQUEST, inputs=(Input(1, "m", "And the fence"),)))
    assert launch.stdin == b"Paint the shed\n\nAnd the fence"
    assert not launch.keep_stdin
    assert adapter.encode_input(Input(2, "n", "More")) is None
    assert adapter.warmth() is None


def test_codex_asks_the_gateway_and_nobody_else() -> None:
    argv = Codex().launch(REQUEST).argv
    assert 'model_providers.cloudclaw.base_url="http://way:1/openai/v1"' in argv
    assert argv[-1] == "-"
    assert "--dangerously-bypass-approvals-and-sandbox" in argv
    assert "--dangerously-bypass-approvals-and-sandbox" not in Codex(permissions=False).launch(REQUEST).argv


def test_codex_tells_what_a_thread_used_before_it_goes_on() -> None:
    argv = Codex().launch(replace(REQUEST, session_id=SESSION)).argv
    assert argv[:2] == ("sh", "-c")
    assert argv[4] == SESSION
    assert argv[-3:] == ("resume", SESSION, "-")


def test_geminis_session_has_a_name_of_its_attempt() -> None:
    argv = Gemini().launch(REQUEST).argv
    name = argv[argv.index("--session-id") + 1]
    again = Gemini().launch(replace(REQUEST, uid="att-2")).argv
    assert name not in again
    resumed = Gemini().launch(replace(REQUEST, session_id=SESSION)).argv
    assert resumed[resumed.index("--resume") + 1] == SESSION
    assert "--session-id" not in resumed


def test_geminis_settings_say_how_it_signs_in() -> None:
    settings = json.loads(Gemini().launch(REQUEST).argv[4])
    assert settings["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert settings["privacy"] == {"usageStatisticsEnabled": False}


def test_openclaw_is_refused_less_memory_than_it_hangs_with() -> None:
    with pytest.raises(InvalidArgumentError, match=r"1\.2 GB"):
        OpenClaw().launch(replace(REQUEST, memory_bytes=512 << 20))
    assert OpenClaw().launch(replace(REQUEST, memory_bytes=1200 << 20)).argv


@pytest.mark.parametrize(
    ("options", "url", "api"),
    [
        ({}, "http://way:1/anthropic", "anthropic-messages"),
        ({"upstream": "openai"}, "http://way:1/openai/v1", "openai-responses"),
        ({"upstream": "mine"}, "http://way:1/mine/v1", "openai-completions"),
        ({"upstream": "mine", "api": "anthropic-messages"}, "http://way:1/mine", "anthropic-messages"),
    ],
)
def test_openclaw_speaks_its_upstreams_protocol(options: dict[str, str], url: str, api: str) -> None:
    config = json.loads(OpenClaw(**options).launch(replace(REQUEST, model="big")).argv[5])
    assert config["agents"]["defaults"]["model"]["primary"] == "cloudclaw/big"
    provider = config["models"]["providers"]["cloudclaw"]
    assert (provider["baseUrl"], provider["api"], provider["models"][0]["id"]) == (url, api, "big")


def test_openclaw_has_no_time_limit_of_its_own_and_tells_its_turns() -> None:
    argv = OpenClaw().launch(REQUEST).argv
    assert argv[argv.index("--timeout") + 1] == "0"
    assert json.loads(argv[5])["logging"] == {"level": "error", "consoleLevel": "debug", "consoleStyle": "json"}
