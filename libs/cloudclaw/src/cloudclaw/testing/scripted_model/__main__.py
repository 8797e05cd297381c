"""`python -m cloudclaw.testing.scripted_model --scenario FILE [--listen HOST:PORT] [--record FILE] [--workdir DIR]`.

Prints what it is and then `ready URL`; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from cloudclaw.testing.scripted_model.running import ScriptedModel
from cloudclaw.testing.scripted_model.scenario import Script, ScriptError, load


async def _serve(script: Script, listen: tuple[str, int], record: str | None, workdir: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ScriptedModel(script, listen=listen, record=record, workdir=workdir) as model:
        sys.stdout.write(f"ready {model.url}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="scripted_model", description="A model endpoint that plays a script.")
    parser.add_argument("--scenario", required=True, help="the script, TOML or JSON")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT (default 127.0.0.1:0, a free port)")
    parser.add_argument("--record", help="a file that gets every request as JSON lines")
    parser.add_argument("--workdir", default="/workspace", help="where relative paths in the script start")
    options = parser.parse_args()
    try:
        script = load(options.scenario)
    except ScriptError as error:
        parser.error(str(error))
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--listen wants HOST:PORT, not {options.listen!r}")
    sys.stdout.write("scripted model: CloudClaw test support; it plays a script and is no model\n")
    asyncio.run(_serve(script, (host, int(port)), options.record, options.workdir))


if __name__ == "__main__":
    main()
