"""CloudClaw's Python client.

```python
from cloudclaw.client import Client

with Client("127.0.0.1:7401", token) as claw:
    task = claw.submit(["sh", "-c", "echo hello"])
    for piece in claw.tail(task.task_id):
        print(piece.chunk.data.decode(), end="")
    print(claw.wait(task.task_id).state)
```

`AsyncClient` is the same for asyncio. Calls answer the messages of `cloudclaw.v1` and raise `cloudclaw.errors`.
"""

from cloudclaw.client.client import AsyncClient
from cloudclaw.client.pool import Pool
from cloudclaw.client.results import Consumers
from cloudclaw.client.sync import Client
from cloudclaw.client.workspaces import Workspaces

__all__ = ["AsyncClient", "Client", "Consumers", "Pool", "Workspaces"]
