"""Every limit of a spec names its field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cloudclaw.coordination.records import EndReason, Mode, ModelLimits, Plan
from cloudclaw.errors import InvalidArgumentError
from cloudclaw_scheduler.domain import spec
from cloudclaw_scheduler.domain.spec import Draft


def test_a_spec_with_nothing_but_a_program_gets_the_defaults() -> None:
    assert spec.plan(Draft(argv=("true",))) == Plan()


def test_a_named_workspace_is_exclusive_by_default() -> None:
    plan = spec.plan(Draft(argv=("true",), workspace="ws"))
    assert (plan.workspace, plan.mode, plan.writes) == ("ws", Mode.EXCLUSIVE, True)


def test_a_full_spec_is_taken_over() -> None:
    plan = spec.plan(
        Draft(
            runtime="claude-code",
            prompt="do it",
            workspace="ws",
            mode="FORK",
            queue_timeout=1.5,
            run_timeout=2.0,
            silence_timeout=3.0,
            max_attempts=100,
            initial_backoff=0.0,
            backoff_multiplier=1.0,
            max_backoff=9.0,
            retry_on=("NONZERO_EXIT", "NONZERO_EXIT"),
            checkpoint_interval=30.0,
            priority=-100,
            labels={"k": "v"},
            pool="gpu",
        )
    )
    assert plan == Plan(
        runtime="claude-code",
        pool="gpu",
        priority=-100,
        workspace="ws",
        mode=Mode.FORK,
        labels={"k": "v"},
        max_attempts=100,
        initial_backoff=0.0,
        backoff_multiplier=1.0,
        max_backoff=9.0,
        retry_on=(EndReason.NONZERO_EXIT,),
        queue_timeout=1.5,
        run_timeout=2.0,
        silence_timeout=3.0,
        checkpoint_interval=30.0,
    )


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        ({"argv": ()}, "spec.argv"),
        ({"argv": ("",)}, "spec.argv[0]"),
        ({"argv": ("a", "b\0c")}, "spec.argv[1]"),
        ({"argv": ("x" * 65536,)}, "spec.argv"),
        ({"prompt": "é" * (1 << 19) + "x"}, "spec.prompt"),
        ({"runtime": "No Such"}, "spec.runtime"),
        ({"runtime": "claude-code", "argv": ()}, "spec.prompt"),
        ({"prompt": "a\0b"}, "spec.prompt"),
        ({"pool": "../x"}, "spec.pool"),
        ({"env": {"1A": "x"}}, "spec.env"),
        ({"env": {"A-B": "x"}}, "spec.env"),
        ({"env": {"": "x"}}, "spec.env"),
        ({"env": {"A\n": "x"}}, "spec.env"),
        ({"env": {"CLAW_X": "x"}}, "spec.env"),
        ({"env": {"A": "x\0"}}, "spec.env"),
        ({"env": {"A": "x" * 65536}}, "spec.env"),
        ({"workspace": "a/b"}, "spec.workspace.name"),
        ({"workspace": "a..b"}, "spec.workspace.name"),
        ({"mode": "EXCLUSIVE"}, "spec.workspace.name"),
        ({"mode": "FORK"}, "spec.workspace.name"),
        ({"workspace": "ws", "mode": "?"}, "spec.workspace.mode"),
        ({"session_id": "a b"}, "spec.session_id"),
        ({"cpu_millis": 64_001}, "spec.resources.cpu_millis"),
        ({"memory_bytes": (4 << 20) - 1}, "spec.resources.memory_bytes"),
        ({"queue_timeout": -0.001}, "spec.timeouts.queue"),
        ({"run_timeout": -1.0}, "spec.timeouts.run"),
        ({"run_timeout": 7 * 86_400.5}, "spec.timeouts.run"),
        ({"silence_timeout": -1.0}, "spec.timeouts.silence"),
        ({"max_attempts": 101}, "spec.retry.max_attempts"),
        ({"initial_backoff": -1.0}, "spec.retry.initial_backoff"),
        ({"max_backoff": -1.0}, "spec.retry.max_backoff"),
        ({"backoff_multiplier": 0.5}, "spec.retry.backoff_multiplier"),
        ({"backoff_multiplier": 10.5}, "spec.retry.backoff_multiplier"),
        ({"backoff_multiplier": math.nan}, "spec.retry.backoff_multiplier"),
        ({"retry_on": ("",)}, "spec.retry.retry_on[0]"),
        ({"retry_on": ("NODE_LOST", "?")}, "spec.retry.retry_on[1]"),
        ({"retry_on": ("COMPLETED",)}, "spec.retry.retry_on[0]"),
        ({"checkpoint_interval": -1.0}, "spec.checkpoint_interval"),
        ({"checkpoint_interval": 0.0}, "spec.checkpoint_interval"),
        ({"checkpoint_interval": 0.999}, "spec.checkpoint_interval"),
        ({"checkpoint_interval": 7 * 86_400.5}, "spec.checkpoint_interval"),
        ({"artifacts": ("x",) * 65}, "spec.artifacts"),
        ({"artifacts": ("ok", "/etc/*")}, "spec.artifacts[1]"),
        ({"artifacts": ("a/../../b",)}, "spec.artifacts[0]"),
        ({"artifacts": ("",)}, "spec.artifacts[0]"),
        ({"artifacts": ("ok", "ok", "a\0b")}, "spec.artifacts[2]"),
        ({"artifacts": ("\ud800",)}, "spec.artifacts[0]"),
        ({"artifacts": ("ok", "é" * 128 + "x")}, "spec.artifacts[1]"),
        ({"priority": 101}, "spec.priority"),
        ({"priority": -101}, "spec.priority"),
        ({"labels": {f"k{i}": "" for i in range(33)}}, "spec.labels"),
        ({"labels": {"": "v"}}, "spec.labels"),
        ({"labels": {"k" * 64: "v"}}, "spec.labels"),
        ({"labels": {"k": "v" * 256}}, "spec.labels"),
    ],
)
def test_a_bad_spec_names_its_field(draft: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.plan(Draft(**{"argv": ("true",), **draft}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "draft",
    [
        {"argv": ("x" * 65535,)},
        {"prompt": "x" * (1 << 20)},
        {"cpu_millis": 64_000},
        {"memory_bytes": 4 << 20},
        {"run_timeout": 7 * 86_400.0},
        {"priority": 100},
        {"labels": {f"k{i}": "v" for i in range(32)}},
        {"labels": {"k" * 63: "v" * 255}},
        {"artifacts": ("**/*.txt",) * 64},
        {"artifacts": ("é" * 128,)},
        {"checkpoint_interval": 1.0},
        {"checkpoint_interval": 7 * 86_400.0},
        {"env": {"_A1": "x"}},
    ],
)
def test_what_just_fits_is_accepted(draft: dict[str, Any]) -> None:
    spec.plan(Draft(**{"argv": ("true",), **draft}))


def test_a_conversation_gets_its_defaults() -> None:
    plan = spec.plan(Draft(runtime="claude-code", prompt="hi", conversation=True))
    assert (plan.interactive, plan.park_after, plan.idle_timeout) == (True, 2.0, 86_400.0)
    assert not spec.plan(Draft(runtime="claude-code", prompt="hi")).interactive


def test_limits_and_times_of_a_conversation_are_taken_over() -> None:
    limits = ModelLimits(requests=1, tokens=2, spend_usd=3.0, turns=4)
    plan = spec.plan(
        Draft(runtime="codex", prompt="hi", conversation=True, park_after=0.0, idle_timeout=5.0, limits=limits)
    )
    assert (plan.park_after, plan.idle_timeout, plan.limits) == (0.0, 5.0, limits)


@pytest.mark.parametrize(
    ("field", "draft"),
    [
        ("spec.conversation", Draft(argv=("true",), conversation=True)),
        ("spec.model", Draft(argv=("true",), model="m")),
        ("spec.model_limits", Draft(argv=("true",), limits=ModelLimits())),
        ("spec.model", Draft(runtime="codex", prompt="p", model="m" * 257)),
        ("spec.model", Draft(runtime="codex", prompt="p", model="two\nlines")),
        ("spec.model", Draft(runtime="codex", prompt="p", model="--settings={}")),
        ("spec.model_limits.spend_usd", Draft(runtime="codex", prompt="p", limits=ModelLimits(spend_usd=-1.0))),
        ("spec.model_limits.spend_usd", Draft(runtime="codex", prompt="p", limits=ModelLimits(spend_usd=math.nan))),
        ("spec.model_limits.spend_usd", Draft(runtime="codex", prompt="p", limits=ModelLimits(spend_usd=math.inf))),
        ("spec.conversation.idle_timeout", Draft(runtime="codex", prompt="p", conversation=True, idle_timeout=0.0)),
        (
            "spec.conversation.idle_timeout",
            Draft(runtime="codex", prompt="p", conversation=True, idle_timeout=30 * 86_400.0 + 1),
        ),
        ("spec.conversation.park_after", Draft(runtime="codex", prompt="p", conversation=True, park_after=-1.0)),
        ("spec.retry.retry_on[0]", Draft(runtime="codex", prompt="p", retry_on=("PARKED",))),
    ],
)
def test_what_no_agent_can_do_is_refused_by_its_field(field: str, draft: Draft) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        spec.plan(draft)
    assert refused.value.field == field


def test_reasons_of_models_can_be_retried() -> None:
    reasons = ("MODEL_RATE_LIMIT", "MODEL_OVERLOADED", "MODEL_UNREACHABLE", "AGENT_FAILED", "TURN_LIMIT")
    assert len(spec.plan(Draft(runtime="codex", prompt="p", retry_on=reasons)).retry_on) == len(reasons)
