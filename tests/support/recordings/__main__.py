"""Makes the recordings; see README.md beside this file."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from cloudclaw.testing.scripted_model import ScriptedModel
from tests.support.recordings.case import Agent, Case
from tests.support.recordings.claude_cases import CLAUDE
from tests.support.recordings.codex_cases import CODEX
from tests.support.recordings.gemini_cases import GEMINI
from tests.support.recordings.openclaw_cases import OPENCLAW
from tests.support.recordings.opencode_cases import OPENCODE
from tests.support.recordings.sandbox import PORT, Sandbox, signal_agent

AGENTS = [CLAUDE, OPENCODE, OPENCLAW, CODEX, GEMINI]
HERE = Path(__file__).parent


async def play(agent: Agent, case: Case, box: Sandbox) -> tuple[int | None, bytes, bytes]:
    """Run one case; exit code (None: it still ran when its time was up), stdout, stderr."""
    for path, content in {**agent.home, **case.home}.items():
        file = box.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    record = os.environ.get("MODEL_RECORD")
    async with ScriptedModel({"scenarios": case.scenarios}, listen=("127.0.0.1", PORT), record=record) as model:
        env = {**agent.env, **case.env}
        process = await box.start(case.argv, env, stdin=case.stdin is not None or bool(case.messages))
        out = asyncio.create_task(_read(process.stdout))
        err = asyncio.create_task(_read(process.stderr))
        if case.stdin is not None:
            assert process.stdin
            process.stdin.write(case.stdin.encode())
            process.stdin.close()
        for number, message in enumerate(case.messages):
            assert process.stdin
            process.stdin.write(json.dumps(message).encode() + b"\n")
            if message.get("type") == "user":
                wanted = 1 + sum(one.get("type") == "user" for one in case.messages[:number])
                await asyncio.wait_for(case.answered(model, wanted), 60)
        if case.messages:
            assert process.stdin
            process.stdin.close()
        if case.signal is not None:
            await model.wait_for(lambda entries: any(e["turn"] == case.signal_in_turn for e in entries), 120)
            await case.settle(box)
            await signal_agent(process, case.signal, agent.process)
        code: int | None = None
        try:
            code = await asyncio.wait_for(process.wait(), case.timeout)
        except TimeoutError:
            process.kill()
            await process.wait()
        result = code, await out, await err
        _summary(agent, case, code, model)
        return result


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    assert stream
    return await stream.read()


def _summary(agent: Agent, case: Case, code: int | None, model: ScriptedModel) -> None:
    asked = [f"{e['kind']}:{e['scenario']}:{e['turn']}:{e['status']}{e['problem']}" for e in model.requests]
    print(f"{agent.name}/{case.name}: exit {code}; {' '.join(asked)}", flush=True)


async def record(agent: Agent, names: list[str]) -> None:
    """Record the cases of one agent."""
    root = Path(tempfile.mkdtemp(prefix="recordings-"))
    try:
        version = await _version(agent, Sandbox(root / "version"))
        boxes: dict[str, Sandbox] = {}
        for case in agent.cases:
            needed = [one.continues for one in agent.cases if one.name in names]
            if names and case.name not in names and case.name not in needed:
                continue
            box = boxes.get(case.continues) or Sandbox(root / case.name)
            boxes[case.name] = box
            code, out, err = await play(agent, case, box)
            target = HERE / agent.name
            target.mkdir(exist_ok=True)
            (target / f"{case.name}.stdout").write_bytes(out)
            (target / f"{case.name}.stderr").write_bytes(err)
            about = {
                "agent": agent.name,
                "version": version,
                "argv": case.argv,
                "env": sorted({**agent.env, **case.env}),
                "stdin": case.stdin,
                "messages": case.messages,
                "code": code,
                "note": case.note,
            }
            (target / f"{case.name}.json").write_text(json.dumps(about, indent=2) + "\n")
    finally:
        shutil.rmtree(root)


async def _version(agent: Agent, box: Sandbox) -> str:
    process = await box.start([agent.process, "--version"], agent.env, stdin=False)
    out, _ = await process.communicate()
    return out.decode().strip()


def main() -> None:
    """Record what the command line names: an agent and cases; or everything."""
    wanted, names = sys.argv[1:2], sys.argv[2:]
    for agent in AGENTS:
        if not wanted or agent.name in wanted:
            asyncio.run(record(agent, names))


if __name__ == "__main__":
    main()
