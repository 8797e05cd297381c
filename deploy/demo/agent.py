"""The second part: Claude Code works on a source tree, its node is killed, and it goes on elsewhere.

The model is scripted (`agent.toml` beside this file): it needs no key and no network, and says the same each time.
Claude Code, the gateway, the sandboxes, the tests that it runs and the kill are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from cloudclaw.cli.dev.agents import default_prefix
from cloudclaw.testing.scripted_model import ModelClient
from deploy.demo.stage import CLAW, Tenant, Victim, say

SCRIPT: Final = Path(__file__).with_name("agent.toml")
SCENARIO: Final = "weeks"
KILLED_IN: Final = 3
"""Index of the turn whose model call is held until the node is dead."""
HOLD: Final = "killed"
"""What that turn waits for, in the script."""
TURNS: Final = 6
PROMPT: Final = (
    "Teach seconds() in src/cloudclaw/cloudclaw/cli/text.py that 2w are two weeks. Write a test first, and run it."
)
WITHIN: Final = 60.0


def installed() -> bool:
    """Whether Claude Code is there; says what to do when not, and ends the demo when it must be (CI)."""
    program = default_prefix() / "bin" / "claude"
    if program.exists():
        return True
    missing = f"Claude Code is not installed ({program}): `deploy/setup.sh agents` installs it"
    if os.environ.get("CI"):
        raise SystemExit(missing)
    say(f"{missing}. The agent's part of the demo is left out")
    return False


def options() -> list[str]:
    """What `claw dev` needs for it."""
    return ["--scripted-model", str(SCRIPT)]


def show(tenant: Tenant, stack: Path, ready: dict[str, Any]) -> Victim:
    """Play it; answers the node that was killed. Ends the demo when something is not as it should be."""
    model = ModelClient(ready["endpoints"]["scripted-model"])
    say("An agent: Claude Code changes the same tree. Its model here is SCRIPTED; all else is real")
    tenant.claw("ws", "fork", "code", "fix")
    task = tenant.submit("--runtime", "claude-code", "--workspace", "fix", "--prompt", PROMPT)
    say("What it does, as it comes")
    events = Events(tenant, task)
    wait_until_asked(model, events, "its model is asked for the turn in which its node dies")
    # Checkpoints follow the agent's turns by themselves; one that is answered is one to count on.
    tenant.claw("checkpoint", task)
    victim = Victim(tenant.get(task)["attempts"][-1]["node"], stack, ready)
    wait_until_asked(model, events, "the model sees that who had asked is gone", gone=True)
    model.release(HOLD)
    say("It goes on elsewhere, with its files and its conversation")
    events.wait()
    check(tenant, task, model, victim)
    return victim


class Events:
    """The agent's run as `claw events` prints it."""

    def __init__(self, tenant: Tenant, task: str) -> None:
        self._process = subprocess.Popen(
            [*CLAW, "events", task, "--follow"], env=tenant.env, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the run has ended."""
        self._thread.join(WITHIN)
        if self._thread.is_alive():
            self.close()
            raise SystemExit(f"the agent's run has not ended within {WITHIN:g} s")
        self._process.wait()

    def close(self) -> None:
        """Stop following."""
        self._process.terminate()
        self._process.wait()

    def _show(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(f"  │ {line.rstrip()}", flush=True)


def check(tenant: Tenant, task: str, model: ModelClient, victim: Victim) -> None:
    """What came of it, and the proof that it went on where it was."""
    result = tenant.result(task)
    attempts = result["attempts"]
    asked = model.requests(SCENARIO)
    answered = [entry["turn"] for entry in asked if entry["bytes_sent"] and not entry["client_gone"]]
    resumed = asked[-(TURNS - KILLED_IN)] if len(asked) >= TURNS - KILLED_IN else {"body": {"messages": []}}
    known = tool_calls(resumed["body"])
    changed = {file["path"] for file in result["changed_files"]}
    log = tenant.log(task)
    say("What came of it")
    for line in tenant.claw("result", task).splitlines():
        print(f"  │ {line}")
    expect("it succeeded", result["state"] == "TASK_STATE_SUCCEEDED")
    expect(
        f"attempt 1 was lost with {victim.node}; attempt 2 ran on {attempts[-1]['node']} from its checkpoint",
        [attempt["state"] for attempt in attempts] == ["ATTEMPT_STATE_LOST", "ATTEMPT_STATE_SUCCEEDED"]
        and attempts[1]["node"] != victim.node
        and attempts[1]["resumed"],
    )
    expect(
        f"its first request there held what it had done before, with the results: {', '.join(known)}",
        known == ["Write", "Bash", "Read", "Edit"] and PROMPT in json.dumps(resumed["body"]["messages"]),
    )
    expect(f"of {TURNS} turns each was answered exactly once, none was run twice", answered == list(range(TURNS)))
    expect("the tests failed before its change, and passed after it", "1 failed" in log and "1 passed" in log)
    expect(
        "exactly two files are changed",
        changed == {"src/cloudclaw/cloudclaw/cli/text.py", "src/tests/test_weeks.py"},
    )


def tool_calls(body: dict[str, Any]) -> list[str]:
    """The tools in a request's conversation that have results."""
    blocks = [
        block for message in body["messages"] if isinstance(message["content"], list) for block in message["content"]
    ]
    results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
    return [block["name"] for block in blocks if block["type"] == "tool_use" and block["id"] in results]


def expect(what: str, holds: bool) -> None:
    """Say it if it is so; end the demo otherwise."""
    if not holds:
        raise SystemExit(f"NOT SO: {what}")
    print(f"  ✓ {what}")


def wait_until_asked(model: ModelClient, events: Events, what: str, *, gone: bool = False) -> None:
    """Wait until the turn in which the node dies was asked for; ends the demo when that does not come."""
    try:
        model.asked_for(SCENARIO, KILLED_IN, gone=gone, within=WITHIN)
    except TimeoutError as error:
        events.close()
        raise SystemExit(f"this did not come: {what}. {error}") from None
