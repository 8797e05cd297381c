"""Log lines: one JSON object each, with what they concern."""

from __future__ import annotations

import json
import logging as standard
from collections.abc import Iterator

import pytest
import structlog

from cloudclaw import logging
from cloudclaw.config import LogSettings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = standard.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)
    standard.captureWarnings(capture=False)


def test_a_line_is_one_json_object_with_the_bound_context(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure(LogSettings(), service="demo")
    with structlog.contextvars.bound_contextvars(tenant="acme", task="task-1", attempt=2):
        structlog.get_logger().info("it happened", path="evil\nline\x1b[31m", node="n1")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["event"] == "it happened"
    assert (record["tenant"], record["task"], record["attempt"], record["node"]) == ("acme", "task-1", 2, "n1")
    assert (record["service"], record["level"]) == ("demo", "info")
    assert record["timestamp"].endswith("Z")
    assert "\x1b" not in lines[0]


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure(LogSettings(level="warning"), service="demo")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["loud"]


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure(LogSettings(), service="demo")
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = capsys.readouterr().out.splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_libraries_write_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure(LogSettings(), service="demo")
    standard.getLogger("some.library").warning("from %s", "elsewhere")
    standard.getLogger("some.library").info("chatter")
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["event"], record["logger"], record["service"]) == ("from elsewhere", "some.library", "demo")


@pytest.mark.parametrize("style", ["json", "console"])
def test_nothing_that_a_line_quotes_steers_a_terminal_or_cannot_be_written(
    capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logging.configure(LogSettings.model_validate({"format": style}), service="demo")
    nasty = "a\x1b[2J\x9b2J\r\n\u202e\u2028\udcff\ud800é"
    structlog.get_logger().warning(nasty, error=nasty)
    standard.getLogger("library").warning(nasty)
    said = capsys.readouterr().out
    assert not set(nasty) - set("a[2J\né") & set(said)
    assert said.count("\n") == 2
    assert "é" in said
    said.encode()
    if style == "json":
        assert [json.loads(line)["event"] for line in said.split("\n")[:2]] == [nasty] * 2


@pytest.mark.parametrize("style", ["json", "console"])
def test_an_exception_tells_no_values_of_variables(capsys: pytest.CaptureFixture[str], style: str) -> None:
    logging.configure(LogSettings.model_validate({"format": style}), service="demo")

    def seal(secret: str) -> None:
        raise ValueError("broken\x1b[2J" if secret else "")

    key = "sk-very-secret"
    for logger in (structlog.get_logger(), standard.getLogger("library")):
        try:
            seal(key)
        except ValueError:
            logger.exception("failed")
    said = capsys.readouterr().out
    assert said.count("ValueError: broken") == 2
    assert "sk-very-secret" not in said
    assert "\x1b" not in said
    if style == "console":
        assert said.count("\n") > 8, "a traceback of many lines"
