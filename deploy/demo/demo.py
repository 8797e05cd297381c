"""The demo: two tenants, two nodes, one of them killed at work, every task finished once.

Everything is done through the `claw` command, and each command is shown, so that it can be typed again. It starts a
stack of its own in a temporary folder on free ports, and leaves nothing running and nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLAW = [sys.executable, "-m", "cloudclaw.cli"]
QUIET = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}
COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ

COMPILE = """
n=0
for f in $(find src/cloudclaw/cloudclaw/[co]* src/supervisor -name '*.py' | sort); do
  python3 -m py_compile "$f" || exit 1
  n=$((n+1)); echo "attempt $CLAW_ATTEMPT: compiled $n: $f"
  sleep 0.05
done
echo "$n files" > compiled.txt
"""
TESTS = "cd src && PYTHONPATH=supervisor/src:vendor python3 -B -m pytest -q -c /dev/null -p no:cacheprovider tests"
SEARCH = "grep -rn --include='*.py' 'fencing token' src | tee found.txt | wc -l"


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="claw-demo-") as folder:
        stack = Path(folder) / "stack"
        say("Starting etcd, the scheduler, the workspace service and two nodes of two warm slots each")
        with running_stack(stack) as ready:
            tenants = [Tenant("acme", stack, ready), Tenant("globex", stack, ready)]
            tree = source_tree(Path(folder))
            say("Two tenants upload a source tree: this repository's own libraries, with their tests")
            for tenant in tenants:
                tenant.claw("ws", "create", "code")
                tenant.claw("ws", "put", str(tree), "code")
            say("They put work into the queue")
            timeline = Timeline(tenants)
            tasks = []
            for tenant in tenants:
                fork = ("--workspace", "code", "--workspace-mode", "fork")
                tasks += [
                    Task(tenant, "byte-compile", tenant.submit("--workspace", "code", "--", "sh", "-c", COMPILE)),
                    Task(tenant, "unit tests", tenant.submit(*fork, "--", "sh", "-c", TESTS)),
                    Task(tenant, "search", tenant.submit(*fork, "--", "sh", "-c", SEARCH)),
                ]
            victim = kill_a_node(tasks[0], stack, ready, timeline)
            failed = finish(tasks, timeline)
            timeline.show(tasks, victim)
            show_results(tasks)
        left = [pid for pid in victim.pids if alive(pid)]
    say(f"Stopped. Nothing is left running. {time.monotonic() - started:.0f} s in all")
    if failed or left:
        say(f"Something went wrong: failed tasks {failed}, processes left {left}")
        return 1
    return 0


class Tenant:
    """A tenant with a token of its own, and the `claw` command."""

    def __init__(self, name: str, stack: Path, ready: dict[str, Any]) -> None:
        self.name = name
        self.env = {
            **QUIET,
            "CLAW_ENDPOINT": ready["endpoints"]["scheduler"],
            "CLAW_WORKSPACE_ENDPOINT": ready["endpoints"]["workspace"],
        }
        token = self.claw("token", "create", "--tenant", name, "--key", str(stack / "keys" / "dev.key"))
        self.env["CLAW_TOKEN"] = token.strip()

    def claw(self, *arguments: str, quiet: bool = False) -> str:
        """Run `claw`, show the command, and answer what it printed. Ends the demo when it fails."""
        if not quiet:
            show_command(self.name, arguments)
        done = subprocess.run([*CLAW, *arguments], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"claw {' '.join(arguments[:3])} … failed with {done.returncode}: {done.stderr}")
        return done.stdout

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """Run `claw … --output json`; one object a line."""
        return [json.loads(line) for line in self.claw(*arguments, "--output", "json", quiet=True).splitlines()]

    def submit(self, *arguments: str) -> str:
        """Submit a task; answers its id."""
        return self.claw("submit", *arguments).split()[0]


class Task:
    """A submitted task, and what it is called here."""

    def __init__(self, tenant: Tenant, what: str, task_id: str) -> None:
        self.tenant, self.what, self.id = tenant, what, task_id

    def get(self) -> dict[str, Any]:
        """The task as it is now."""
        return self.tenant.json("get", self.id)[0]


class Victim:
    """The node that was killed: its name, processes, and when."""

    def __init__(self, node: str, pids: list[int]) -> None:
        self.node, self.pids = node, pids
        self.time = time.monotonic()


class Timeline:
    """Changes of all tasks as `claw watch` reports them, with the second at which they were seen."""

    def __init__(self, tenants: list[Tenant]) -> None:
        self.start = time.monotonic()
        self.lines: list[tuple[float, str, dict[str, Any]]] = []
        self.changes: queue.Queue[dict[str, Any]] = queue.Queue()
        self.hidden: set[str] = set()
        self._watchers = [
            subprocess.Popen(
                [*CLAW, "watch", "--output", "json"],
                env=t.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for t in tenants
        ]
        for watcher, tenant in zip(self._watchers, tenants, strict=True):
            threading.Thread(target=self._read, args=(watcher,), daemon=True).start()
            self._wait_until_it_sees(tenant)

    def _wait_until_it_sees(self, tenant: Tenant) -> None:
        """Submit tasks of no importance until the watch shows one: from then on it misses nothing."""
        for _ in range(10):
            probe = tenant.claw("submit", "--", "true", quiet=True).split()[0]
            self.hidden.add(probe)
            with contextlib.suppress(queue.Empty):
                while self.changes.get(timeout=2)["task_id"] not in self.hidden:
                    continue
                return
        raise SystemExit("claw watch shows nothing")

    def note(self, text: str) -> None:
        """A line of the demo's own."""
        self.lines.append((time.monotonic(), text, {}))

    def close(self) -> None:
        """Stop watching."""
        for watcher in self._watchers:
            watcher.terminate()
            watcher.wait()

    def show(self, tasks: list[Task], victim: Victim) -> None:
        """Print what happened, in order."""
        self.close()
        say("What happened")
        names = {task.id: f"{task.tenant.name}/{task.what}" for task in tasks}
        shown: set[str] = set()
        for when, text, change in sorted(self.lines, key=lambda line: line[0]):
            line = text or self._describe(names.get(change["task_id"], change["task_id"]), change)
            if line not in shown and change.get("task_id") not in self.hidden:
                print(f"  {when - self.start:6.2f} s  {line}")
            shown.add(line)
        for task in tasks:
            attempts = task.get().get("attempts", [])
            if len(attempts) > 1:
                second = [
                    w for w, _, r in self.lines if r.get("task_id") == task.id and len(r.get("attempts", [])) == 2
                ]
                taken = min(second)
                print(
                    f"  {task.tenant.name}/{task.what} was lost with {victim.node}; "
                    f"{attempts[1]['node']} took over {taken - victim.time:.1f} s after the kill"
                )

    def _read(self, watcher: subprocess.Popen[str]) -> None:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            change = json.loads(line)
            task = change.get("task", change)
            self.lines.append((time.monotonic(), "", task))
            self.changes.put(task)

    @staticmethod
    def _describe(name: str, task: dict[str, Any]) -> str:
        state = task["state"].removeprefix("TASK_STATE_")
        attempts = task.get("attempts", [])
        where = f" on {attempts[-1]['node']}, attempt {len(attempts)}" if attempts and state == "RUNNING" else ""
        why = ""
        if state == "QUEUED" and attempts:
            why = f" again: attempt {len(attempts)} is {attempts[-1]['state'].removeprefix('ATTEMPT_STATE_')}"
        return f"{name} is {state}{where}{why}"


def kill_a_node(task: Task, stack: Path, ready: dict[str, Any], timeline: Timeline) -> Victim:
    """Wait until the task is well at work, then kill its node: the manager and every slot, at once."""
    say("Following the first task until it is well at work …")
    with subprocess.Popen(
        [*CLAW, "logs", task.id, "--follow"], env=task.tenant.env, stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        for line in tail.stdout:
            print(f"  │ {line.rstrip()}")
            if "compiled 8:" in line:
                break
        tail.terminate()
    node = task.get()["attempts"][-1]["node"]
    operator = {**task.tenant.env, "CLAW_TOKEN": ready["operator_token"]}
    listed = subprocess.run(
        [*CLAW, "pool", "slots", "--endpoint", ready["endpoints"][f"pool-manager@{node}"], "--output", "json"],
        env=operator, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    slots = [json.loads(line)["pid"] for line in listed.splitlines()]
    manager = int((stack / "run" / f"pool-manager@{node}.pid").read_text())
    victim = Victim(node, [manager, *slots])
    for pid in victim.pids:
        os.kill(pid, signal.SIGKILL)
    timeline.note(f"*** {node} is killed with -9: its pool-manager and all its slots")
    say(f"Killed {node} with -9, in the middle of it")
    return victim


def finish(tasks: list[Task], timeline: Timeline) -> list[str]:
    """Wait until every task has ended; answers the ids of those that did not succeed."""
    say("Waiting for every task to finish …")
    ended = {}
    deadline = time.monotonic() + 120
    for task in tasks:
        while (record := task.get())["state"] in ("TASK_STATE_QUEUED", "TASK_STATE_RUNNING"):
            if time.monotonic() > deadline:
                raise SystemExit(f"{task.id} has not ended within two minutes: {record}")
            try:
                timeline.changes.get(timeout=1.0)
            except queue.Empty:
                continue
        ended[task.id] = record["state"]
    return [task for task, state in ended.items() if state != "TASK_STATE_SUCCEEDED"]


def show_results(tasks: list[Task]) -> None:
    """The end of each log, and the results."""
    say("Results: one for each task")
    for task in tasks:
        result = task.tenant.json("result", task.id)[0]
        attempts = result.get("attempts", [])
        print(
            f"  {task.tenant.name}/{task.what}: {result['state'].removeprefix('TASK_STATE_')}, exit code "
            f"{result.get('exit_code', '-')}, attempts {len(attempts)}"
        )
        log = task.tenant.claw("logs", task.id, "--attempt", str(len(attempts)), quiet=True)
        for line in log.rstrip().splitlines()[-2:]:
            print(f"  │ {line}")
    tenant = tasks[0].tenant
    say("The committed workspace holds what exactly one attempt wrote")
    print("  │ " + tenant.claw("ws", "cat", "code", "compiled.txt").rstrip())


def source_tree(folder: Path) -> Path:
    """The libraries' sources and the supervisor's tests, with the pure Python packages that the tests need."""
    tree = folder / "tree" / "src"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "v1")
    shutil.copytree(ROOT / "libs" / "cloudclaw" / "src", tree / "cloudclaw", ignore=ignore)
    shutil.copytree(ROOT / "libs" / "supervisor" / "src", tree / "supervisor" / "src", ignore=ignore)
    (tree / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "unit" / "supervisor" / "test_seccomp.py", tree / "tests")
    for package in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        found = next(Path(p) / package for p in sys.path if (Path(p) / package).is_dir())
        shutil.copytree(found, tree / "vendor" / package, ignore=ignore)
        if package == "pytest":
            shutil.copy(found.parent / "py.py", tree / "vendor")
    return tree.parent


@contextmanager
def running_stack(directory: Path) -> Iterator[dict[str, Any]]:
    """`claw dev` until the block ends; yields what `ready.json` says."""
    arguments = [
        "dev",
        "--data-dir",
        str(directory),
        "--nodes",
        "2",
        "--slots",
        "2",
        "--base-port",
        "0",
        "--no-restart",
    ]
    show_command("you", arguments)
    dev = subprocess.Popen([*CLAW, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert dev.stdout is not None
        if not dev.stdout.readline().startswith("ready"):
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


if __name__ == "__main__":
    sys.exit(main())
