"""`claw` as a function, against services in memory."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from cloudclaw.cli.__main__ import main
from cloudclaw.rpc.auth import Minter
from cloudclaw.rpc.keys import write_development_key
from tests.unit.cli.fakes import Services


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its output, a JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Claw = Callable[..., Ran]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    key = tmp_path / "dev.key"
    write_development_key(key)
    # Their lines would stand between those of the command, which runs in the same process.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    services = Services(key)
    yield services
    services.close()
    structlog.reset_defaults()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Claw:
    """`claw` with an environment that says nothing."""
    for name in ("CLAW_ENDPOINT", "CLAW_WORKSPACE_ENDPOINT", "CLAW_TOKEN", "CLAW_TENANT", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLAW_DATA_DIR", str(tmp_path / "dev-data"))

    def run(*arguments: str, stdin: str = "") -> Ran:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["claw", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        texts = []
        for stream in (out, err):
            stream.flush()
            raw = stream.buffer
            assert isinstance(raw, io.BytesIO)
            texts.append(raw.getvalue().decode(errors="surrogateescape"))
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, *texts)

    return run


@pytest.fixture
def claw(services: Services, bare: Claw, monkeypatch: pytest.MonkeyPatch) -> Claw:
    """`claw` of a user of tenant acme, against `services`."""
    monkeypatch.setenv("CLAW_ENDPOINT", services.address)
    monkeypatch.setenv("CLAW_WORKSPACE_ENDPOINT", services.address)
    monkeypatch.setenv("CLAW_TOKEN", Minter(services.key).mint("acme"))
    return bare


@pytest.fixture
def operator(services: Services, claw: Claw, monkeypatch: pytest.MonkeyPatch) -> Claw:
    """`claw` of an operator."""
    monkeypatch.setenv("CLAW_TOKEN", Minter(services.key).mint("acme", ["operator"]))
    return claw
