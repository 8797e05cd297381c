"""Settings of what a tree may hold, the same group in every service that stores trees."""

from __future__ import annotations

from pydantic import Field

from cloudclaw.config import Group
from cloudclaw.snapshots.manifest import MAX_ENTRIES
from cloudclaw.snapshots.port import TreeLimits


class LimitSettings(Group):
    """What a workspace may hold."""

    file_bytes: int = Field(default=256 << 20, gt=0, description="bytes of one file")
    total_bytes: int = Field(default=2 << 30, gt=0, description="bytes of a workspace with its home")
    files: int = Field(
        default=100_000, gt=0, le=MAX_ENTRIES - 2, description="files, directories and symlinks of a workspace"
    )

    def tree_limits(self) -> TreeLimits:
        """As the snapshots want them."""
        return TreeLimits(file_bytes=self.file_bytes, total_bytes=self.total_bytes, files=self.files)
