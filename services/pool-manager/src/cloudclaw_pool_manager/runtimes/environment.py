"""The environment that every runtime's programs begin with; nothing of the node's own gets in."""

from __future__ import annotations

from typing import Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENV: Final = {
    "PATH": PATH,
    "HOME": "/home/agent",
    "USER": "agent",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",
}
EGRESS: Final = "http://127.0.0.1:8787"
"""Where the gateway answers inside every sandbox that has a way out; known before there is a task."""
PLACEHOLDER: Final = "kept-by-the-gateway"
"""What agents are given for a key. The gateway strips it and adds the tenant's own."""
