"""Maps the actions of a script onto the tools that an agent offers.

Agents call the same things differently (Bash, bash, exec, run_shell_command; file_path, filePath, path), so a tool
is found by its known names and its arguments are filled in by the names that its schema has.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from cloudclaw.testing.scripted_model.conversation import Tool

_TOOLS = {
    "bash": ("Bash", "bash", "exec", "exec_command", "shell", "shell_command", "local_shell", "run_shell_command"),
    "write": ("Write", "write", "write_file"),
    "read": ("Read", "read", "read_file"),
    "edit": ("Edit", "edit", "replace", "edit_file"),
}
_ARGUMENTS = {
    "command": ("command", "cmd", "script"),
    "path": ("file_path", "filePath", "absolute_path", "path"),
    "content": ("content", "contents"),
    "old": ("old_string", "oldString", "oldText", "old_text"),
    "new": ("new_string", "newString", "newText", "new_text"),
}


class NoSuchToolError(LookupError):
    """The request offers no tool that could do the action."""


def resolve(action: dict[str, Any], tools: Sequence[Tool], workdir: str) -> tuple[str, dict[str, Any]]:
    """The name of the offered tool and its arguments for one action of a script.

    Relative paths are taken from `workdir`, since some agents want absolute ones.

    Raises:
        NoSuchToolError: no offered tool can do it.
    """
    kind, value = next(iter(action.items()))
    if kind == "call":
        names = [value["name"]] if isinstance(value["name"], str) else value["name"]
        tool = _find(names, tools)
        if tool is None:
            raise NoSuchToolError(_offered(f"the tool {' or '.join(names)}", tools))
        return tool.name, value["arguments"]
    meant = {"command": value} if kind == "bash" else dict(value)
    if "path" in meant:
        meant["path"] = posixpath.join(workdir, meant["path"])
    tool = _find(_TOOLS[kind], tools)
    if tool is None and kind in ("write", "read"):
        # Codex has a shell only.
        meant = {"command": _by_shell(kind, meant)}
        kind, tool = "bash", _find(_TOOLS["bash"], tools)
    if tool is None:
        raise NoSuchToolError(_offered(f"a tool for {kind!r}", tools))
    return tool.name, _arguments(kind, tool, meant)


def _find(names: Iterable[str], tools: Sequence[Tool]) -> Tool | None:
    by_name = {tool.name: tool for tool in tools}
    return next((by_name[name] for name in names if name in by_name), None)


def _offered(wanted: str, tools: Sequence[Tool]) -> str:
    return f"the request does not offer {wanted}; it offers {', '.join(tool.name for tool in tools) or 'none'}"


def _by_shell(kind: str, meant: dict[str, Any]) -> str:
    path = shlex.quote(meant["path"])
    return f"cat {path}" if kind == "read" else f"printf %s {shlex.quote(meant['content'])} > {path}"


def _arguments(kind: str, tool: Tool, meant: dict[str, Any]) -> dict[str, Any]:
    properties = tool.properties
    arguments: dict[str, Any] = {}
    for name, value in meant.items():
        key = next((key for key in _ARGUMENTS[name] if key in properties), _ARGUMENTS[name][0])
        if name == "command" and properties.get(key, {}).get("type") == "array":
            value = ["bash", "-c", value]
        arguments[key] = value
    if kind == "edit" and "edits" in properties:
        path = next(key for key in arguments if key in _ARGUMENTS["path"])
        pair = {key: value for key, value in arguments.items() if key != path}
        item = properties["edits"].get("items", {}).get("properties", {})
        pair = {
            next((key for key in _ARGUMENTS[name] if key in item), _ARGUMENTS[name][2]): meant[name]
            for name in ("old", "new")
        }
        arguments = {path: arguments[path], "edits": [pair]}
    required = tool.parameters.get("required")
    for key in required if isinstance(required, list) else []:
        if key not in arguments and properties.get(key, {}).get("type", "string") == "string":
            arguments[key] = f"scripted {kind}"
    return arguments
