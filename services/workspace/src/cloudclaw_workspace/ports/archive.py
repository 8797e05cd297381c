"""The `Archive` port: what archived tasks refer to."""

from __future__ import annotations

from typing import Protocol

from cloudclaw_workspace.domain.outputs import Outputs


class Archive(Protocol):
    """Tasks that have left the coordination store for the object store."""

    async def outputs(self, tenant: str) -> Outputs:
        """What all archived tasks of the tenant refer to, as of some moment after the call.

        `DataLossError` naming a bundle that is damaged, `UnavailableError`: then nothing can be said of them.
        """
        ...
