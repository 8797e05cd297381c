"""An agent's run for people: its events as lines, and what it has used so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cloudclaw.cli.text import clean, counted, short, word

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudclaw.v1 import scheduler_pb2, task_pb2

FOLDED: Final = 8
"""Lines of a tool's output, or of what a user said, before the rest is folded."""
_WIDE: Final = 200
"""Characters of such a line."""
_ARGUMENTS: Final = 160
"""Characters of a tool call."""
_CALLS: Final = 1000
"""Calls whose results are waited for; no agent has as many, but who writes in its name may."""


@dataclass
class Totals:
    """What a run has used, as its agents reported it; None for what they did not."""

    turns: int = 0
    _attempts: dict[int, task_pb2.Usage] = field(default_factory=dict)

    def take(self, event: scheduler_pb2.RunEvent) -> None:
        """Count one event. A report of usage is of its attempt so far."""
        if event.WhichOneof("event") == "usage":
            self._attempts[event.attempt] = event.usage
        elif event.WhichOneof("event") == "progress" and event.progress.phase == "turn":
            self.turns += 1

    def __str__(self) -> str:
        parts = [counted(self.turns, "turn")] if self.turns else []
        return " · ".join(parts + usage_words(list(self._attempts.values())))


def usage_words(reports: list[task_pb2.Usage]) -> list[str]:
    """Tokens and cost of these reports together; a word for each that any of them holds."""
    sums: dict[str, float] = {}
    for report in reports:
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cost_usd"):
            if report.HasField(name):
                sums[name] = sums.get(name, 0) + getattr(report, name)
    tokens = [
        f"{int(sums[name]):,} {said}"
        for name, said in (("input_tokens", "in"), ("output_tokens", "out"), ("cache_read_tokens", "cached"))
        if name in sums and (sums[name] or name != "cache_read_tokens")
    ]
    words = ["tokens " + ", ".join(tokens)] if tokens else []
    return words + ([f"${sums['cost_usd']:.4f}"] if "cost_usd" in sums else [])


class RunView:
    """Writes the events of one task as lines, each with the name of its style.

    Attributes:
        totals: what has been used so far.
        typed: ids of messages that are not shown, since they stand on the terminal already.
    """

    def __init__(self, write: Callable[[str, str], None], *, full: bool = False) -> None:
        """`write` takes a line and its style; with `full` nothing is folded."""
        self._write = write
        self._full = full
        self._attempt = 0
        self._calls: dict[str, str] = {}
        self._several = False
        self._said = ""
        self.totals = Totals()
        self.typed: set[str] = set()

    def show(self, event: scheduler_pb2.RunEvent) -> None:
        """Write the next event."""
        self.totals.take(event)
        if self._attempt and event.attempt > self._attempt:
            self._calls.clear()
            self._several = False
            self._write(f"--- attempt {event.attempt} ---", "notice")
        self._attempt = max(self._attempt, event.attempt)
        kind = event.WhichOneof("event")
        if kind is not None:
            getattr(self, f"_{kind}")(getattr(event, kind))

    def _started(self, started: scheduler_pb2.RunStarted) -> None:
        words = [started.agent or "the agent", started.model, f"session {started.session_id}"]
        text = ", ".join(word for word in words if word and word != "session ")
        self._write(clean(text + (", continued" if started.resumed else "")), "dim")

    def _message(self, message: scheduler_pb2.RunMessage) -> None:
        if message.role == "user" and message.message_id not in self.typed:
            self._block(message.text, "> ", "user", fold=True)
        elif message.role != "user":
            self._block(message.text, "", "assistant", fold=False)

    def _tool_call(self, call: scheduler_pb2.RunToolCall) -> None:
        if len(self._calls) >= _CALLS:
            self._calls.clear()
        self._calls[call.call_id] = call.tool
        width = 10 * _WIDE if self._full else _ARGUMENTS
        self._write(short(f"  → {call.tool}  {_arguments(call.arguments)}".rstrip(), width), "tool")

    def _tool_result(self, result: scheduler_pb2.RunToolResult) -> None:
        mark, style = ("    ✗ ", "error") if result.is_error else ("    │ ", "dim")
        tool = self._calls.pop(result.call_id, "")
        if self._calls or self._several:
            # Several were called at once: say whose result it is.
            self._write(short(f"  ← {tool or 'a tool'}", _ARGUMENTS), "tool")
        self._several = bool(self._calls)
        self._block(result.output, mark, style, fold=True)

    def _usage(self, usage: task_pb2.Usage) -> None:
        pass  # part of the totals

    def _progress(self, progress: scheduler_pb2.RunProgress) -> None:
        if progress.phase in ("turn", "checkpoint"):
            return
        self._write(short(f"--- {progress.message or progress.phase} ---", _WIDE), "notice")

    def _error(self, error: scheduler_pb2.RunError) -> None:
        self._said = error.message
        again = " (worth another attempt)" if error.retryable else ""
        self._write(short(f"! {error.kind}: {error.message}{again}", _WIDE), "error")

    def _retry(self, retry: scheduler_pb2.RunRetry) -> None:
        number = f" {retry.attempt}" if retry.attempt else ""
        self._write(
            short(f"↻ the agent asks its model again, try{number}: {retry.kind}: {retry.message}", _WIDE), "warn"
        )

    def _finished(self, finished: scheduler_pb2.RunFinished) -> None:
        from cloudclaw.v1 import task_pb2

        if not finished.ok and not (finished.message and finished.message == self._said):
            reason = word(task_pb2.EndReason.Name(finished.reason), "END_REASON_") if finished.reason else "failed"
            self._write(short(f"! {reason}: {finished.message}".removesuffix(": "), _WIDE), "error")

    def _block(self, text: str, mark: str, style: str, *, fold: bool) -> None:
        lines = text.expandtabs(4).splitlines()
        shown = lines if self._full or not fold or len(lines) <= FOLDED + 1 else lines[:FOLDED]
        for line in shown:
            self._write((mark + (short(line, _WIDE) if fold and not self._full else clean(line))).rstrip(), style)
        if len(shown) < len(lines):
            self._write(f"{mark}… {len(lines) - len(shown)} more lines", "dim")


def _arguments(text: str) -> str:
    """A tool's arguments on one line: the only one as it is, several by name."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(values, dict):
        return text
    told = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }
    if len(told) == 1 or "command" in told:
        return str(told.get("command", next(iter(told.values()), "")))
    return "  ".join(f"{key}={short(value, 60)}" for key, value in told.items())
