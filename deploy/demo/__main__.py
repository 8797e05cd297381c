"""The demo: two tenants, a node killed at work, every task finished once; then an agent whose node is killed as well.

Everything is done through the `claw` command, and each command is shown, so that it can be typed again. It starts a
stack of its own in a temporary folder on free ports, and leaves nothing running and nothing behind. It ends with an
error when something is not as it says.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from deploy.demo import agent, fleet
from deploy.demo.stage import Tenant, alive, running_stack, say


def main() -> int:
    started = time.monotonic()
    agents = agent.installed()
    with tempfile.TemporaryDirectory(prefix="claw-demo-") as folder:
        stack = Path(folder) / "stack"
        # One node is killed in each part, and one is left to take over.
        nodes = 3 if agents else 2
        words = {2: "two", 3: "three"}
        say(f"Starting etcd, the scheduler, the workspace service and {words[nodes]} nodes of two warm slots each")
        with running_stack(stack, nodes, agent.options() if agents else ["--no-agents"]) as ready:
            tenants = [Tenant("acme", stack, ready), Tenant("globex", stack, ready)]
            victims = [fleet.show(tenants, fleet.source_tree(Path(folder)), stack, ready)]
            if agents:
                victims.append(agent.show(tenants[0], stack, ready))
            for tenant in tenants:
                tenant.client.close()
        left = [pid for victim in victims for pid in victim.pids if alive(pid)]
    say(f"Stopped. Nothing is left running. {time.monotonic() - started:.0f} s in all")
    if left:
        say(f"Something went wrong: processes left {left}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
