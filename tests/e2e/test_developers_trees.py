"""What developers keep in their trees works on another node as it did on the first: `.git`, virtual environments,
`node_modules`."""

from __future__ import annotations

from pathlib import Path

from cloudclaw.v1 import task_pb2
from tests.support.stack import Stack

SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED

# Type, mode, links, time to the nanosecond, name and target of everything, and what is in the files.
LOOK = r"""
list() {
  find . -path ./before -prune -o -path ./after -prune -o -printf '%y %m %n %T@ %p %l\n' | grep -v '^d .* \. $' | sort
  find . -type f ! -path ./before ! -path ./after -exec sha256sum {} + | sort
}
"""

MAKE = (
    LOOK
    + r"""
set -e
git init -q project && cd project
git config user.name Somebody && git config user.email somebody@example.org
mkdir empty src && echo 'print("hello")' > src/main.py && chmod 755 src/main.py && ln -s src/main.py run
git add . && git commit -q -m first
echo more >> src/main.py && git commit -q -a -m second
git gc -q
cd ..
python3 -m venv --without-pip venv
mkdir -p node_modules/.bin node_modules/tool/bin node_modules/.store
printf '#!/bin/sh\necho tool works\n' > node_modules/tool/bin/tool.sh && chmod 755 node_modules/tool/bin/tool.sh
ln -s ../tool/bin/tool.sh node_modules/.bin/tool
ln node_modules/tool/bin/tool.sh node_modules/.store/content
truncate -s 1M holes && printf x | dd of=holes bs=1 seek=500000 conv=notrunc status=none
list > before
"""
)

USE = (
    LOOK
    + r"""
set -e
list > after
cmp before after
git -C project fsck --no-progress
test -z "$(git -C project status --porcelain)"
git -C project log --format=%s
venv/bin/python -c 'import sys; assert sys.prefix.endswith("/venv"); print("venv works")'
node_modules/.bin/tool
test node_modules/tool/bin/tool.sh -ef node_modules/.store/content
test "$(stat -c %b holes)" -lt 512
"""
)


async def test_git_virtual_environments_and_node_modules_work_on_another_node(tmp_path: Path) -> None:
    async with Stack(tmp_path, nodes=2, slots=1) as stack:
        tenant = stack.tenant("acme")
        await tenant.create_workspace("ws")
        where = task_pb2.WorkspaceSelection(name="ws")
        made = await tenant.wait(await tenant.shell(MAKE, workspace=where))
        assert made.state == SUCCEEDED, await tenant.log(made.task_id)
        first = made.attempts[-1].node
        await stack.drain(first)
        used = await tenant.wait(await tenant.shell(USE, workspace=where))
        log = (await tenant.log(used.task_id)).decode()
        assert used.state == SUCCEEDED, log
        assert used.attempts[-1].node != first
        assert {"first", "second", "venv works", "tool works"} <= set(log.splitlines())
