"""Actions of a script, as the tools of each agent."""

from __future__ import annotations

from typing import Any

import pytest

from cloudclaw.testing.scripted_model.actions import NoSuchToolError, resolve
from cloudclaw.testing.scripted_model.conversation import Tool


def tool(name: str, *required: str, **types: str) -> Tool:
    names = {**dict.fromkeys(required, "string"), **types}
    return Tool(name, {"properties": {key: {"type": of} for key, of in names.items()}, "required": list(required)})


CLAUDE = [
    tool("Bash", "command", description="string"),
    tool("Write", "file_path", "content"),
    tool("Read", "file_path"),
]
OPENCODE = [tool("bash", "command", "description"), tool("write", "content", "filePath")]
OPENCLAW = [tool("exec", "command"), tool("write", "path", "content")]
CODEX = [tool("exec_command", "cmd")]
GEMINI = [tool("run_shell_command", "command"), tool("write_file", "file_path", "content")]


@pytest.mark.parametrize(
    ("tools", "bash", "write"),
    [
        (CLAUDE, ("Bash", {"command": "ls"}), ("Write", {"file_path": "/w/a", "content": "x"})),
        (
            OPENCODE,
            ("bash", {"command": "ls", "description": "scripted bash"}),
            ("write", {"filePath": "/w/a", "content": "x"}),
        ),
        (OPENCLAW, ("exec", {"command": "ls"}), ("write", {"path": "/w/a", "content": "x"})),
        (CODEX, ("exec_command", {"cmd": "ls"}), ("exec_command", {"cmd": "printf %s x > /w/a"})),
        (GEMINI, ("run_shell_command", {"command": "ls"}), ("write_file", {"file_path": "/w/a", "content": "x"})),
    ],
)
def test_one_action_becomes_the_tool_that_the_agent_has(tools: list[Tool], bash: Any, write: Any) -> None:
    assert resolve({"bash": "ls"}, tools, "/w") == bash
    assert resolve({"write": {"path": "a", "content": "x"}}, tools, "/w") == write


def test_an_absolute_path_stays() -> None:
    assert resolve({"read": {"path": "/etc/hosts"}}, CLAUDE, "/w") == ("Read", {"file_path": "/etc/hosts"})


def test_a_command_is_a_list_where_the_tool_wants_one() -> None:
    assert resolve({"bash": "ls"}, [tool("shell", command="array")], "/w")[1] == {"command": ["bash", "-c", "ls"]}


def test_an_edit_is_a_list_of_edits_where_the_tool_wants_one() -> None:
    item: dict[str, Any] = {"properties": {"oldText": {}, "newText": {}}}
    edit = Tool("edit", {"properties": {"path": {}, "edits": {"type": "array", "items": item}}})
    action = {"edit": {"path": "a", "old": "x", "new": "y"}}
    assert resolve(action, [edit], "/w")[1] == {"path": "/w/a", "edits": [{"oldText": "x", "newText": "y"}]}


def test_a_tool_by_its_own_name_is_the_first_of_those_that_are_offered() -> None:
    call = {"call": {"name": ["None", "Read"], "arguments": {"file_path": "b"}}}
    assert resolve(call, CLAUDE, "/w") == ("Read", {"file_path": "b"})


def test_a_tool_that_is_not_offered_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(NoSuchToolError, match="offers exec_command"):
        resolve({"edit": {"path": "a", "old": "b", "new": "c"}}, CODEX, "/w")
