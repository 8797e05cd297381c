import datetime

from cloudclaw.v1 import scheduler_pb2 as _scheduler_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SlotState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLOT_STATE_UNSPECIFIED: _ClassVar[SlotState]
    SLOT_STATE_PROVISIONING: _ClassVar[SlotState]
    SLOT_STATE_IDLE: _ClassVar[SlotState]
    SLOT_STATE_ASSIGNED: _ClassVar[SlotState]
    SLOT_STATE_DRAINING: _ClassVar[SlotState]
    SLOT_STATE_GONE: _ClassVar[SlotState]

class LimitMechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIMIT_MECHANISM_UNSPECIFIED: _ClassVar[LimitMechanism]
    LIMIT_MECHANISM_NONE: _ClassVar[LimitMechanism]
    LIMIT_MECHANISM_RLIMIT: _ClassVar[LimitMechanism]
    LIMIT_MECHANISM_CGROUP_V1: _ClassVar[LimitMechanism]
    LIMIT_MECHANISM_CGROUP_V2: _ClassVar[LimitMechanism]
    LIMIT_MECHANISM_WATCHED: _ClassVar[LimitMechanism]
SLOT_STATE_UNSPECIFIED: SlotState
SLOT_STATE_PROVISIONING: SlotState
SLOT_STATE_IDLE: SlotState
SLOT_STATE_ASSIGNED: SlotState
SLOT_STATE_DRAINING: SlotState
SLOT_STATE_GONE: SlotState
LIMIT_MECHANISM_UNSPECIFIED: LimitMechanism
LIMIT_MECHANISM_NONE: LimitMechanism
LIMIT_MECHANISM_RLIMIT: LimitMechanism
LIMIT_MECHANISM_CGROUP_V1: LimitMechanism
LIMIT_MECHANISM_CGROUP_V2: LimitMechanism
LIMIT_MECHANISM_WATCHED: LimitMechanism

class Slot(_message.Message):
    __slots__ = ("slot", "state", "pool", "pid", "uid", "uid_shared", "tenant", "task_id", "state_time", "attempts_served", "sandbox_ready", "cpu", "memory", "pids", "disk", "last_failure", "progress", "warm", "warm_memory_bytes")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    UID_SHARED_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_SERVED_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_READY_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    LAST_FAILURE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    WARM_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    slot: str
    state: SlotState
    pool: str
    pid: int
    uid: int
    uid_shared: bool
    tenant: str
    task_id: str
    state_time: _timestamp_pb2.Timestamp
    attempts_served: int
    sandbox_ready: bool
    cpu: LimitMechanism
    memory: LimitMechanism
    pids: LimitMechanism
    disk: LimitMechanism
    last_failure: str
    progress: _scheduler_pb2.TreeProgress
    warm: str
    warm_memory_bytes: int
    def __init__(self, slot: _Optional[str] = ..., state: _Optional[_Union[SlotState, str]] = ..., pool: _Optional[str] = ..., pid: _Optional[int] = ..., uid: _Optional[int] = ..., uid_shared: bool = ..., tenant: _Optional[str] = ..., task_id: _Optional[str] = ..., state_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts_served: _Optional[int] = ..., sandbox_ready: bool = ..., cpu: _Optional[_Union[LimitMechanism, str]] = ..., memory: _Optional[_Union[LimitMechanism, str]] = ..., pids: _Optional[_Union[LimitMechanism, str]] = ..., disk: _Optional[_Union[LimitMechanism, str]] = ..., last_failure: _Optional[str] = ..., progress: _Optional[_Union[_scheduler_pb2.TreeProgress, _Mapping]] = ..., warm: _Optional[str] = ..., warm_memory_bytes: _Optional[int] = ...) -> None: ...

class GetPoolRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("capacity", "hard_cap", "node", "draining")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    HARD_CAP_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    capacity: _scheduler_pb2.PoolCapacity
    hard_cap: int
    node: str
    draining: bool
    def __init__(self, capacity: _Optional[_Union[_scheduler_pb2.PoolCapacity, _Mapping]] = ..., hard_cap: _Optional[int] = ..., node: _Optional[str] = ..., draining: bool = ...) -> None: ...

class GetPoolResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ...) -> None: ...

class ListSlotsRequest(_message.Message):
    __slots__ = ("pool", "page_size", "page_token")
    POOL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pool: str
    page_size: int
    page_token: str
    def __init__(self, pool: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSlotsResponse(_message.Message):
    __slots__ = ("slots", "next_page_token")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    next_page_token: str
    def __init__(self, slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ResizePoolRequest(_message.Message):
    __slots__ = ("pool", "slots")
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    slots: int
    def __init__(self, pool: _Optional[str] = ..., slots: _Optional[int] = ...) -> None: ...

class ResizePoolResponse(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: Pool
    def __init__(self, pool: _Optional[_Union[Pool, _Mapping]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("hand_over",)
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    hand_over: bool
    def __init__(self, hand_over: bool = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("running",)
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    running: int
    def __init__(self, running: _Optional[int] = ...) -> None: ...

class UndrainNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecycleSlotRequest(_message.Message):
    __slots__ = ("slot", "force")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    slot: str
    force: bool
    def __init__(self, slot: _Optional[str] = ..., force: bool = ...) -> None: ...

class RecycleSlotResponse(_message.Message):
    __slots__ = ("slot",)
    SLOT_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ...) -> None: ...
