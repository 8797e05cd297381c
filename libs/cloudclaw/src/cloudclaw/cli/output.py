"""What commands print: tables for people, one JSON object a line for programs."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cloudclaw.cli.text import clean, clean_json

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.table import Table

_STYLES: Final = {
    "succeeded": "green",
    "idle": "green",
    "failed": "red",
    "lost": "red",
    "canceled": "yellow",
    "running": "cyan",
    "assigned": "cyan",
    "draining": "yellow",
    "gone": "dim",
    "parked": "blue",
}
PROGRESS_AFTER: Final = 1.0
"""Seconds that something may take before its progress is shown."""


def open_streams() -> None:
    """Make standard output and error take any text: what their encoding cannot say is written as `\\u2192`, and what
    is closed swallows it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Output:
    """Where a command's results go. Results are on standard output, remarks and progress on standard error."""

    def __init__(self, *, json: bool):
        self.json = json
        self._console: Console | None = None

    @property
    def interactive(self) -> bool:
        """A person reads it on a terminal."""
        return not self.json and sys.stdout.isatty()

    @property
    def console(self) -> Console:
        """For what has a layout; coloured on a terminal that wants it (NO_COLOR is honoured)."""
        if self._console is None:
            from rich.console import Console

            width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "200"))
            self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False, width=width)
        return self._console

    def message(self, message: Message) -> None:
        """One object on one line: the protobuf JSON mapping, with the field names of the protos."""
        from google.protobuf.json_format import MessageToJson

        text = MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=None,
            ensure_ascii=False,
        )
        self.line(clean_json(text))

    def fields(self, values: dict[str, Any]) -> None:
        """One object on one line, for what is no message of the API."""
        import json

        self.line(clean_json(json.dumps(values, ensure_ascii=False)))

    def line(self, text: str) -> None:
        """One line, as it is."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def raw(self, data: bytes) -> None:
        """Bytes, as they are."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def remark(self, text: str) -> None:
        """Something that is not the result; not printed beside JSON."""
        if not self.json:
            sys.stderr.write(text + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing here") -> None:
        """Rows for people, aligned; what tenants wrote is made harmless."""
        listed = list(rows)
        if not listed:
            self.remark(empty)
            return
        self.console.print(self.grid(columns, listed))

    def grid(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
        """The same as something to lay out with others."""
        from rich.table import Table

        cells = [[_cell(value) for value in row] for row in rows]
        first = max((row[0].cell_len for row in cells), default=0)

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            # The first names the thing, for the next command: it is never cut, however narrow the terminal.
            table.add_column(column, no_wrap=True, min_width=first if index == 0 else None)
        for row in cells:
            table.add_row(*row)
        return table

    def record(self, values: dict[str, object]) -> None:
        """One thing for people: a line for each field that has a value. Further lines of a value stand below its first
        one, where none of them looks like a field."""
        width = max(len(name) for name in values) + 2
        for name, value in values.items():
            if value not in ("", None, "-"):
                for line in str(value).expandtabs(4).splitlines():
                    self.line(f"{name + ':' if name else '':<{width}}{clean(line)}".rstrip())
                    name = ""

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Show how far something is, once it has taken more than a second and a person watches."""
        progress = Progress(label, total, shown=not self.json and sys.stderr.isatty())
        try:
            yield progress
        finally:
            progress.close()

    def broken_pipe(self) -> int:
        """The reader has gone (`claw ls | head`): end quietly, as other tools do."""
        self.give_up()
        return 141

    def give_up(self) -> None:
        """Standard output takes nothing more: what is buffered for it goes nowhere, not into a second failure."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """A line on standard error that shows bytes done."""

    def __init__(self, label: str, total: int | None, *, shown: bool):
        self._label = label
        self._total = total
        self._shown = shown
        self._done = 0
        self._started = self._drawn = time.monotonic()
        self._on_screen = False

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        now = time.monotonic()
        if not self._shown or now - self._started < PROGRESS_AFTER or now - self._drawn < 0.1:
            return
        from cloudclaw.cli.text import size, span

        self._drawn = now
        self._on_screen = True
        share = f" of {size(self._total)}" if self._total else ""
        sys.stderr.write(f"\r\x1b[K{self._label}: {size(self._done)}{share}, {span(now - self._started)}")
        sys.stderr.flush()

    def close(self) -> None:
        """Remove the line."""
        if self._on_screen:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _cell(value: object) -> Any:
    from rich.text import Text

    text = clean("" if value is None else str(value))
    return Text(text, style=_STYLES.get(text.partition(" (")[0], ""))
