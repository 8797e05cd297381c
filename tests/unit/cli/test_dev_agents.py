"""The agents that `claw dev` offers: those whose programs are there, reached through one folder."""

from __future__ import annotations

import json
import socket
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.cli.dev import agents
from cloudclaw.cli.dev.components import Components
from cloudclaw.cli.dev.options import DevDirectory, DevOptions
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.rpc.keys import write_development_key
from cloudclaw_pool_manager.config import PoolSettings
from tests.unit.cli.conftest import Claw


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """All adapters but gemini's are installed."""
    names = ["command", "claude-code", "opencode", "openclaw", "codex"]
    points = [EntryPoint(name, "somewhere:Adapter", "cloudclaw.runtimes") for name in names]
    monkeypatch.setattr(agents, "entry_points", lambda group: points)


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where set-up installs agents: a versioned folder, and the symlink to it."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    real = cache / "cloudclaw" / "agents" / "0123"
    (real / "bin").mkdir(parents=True)
    (real.parent / "current").symlink_to("0123")
    return real


def program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def pools(options: DevOptions) -> list[dict[str, Any]]:
    """The pools that each node of such a `claw dev` is given, each checked by the pool-manager's own settings."""
    held = DevDirectory(options.directory)
    write_development_key(held.key)
    try:
        specs = Components(options, held).services()
    finally:
        held.close()
    given = [spec.environment for spec in specs if spec.name.startswith("pool-manager@")]
    found = [json.loads(environment["CLAW_POOL_MANAGER_POOLS"])[0] for environment in given]
    for pool in found:
        # Folders of tests lie below /tmp, which a pool-manager refuses to bind: a sandbox has its own.
        elsewhere = [f"/opt{path}" for path in pool.get("read_only_binds", [])]
        PoolSettings(**pool | ({"read_only_binds": elsewhere} if elsewhere else {}))
    return found


def test_agents_that_are_installed_are_offered_through_the_folder_itself(prefix: Path, tmp_path: Path) -> None:
    program(prefix / "bin" / "opencode")
    program(prefix / "lib" / "claude")
    (prefix / "bin" / "claude").symlink_to("../lib/claude")
    first, second = pools(DevOptions(tmp_path / "d", nodes=2, base_port=0))
    assert first["runtimes"] == second["runtimes"] == ["command", "claude-code", "opencode"]
    assert first["read_only_binds"] == [str(prefix)]
    assert first["runtime_options"]["claude-code"]["binary"] == str(prefix / "bin" / "claude")
    assert first["runtime_options"]["opencode"]["path"] == [str(prefix / "bin")]
    assert first["limits"]["memory_bytes"] > 1 << 30
    assert "warm" not in first


def test_a_program_that_cannot_be_run_or_lies_elsewhere_is_not_offered(prefix: Path, tmp_path: Path) -> None:
    program(tmp_path / "elsewhere")
    (prefix / "bin" / "claude").symlink_to(tmp_path / "elsewhere")
    (prefix / "bin" / "opencode").write_text("no program")
    program(prefix / "bin" / "gemini")  # there is no adapter for it
    (pool,) = pools(DevOptions(tmp_path / "d", base_port=0))
    assert set(pool) == {"name", "backend", "slots", "options"}


def test_without_agents_or_on_request_only_commands_are_offered(prefix: Path, tmp_path: Path) -> None:
    plain = {"name", "backend", "slots", "options"}
    (pool,) = pools(DevOptions(tmp_path / "d", base_port=0))
    assert set(pool) == plain
    program(prefix / "bin" / "claude")
    (pool,) = pools(DevOptions(tmp_path / "e", base_port=0, no_agents=True))
    assert set(pool) == plain


def test_a_containers_agents_are_in_its_image(tmp_path: Path) -> None:
    (pool,) = pools(DevOptions(tmp_path / "d", base_port=0, backend="docker"))
    assert pool["runtimes"] == ["command", "claude-code", "opencode", "openclaw", "codex"]
    assert not {"read_only_binds", "runtime_options"} & set(pool)


def test_a_container_can_be_given_an_image_an_engine_and_the_agents_of_a_folder(prefix: Path, tmp_path: Path) -> None:
    program(prefix / "bin" / "claude")
    options = DevOptions(
        tmp_path / "d", base_port=0, backend="docker", image="mine:1", engine="unix:///e.sock", agents=prefix
    )
    (pool,) = pools(options)
    assert pool["options"] == {"uid_base": 210_000, "engine": "unix:///e.sock", "image": "mine:1"}
    assert pool["read_only_binds"] == [str(prefix)]
    with pytest.raises(InvalidArgumentError, match="docker"):
        DevOptions(tmp_path / "e", image="mine:1").check()
    with pytest.raises(InvalidArgumentError, match="on this host"):
        DevOptions(tmp_path / "e", backend="docker", engine="tcp://elsewhere:2375").check()


def test_one_agent_can_wait_warm_if_it_is_offered(prefix: Path, tmp_path: Path) -> None:
    program(prefix / "bin" / "claude")
    (pool,) = pools(DevOptions(tmp_path / "d", base_port=0, warm="claude-code"))
    assert pool["warm"] == "claude-code"
    with pytest.raises(InvalidArgumentError, match="there are claude-code"):
        pools(DevOptions(tmp_path / "e", base_port=0, warm="opencode"))


def test_an_agent_that_does_not_wait_is_not_taken_for_warm(prefix: Path, tmp_path: Path) -> None:
    for name in ("claude", "codex"):
        program(prefix / "bin" / name)
    with pytest.raises(InvalidArgumentError, match="claude-code can"):
        pools(DevOptions(tmp_path / "d", base_port=0, warm="codex"))
    cold = set()
    for point in entry_points(group="cloudclaw.runtimes"):
        if point.name in agents.PROGRAMS and point.load()().warmth() is None:
            cold.add(point.name)
    assert cold == agents.COLD


def test_a_port_or_a_folder_that_cannot_be_had_is_refused_before_anything_starts(bare: Claw, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = bare("dev", "--data-dir", str(tmp_path / "d"), "--no-agents", "--base-port", str(port))
    assert (ran.code, ran.out) == (6, "")
    assert f"port {port} cannot be had: Address already in use" in ran.err
    file = tmp_path / "file"
    file.touch()
    ran = bare("dev", "--data-dir", str(file), "--no-agents", "--base-port", "0")
    assert (ran.code, ran.out) == (2, "")
    assert f"--data-dir: {file}: File exists" in ran.err


def test_a_scripted_model_is_asked_for_by_names_with_which_agents_let_it_work(prefix: Path, tmp_path: Path) -> None:
    for name in ("claude", "codex"):
        program(prefix / "bin" / name)
    (pool,) = pools(DevOptions(tmp_path / "d", base_port=0, scripted_model=tmp_path / "script.toml"))
    assert pool["runtime_options"]["codex"]["model"] == "scripted"
    assert pool["runtime_options"]["codex"]["binary"] == str(prefix / "bin" / "codex")
    assert "model" not in pool["runtime_options"]["claude-code"]


def test_a_folder_without_agents_is_refused_when_it_was_named(bare: Claw, prefix: Path, tmp_path: Path) -> None:
    ran = bare("dev", "--data-dir", str(tmp_path / "d"), "--agents", str(prefix), "--base-port", "0")
    assert (ran.code, ran.out) == (2, "")
    assert "--agents" in ran.err
    assert "bin/claude" in ran.err
    ran = bare("dev", "--data-dir", str(tmp_path / "d"), "--agents", str(prefix), "--no-agents")
    assert ran.code == 2
    assert "not both" in ran.err
