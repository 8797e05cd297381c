"""Which of a tenant's objects something refers to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field

from cloudclaw_workspace.domain import names
from cloudclaw_workspace.domain.outputs import Outputs


@dataclass(frozen=True, slots=True)
class Facts:
    """What a round knows when it decides.

    Attributes:
        marked: names of the manifests that roots point to, and of the packs in them.
        live: uids whose objects nobody touches, referred to or not.
        outputs: what the tasks that have a record refer to.
        archived: what the archived ones refer to; None when that cannot be told.
    """

    marked: Set[str]
    live: Collection[str]
    outputs: Outputs
    archived: Outputs | None

    def wanted(self, name: str) -> bool:
        """Whether the object `name` must stay. What cannot be told stays: names of a kind that this version does not
        know; and whatever may be an archived task's, while nothing is known of these."""
        match names.parse(name):
            case names.Stored(uid):
                return name in self.marked or uid in self.live
            case names.Output(task, uid, artifact=True):
                return uid in self.live or self._any(lambda outputs: outputs.artifact(task, uid))
            case names.Output(task):
                return self._any(lambda outputs: outputs.result(task, name))
            case names.Log(uid):
                return uid in self.live or self._any(lambda outputs: outputs.log(uid))
            case names.Said(task):
                # Until its end: then the log has what was said. No input is stored for a task that has ended.
                return self.outputs.unfinished(task)
            case _:
                return True

    def _any(self, refer: Callable[[Outputs], bool]) -> bool:
        return refer(self.outputs) or self.archived is None or refer(self.archived)


@dataclass(slots=True)
class Report:
    """What one round found in one tenant; counts of objects, and their bytes.

    Attributes:
        snapshots: beyond their workspace's retention, or of a workspace that is gone.
        kept: referred to, in progress, undecidable, or waiting.
        waiting: of those, referred to by nothing, for the end of their grace.
        removed: or what would be, in a dry run.
        names: the first 1000 of `removed`.
    """

    tenant: str
    snapshots: int = 0
    kept: int = 0
    kept_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    names: list[str] = field(default_factory=list)

    def keep(self, size: int) -> None:
        self.kept += 1
        self.kept_bytes += size

    def wait(self, size: int) -> None:
        self.keep(size)
        self.waiting += 1
        self.waiting_bytes += size

    def remove(self, name: str, size: int) -> None:
        self.removed += 1
        self.removed_bytes += size
        if len(self.names) < 1000:
            self.names.append(name)
