"""The first part: two tenants put work into the queue, and a node is killed in the middle of it."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deploy.demo.stage import CLAW, ROOT, Tenant, Victim, say

COMPILE = """
n=0
for f in $(find src/cloudclaw/cloudclaw/coordination src/supervisor -name '*.py' | sort); do
  python3 -m py_compile "$f" || exit 1
  n=$((n+1)); echo "attempt $CLAW_ATTEMPT: compiled $n: $f"
  sleep 0.1
  if [ "$CLAW_ATTEMPT:$n" = "1:20" ] && [ "${1-}" = waits ]; then sleep 60; fi
done
echo "$n files" > compiled.txt
"""
"""With the argument `waits` its first attempt stops at file 20: the kill finds it at work on a slow machine too."""
TESTS = "cd src && PYTHONPATH=supervisor/src:vendor python3 -B -m pytest -q -c /dev/null -p no:cacheprovider tests"
SEARCH = "grep -rn --include='*.py' 'fencing token' src | tee found.txt | wc -l"


def show(tenants: list[Tenant], tree: Path, stack: Path, ready: dict[str, Any]) -> Victim:
    """Play it; answers the node that was killed. Ends the demo when a task does not succeed."""
    say("Two tenants upload a source tree: this repository's own libraries, with their tests")
    for tenant in tenants:
        tenant.claw("ws", "create", "code")
        tenant.claw("ws", "put", str(tree), "code")
    say("They put work into the queue")
    timeline = Timeline(tenants)
    tasks = []
    for tenant, how in zip(tenants, (["waits"], []), strict=True):
        fork = ("--workspace", "code", "--workspace-mode", "fork")
        tasks += [
            Task(tenant, "byte-compile", tenant.submit("--workspace", "code", "--", "sh", "-c", COMPILE, "sh", *how)),
            Task(tenant, "unit tests", tenant.submit(*fork, "--", "sh", "-c", TESTS)),
            Task(tenant, "search", tenant.submit(*fork, "--", "sh", "-c", SEARCH)),
        ]
    victim = kill_a_node(tasks[0], stack, ready, timeline)
    failed = finish(tasks, timeline)
    timeline.show(tasks, victim)
    show_results(tasks)
    if failed:
        raise SystemExit(f"something went wrong: failed tasks {failed}")
    if [attempt["state"] for attempt in tasks[0].get()["attempts"]] != [
        "ATTEMPT_STATE_LOST",
        "ATTEMPT_STATE_SUCCEEDED",
    ]:
        raise SystemExit("something went wrong: the kill did not hit the first task at work")
    return victim


class Task:
    """A submitted task, and what it is called here."""

    def __init__(self, tenant: Tenant, what: str, task_id: str) -> None:
        self.tenant, self.what, self.id = tenant, what, task_id

    def get(self) -> dict[str, Any]:
        """The task as it is now."""
        return self.tenant.get(self.id)


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
            probe = tenant.client.submit(["true"]).task_id
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
    victim = Victim(task.get()["attempts"][-1]["node"], stack, ready)
    timeline.note(f"*** {victim.node} is killed with -9: its pool-manager, its gateway and all its slots")
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
        result = task.tenant.result(task.id)
        attempts = result.get("attempts", [])
        print(
            f"  {task.tenant.name}/{task.what}: {result['state'].removeprefix('TASK_STATE_')}, exit code "
            f"{result.get('exit_code', '-')}, attempts {len(attempts)}"
        )
        log = task.tenant.log(task.id, len(attempts))
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
