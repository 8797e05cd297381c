"""States, modes and reasons: the words of `task.proto` as the records keep them."""

from __future__ import annotations

import enum


class TaskState(enum.StrEnum):
    """Task states; names equal those of `cloudclaw.v1.TaskState` without its prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def ended(self) -> bool:
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED)


class AttemptState(enum.StrEnum):
    """Attempt states, as in `cloudclaw.v1.AttemptState`."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    LOST = "LOST"


class Mode(enum.StrEnum):
    """Workspace modes, as in `cloudclaw.v1.WorkspaceMode`."""

    EXCLUSIVE = "EXCLUSIVE"
    FORK = "FORK"
    EPHEMERAL = "EPHEMERAL"


class EndReason(enum.StrEnum):
    """Why an attempt ended, as in `cloudclaw.v1.EndReason`."""

    COMPLETED = "COMPLETED"
    NONZERO_EXIT = "NONZERO_EXIT"
    KILLED_BY_SIGNAL = "KILLED_BY_SIGNAL"
    START_FAILED = "START_FAILED"
    CANCELED = "CANCELED"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    SILENCE_TIMEOUT = "SILENCE_TIMEOUT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    PIDS_LIMIT = "PIDS_LIMIT"
    DISK_LIMIT = "DISK_LIMIT"
    LOG_LIMIT = "LOG_LIMIT"
    NODE_LOST = "NODE_LOST"
    SLOT_FAILED = "SLOT_FAILED"
    WORKSPACE_FAILED = "WORKSPACE_FAILED"
    SNAPSHOT_FAILED = "SNAPSHOT_FAILED"
    WORKSPACE_GONE = "WORKSPACE_GONE"
    INTERNAL = "INTERNAL"
    DRAINED = "DRAINED"
    MODEL_AUTHENTICATION = "MODEL_AUTHENTICATION"
    MODEL_RATE_LIMIT = "MODEL_RATE_LIMIT"
    MODEL_OVERLOADED = "MODEL_OVERLOADED"
    MODEL_CONTEXT = "MODEL_CONTEXT"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_UNREACHABLE = "MODEL_UNREACHABLE"
    MODEL_FAILED = "MODEL_FAILED"
    TURN_LIMIT = "TURN_LIMIT"
    REQUEST_LIMIT = "REQUEST_LIMIT"
    TOKEN_LIMIT = "TOKEN_LIMIT"  # noqa: S105 - no password
    SPEND_LIMIT = "SPEND_LIMIT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    BAD_CONFIGURATION = "BAD_CONFIGURATION"
    AGENT_FAILED = "AGENT_FAILED"
    PARKED = "PARKED"
