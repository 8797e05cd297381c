"""Between the words of `cloudclaw.v1` and the domain's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol, TypeVar
from urllib.parse import quote_from_bytes

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.agents.events import MOST
from cloudclaw.agents.events import Usage as AgentUsage
from cloudclaw.agents.transcript import Transcript
from cloudclaw.coordination.records import Mode, SnapshotPointer
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.ids import check_name, check_opaque_id
from cloudclaw.refs import pointer_of, ref_of
from cloudclaw.snapshots.port import Progress
from cloudclaw.v1 import scheduler_pb2, task_pb2
from cloudclaw_pool_manager.domain.assignment import AskedLimits, Assignment, Conversation, Input
from cloudclaw_pool_manager.domain.attempt import AttemptId, Usage
from cloudclaw_pool_manager.domain.models import ModelLimits, ModelUse
from cloudclaw_pool_manager.domain.outcome import Checkpoint, FileChange, KeptArtifact, Outcome, Phase, Verdict

MAX_CHANGES: Final = 10_000
MAX_CHANGES_BYTES: Final = 1 << 20
"""Of their paths together, so that a report fits into a message."""
MAX_ARTIFACTS_BYTES: Final = 2 << 20
"""The same for artifacts, of which a task keeps at most 1000."""
LEAST_INTERVAL: Final = 1.0
"""Seconds of running between two checkpoints by the clock."""
_RUN_DEFAULT: Final = 3600.0
_PARK_DEFAULT: Final = 2.0
M = TypeVar("M", task_pb2.ChangedFile, task_pb2.Artifact)
_PHASES: Final = {
    Phase.PREPARING: scheduler_pb2.ATTEMPT_PHASE_PREPARING,
    Phase.RUNNING: scheduler_pb2.ATTEMPT_PHASE_RUNNING,
    Phase.FROZEN: scheduler_pb2.ATTEMPT_PHASE_FROZEN,
    Phase.SAVING: scheduler_pb2.ATTEMPT_PHASE_SAVING,
    Phase.REPORTING: scheduler_pb2.ATTEMPT_PHASE_REPORTING,
}


def assignment(message: scheduler_pb2.Assignment) -> Assignment:
    """An assignment as the domain speaks of it. Raises `InvalidArgumentError` for one that cannot be right."""
    spec = message.spec
    if message.token <= 0:
        raise InvalidArgumentError("an assignment needs a token", field="token")
    uid = check_opaque_id(message.uid, "uid")
    if "/" in uid or ":" in uid:
        raise InvalidArgumentError(f"names files, so it holds neither '/' nor ':'; got {uid!r}", field="uid")
    named = bool(spec.workspace.name)
    interval = _seconds(spec.checkpoint_interval)
    return Assignment(
        attempt=AttemptId(
            tenant=check_name(message.tenant, "tenant"),
            task=check_opaque_id(message.task_id, "task_id"),
            number=message.attempt,
            uid=uid,
            token=message.token,
        ),
        pool=spec.pool or "default",
        runtime=spec.runtime or "command",
        argv=tuple(spec.argv),
        prompt=spec.prompt,
        env=dict(spec.env),
        session_id=message.session_id or spec.session_id,
        session_in_base=bool(message.session_id),
        model=spec.model,
        conversation=_conversation(spec),
        inputs=tuple(inputs(message.inputs)),
        inputs_done=message.inputs_done,
        answered=message.answered,
        closing=message.closing,
        max_turns=spec.model_limits.turns,
        model_limits=ModelLimits(
            spec.model_limits.requests, spec.model_limits.tokens, max(spec.model_limits.spend_usd, 0.0)
        ),
        model_used=_model_use_of(message.model_use),
        model_keys=dict(message.model_keys),
        limits=AskedLimits(
            cpu_millis=spec.resources.cpu_millis,
            memory_bytes=spec.resources.memory_bytes,
            pids=spec.resources.pids,
            disk_bytes=spec.resources.disk_bytes,
        ),
        run_timeout=_seconds(spec.timeouts.run) or _RUN_DEFAULT,
        silence_timeout=_seconds(spec.timeouts.silence),
        workspace=spec.workspace.name,
        mode=_mode(spec.workspace.mode, named),
        base=_pointer(message, "base"),
        head=_pointer(message, "head" if message.resumes else "base"),
        resumes=message.resumes,
        cancel_requested=message.cancel_requested,
        checkpoint_interval=max(interval, LEAST_INTERVAL) if interval > 0 else 0.0,
        artifacts=tuple(spec.artifacts),
        log_limit=message.log_limit,
        raw=message.SerializeToString(),
    )


def parse_assignment(raw: bytes) -> Assignment:
    """A remembered assignment. Raises `InvalidArgumentError` when it cannot be read."""
    try:
        message = scheduler_pb2.Assignment.FromString(raw)
    except DecodeError as error:
        raise InvalidArgumentError(str(error), field="assignment") from error
    return assignment(message)


class AgentState(Protocol):
    """What heartbeats tell of an agent."""

    closing: bool

    @property
    def told(self) -> int: ...

    @property
    def transcript(self) -> Transcript: ...


class Ready(Protocol):
    """What a probe found."""

    @property
    def ready(self) -> bool: ...

    @property
    def version(self) -> str: ...

    @property
    def reason(self) -> str: ...


def runtime_status(found: Mapping[str, Ready]) -> list[scheduler_pb2.RuntimeStatus]:
    """Whether a pool's runtimes can run."""
    return [
        scheduler_pb2.RuntimeStatus(runtime=name, ready=one.ready, version=one.version, reason=one.reason)
        for name, one in sorted(found.items())
    ]


def inputs(given: Iterable[scheduler_pb2.TaskInput]) -> list[Input]:
    """Messages for an agent, oldest first."""
    return sorted((Input(i.number, i.message_id, i.text) for i in given), key=lambda one: one.number)


def running(
    attempt: AttemptId,
    phase: Phase,
    log_end: int,
    usage: Usage,
    progress: Progress | None,
    agent: AgentState,
) -> scheduler_pb2.RunningAttempt:
    """An attempt in a hello or a heartbeat."""
    return scheduler_pb2.RunningAttempt(
        tenant=attempt.tenant,
        task_id=attempt.task,
        token=attempt.token,
        uid=attempt.uid,
        phase=_PHASES[phase],
        log_end=log_end,
        resources=scheduler_pb2.ResourceUse(
            memory_bytes=usage.memory_bytes,
            memory_peak_bytes=usage.memory_peak_bytes,
            pids=usage.pids,
            cpu_seconds=usage.cpu_seconds,
            disk_bytes=usage.disk_bytes,
        ),
        progress=tree_progress(progress),
        inputs=agent.told,
        closing=agent.closing,
    )


def tree_progress(progress: Progress | None) -> scheduler_pb2.TreeProgress | None:
    """How far work on a tree has come; None while there is none."""
    if progress is None:
        return None
    return scheduler_pb2.TreeProgress(
        files=progress.files,
        bytes=progress.bytes,
        total_files=progress.total_files,
        total_bytes=progress.total_bytes,
    )


def report(attempt: AttemptId, outcome: Outcome) -> scheduler_pb2.AttemptReport:
    """A report, to be repeated until its verdict."""
    changes = _within(map(_change, outcome.changes[:MAX_CHANGES]), MAX_CHANGES_BYTES)
    artifacts = _within(map(_artifact, outcome.artifacts), MAX_ARTIFACTS_BYTES)
    message = scheduler_pb2.AttemptOutcome(
        state=f"ATTEMPT_STATE_{outcome.state}",
        reason=f"END_REASON_{outcome.reason}",
        message=_said(outcome.message),
        exit_code=outcome.exit_code,
        log_end=outcome.log_end,
        final_message=_said(outcome.final_message),
        session_id=_said(outcome.session_id),
        changed_files=changes,
        changed_files_truncated=len(outcome.changes) > len(changes),
        artifacts=artifacts,
        artifacts_truncated=outcome.artifacts_truncated or len(outcome.artifacts) > len(artifacts),
        prepared=_time(outcome.prepared),
        started=_time(outcome.started),
        ended=_time(outcome.ended),
        retryable=outcome.retryable,
        inputs=outcome.inputs,
        usage=_usage(outcome.usage),
        model_use=_model_use(outcome.model_use),
    )
    if outcome.snapshot is not None:
        message.snapshot.CopyFrom(ref_of(outcome.snapshot))
    return scheduler_pb2.AttemptReport(
        tenant=attempt.tenant, task_id=attempt.task, token=attempt.token, uid=attempt.uid, outcome=message
    )


def checkpoint_report(attempt: AttemptId, checkpoint: Checkpoint) -> scheduler_pb2.CheckpointReport:
    """A checkpoint's report, to be repeated until its verdict."""
    message = scheduler_pb2.CheckpointReport(
        tenant=attempt.tenant,
        task_id=attempt.task,
        token=attempt.token,
        uid=attempt.uid,
        request=checkpoint.request,
        failure=_said(checkpoint.failure),
        session_id=_said(checkpoint.session_id),
        inputs=checkpoint.inputs,
        answered=checkpoint.answered,
        final_message=checkpoint.final_message,
        usage=_usage(checkpoint.usage),
        model_use=_model_use(checkpoint.model_use),
    )
    message.frozen.FromNanoseconds(int(checkpoint.frozen * 1e9))
    if checkpoint.snapshot is not None:
        message.snapshot.CopyFrom(ref_of(checkpoint.snapshot))
    return message


def verdict(number: int) -> Verdict | None:
    """A verdict, or None for one that this version does not know."""
    try:
        return Verdict(number)
    except ValueError:
        return None


def _conversation(spec: task_pb2.TaskSpec) -> Conversation | None:
    if not spec.HasField("conversation"):
        return None
    given = spec.conversation
    return Conversation(_seconds(given.park_after) if given.HasField("park_after") else _PARK_DEFAULT)


def _usage(usage: AgentUsage | None) -> task_pb2.Usage | None:
    if usage is None:
        return None
    return task_pb2.Usage(
        input_tokens=_count(usage.input_tokens),
        output_tokens=_count(usage.output_tokens),
        cache_read_tokens=_count(usage.cache_read_tokens),
        cache_write_tokens=_count(usage.cache_write_tokens),
        cost_usd=usage.cost_usd,
        turns=_count(usage.turns, most=2**31 - 1),
    )


def _count(value: int | None, most: int = MOST) -> int | None:
    """Whatever an agent's parser made of what it said: as a message can carry it."""
    return None if value is None else min(max(value, 0), most)


def _model_use(use: ModelUse | None) -> task_pb2.ModelUse | None:
    """A report that cannot be made is never delivered: whatever the gateway says, as a message can carry it."""
    if use is None:
        return None
    told = dataclasses.asdict(use)
    counts = {name: _count(value) for name, value in told.items() if name != "spend_usd"}
    return task_pb2.ModelUse(**counts, spend_usd=max(use.spend_usd, 0.0))


def _model_use_of(use: task_pb2.ModelUse) -> ModelUse:
    return ModelUse(
        use.requests,
        use.input_tokens,
        use.output_tokens,
        use.cache_read_tokens,
        use.cache_write_tokens,
        use.spend_usd,
    )


def _pointer(message: scheduler_pb2.Assignment, field: Literal["base", "head"]) -> SnapshotPointer | None:
    ref: task_pb2.SnapshotRef = getattr(message, field)
    return pointer_of(ref) if message.HasField(field) and ref.snapshot_id else None


def _within(entries: Iterable[M], room: int) -> list[M]:
    """The first entries, as many as their paths leave room for."""
    kept: list[M] = []
    for entry in entries:
        room -= len(entry.path.encode())
        if room < 0:
            break
        kept.append(entry)
    return kept


def _artifact(artifact: KeptArtifact) -> task_pb2.Artifact:
    return task_pb2.Artifact(path=_text(artifact.path), size=artifact.size, digest=artifact.digest)


def _change(change: FileChange) -> task_pb2.ChangedFile:
    if change.old_size is None:
        kind = task_pb2.ChangedFile.CHANGE_ADDED
    elif change.new_size is None:
        kind = task_pb2.ChangedFile.CHANGE_REMOVED
    else:
        kind = task_pb2.ChangedFile.CHANGE_MODIFIED
    return task_pb2.ChangedFile(
        path=_text(change.path), change=kind, old_size=change.old_size or 0, new_size=change.new_size or 0
    )


def _text(path: bytes) -> str:
    """A path for people: as it is where that is UTF-8, with percent signs where not."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return quote_from_bytes(path)


def _said(text: str) -> str:
    """`text` as a message can carry it, wherever it came from: a report that cannot be made is never delivered."""
    return text.encode("utf-8", "replace").decode()


def _mode(mode: task_pb2.WorkspaceMode, named: bool) -> Mode:
    if mode == task_pb2.WORKSPACE_MODE_EXCLUSIVE:
        return Mode.EXCLUSIVE
    if mode == task_pb2.WORKSPACE_MODE_FORK:
        return Mode.FORK
    if mode == task_pb2.WORKSPACE_MODE_UNSPECIFIED and named:
        return Mode.EXCLUSIVE
    return Mode.EPHEMERAL


def _seconds(duration: Duration) -> float:
    return float(duration.seconds) + duration.nanos / 1e9


def _time(seconds: float) -> Timestamp | None:
    if not seconds:
        return None
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
