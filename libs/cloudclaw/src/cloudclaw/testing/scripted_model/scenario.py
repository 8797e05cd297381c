"""What a scripted model plays: a file of scenarios, each a list of turns.

A script is TOML or JSON:

    [[scenarios]]
    name = "hello"                       # chosen by `[[scenario:hello]]` in the user's message, or by `match`
    [[scenarios.turns]]
    text = "I write the file."
    tools = [{ write = { path = "hello.txt", content = "hi" } }, { bash = "ls" }]
    [[scenarios.turns]]
    text = "Done."

A turn is one answer of the model: text, tool calls, or both; or an error. `{turn}` in its strings stands for the
turn's number, counted from 1. Tool calls are written once for all agents (`actions.py` maps them).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

ErrorKind = Literal[
    "authentication",
    "permission",
    "billing",
    "not_found",
    "context_too_long",
    "invalid_request",
    "rate_limit",
    "overloaded",
    "server_error",
]

ACTIONS = ("bash", "write", "read", "edit", "call")


class ScriptError(ValueError):
    """The script cannot be played; the message names the file and the field."""


class Usage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tokens that an answer claims; what is left out is estimated from the sizes of request and answer."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


class Failure(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An HTTP error instead of an answer."""

    kind: ErrorKind
    times: int = 0
    """How often, in one conversation, before the turn is played after all; 0: always."""
    status: int | None = None
    """Another HTTP status than the kind's own."""
    message: str = ""
    retry_after: float | None = None
    """Seconds, sent as the header `retry-after`."""
    body: dict[str, Any] | None = None
    """The whole body instead of the protocol's own."""


class Turn(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One answer of the model. Times are seconds."""

    text: str = ""
    tools: list[dict[str, Any]] = []
    """Each has one key: bash = "command", write = {path, content}, read = {path}, edit = {path, old, new},
    or call = {name, arguments} for a tool by its own name (a list of names: the first that is offered)."""
    error: Failure | None = None
    delay: float = 0.0
    """Before the first byte."""
    chunk_delay: float = 0.0
    """Between the chunks of a streamed answer."""
    chunk: int = 40
    """Characters of text or arguments per chunk."""
    hold: str = ""
    """Wait, before the first byte, until this name is released (`POST /scripted/release`); stays released."""
    hang: Literal["", "before", "during"] = ""
    """Never answer, or never go on after half of the chunks."""
    cut: bool = False
    """Close the connection after half of the chunks."""
    repeat: int = 1
    """Play this turn so many times in a row; 0: for ever (the last turn only), an endless loop of tool calls."""
    usage: Usage = Usage()


class Scenario(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Turns, and which prompts they answer."""

    name: str
    turns: list[Turn]
    match: str = ""
    """A regular expression that is looked for in users' messages, besides the marker."""
    after: str = "Nothing more is scripted."
    """The text of every answer after the last turn."""

    def start_in(self, text: str) -> int | None:
        """The index of the turn with which the message `text` starts this scenario; None when it does not.

        `[[scenario:NAME@3]]` starts with the fourth turn: a summary of a conversation says so.
        """
        marker = re.search(rf"\[\[scenario:{re.escape(self.name)}(?:@(\d+))?\]\]", text)
        if marker:
            return int(marker[1] or 0)
        return 0 if self.match and re.search(self.match, text) else None

    def turn(self, index: int) -> Turn:
        """The turn at `index` (from 0), repetitions counted."""
        at = 0
        for turn in self.turns:
            if turn.repeat == 0 or index < at + turn.repeat:
                return turn
            at += turn.repeat
        return Turn(text=self.after)


class Script(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All scenarios of one file; of several that match a message, the first is played."""

    scenarios: list[Scenario]
    default: str = ""
    """The scenario of conversations in which no message asks for one."""

    def named(self, name: str) -> Scenario | None:
        """The scenario called `name`."""
        return next((one for one in self.scenarios if one.name == name), None)


def load(path: str | Path) -> Script:
    """The script in the file `path` (TOML or JSON, by its ending).

    Raises:
        ScriptError: the file cannot be read, or a field of it is wrong.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
        tree = tomllib.loads(content.decode()) if file.suffix == ".toml" else json.loads(content)
    except OSError as error:
        raise ScriptError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ScriptError(f"{file}: not {'TOML' if file.suffix == '.toml' else 'JSON'}: {error}") from error
    return parse(tree, str(file))


def parse(tree: object, source: str = "script") -> Script:
    """The script in the plain data `tree`; `source` begins error messages.

    Raises:
        ScriptError: a field is wrong.
    """
    try:
        script = msgspec.convert(tree, Script)
    except msgspec.ValidationError as error:
        raise ScriptError(f"{source}: {error}") from error
    try:
        _check(script)
    except ScriptError as error:
        raise ScriptError(f"{source}: {error}") from error
    return script


def _check(script: Script) -> None:
    names = [scenario.name for scenario in script.scenarios]
    for number, scenario in enumerate(script.scenarios):
        at = f"$.scenarios[{number}]"
        if not re.fullmatch(r"[\w.-]+", scenario.name):
            raise ScriptError(
                f"the name {scenario.name!r} is not of letters, digits, '.', '_' and '-' - at `{at}.name`"
            )
        if names.index(scenario.name) != number:
            raise ScriptError(f"the name {scenario.name!r} is there twice - at `{at}.name`")
        if not scenario.turns:
            raise ScriptError(f"a scenario needs at least one turn - at `{at}.turns`")
        try:
            re.compile(scenario.match)
        except re.error as error:
            raise ScriptError(f"not a regular expression: {error} - at `{at}.match`") from error
        for index, turn in enumerate(scenario.turns):
            _check_turn(turn, f"{at}.turns[{index}]", last=index == len(scenario.turns) - 1)
    if script.default and script.default not in names:
        raise ScriptError(f"there is no scenario {script.default!r} - at `$.default`")


def _check_turn(turn: Turn, at: str, *, last: bool) -> None:
    if not (turn.text or turn.tools or turn.error or turn.hang):
        raise ScriptError(f"a turn needs text, tools, error or hang - at `{at}`")
    if turn.repeat < 0 or (turn.repeat == 0 and not last):
        raise ScriptError(f"repeat is at least 1, or 0 in the last turn - at `{at}.repeat`")
    if turn.chunk < 1:
        raise ScriptError(f"chunk is at least 1 - at `{at}.chunk`")
    for number, action in enumerate(turn.tools):
        where = f"{at}.tools[{number}]"
        if len(action) != 1 or next(iter(action)) not in ACTIONS:
            raise ScriptError(f"an action has exactly one of {', '.join(ACTIONS)} - at `{where}`")
        _check_action(*next(iter(action.items())), where)


def _check_action(kind: str, value: object, at: str) -> None:
    if kind == "bash":
        if not isinstance(value, str):
            raise ScriptError(f"expected the command, a string - at `{at}.bash`")
        return
    fields: dict[str, dict[str, type | tuple[type, ...]]] = {
        "write": {"path": str, "content": str},
        "read": {"path": str},
        "edit": {"path": str, "old": str, "new": str},
        "call": {"name": (str, list), "arguments": dict},
    }
    wanted = fields[kind]
    if not isinstance(value, dict):
        raise ScriptError(f"expected a table of {', '.join(wanted)} - at `{at}.{kind}`")
    for field in value:
        if field not in wanted:
            raise ScriptError(f"unknown field `{field}` - at `{at}.{kind}`")
    for field, of in wanted.items():
        if not isinstance(value.get(field), of):
            raise ScriptError(f"missing, or of the wrong type - at `{at}.{kind}.{field}`")
