"""The supervisor of `claw dev`: children that die, hang, or outlive what started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloudclaw.cli.dev import children
from cloudclaw.cli.dev.children import Child, ChildGaveUpError, ChildSpec
from cloudclaw.cli.dev.components import Components
from cloudclaw.cli.dev.options import DevDirectory, DevOptions
from cloudclaw.config import read
from cloudclaw.rpc.keys import write_development_key
from cloudclaw_gateway.config import GatewaySettings
from tests.support.processes import alive, eventually
from tests.unit.cli.conftest import Claw

Make = Callable[..., Child]

STAY = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("run", "log"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(children, "RESTART_PAUSE", 0.05)
    return tmp_path


@pytest.fixture
def make(directory: Path) -> Make:
    def child(program: str, *, restart: bool = True, stop_seconds: float = 10.0) -> Child:
        environment = {"PATH": os.environ["PATH"]}
        spec = ChildSpec("demo", [sys.executable, "-S", "-c", program], environment, stop_seconds=stop_seconds)
        return Child(spec, directory, restart=restart)

    return child


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[asyncio.Task[None]]:
    life = asyncio.create_task(child.run())
    try:
        yield life
    finally:
        await asyncio.wait_for(child.stop(), 30)
        await asyncio.gather(life, return_exceptions=True)


def pid(directory: Path) -> int:
    path = directory / "run" / "demo.pid"
    return int(path.read_text()) if path.exists() else 0


async def up(child: Child, times: int = 1) -> None:
    """Wait until it has said that it is up, so many times in all."""
    await eventually("the child is up", lambda: child.log.exists() and child.log.read_text().count("up\n") >= times, 20)


async def test_a_child_that_dies_is_started_again_under_a_new_pid(make: Make, directory: Path) -> None:
    child = make(STAY)
    async with running(child):
        await up(child)
        child.ready.set()
        for life in (2, 3):
            old = pid(directory)
            os.kill(old, signal.SIGKILL)
            await up(child, life)
            # The file names the present process at any time that it can be read.
            assert alive(pid(directory))
            assert pid(directory) != old
    assert not alive(pid(directory))


async def test_without_restarts_it_stays_dead(make: Make, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = make(STAY, restart=False)
    async with running(child) as life:
        await up(child)
        child.ready.set()
        os.kill(pid(directory), signal.SIGKILL)
        await asyncio.wait_for(life, 20)
    assert "SIGKILL; not started again" in capfd.readouterr().err


async def test_a_child_that_never_serves_ends_the_start_with_its_last_words(make: Make) -> None:
    child = make("print('no port for me'); raise SystemExit(3)")
    with pytest.raises(ChildGaveUpError) as caught:
        await asyncio.wait_for(child.run(), 20)
    assert "exit code 3" in str(caught.value)
    assert "no port for me" in str(caught.value)


async def test_a_child_that_ignores_sigterm_is_killed(make: Make, directory: Path) -> None:
    child = make(STUBBORN, stop_seconds=0.2)
    async with running(child) as life:
        await up(child)
        await asyncio.wait_for(child.stop(), 20)
        await asyncio.wait_for(life, 20)
    assert not alive(pid(directory))


async def test_a_stopped_child_can_be_ended(make: Make, directory: Path) -> None:
    child = make(STAY, stop_seconds=5.0)
    async with running(child):
        await up(child)
        os.kill(pid(directory), signal.SIGSTOP)
    assert not alive(pid(directory))


async def test_stopping_while_it_is_being_started_leaves_nothing(make: Make, directory: Path) -> None:
    for moment in range(6):
        child = make(STAY)
        life = asyncio.create_task(child.run())
        for _ in range(moment):
            await asyncio.sleep(0)
        await asyncio.wait_for(child.stop(), 20)
        await asyncio.wait_for(life, 20)
        assert not (pid(directory) and alive(pid(directory)))


async def test_children_have_sessions_of_their_own(make: Make, directory: Path) -> None:
    child = make(STAY)
    async with running(child):
        await up(child)
        assert os.getsid(pid(directory)) == pid(directory)
        assert os.getpgid(pid(directory)) != os.getpgrp()


_DEV = """
import asyncio, sys, threading
from pathlib import Path
from cloudclaw.cli.dev.children import Child, ChildSpec
# More threads than one: each tells its children of its death.
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = Child(ChildSpec("demo", [sys.executable, "-S", "-c", {program!r}], {{}}), Path({directory!r}), restart=True)
asyncio.run(child.run())
"""


async def test_a_killed_dev_takes_its_children_along(directory: Path) -> None:
    program = _DEV.format(program=STAY, directory=str(directory))
    dev = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=subprocess.DEVNULL)
    log = directory / "log" / "demo.log"
    try:
        await eventually("the child is up", lambda: log.exists() and "up" in log.read_text(), 20)
        assert alive(pid(directory))
    finally:
        dev.kill()
        await dev.wait()
    await eventually("the child is gone", lambda: not alive(pid(directory)), 20)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nodes", "0"), "--nodes"),
        (("--slots", "x"), "--slots"),
        (("--backend", "chroot"), "--backend"),
        (("--objects", "ftp://x"), "--objects"),
        (("--base-port", "80"), "--base-port"),
    ],
)
def test_options_that_cannot_be_start_nothing(
    bare: Claw, tmp_path: Path, arguments: tuple[str, str], named: str
) -> None:
    ran = bare("dev", "--data-dir", str(tmp_path / "d"), *arguments)
    assert ran.code == 2
    assert named in ran.err
    assert not (tmp_path / "d").exists()


def test_a_folder_has_one_dev_and_is_its_owners_alone(bare: Claw, tmp_path: Path) -> None:
    held = DevDirectory(tmp_path / "d")
    try:
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
        ran = bare("dev", "--data-dir", str(tmp_path / "d"))
        assert ran.code == 6
        assert "another `claw dev`" in ran.err
    finally:
        held.close()
    DevDirectory(tmp_path / "d").close()


def test_each_service_is_given_its_own_settings_and_dev_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "CLAW_SCHEDULER_HISTORY__RETENTION": "60",
        "CLAW_SCHEDULER_SERVER__LISTEN": "0.0.0.0:1",
        "CLAW_WORKSPACE_GC__GRACE": "5",
        "CLAW_WORKSPACE_ENDPOINT": "elsewhere:1",
        "CLAW_POOL_MANAGER_LOG_LIMIT": "1000",
        "CLAW_POOL_MANAGER_NODE_ID": "not-this",
        "CLAW_TOKEN": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    held = DevDirectory(tmp_path / "d")
    write_development_key(held.key)
    try:
        components = Components(DevOptions(tmp_path / "d", nodes=2, base_port=0), held)
        given = {spec.name: spec.environment for spec in components.services()}
    finally:
        held.close()
    theirs = {"HISTORY__RETENTION": set[str](), "GC__GRACE": set(), "LOG_LIMIT": set()}
    for name, environment in given.items():
        for setting, services in theirs.items():
            services |= {name for variable in environment if variable.endswith("_" + setting)}
    nodes = {"pool-manager@node-1", "pool-manager@node-2"}
    assert theirs == {"HISTORY__RETENTION": {"scheduler"}, "GC__GRACE": {"workspace"}, "LOG_LIMIT": nodes}
    assert given["scheduler"]["CLAW_SCHEDULER_SERVER__LISTEN"] == components.endpoints["scheduler"]
    assert {given[node]["CLAW_POOL_MANAGER_NODE_ID"] for node in nodes} == {"node-1", "node-2"}
    assert not {"CLAW_TOKEN", "CLAW_WORKSPACE_ENDPOINT"} & set().union(*given.values())
    for node in ("node-1", "node-2"):
        # One socket and one sealing key: the manager finds its gateway, which opens what the scheduler seals.
        gateway = given[f"gateway@{node}"]
        assert gateway["CLAW_GATEWAY_SOCKET"] == given[f"pool-manager@{node}"]["CLAW_POOL_MANAGER_GATEWAY_SOCKET"]
        assert gateway["CLAW_GATEWAY_SEALING__KEYS"] == given["scheduler"]["CLAW_SCHEDULER_SEALING__KEYS"]
        assert gateway["CLAW_GATEWAY_SOCKET"].startswith(str(tmp_path / "d" / "gateways" / node))
        read(GatewaySettings, environ=gateway)


def test_a_scripted_model_takes_the_place_of_the_endpoints(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[scenarios]]\nname = "a"\n[[scenarios.turns]]\ntext = "b"\n')
    held = DevDirectory(tmp_path / "d")
    write_development_key(held.key)
    try:
        options = DevOptions(tmp_path / "d", base_port=0, no_agents=True, scripted_model=script)
        options.check()
        components = Components(options, held)
        given = {spec.name: spec.environment for spec in components.services()}
        (model,) = [spec for spec in components.stores() if spec.name == "scripted-model"]
    finally:
        held.close()
    address = components.endpoints["scripted-model"]
    assert {str(script), address} <= set(model.argv)
    upstreams = read(GatewaySettings, environ=given["gateway@node-1"]).upstreams
    assert {name: (u.url, u.anonymous) for name, u in upstreams.items()} == {
        "anthropic": (f"http://{address}", True),
        "openai": (f"http://{address}", True),
        "gemini": (f"http://{address}", True),
    }
    assert "scripted-model" not in components.metrics


def test_a_script_that_cannot_be_played_is_refused_at_once(bare: Claw, tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[scenarios]]\nname = "a"\n')
    for file, said in ((script, "turns"), (tmp_path / "none.toml", "No such file")):
        ran = bare("dev", "--data-dir", str(tmp_path / "d"), "--scripted-model", str(file))
        assert (ran.code, ran.out) == (2, "")
        assert "--scripted-model" in ran.err
        assert said in ran.err
