import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_QUEUED: _ClassVar[TaskState]
    TASK_STATE_RUNNING: _ClassVar[TaskState]
    TASK_STATE_SUCCEEDED: _ClassVar[TaskState]
    TASK_STATE_FAILED: _ClassVar[TaskState]
    TASK_STATE_CANCELED: _ClassVar[TaskState]

class WaitReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_REASON_UNSPECIFIED: _ClassVar[WaitReason]
    WAIT_REASON_SLOT: _ClassVar[WaitReason]
    WAIT_REASON_WRITER: _ClassVar[WaitReason]
    WAIT_REASON_BACKOFF: _ClassVar[WaitReason]
    WAIT_REASON_QUOTA: _ClassVar[WaitReason]
    WAIT_REASON_INPUT: _ClassVar[WaitReason]

class AttemptState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_STATE_UNSPECIFIED: _ClassVar[AttemptState]
    ATTEMPT_STATE_RUNNING: _ClassVar[AttemptState]
    ATTEMPT_STATE_SUCCEEDED: _ClassVar[AttemptState]
    ATTEMPT_STATE_FAILED: _ClassVar[AttemptState]
    ATTEMPT_STATE_CANCELED: _ClassVar[AttemptState]
    ATTEMPT_STATE_LOST: _ClassVar[AttemptState]

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_COMPLETED: _ClassVar[EndReason]
    END_REASON_NONZERO_EXIT: _ClassVar[EndReason]
    END_REASON_KILLED_BY_SIGNAL: _ClassVar[EndReason]
    END_REASON_START_FAILED: _ClassVar[EndReason]
    END_REASON_CANCELED: _ClassVar[EndReason]
    END_REASON_QUEUE_TIMEOUT: _ClassVar[EndReason]
    END_REASON_RUN_TIMEOUT: _ClassVar[EndReason]
    END_REASON_SILENCE_TIMEOUT: _ClassVar[EndReason]
    END_REASON_MEMORY_LIMIT: _ClassVar[EndReason]
    END_REASON_PIDS_LIMIT: _ClassVar[EndReason]
    END_REASON_DISK_LIMIT: _ClassVar[EndReason]
    END_REASON_LOG_LIMIT: _ClassVar[EndReason]
    END_REASON_NODE_LOST: _ClassVar[EndReason]
    END_REASON_SLOT_FAILED: _ClassVar[EndReason]
    END_REASON_WORKSPACE_FAILED: _ClassVar[EndReason]
    END_REASON_SNAPSHOT_FAILED: _ClassVar[EndReason]
    END_REASON_WORKSPACE_GONE: _ClassVar[EndReason]
    END_REASON_INTERNAL: _ClassVar[EndReason]
    END_REASON_DRAINED: _ClassVar[EndReason]
    END_REASON_MODEL_AUTHENTICATION: _ClassVar[EndReason]
    END_REASON_MODEL_RATE_LIMIT: _ClassVar[EndReason]
    END_REASON_MODEL_OVERLOADED: _ClassVar[EndReason]
    END_REASON_MODEL_CONTEXT: _ClassVar[EndReason]
    END_REASON_MODEL_NOT_FOUND: _ClassVar[EndReason]
    END_REASON_MODEL_UNREACHABLE: _ClassVar[EndReason]
    END_REASON_MODEL_FAILED: _ClassVar[EndReason]
    END_REASON_TURN_LIMIT: _ClassVar[EndReason]
    END_REASON_REQUEST_LIMIT: _ClassVar[EndReason]
    END_REASON_TOKEN_LIMIT: _ClassVar[EndReason]
    END_REASON_SPEND_LIMIT: _ClassVar[EndReason]
    END_REASON_PERMISSION_DENIED: _ClassVar[EndReason]
    END_REASON_BAD_CONFIGURATION: _ClassVar[EndReason]
    END_REASON_AGENT_FAILED: _ClassVar[EndReason]
    END_REASON_PARKED: _ClassVar[EndReason]

class WorkspaceMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKSPACE_MODE_UNSPECIFIED: _ClassVar[WorkspaceMode]
    WORKSPACE_MODE_EXCLUSIVE: _ClassVar[WorkspaceMode]
    WORKSPACE_MODE_FORK: _ClassVar[WorkspaceMode]
    WORKSPACE_MODE_EPHEMERAL: _ClassVar[WorkspaceMode]

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]
    LOG_STREAM_SYSTEM: _ClassVar[LogStream]
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_QUEUED: TaskState
TASK_STATE_RUNNING: TaskState
TASK_STATE_SUCCEEDED: TaskState
TASK_STATE_FAILED: TaskState
TASK_STATE_CANCELED: TaskState
WAIT_REASON_UNSPECIFIED: WaitReason
WAIT_REASON_SLOT: WaitReason
WAIT_REASON_WRITER: WaitReason
WAIT_REASON_BACKOFF: WaitReason
WAIT_REASON_QUOTA: WaitReason
WAIT_REASON_INPUT: WaitReason
ATTEMPT_STATE_UNSPECIFIED: AttemptState
ATTEMPT_STATE_RUNNING: AttemptState
ATTEMPT_STATE_SUCCEEDED: AttemptState
ATTEMPT_STATE_FAILED: AttemptState
ATTEMPT_STATE_CANCELED: AttemptState
ATTEMPT_STATE_LOST: AttemptState
END_REASON_UNSPECIFIED: EndReason
END_REASON_COMPLETED: EndReason
END_REASON_NONZERO_EXIT: EndReason
END_REASON_KILLED_BY_SIGNAL: EndReason
END_REASON_START_FAILED: EndReason
END_REASON_CANCELED: EndReason
END_REASON_QUEUE_TIMEOUT: EndReason
END_REASON_RUN_TIMEOUT: EndReason
END_REASON_SILENCE_TIMEOUT: EndReason
END_REASON_MEMORY_LIMIT: EndReason
END_REASON_PIDS_LIMIT: EndReason
END_REASON_DISK_LIMIT: EndReason
END_REASON_LOG_LIMIT: EndReason
END_REASON_NODE_LOST: EndReason
END_REASON_SLOT_FAILED: EndReason
END_REASON_WORKSPACE_FAILED: EndReason
END_REASON_SNAPSHOT_FAILED: EndReason
END_REASON_WORKSPACE_GONE: EndReason
END_REASON_INTERNAL: EndReason
END_REASON_DRAINED: EndReason
END_REASON_MODEL_AUTHENTICATION: EndReason
END_REASON_MODEL_RATE_LIMIT: EndReason
END_REASON_MODEL_OVERLOADED: EndReason
END_REASON_MODEL_CONTEXT: EndReason
END_REASON_MODEL_NOT_FOUND: EndReason
END_REASON_MODEL_UNREACHABLE: EndReason
END_REASON_MODEL_FAILED: EndReason
END_REASON_TURN_LIMIT: EndReason
END_REASON_REQUEST_LIMIT: EndReason
END_REASON_TOKEN_LIMIT: EndReason
END_REASON_SPEND_LIMIT: EndReason
END_REASON_PERMISSION_DENIED: EndReason
END_REASON_BAD_CONFIGURATION: EndReason
END_REASON_AGENT_FAILED: EndReason
END_REASON_PARKED: EndReason
WORKSPACE_MODE_UNSPECIFIED: WorkspaceMode
WORKSPACE_MODE_EXCLUSIVE: WorkspaceMode
WORKSPACE_MODE_FORK: WorkspaceMode
WORKSPACE_MODE_EPHEMERAL: WorkspaceMode
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream
LOG_STREAM_SYSTEM: LogStream

class WorkspaceSelection(_message.Message):
    __slots__ = ("name", "mode")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    mode: WorkspaceMode
    def __init__(self, name: _Optional[str] = ..., mode: _Optional[_Union[WorkspaceMode, str]] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("cpu_millis", "memory_bytes", "pids", "disk_bytes")
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_millis: int
    memory_bytes: int
    pids: int
    disk_bytes: int
    def __init__(self, cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., disk_bytes: _Optional[int] = ...) -> None: ...

class Timeouts(_message.Message):
    __slots__ = ("queue", "run", "silence")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    run: _duration_pb2.Duration
    silence: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., run: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., silence: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("max_attempts", "initial_backoff", "backoff_multiplier", "max_backoff", "retry_on")
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_BACKOFF_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    MAX_BACKOFF_FIELD_NUMBER: _ClassVar[int]
    RETRY_ON_FIELD_NUMBER: _ClassVar[int]
    max_attempts: int
    initial_backoff: _duration_pb2.Duration
    backoff_multiplier: float
    max_backoff: _duration_pb2.Duration
    retry_on: _containers.RepeatedScalarFieldContainer[EndReason]
    def __init__(self, max_attempts: _Optional[int] = ..., initial_backoff: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., backoff_multiplier: _Optional[float] = ..., max_backoff: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry_on: _Optional[_Iterable[_Union[EndReason, str]]] = ...) -> None: ...

class TaskSpec(_message.Message):
    __slots__ = ("runtime", "argv", "prompt", "env", "workspace", "session_id", "resources", "timeouts", "retry", "checkpoint_interval", "artifacts", "priority", "labels", "pool", "model", "conversation", "model_limits")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_LIMITS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    prompt: str
    env: _containers.ScalarMap[str, str]
    workspace: WorkspaceSelection
    session_id: str
    resources: Resources
    timeouts: Timeouts
    retry: RetryPolicy
    checkpoint_interval: _duration_pb2.Duration
    artifacts: _containers.RepeatedScalarFieldContainer[str]
    priority: int
    labels: _containers.ScalarMap[str, str]
    pool: str
    model: str
    conversation: Conversation
    model_limits: ModelLimits
    def __init__(self, runtime: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ..., prompt: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ..., workspace: _Optional[_Union[WorkspaceSelection, _Mapping]] = ..., session_id: _Optional[str] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., timeouts: _Optional[_Union[Timeouts, _Mapping]] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., checkpoint_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., artifacts: _Optional[_Iterable[str]] = ..., priority: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., pool: _Optional[str] = ..., model: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., model_limits: _Optional[_Union[ModelLimits, _Mapping]] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("park_after", "idle_timeout")
    PARK_AFTER_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    park_after: _duration_pb2.Duration
    idle_timeout: _duration_pb2.Duration
    def __init__(self, park_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ModelLimits(_message.Message):
    __slots__ = ("requests", "tokens", "spend_usd", "turns")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPEND_USD_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    tokens: int
    spend_usd: float
    turns: int
    def __init__(self, requests: _Optional[int] = ..., tokens: _Optional[int] = ..., spend_usd: _Optional[float] = ..., turns: _Optional[int] = ...) -> None: ...

class ModelUse(_message.Message):
    __slots__ = ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "spend_usd")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPEND_USD_FIELD_NUMBER: _ClassVar[int]
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    spend_usd: float
    def __init__(self, requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., spend_usd: _Optional[float] = ...) -> None: ...

class TaskEvent(_message.Message):
    __slots__ = ("time", "state", "attempt", "node", "reason", "message")
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    state: TaskState
    attempt: int
    node: str
    reason: EndReason
    message: str
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[TaskState, str]] = ..., attempt: _Optional[int] = ..., node: _Optional[str] = ..., reason: _Optional[_Union[EndReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("number", "uid", "state", "node", "token", "reason", "message", "exit_code", "start_time", "end_time", "log_end", "base_snapshot_id", "resumed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    LOG_END_FIELD_NUMBER: _ClassVar[int]
    BASE_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    number: int
    uid: str
    state: AttemptState
    node: str
    token: int
    reason: EndReason
    message: str
    exit_code: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    log_end: int
    base_snapshot_id: str
    resumed: bool
    def __init__(self, number: _Optional[int] = ..., uid: _Optional[str] = ..., state: _Optional[_Union[AttemptState, str]] = ..., node: _Optional[str] = ..., token: _Optional[int] = ..., reason: _Optional[_Union[EndReason, str]] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., log_end: _Optional[int] = ..., base_snapshot_id: _Optional[str] = ..., resumed: bool = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "tenant", "spec", "state", "wait_reason", "create_time", "update_time", "cancel_requested", "attempts", "events", "revision", "runtime", "pool", "workspace", "labels", "due_time", "checkpoint", "checkpoint_time", "archived", "parked", "inputs", "inputs_done", "session_id", "closing")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_TIME_FIELD_NUMBER: _ClassVar[int]
    ARCHIVED_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_DONE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    tenant: str
    spec: TaskSpec
    state: TaskState
    wait_reason: WaitReason
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    cancel_requested: bool
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    events: _containers.RepeatedCompositeFieldContainer[TaskEvent]
    revision: int
    runtime: str
    pool: str
    workspace: WorkspaceSelection
    labels: _containers.ScalarMap[str, str]
    due_time: _timestamp_pb2.Timestamp
    checkpoint: SnapshotRef
    checkpoint_time: _timestamp_pb2.Timestamp
    archived: bool
    parked: bool
    inputs: int
    inputs_done: int
    session_id: str
    closing: bool
    def __init__(self, task_id: _Optional[str] = ..., tenant: _Optional[str] = ..., spec: _Optional[_Union[TaskSpec, _Mapping]] = ..., state: _Optional[_Union[TaskState, str]] = ..., wait_reason: _Optional[_Union[WaitReason, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cancel_requested: bool = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[TaskEvent, _Mapping]]] = ..., revision: _Optional[int] = ..., runtime: _Optional[str] = ..., pool: _Optional[str] = ..., workspace: _Optional[_Union[WorkspaceSelection, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., checkpoint: _Optional[_Union[SnapshotRef, _Mapping]] = ..., checkpoint_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., archived: bool = ..., parked: bool = ..., inputs: _Optional[int] = ..., inputs_done: _Optional[int] = ..., session_id: _Optional[str] = ..., closing: bool = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_usd", "turns")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: float
    turns: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., turns: _Optional[int] = ...) -> None: ...

class ChangedFile(_message.Message):
    __slots__ = ("path", "change", "old_size", "new_size")
    class Change(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CHANGE_UNSPECIFIED: _ClassVar[ChangedFile.Change]
        CHANGE_ADDED: _ClassVar[ChangedFile.Change]
        CHANGE_MODIFIED: _ClassVar[ChangedFile.Change]
        CHANGE_REMOVED: _ClassVar[ChangedFile.Change]
    CHANGE_UNSPECIFIED: ChangedFile.Change
    CHANGE_ADDED: ChangedFile.Change
    CHANGE_MODIFIED: ChangedFile.Change
    CHANGE_REMOVED: ChangedFile.Change
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEW_SIZE_FIELD_NUMBER: _ClassVar[int]
    path: str
    change: ChangedFile.Change
    old_size: int
    new_size: int
    def __init__(self, path: _Optional[str] = ..., change: _Optional[_Union[ChangedFile.Change, str]] = ..., old_size: _Optional[int] = ..., new_size: _Optional[int] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("path", "size", "digest")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    digest: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued", "prepared", "started", "ended", "committed")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    queued: _timestamp_pb2.Timestamp
    prepared: _timestamp_pb2.Timestamp
    started: _timestamp_pb2.Timestamp
    ended: _timestamp_pb2.Timestamp
    committed: _timestamp_pb2.Timestamp
    def __init__(self, queued: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., prepared: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., committed: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("task_id", "state", "reason", "message", "exit_code", "final_message", "usage", "session_id", "changed_files", "changed_files_truncated", "artifacts", "snapshot_id", "attempts", "timings", "artifacts_truncated", "model_use")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FILES_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FILES_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    MODEL_USE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    state: TaskState
    reason: EndReason
    message: str
    exit_code: int
    final_message: str
    usage: Usage
    session_id: str
    changed_files: _containers.RepeatedCompositeFieldContainer[ChangedFile]
    changed_files_truncated: bool
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    snapshot_id: str
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    timings: Timings
    artifacts_truncated: bool
    model_use: ModelUse
    def __init__(self, task_id: _Optional[str] = ..., state: _Optional[_Union[TaskState, str]] = ..., reason: _Optional[_Union[EndReason, str]] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., final_message: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., session_id: _Optional[str] = ..., changed_files: _Optional[_Iterable[_Union[ChangedFile, _Mapping]]] = ..., changed_files_truncated: bool = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., snapshot_id: _Optional[str] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., artifacts_truncated: bool = ..., model_use: _Optional[_Union[ModelUse, _Mapping]] = ...) -> None: ...

class SnapshotRef(_message.Message):
    __slots__ = ("snapshot_id", "manifest_digest", "parent_id", "files", "bytes", "uid")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    manifest_digest: str
    parent_id: str
    files: int
    bytes: int
    uid: str
    def __init__(self, snapshot_id: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., parent_id: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., uid: _Optional[str] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("attempt", "offset", "data", "stream", "time")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    offset: int
    data: bytes
    stream: LogStream
    time: _timestamp_pb2.Timestamp
    def __init__(self, attempt: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., stream: _Optional[_Union[LogStream, str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
