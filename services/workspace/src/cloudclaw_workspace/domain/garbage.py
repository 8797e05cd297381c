"""Which of a tenant's objects something refers to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field

from cloudclaw_workspace.domain import names


@dataclass(frozen=True, slots=True)
class TaskOutputs:
    """What a task's record says of the objects that its attempts stored.

    Attributes:
        ended: the task has ended, so that its result will not change.
        uids: of all its attempts.
        result: the object that holds its result; empty when it is in the record, or there is none yet.
    """

    ended: bool
    uids: frozenset[str]
    result: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a round knows when it decides.

    Attributes:
        marked: names of the manifests that roots point to, and of the packs in them.
        live: uids whose objects nobody touches, referred to or not.
        tasks: of the tasks whose outputs are asked for, those whose record is there.
        nobodys: the tenant has no key in etcd and no history: nothing of it is referred to.
    """

    marked: Set[str]
    live: Collection[str]
    tasks: Mapping[str, TaskOutputs]
    nobodys: bool = False

    def wanted(self, name: str) -> bool:
        """Whether the object `name` must stay. What cannot be told stays: outputs of a task without a record (it may
        be archived), and names of a kind that this version does not know."""
        if self.nobodys:
            return False
        match names.parse(name):
            case names.Stored(uid):
                return name in self.marked or uid in self.live
            case names.Output(task, uid, artifact):
                known = self.tasks.get(task)
                if known is None:
                    return True
                if artifact:
                    return uid in known.uids
                return not known.ended or name == known.result
            case _:
                return True


@dataclass(slots=True)
class Report:
    """What one round found in one tenant; counts of objects, and their bytes.

    Attributes:
        snapshots: beyond their workspace's retention.
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
