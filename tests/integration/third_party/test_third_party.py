"""A third party's runtime, installed outside this tree: it passes our tests by itself, and runs on a node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

from cloudclaw.v1 import pool_manager_pb2, scheduler_pb2, task_pb2
from tests.integration.pool_manager.cluster import Cluster
from tests.support import third_party
from tests.support.etcd_server import EtcdServer
from tests.support.processes import eventually
from tests.support.require import CACHE, require_bubblewrap

SOURCE: Final = Path(third_party.__file__).parent
WRONG: Final = {
    "TestTrustsExitCodes": {
        "test_an_answer_is_a_success_with_exit_code_0_only",
        "test_exit_code_0_without_an_answer_is_a_failure",
        "test_an_error_is_no_success_whatever_the_exit_code",
        "test_a_recorded_success_tells_session_answer_and_use",
    },
    "TestTriesEverythingAgain": {"test_what_is_worth_another_attempt"},
    "TestLeaksTheNodesEnvironment": {"test_nothing_of_the_nodes_own_environment_gets_in"},
    "TestLetsTheTaskNameItself": {"test_the_task_has_its_variables_and_cannot_take_cloudclaws"},
    "TestSaysThePromptAgain": {
        "test_an_interrupted_session_goes_on_with_a_word_about_that",
        "test_a_session_that_waited_goes_on_with_the_message",
    },
    "TestInventsSessions": {"test_the_same_request_gives_the_same_launch"},
    "TestTakesInputByHalves": {"test_input_stays_open_for_conversations_that_can_take_some"},
    "TestTellsNoTurns": {
        "test_the_scheduler_reads_its_log_as_the_node_does",
        "test_a_recorded_success_tells_session_answer_and_use",
    },
}
"""Which tests tell each of the wrong adapters."""


class Package:
    """The distribution, installed into `site` as an installer does it, and its tests beside."""

    def __init__(self, folder: Path):
        self.site, self.tests = folder / "site", folder / "tests"
        facts = self.site / "owl_runtime-2.1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: owl-runtime\nVersion: 2.1.0\n")
        shutil.copy(SOURCE / "entry_points.txt", facts)
        shutil.copy(SOURCE / "owl_runtime.py", self.site)
        self.owl = Path(shutil.copy(SOURCE / "owl", self.site))
        self.tests.mkdir()
        shutil.copy(SOURCE / "conformance.py", self.tests / "test_conformance.py")
        shutil.copy(SOURCE / "wrong.py", self.tests / "test_wrong.py")
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(self.site)}

    def record(self, name: str, words: str, *options: str) -> None:
        """Keep what the agent writes."""
        home = self.tests / "home"
        home.mkdir(exist_ok=True)
        ran = subprocess.run(
            [self.owl, "--session", name, *options],
            input=words.encode(), cwd=home, env=self.environment | {"HOME": str(home)},
            capture_output=True, check=False,
        )  # fmt: skip
        folder = self.tests / "recordings"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.stdout").write_bytes(ran.stdout)
        (folder / f"{name}.stderr").write_bytes(ran.stderr)
        (folder / f"{name}.json").write_text(json.dumps({"code": ran.returncode}))

    def pytest(self, module: str) -> tuple[int, dict[str, set[str]], str]:
        """Run one module of its tests: the exit code, the names of those that failed by class, and the output."""
        report = self.tests / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(self.tests), f"--junit-xml={report}"]
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *options, module],
            cwd=self.tests, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        failed: dict[str, set[str]] = {}
        for case in ET.parse(report).iter("testcase"):
            names = failed.setdefault(case.attrib["classname"].rpartition(".")[2], set())
            if any(part.tag in ("failure", "error") for part in case):
                names.add(case.attrib["name"].partition("[")[0])
        return ran.returncode, failed, ran.stdout + ran.stderr


@pytest.fixture
def package() -> Iterator[Package]:
    # Not in /tmp: sandboxes have one of their own.
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="owl-", dir=CACHE) as folder:
        made = Package(Path(folder))
        made.record("success", "Who?")
        made.record("busy", "Who is too loud?")
        made.record("unknown-session", "And then?", "--go-on")
        yield made


def test_a_right_adapter_passes_our_tests_by_itself(package: Package) -> None:
    code, failed, output = package.pytest("test_conformance.py")
    assert code == 0, output
    assert failed["TestOwl"] == set()
    assert "skipped" not in output


def test_a_wrong_adapter_is_told_so_by_the_tests_of_what_it_does_wrong(package: Package) -> None:
    code, failed, output = package.pytest("test_wrong.py")
    assert code == 1, output
    assert failed == WRONG, output


@pytest.mark.etcd
@pytest.mark.sandbox
async def test_it_runs_on_a_node_and_its_events_are_told(package: Package) -> None:
    require_bubblewrap()
    async with EtcdServer() as etcd, Cluster(etcd, packages=package.site) as cluster:
        offer = {"slots": 1, "runtimes": ["command", "owl", "codex"], "read_only_binds": [str(package.site)]}
        options = {"owl": {"binary": str(package.owl), "model": "barn"}}
        node = cluster.node(POOLS=json.dumps([{**offer, "runtime_options": options}]))
        await node.start()
        operator = await node.operator()

        async def asked() -> bool:
            pools = await operator.GetPool(pool_manager_pb2.GetPoolRequest())
            found = {one.runtime: one for pool in pools.pools for one in pool.capacity.runtime_status}
            if not {"owl", "codex"} <= set(found):
                return False
            assert (found["owl"].ready, found["owl"].version) == (True, "2.1.0"), found
            assert not found["codex"].ready, "its program is not there"
            assert "codex is not there, or cannot be executed; PATH is /usr" in found["codex"].reason
            return True

        await eventually("the node has asked both for their versions", asked)
        spec = task_pb2.TaskSpec(runtime="owl", prompt="Who?")
        request = scheduler_pb2.SubmitTaskRequest(spec=spec)
        task = (await cluster.scheduler.SubmitTask(request)).task.task_id
        ended = await cluster.wait(task)
        assert ended.state == task_pb2.TASK_STATE_SUCCEEDED, await cluster.log(task)
        result = (await cluster.scheduler.GetResult(scheduler_pb2.GetResultRequest(task_id=task))).result
        assert result.final_message == "Hoo: Who?"
        assert result.usage.input_tokens == 1
        told = cluster.scheduler.WatchEvents(scheduler_pb2.WatchEventsRequest(task_id=task))
        kinds = [answer.event.WhichOneof("event") async for answer in told]
        assert kinds[:4] == ["message", "started", "tool_call", "tool_result"], kinds
        assert "finished" in kinds
