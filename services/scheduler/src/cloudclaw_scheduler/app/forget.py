"""Tells every node to remove what it keeps of tenants that are being deleted. Leader only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import Change, Kind


class Forgetting:
    """Follows the tombstones: a node is told when one appears, and on each Hello while it is there."""

    def __init__(self, mirror: Mirror, links: Links) -> None:
        self._mirror = mirror
        self._links = links

    def reloaded(self) -> None:
        """Tell all nodes of all tombstones: one may have come unseen."""
        for link in self._links:
            self.greet(link)

    def changed(self, changes: Sequence[Change]) -> None:
        gone = [str(change.value) for change in changes if change.kind is Kind.BURIED]
        if gone:
            for link in self._links:
                self._tell(link, gone)

    def greet(self, link: NodeLink) -> None:
        """The node connected. It may have been away while a tenant was deleted: trees of one that has no workspace
        are of no use to anybody."""
        state = self._mirror.state
        owners = {tenant for tenant, _ in state.workspaces}
        self._tell(link, sorted(state.buried | (link.cached_tenants() - owners)))

    def _tell(self, link: NodeLink, tenants: Iterable[str]) -> None:
        for tenant in tenants:
            link.forget(tenant)
            link.send(pb.ConnectResponse(forget_tenant=pb.ForgetTenant(tenant=tenant)))
