"""From errors to exit codes, and to words that say what to do next."""

from __future__ import annotations

import json
import re
import sys
from typing import Final

from cloudclaw.cli.text import clean, clean_json
from cloudclaw.errors import CloudClawError, InvalidArgumentError

OK: Final = 0
TASK_FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
DENIED: Final = 4
UNAVAILABLE: Final = 5
PRECONDITION: Final = 6

_EXIT_CODES: Final = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "UNAUTHENTICATED": DENIED,
    "PERMISSION_DENIED": DENIED,
    "FAILED_PRECONDITION": PRECONDITION,
    "ALREADY_EXISTS": PRECONDITION,
    "ABORTED": PRECONDITION,
    "RESOURCE_EXHAUSTED": PRECONDITION,
}
"""Status codes that are not here (UNAVAILABLE, INTERNAL, DATA_LOSS, UNIMPLEMENTED) exit with 5: the service could
not do it."""

_TASKS: Final = "`claw ls` lists tasks; those of other tenants are not found"
_BY_REASON: Final = {
    "TOKEN_MISSING": "set CLAW_TOKEN or give --token; `claw token create` makes one for development",
    "TOKEN_EXPIRED": "ask for a new token; `claw token create` makes one for development",
    "TOKEN_BAD_SIGNATURE": "the token belongs to another installation; see CLAW_TOKEN and CLAW_ENDPOINT",
    "TOKEN_UNKNOWN_KEY": "the token belongs to another installation; see CLAW_TOKEN and CLAW_ENDPOINT",
    "WRONG_TENANT": "use a token of that tenant, or another --tenant or CLAW_TENANT",
    "NO_NODE": "",
    "NO_POOL": "",
    "NO_SLOT": "",
    "NO_TASK": _TASKS,
    "TASK_NOT_FOUND": _TASKS,
    "ATTEMPT_NOT_FOUND": "`claw get TASK` shows those that there are",
    "NO_WORKSPACE": "`claw ws ls` lists workspaces; those of other tenants are not found",
    "WORKSPACE_NOT_FOUND": "`claw ws ls` lists workspaces; those of other tenants are not found",
    "NO_SNAPSHOT": "`claw ws snapshots NAME` lists those that there are",
    "NO_FILE": "`claw ws files NAME --recursive` lists those that there are",
    "MODEL_KEY_NOT_FOUND": "`claw tenant keys` lists those that there are",
    "ROLE_REQUIRED": "use a token with that role: `claw token create --role operator …`",
    "TASK_NOT_ENDED": "follow it with `claw logs --follow TASK`, an agent with `claw events --follow TASK`; or see"
    " `claw explain TASK`",
    "WRITER_BUSY": "`claw ws ls` shows who writes; try again when they have finished",
    "NO_CONSUMER": "`claw consumers ls` lists them; `claw results NAME` makes one",
    "TASK_NOT_RUNNING": "see `claw get TASK`; only what runs has something to keep",
    "NOT_A_CONVERSATION": "`claw submit --conversation` makes one that takes input",
    "TASK_ENDED": "`claw result TASK` shows how; `claw submit --session ID` in the same workspace goes on from it",
    "CONVERSATION_CLOSED": "it ends when all is answered; `claw events TASK --follow` shows it",
    "TOO_MANY_INPUTS": "wait until it has answered some: `claw events TASK --follow`",
    "TOO_MUCH_WATCHED": "end other `claw events --follow` first; `claw logs TASK` shows what it writes all the same",
    "MESSAGE_ID_REUSED": "give another --message-id; this one was another message's",
    "NO_SEALING_KEY": "the operator sets one up: CLAW_SCHEDULER_SEALING__KEYS, and the same for the gateways",
    "NO_ARTIFACT": "`claw artifact ls TASK` lists those that there are",
    "NO_SUCH_RUNTIME": "give one of these as --runtime, or another --pool; `claw pool get` shows all (role operator)",
    "QUOTA_EXCEEDED": "end or delete something first, or ask for more",
}
_BY_CODE: Final = {
    "NOT_FOUND": "`claw ls` lists tasks, `claw ws ls` workspaces; things of other tenants are not found",
    "UNAUTHENTICATED": "see CLAW_TOKEN; `claw token create` makes a token for development",
    "PERMISSION_DENIED": "use a token with the role that it takes",
    "UNIMPLEMENTED": "another service answers there, or another version; --endpoint or CLAW_ENDPOINT names a scheduler",
}


_TRIED: Final = re.compile(r"ipv[46]:(\S+?:\d+):")
"""The address in gRPC's words for a connection that failed."""


def exit_code(error: CloudClawError) -> int:
    """The exit code that `error` ends a command with."""
    return _EXIT_CODES.get(error.code, UNAVAILABLE)


def report(error: CloudClawError, *, json_output: bool, endpoint: str) -> int:
    """Print `error` to standard error, with what to do next; answers the exit code."""
    if json_output:
        fields = {"code": error.code, "reason": error.reason, "message": error.message, "metadata": error.metadata}
        if isinstance(error, InvalidArgumentError):
            fields["field"] = error.field
        sys.stderr.write(clean_json(json.dumps({"error": fields}, ensure_ascii=False)) + "\n")
        return exit_code(error)
    sys.stderr.write(f"error: {clean(_message(error, endpoint))}\n")
    hint = _BY_REASON.get(error.reason, _BY_CODE.get(error.code, _hint(error, endpoint)))
    if hint:
        sys.stderr.write(f"  {hint}\n")
    return exit_code(error)


def not_text(error: UnicodeEncodeError) -> InvalidArgumentError:
    """What to say of an argument that holds bytes which are no UTF-8."""
    given = error.object.encode("utf-8", "surrogateescape")
    return InvalidArgumentError(f"not UTF-8 text: {given[:80]!r}", field="ARGUMENTS")


def _message(error: CloudClawError, endpoint: str) -> str:
    if error.code == "UNAVAILABLE" and "failed to connect" in error.message:
        return f"nothing answers at {_address(error, endpoint) or endpoint}"
    if error.code == "UNAVAILABLE" and "errors resolving" in error.message:
        return f"{endpoint!r} leads nowhere: no such host is known; write host:port"
    if isinstance(error, InvalidArgumentError) and error.field:
        return f"{error.field}: {error.message}"
    return error.message


def _address(error: CloudClawError, endpoint: str) -> str:
    """Where nothing answered, if that is another service than the one at `endpoint`; what was tried is in the words."""
    tried = _TRIED.search(error.message)
    return tried[1] if tried and tried[1].rpartition(":")[2] != endpoint.rpartition(":")[2] else ""


def _hint(error: CloudClawError, endpoint: str) -> str:
    if error.code == "UNAVAILABLE" and _address(error, endpoint):
        return (
            "the workspace service is looked for two ports after the scheduler, and a node where it says it is;"
            " --workspace-endpoint or CLAW_WORKSPACE_ENDPOINT names another place"
        )
    if error.code == "UNAVAILABLE":
        return "is it running? `claw dev` starts one on this machine; --endpoint or CLAW_ENDPOINT says where it is"
    request = error.metadata.get("request_id", "")
    return f"the service's log has it under {clean(request)}" if error.code == "INTERNAL" and request else ""
