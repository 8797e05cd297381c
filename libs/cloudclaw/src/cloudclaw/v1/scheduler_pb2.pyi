import datetime

from cloudclaw.v1 import task_pb2 as _task_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttemptPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_PHASE_UNSPECIFIED: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_PREPARING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_RUNNING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_FROZEN: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_SAVING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_REPORTING: _ClassVar[AttemptPhase]
ATTEMPT_PHASE_UNSPECIFIED: AttemptPhase
ATTEMPT_PHASE_PREPARING: AttemptPhase
ATTEMPT_PHASE_RUNNING: AttemptPhase
ATTEMPT_PHASE_FROZEN: AttemptPhase
ATTEMPT_PHASE_SAVING: AttemptPhase
ATTEMPT_PHASE_REPORTING: AttemptPhase

class SubmitTaskRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _task_pb2.TaskSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[_task_pb2.TaskSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SubmitTaskResponse(_message.Message):
    __slots__ = ("task", "created")
    TASK_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    created: bool
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ..., created: bool = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("states", "labels", "workspace", "page_size", "page_token", "create_after", "create_before")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CREATE_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[_task_pb2.TaskState]
    labels: _containers.ScalarMap[str, str]
    workspace: str
    page_size: int
    page_token: str
    create_after: _timestamp_pb2.Timestamp
    create_before: _timestamp_pb2.Timestamp
    def __init__(self, states: _Optional[_Iterable[_Union[_task_pb2.TaskState, str]]] = ..., labels: _Optional[_Mapping[str, str]] = ..., workspace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., create_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., create_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "next_page_token", "revision")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[_task_pb2.Task]
    next_page_token: str
    revision: int
    def __init__(self, tasks: _Optional[_Iterable[_Union[_task_pb2.Task, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class CheckpointTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class CheckpointTaskResponse(_message.Message):
    __slots__ = ("checkpoint", "frozen")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    checkpoint: _task_pb2.SnapshotRef
    frozen: _duration_pb2.Duration
    def __init__(self, checkpoint: _Optional[_Union[_task_pb2.SnapshotRef, _Mapping]] = ..., frozen: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CancelTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class CancelTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ...) -> None: ...

class WatchTasksRequest(_message.Message):
    __slots__ = ("after_revision", "task_id")
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    task_id: str
    def __init__(self, after_revision: _Optional[int] = ..., task_id: _Optional[str] = ...) -> None: ...

class WatchTasksResponse(_message.Message):
    __slots__ = ("task", "revision")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    revision: int
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class TailLogsRequest(_message.Message):
    __slots__ = ("task_id", "attempt", "offset", "follow")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    offset: int
    follow: bool
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., offset: _Optional[int] = ..., follow: bool = ...) -> None: ...

class TailLogsResponse(_message.Message):
    __slots__ = ("chunk", "durable_offset", "attempt_ended")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    DURABLE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_ENDED_FIELD_NUMBER: _ClassVar[int]
    chunk: _task_pb2.LogChunk
    durable_offset: int
    attempt_ended: bool
    def __init__(self, chunk: _Optional[_Union[_task_pb2.LogChunk, _Mapping]] = ..., durable_offset: _Optional[int] = ..., attempt_ended: bool = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("task_id", "from_sequence", "follow")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    from_sequence: int
    follow: bool
    def __init__(self, task_id: _Optional[str] = ..., from_sequence: _Optional[int] = ..., follow: bool = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("sequence", "attempt", "time", "message", "tool_call", "tool_result", "usage", "progress", "error", "started", "retry", "finished")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_FIELD_NUMBER: _ClassVar[int]
    TOOL_RESULT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    attempt: int
    time: _timestamp_pb2.Timestamp
    message: RunMessage
    tool_call: RunToolCall
    tool_result: RunToolResult
    usage: _task_pb2.Usage
    progress: RunProgress
    error: RunError
    started: RunStarted
    retry: RunRetry
    finished: RunFinished
    def __init__(self, sequence: _Optional[int] = ..., attempt: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[_Union[RunMessage, _Mapping]] = ..., tool_call: _Optional[_Union[RunToolCall, _Mapping]] = ..., tool_result: _Optional[_Union[RunToolResult, _Mapping]] = ..., usage: _Optional[_Union[_task_pb2.Usage, _Mapping]] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., error: _Optional[_Union[RunError, _Mapping]] = ..., started: _Optional[_Union[RunStarted, _Mapping]] = ..., retry: _Optional[_Union[RunRetry, _Mapping]] = ..., finished: _Optional[_Union[RunFinished, _Mapping]] = ...) -> None: ...

class RunMessage(_message.Message):
    __slots__ = ("role", "text", "message_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: str
    message_id: str
    def __init__(self, role: _Optional[str] = ..., text: _Optional[str] = ..., message_id: _Optional[str] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("session_id", "agent", "model", "resumed")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    agent: str
    model: str
    resumed: bool
    def __init__(self, session_id: _Optional[str] = ..., agent: _Optional[str] = ..., model: _Optional[str] = ..., resumed: bool = ...) -> None: ...

class RunRetry(_message.Message):
    __slots__ = ("kind", "message", "attempt")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    attempt: int
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class RunFinished(_message.Message):
    __slots__ = ("ok", "reason", "message")
    OK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    reason: _task_pb2.EndReason
    message: str
    def __init__(self, ok: bool = ..., reason: _Optional[_Union[_task_pb2.EndReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class RunToolCall(_message.Message):
    __slots__ = ("call_id", "tool", "arguments")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    arguments: str
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class RunToolResult(_message.Message):
    __slots__ = ("call_id", "output", "is_error")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    IS_ERROR_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    output: str
    is_error: bool
    def __init__(self, call_id: _Optional[str] = ..., output: _Optional[str] = ..., is_error: bool = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("phase", "message")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    message: str
    def __init__(self, phase: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RunError(_message.Message):
    __slots__ = ("kind", "message", "retryable")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    retryable: bool
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., retryable: bool = ...) -> None: ...

class WatchEventsResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: RunEvent
    def __init__(self, event: _Optional[_Union[RunEvent, _Mapping]] = ...) -> None: ...

class SendInputRequest(_message.Message):
    __slots__ = ("task_id", "message_id", "text", "end", "delay")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    message_id: str
    text: str
    end: bool
    delay: _duration_pb2.Duration
    def __init__(self, task_id: _Optional[str] = ..., message_id: _Optional[str] = ..., text: _Optional[str] = ..., end: bool = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SendInputResponse(_message.Message):
    __slots__ = ("accepted", "number")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    number: int
    def __init__(self, accepted: bool = ..., number: _Optional[int] = ...) -> None: ...

class SetModelKeyRequest(_message.Message):
    __slots__ = ("upstream", "key")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    key: str
    def __init__(self, upstream: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class SetModelKeyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelKey(_message.Message):
    __slots__ = ("upstream", "hint", "update_time")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    hint: str
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, upstream: _Optional[str] = ..., hint: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListModelKeysResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ModelKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[ModelKey, _Mapping]]] = ...) -> None: ...

class DeleteModelKeyRequest(_message.Message):
    __slots__ = ("upstream",)
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    def __init__(self, upstream: _Optional[str] = ...) -> None: ...

class DeleteModelKeyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class ExplainTaskResponse(_message.Message):
    __slots__ = ("task", "position", "writer", "reasons")
    TASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    task: _task_pb2.Task
    position: int
    writer: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ..., position: _Optional[int] = ..., writer: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _task_pb2.Result
    def __init__(self, result: _Optional[_Union[_task_pb2.Result, _Mapping]] = ...) -> None: ...

class StreamResultsRequest(_message.Message):
    __slots__ = ("consumer", "visibility_timeout", "from_oldest", "max_outstanding", "drain")
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    FROM_OLDEST_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    consumer: str
    visibility_timeout: _duration_pb2.Duration
    from_oldest: bool
    max_outstanding: int
    drain: bool
    def __init__(self, consumer: _Optional[str] = ..., visibility_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., from_oldest: bool = ..., max_outstanding: _Optional[int] = ..., drain: bool = ...) -> None: ...

class StreamResultsResponse(_message.Message):
    __slots__ = ("result", "receipt", "visible_time")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_TIME_FIELD_NUMBER: _ClassVar[int]
    result: _task_pb2.Result
    receipt: str
    visible_time: _timestamp_pb2.Timestamp
    def __init__(self, result: _Optional[_Union[_task_pb2.Result, _Mapping]] = ..., receipt: _Optional[str] = ..., visible_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AckResultsRequest(_message.Message):
    __slots__ = ("consumer", "receipts")
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    consumer: str
    receipts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, consumer: _Optional[str] = ..., receipts: _Optional[_Iterable[str]] = ...) -> None: ...

class AckResultsResponse(_message.Message):
    __slots__ = ("expired",)
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    expired: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, expired: _Optional[_Iterable[str]] = ...) -> None: ...

class Consumer(_message.Message):
    __slots__ = ("name", "create_time", "update_time", "backlog")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    name: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    backlog: int
    def __init__(self, name: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., backlog: _Optional[int] = ...) -> None: ...

class ListConsumersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListConsumersResponse(_message.Message):
    __slots__ = ("consumers",)
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    consumers: _containers.RepeatedCompositeFieldContainer[Consumer]
    def __init__(self, consumers: _Optional[_Iterable[_Union[Consumer, _Mapping]]] = ...) -> None: ...

class DeleteConsumerRequest(_message.Message):
    __slots__ = ("consumer",)
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    consumer: str
    def __init__(self, consumer: _Optional[str] = ...) -> None: ...

class DeleteConsumerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node", "address", "incarnation", "connected", "draining", "attempts", "pools", "heartbeat_age_seconds", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    node: str
    address: str
    incarnation: int
    connected: bool
    draining: bool
    attempts: int
    pools: _containers.RepeatedCompositeFieldContainer[PoolCapacity]
    heartbeat_age_seconds: float
    labels: _containers.ScalarMap[str, str]
    def __init__(self, node: _Optional[str] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., connected: bool = ..., draining: bool = ..., attempts: _Optional[int] = ..., pools: _Optional[_Iterable[_Union[PoolCapacity, _Mapping]]] = ..., heartbeat_age_seconds: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PoolCapacity(_message.Message):
    __slots__ = ("pool", "slots", "idle", "runtimes", "backend", "runtime_status")
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_STATUS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    slots: int
    idle: int
    runtimes: _containers.RepeatedScalarFieldContainer[str]
    backend: str
    runtime_status: _containers.RepeatedCompositeFieldContainer[RuntimeStatus]
    def __init__(self, pool: _Optional[str] = ..., slots: _Optional[int] = ..., idle: _Optional[int] = ..., runtimes: _Optional[_Iterable[str]] = ..., backend: _Optional[str] = ..., runtime_status: _Optional[_Iterable[_Union[RuntimeStatus, _Mapping]]] = ...) -> None: ...

class RuntimeStatus(_message.Message):
    __slots__ = ("runtime", "ready", "version", "reason")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    ready: bool
    version: str
    reason: str
    def __init__(self, runtime: _Optional[str] = ..., ready: bool = ..., version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PoolStatus(_message.Message):
    __slots__ = ("pool", "slots", "idle", "queued", "delayed", "running")
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DELAYED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    pool: str
    slots: int
    idle: int
    queued: int
    delayed: int
    running: int
    def __init__(self, pool: _Optional[str] = ..., slots: _Optional[int] = ..., idle: _Optional[int] = ..., queued: _Optional[int] = ..., delayed: _Optional[int] = ..., running: _Optional[int] = ...) -> None: ...

class GetClusterStatusResponse(_message.Message):
    __slots__ = ("leader", "term", "pools", "nodes", "etcd_bytes", "etcd_limit_bytes", "version")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ETCD_BYTES_FIELD_NUMBER: _ClassVar[int]
    ETCD_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    leader: str
    term: int
    pools: _containers.RepeatedCompositeFieldContainer[PoolStatus]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    etcd_bytes: int
    etcd_limit_bytes: int
    version: str
    def __init__(self, leader: _Optional[str] = ..., term: _Optional[int] = ..., pools: _Optional[_Iterable[_Union[PoolStatus, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., etcd_bytes: _Optional[int] = ..., etcd_limit_bytes: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class ResourceUse(_message.Message):
    __slots__ = ("memory_bytes", "memory_peak_bytes", "pids", "cpu_seconds", "disk_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    memory_peak_bytes: int
    pids: int
    cpu_seconds: float
    disk_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., disk_bytes: _Optional[int] = ...) -> None: ...

class RunningAttempt(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "uid", "phase", "log_end", "resources", "progress", "inputs", "closing")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOG_END_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    uid: str
    phase: AttemptPhase
    log_end: int
    resources: ResourceUse
    progress: TreeProgress
    inputs: int
    closing: bool
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., uid: _Optional[str] = ..., phase: _Optional[_Union[AttemptPhase, str]] = ..., log_end: _Optional[int] = ..., resources: _Optional[_Union[ResourceUse, _Mapping]] = ..., progress: _Optional[_Union[TreeProgress, _Mapping]] = ..., inputs: _Optional[int] = ..., closing: bool = ...) -> None: ...

class TreeProgress(_message.Message):
    __slots__ = ("files", "bytes", "total_files", "total_bytes")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FILES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    total_files: int
    total_bytes: int
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., total_files: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node", "incarnation", "attempts", "pools", "draining", "cached")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: int
    attempts: _containers.RepeatedCompositeFieldContainer[RunningAttempt]
    pools: _containers.RepeatedCompositeFieldContainer[PoolCapacity]
    draining: bool
    cached: _containers.RepeatedCompositeFieldContainer[CachedTree]
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[int] = ..., attempts: _Optional[_Iterable[_Union[RunningAttempt, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolCapacity, _Mapping]]] = ..., draining: bool = ..., cached: _Optional[_Iterable[_Union[CachedTree, _Mapping]]] = ...) -> None: ...

class CachedTree(_message.Message):
    __slots__ = ("tenant", "snapshot_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    snapshot_id: str
    def __init__(self, tenant: _Optional[str] = ..., snapshot_id: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "attempts", "pools", "draining")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    attempts: _containers.RepeatedCompositeFieldContainer[RunningAttempt]
    pools: _containers.RepeatedCompositeFieldContainer[PoolCapacity]
    draining: bool
    def __init__(self, sequence: _Optional[int] = ..., attempts: _Optional[_Iterable[_Union[RunningAttempt, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolCapacity, _Mapping]]] = ..., draining: bool = ...) -> None: ...

class AttemptReport(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "uid", "outcome")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    uid: str
    outcome: AttemptOutcome
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., uid: _Optional[str] = ..., outcome: _Optional[_Union[AttemptOutcome, _Mapping]] = ...) -> None: ...

class AttemptOutcome(_message.Message):
    __slots__ = ("state", "reason", "message", "exit_code", "log_end", "snapshot", "final_message", "usage", "session_id", "changed_files", "changed_files_truncated", "artifacts", "prepared", "started", "ended", "retryable", "artifacts_truncated", "inputs", "model_use")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    LOG_END_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FILES_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FILES_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_USE_FIELD_NUMBER: _ClassVar[int]
    state: _task_pb2.AttemptState
    reason: _task_pb2.EndReason
    message: str
    exit_code: int
    log_end: int
    snapshot: _task_pb2.SnapshotRef
    final_message: str
    usage: _task_pb2.Usage
    session_id: str
    changed_files: _containers.RepeatedCompositeFieldContainer[_task_pb2.ChangedFile]
    changed_files_truncated: bool
    artifacts: _containers.RepeatedCompositeFieldContainer[_task_pb2.Artifact]
    prepared: _timestamp_pb2.Timestamp
    started: _timestamp_pb2.Timestamp
    ended: _timestamp_pb2.Timestamp
    retryable: bool
    artifacts_truncated: bool
    inputs: int
    model_use: _task_pb2.ModelUse
    def __init__(self, state: _Optional[_Union[_task_pb2.AttemptState, str]] = ..., reason: _Optional[_Union[_task_pb2.EndReason, str]] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., log_end: _Optional[int] = ..., snapshot: _Optional[_Union[_task_pb2.SnapshotRef, _Mapping]] = ..., final_message: _Optional[str] = ..., usage: _Optional[_Union[_task_pb2.Usage, _Mapping]] = ..., session_id: _Optional[str] = ..., changed_files: _Optional[_Iterable[_Union[_task_pb2.ChangedFile, _Mapping]]] = ..., changed_files_truncated: bool = ..., artifacts: _Optional[_Iterable[_Union[_task_pb2.Artifact, _Mapping]]] = ..., prepared: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., retryable: bool = ..., artifacts_truncated: bool = ..., inputs: _Optional[int] = ..., model_use: _Optional[_Union[_task_pb2.ModelUse, _Mapping]] = ...) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("term", "hello", "heartbeat", "report", "reject", "checkpoint")
    TERM_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    term: int
    hello: Hello
    heartbeat: Heartbeat
    report: AttemptReport
    reject: Reject
    checkpoint: CheckpointReport
    def __init__(self, term: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., report: _Optional[_Union[AttemptReport, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointReport, _Mapping]] = ...) -> None: ...

class CheckpointReport(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "uid", "snapshot", "request", "frozen", "failure", "session_id", "inputs", "usage", "model_use", "answered", "final_message")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_USE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    uid: str
    snapshot: _task_pb2.SnapshotRef
    request: int
    frozen: _duration_pb2.Duration
    failure: str
    session_id: str
    inputs: int
    usage: _task_pb2.Usage
    model_use: _task_pb2.ModelUse
    answered: bool
    final_message: str
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., uid: _Optional[str] = ..., snapshot: _Optional[_Union[_task_pb2.SnapshotRef, _Mapping]] = ..., request: _Optional[int] = ..., frozen: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., failure: _Optional[str] = ..., session_id: _Optional[str] = ..., inputs: _Optional[int] = ..., usage: _Optional[_Union[_task_pb2.Usage, _Mapping]] = ..., model_use: _Optional[_Union[_task_pb2.ModelUse, _Mapping]] = ..., answered: bool = ..., final_message: _Optional[str] = ...) -> None: ...

class CheckpointVerdict(_message.Message):
    __slots__ = ("uid", "snapshot_id", "request", "verdict")
    UID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    uid: str
    snapshot_id: str
    request: int
    verdict: ReportVerdict.Verdict
    def __init__(self, uid: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., request: _Optional[int] = ..., verdict: _Optional[_Union[ReportVerdict.Verdict, str]] = ...) -> None: ...

class TakeCheckpoint(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "request")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    request: int
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., request: _Optional[int] = ...) -> None: ...

class ForgetTenant(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class Reject(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "message")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    message: str
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("term", "welcome", "heartbeat_ack", "assignment", "cancel", "kill", "drain", "verdict", "checkpoint_verdict", "take_checkpoint", "forget_tenant", "deliver_input")
    TERM_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    KILL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_VERDICT_FIELD_NUMBER: _ClassVar[int]
    TAKE_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FORGET_TENANT_FIELD_NUMBER: _ClassVar[int]
    DELIVER_INPUT_FIELD_NUMBER: _ClassVar[int]
    term: int
    welcome: Welcome
    heartbeat_ack: HeartbeatAck
    assignment: Assignment
    cancel: CancelAttempt
    kill: KillAttempt
    drain: SetDraining
    verdict: ReportVerdict
    checkpoint_verdict: CheckpointVerdict
    take_checkpoint: TakeCheckpoint
    forget_tenant: ForgetTenant
    deliver_input: DeliverInput
    def __init__(self, term: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., heartbeat_ack: _Optional[_Union[HeartbeatAck, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., cancel: _Optional[_Union[CancelAttempt, _Mapping]] = ..., kill: _Optional[_Union[KillAttempt, _Mapping]] = ..., drain: _Optional[_Union[SetDraining, _Mapping]] = ..., verdict: _Optional[_Union[ReportVerdict, _Mapping]] = ..., checkpoint_verdict: _Optional[_Union[CheckpointVerdict, _Mapping]] = ..., take_checkpoint: _Optional[_Union[TakeCheckpoint, _Mapping]] = ..., forget_tenant: _Optional[_Union[ForgetTenant, _Mapping]] = ..., deliver_input: _Optional[_Union[DeliverInput, _Mapping]] = ...) -> None: ...

class TaskInput(_message.Message):
    __slots__ = ("number", "message_id", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    message_id: str
    text: str
    def __init__(self, number: _Optional[int] = ..., message_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class DeliverInput(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "inputs", "closing")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    inputs: _containers.RepeatedCompositeFieldContainer[TaskInput]
    closing: bool
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[TaskInput, _Mapping]]] = ..., closing: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("grace", "heartbeat_interval")
    GRACE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("tenant", "task_id", "attempt", "uid", "token", "spec", "base", "resumes", "cancel_requested", "head", "log_limit", "session_id", "inputs", "inputs_done", "closing", "model_keys", "model_use", "answered")
    class ModelKeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LOG_LIMIT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_DONE_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    MODEL_KEYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_USE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    attempt: int
    uid: str
    token: int
    spec: _task_pb2.TaskSpec
    base: _task_pb2.SnapshotRef
    resumes: bool
    cancel_requested: bool
    head: _task_pb2.SnapshotRef
    log_limit: int
    session_id: str
    inputs: _containers.RepeatedCompositeFieldContainer[TaskInput]
    inputs_done: int
    closing: bool
    model_keys: _containers.ScalarMap[str, str]
    model_use: _task_pb2.ModelUse
    answered: bool
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., uid: _Optional[str] = ..., token: _Optional[int] = ..., spec: _Optional[_Union[_task_pb2.TaskSpec, _Mapping]] = ..., base: _Optional[_Union[_task_pb2.SnapshotRef, _Mapping]] = ..., resumes: bool = ..., cancel_requested: bool = ..., head: _Optional[_Union[_task_pb2.SnapshotRef, _Mapping]] = ..., log_limit: _Optional[int] = ..., session_id: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TaskInput, _Mapping]]] = ..., inputs_done: _Optional[int] = ..., closing: bool = ..., model_keys: _Optional[_Mapping[str, str]] = ..., model_use: _Optional[_Union[_task_pb2.ModelUse, _Mapping]] = ..., answered: bool = ...) -> None: ...

class CancelAttempt(_message.Message):
    __slots__ = ("tenant", "task_id", "token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ...) -> None: ...

class KillAttempt(_message.Message):
    __slots__ = ("tenant", "task_id", "token", "message")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    token: int
    message: str
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., token: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class SetDraining(_message.Message):
    __slots__ = ("draining",)
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    def __init__(self, draining: bool = ...) -> None: ...

class ReportVerdict(_message.Message):
    __slots__ = ("tenant", "task_id", "uid", "verdict")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[ReportVerdict.Verdict]
        VERDICT_COMMITTED: _ClassVar[ReportVerdict.Verdict]
        VERDICT_FENCED: _ClassVar[ReportVerdict.Verdict]
        VERDICT_RETRY: _ClassVar[ReportVerdict.Verdict]
    VERDICT_UNSPECIFIED: ReportVerdict.Verdict
    VERDICT_COMMITTED: ReportVerdict.Verdict
    VERDICT_FENCED: ReportVerdict.Verdict
    VERDICT_RETRY: ReportVerdict.Verdict
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    task_id: str
    uid: str
    verdict: ReportVerdict.Verdict
    def __init__(self, tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., uid: _Optional[str] = ..., verdict: _Optional[_Union[ReportVerdict.Verdict, str]] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("term", "tenant", "task_id", "uid", "token", "chunk", "end")
    TERM_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    term: int
    tenant: str
    task_id: str
    uid: str
    token: int
    chunk: _task_pb2.LogChunk
    end: bool
    def __init__(self, term: _Optional[int] = ..., tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., uid: _Optional[str] = ..., token: _Optional[int] = ..., chunk: _Optional[_Union[_task_pb2.LogChunk, _Mapping]] = ..., end: bool = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("term", "task_id", "uid", "durable_offset", "resend_from", "sealed")
    TERM_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    DURABLE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RESEND_FROM_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    term: int
    task_id: str
    uid: str
    durable_offset: int
    resend_from: int
    sealed: bool
    def __init__(self, term: _Optional[int] = ..., task_id: _Optional[str] = ..., uid: _Optional[str] = ..., durable_offset: _Optional[int] = ..., resend_from: _Optional[int] = ..., sealed: bool = ...) -> None: ...
