"""The tree of one attempt: checked out, looked at while it runs, and what is kept of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from cloudclaw.coordination.records import AttemptState, EndReason, SnapshotPointer
from cloudclaw.errors import CloudClawError, InvalidArgumentError, UnavailableError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.port import Kept, Pause, Progress, SnapshotResult, Tree, Watcher
from cloudclaw_pool_manager.app.patience import InterruptedStepError, Patience, of_the_store
from cloudclaw_pool_manager.app.runner import Surroundings
from cloudclaw_pool_manager.domain.assignment import Assignment
from cloudclaw_pool_manager.domain.outcome import FileChange, KeptArtifact, Outcome, ended_here, given_up, unsaved
from cloudclaw_pool_manager.ports.runtime import Trace

_log = structlog.get_logger()

_END: Final = 256 << 10
"""Bytes that are looked at, from the end of a file."""
_VANISHED = "the workspace's tree vanished while the attempt ran"


class Files:
    """One attempt's tree.

    Attributes:
        tree: None before the checkout, and when it is not there any more.
        progress: how far present work on it has come, None when there is none.
    """

    def __init__(self, assignment: Assignment, around: Surroundings, patience: Patience):
        self.tree: Tree | None = None
        self.progress: Progress | None = None
        self._assignment = assignment
        self._tenant = assignment.attempt.tenant
        self._uid = assignment.attempt.uid
        self._around = around
        self._patience = patience

    async def check_out(self) -> Tree | None:
        """Make the tree; None when the attempt is to end while the store is waited for. Raises what
        `WorkspaceManager.checkout` raises."""
        given = self._assignment

        async def make() -> Tree:
            with self._watched() as watcher:
                return await self._around.workspaces.checkout(
                    self._tenant, given.base, self._uid, head=given.head, watcher=watcher
                )

        try:
            self.tree = await self._patience.run("checkout", make)
        except InterruptedStepError:
            return None
        return self.tree

    async def reopen(self) -> None:
        """The tree that an earlier manager made."""
        given = self._assignment
        self.tree = await self._around.workspaces.reopen(self._tenant, given.base, self._uid, head=given.head)

    async def checkpoint(self, snapshot_id: str, pause: Pause) -> SnapshotResult:
        """Store the tree while its processes run, as `WorkspaceManager.checkpoint` does."""
        if self.tree is None:
            raise FileNotFoundError(_VANISHED)
        with self._watched() as watcher:
            return await self._around.workspaces.checkpoint(
                self._tenant, self.tree, snapshot_id, pause, watcher=watcher
            )

    async def shows(self, trace: Trace) -> bool:
        """Whether the home folder shows it now; False, too, while there is no such file that can be read."""
        if self.tree is None:
            return False
        return trace.text in await asyncio.to_thread(end_of, self.tree.path, trace.path)

    def wanted(self, outcome: Outcome) -> bool:
        """Such an end leaves something to keep."""
        return self._wants_artifacts(outcome) or self._wants_snapshot(outcome)

    async def keep(self, outcome: Outcome) -> Outcome:
        """Store what an attempt leaves when its processes are gone; what became of it.

        A success of which something could not be stored is none (SNAPSHOT_FAILED). A failure stays what it is. An
        attempt that its user wants to end while the store is waited for is CANCELED.
        """
        try:
            if self._wants_artifacts(outcome):
                outcome = await self._collect(outcome)
            if self._wants_snapshot(outcome):
                outcome = await self._snapshot(outcome)
        except InterruptedStepError:
            return given_up(outcome)
        return outcome

    async def release(self, committed: SnapshotPointer | None) -> None:
        """The attempt is over; `committed` is the snapshot that became the head."""
        if self.tree is None:
            return
        try:
            await self._around.workspaces.release(self._tenant, self.tree, committed)
        except (CloudClawError, OSError) as error:
            _log.error("a tree was left behind; the next start removes it", error=str(error))

    def _wants_artifacts(self, outcome: Outcome) -> bool:
        return bool(self._assignment.artifacts) and ended_here(outcome)

    def _wants_snapshot(self, outcome: Outcome) -> bool:
        parked = outcome.reason is EndReason.PARKED  # it goes on from here, whatever becomes of its files then
        return parked or (outcome.state is AttemptState.SUCCEEDED and self._assignment.keeps_files)

    async def _collect(self, outcome: Outcome) -> Outcome:
        given = self._assignment
        try:
            if (tree := self.tree) is None:
                raise FileNotFoundError(_VANISHED)

            async def collect() -> Kept:
                return await self._around.workspaces.collect(self._tenant, tree, given.artifacts, given.artifact_prefix)

            kept = await self._patience.run("artifacts", collect)
        except (CloudClawError, OSError) as error:
            _log.warning("no artifacts", error=str(error))
            message = f"the artifacts could not be kept: {error}"
            if outcome.state is AttemptState.SUCCEEDED:
                return unsaved(outcome, message, retryable=worth_retrying(error))
            return replace(outcome, message=f"{outcome.message}; {message}")
        artifacts = tuple(KeptArtifact(file.path, file.size, file.digest) for file in kept.files)
        return replace(outcome, artifacts=artifacts, artifacts_truncated=kept.truncated)

    async def _snapshot(self, outcome: Outcome) -> Outcome:
        if (tree := self.tree) is None:
            return unsaved(outcome, _VANISHED, retryable=True)
        clock = self._around.clock

        async def store() -> SnapshotResult:
            begun = clock.boottime()
            with self._watched() as watcher:
                stored = await self._around.workspaces.snapshot(
                    self._tenant, tree, self._assignment.snapshot_id, watcher=watcher
                )
            self._around.metrics.snapshot_seconds.observe(clock.boottime() - begun)
            return stored

        try:
            stored = await self._patience.run("snapshot", store)
        except (CloudClawError, OSError) as error:
            _log.warning("no snapshot", error=str(error))
            return unsaved(outcome, f"the files could not be kept: {error}", retryable=worth_retrying(error))
        changes = tuple(FileChange(change.path, change.old_size, change.new_size) for change in stored.changes)
        return replace(outcome, snapshot=stored.pointer, changes=changes)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[Watcher]:
        """Show the progress of what is done within; what a thread of it says later is dropped."""
        over = False

        def saw(progress: Progress) -> None:
            if not over:
                self.progress = progress

        try:
            yield saw
        finally:
            over = True
            self.progress = None


def worth_retrying(error: CloudClawError | OSError) -> bool:
    """Another attempt helps when the store was out of reach or full, or when it was this host's disk."""
    return isinstance(error, (UnavailableError, OSError)) or of_the_store(error)


def end_of(tree: Path, path: str) -> bytes:
    """The last 256 KiB of a file of the home folder; none when there is no such file, or it is not one to read."""
    try:
        with (
            safe.closing(os.open(tree / "home", safe.DIRECTORY | os.O_CLOEXEC)) as home,
            safe.closing(safe.open_beneath(home, os.fsencode(path), safe.READ)) as file,
        ):
            return os.pread(file, _END, max(os.fstat(file).st_size - _END, 0))
    except (OSError, InvalidArgumentError):
        return b""
