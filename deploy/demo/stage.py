"""What every part of the demo stands on: a stack, tenants with the `claw` command, and how things are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from cloudclaw.client import Client

# What forks here is exec'd at once, and gRPC has nothing to say about it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
ROOT = Path(__file__).resolve().parents[2]
CLAW = [sys.executable, "-m", "cloudclaw.cli"]
QUIET = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "GRPC_ENABLE_FORK_SUPPORT": "0"}
COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Tenant:
    """A tenant with a token of its own, and the `claw` command."""

    def __init__(self, name: str, stack: Path, ready: dict[str, Any]) -> None:
        self.name = name
        self.env = {
            **QUIET,
            "CLAW_ENDPOINT": ready["endpoints"]["scheduler"],
            "CLAW_WORKSPACE_ENDPOINT": ready["endpoints"]["workspace"],
        }
        token = self.claw("token", "create", "--tenant", name, "--key", str(stack / "keys" / "dev.key")).strip()
        self.env["CLAW_TOKEN"] = token
        # For what the demo itself wants to know; a command takes a moment to start.
        self.client = Client(ready["endpoints"]["scheduler"], token)

    def claw(self, *arguments: str) -> str:
        """Run `claw`, show the command, and answer what it printed. Ends the demo when it fails."""
        show_command(self.name, arguments)
        done = subprocess.run([*CLAW, *arguments], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"claw {' '.join(arguments[:3])} … failed with {done.returncode}: {done.stderr}")
        return done.stdout

    def get(self, task: str) -> dict[str, Any]:
        """The task as it is now, as `claw get --output json` has it."""
        return MessageToDict(self.client.get(task), preserving_proto_field_name=True)

    def result(self, task: str) -> dict[str, Any]:
        """How it ended, as `claw result --output json` has it."""
        return MessageToDict(
            self.client.result(task), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def log(self, task: str, attempt: int = 0) -> str:
        """What it wrote, as `claw logs` prints it."""
        pieces = self.client.tail(task, attempt=attempt, follow=False)
        return b"".join(piece.chunk.data for piece in pieces).decode(errors="replace")

    def submit(self, *arguments: str) -> str:
        """Submit a task; answers its id."""
        return self.claw("submit", *arguments).split()[0]


class Victim:
    """A node that is killed: its name, its processes, and when."""

    def __init__(self, node: str, stack: Path, ready: dict[str, Any]) -> None:
        """Kill the node: the manager, the gateway and every slot, at once."""
        with Client(ready["endpoints"]["scheduler"], ready["operator_token"]) as operator:
            slots = [slot.pid for slot in operator.slots(ready["endpoints"][f"pool-manager@{node}"])]
        services = [int((stack / "run" / f"{name}@{node}.pid").read_text()) for name in ("pool-manager", "gateway")]
        self.node, self.pids = node, [*services, *slots]
        self.time = time.monotonic()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        say(f"Killed {node} with -9, in the middle of it: its pool-manager, its gateway and all its slots")


@contextmanager
def running_stack(directory: Path, nodes: int, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`claw dev` until the block ends; yields what `ready.json` says."""
    arguments = ["dev", "--data-dir", str(directory), "--nodes", str(nodes), "--slots", "2", "--base-port", "0"]
    arguments += ["--no-restart", *options]
    show_command("you", arguments)
    dev = subprocess.Popen([*CLAW, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert dev.stdout is not None
        for line in dev.stdout:
            if line.startswith("ready"):
                break
            print(f"  {line.rstrip()}")
        else:
            raise SystemExit(f"claw dev did not start (exit code {dev.wait()}); its reason is above")
        yield json.loads((directory / "ready.json").read_text())
    finally:
        dev.send_signal(signal.SIGINT)
        dev.wait(60)


def alive(pid: int) -> bool:
    """The process exists, zombies aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def say(text: str) -> None:
    """A heading."""
    print(f"\n\x1b[1m{text}\x1b[0m" if COLOURED else f"\n{text}", flush=True)


def show_command(who: str, arguments: Any) -> None:
    """A command as one would type it; scripts are cut to their first words."""
    words = [a if "\n" not in a and len(a) < 60 else "'…'" for a in arguments]
    print(f"  {who}$ claw {' '.join(words)}", flush=True)
