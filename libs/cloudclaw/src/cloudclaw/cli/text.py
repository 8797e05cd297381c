"""Words for people: ages, sizes, states, and text of tenants made harmless."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cloudclaw.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor, changes its colours or turns its lines around; and what no terminal can be given:
names that are not UTF-8 hold such halves of characters."""
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def clean(text: str) -> str:
    """`text` without what a terminal is not to be given."""
    return _CONTROL.sub("\ufffd", text)


def clean_json(text: str) -> str:
    """JSON that says the same, with such characters written as escapes. Those below U+0020 are already."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def short(text: str, width: int) -> str:
    """`text`, made harmless and cut to `width` characters."""
    line = clean(text.replace("\n", " "))
    return line if len(line) <= width else line[: width - 1] + "…"


def word(name: str, prefix: str) -> str:
    """An enum's value as one word: `TASK_STATE_QUEUED` is `queued`."""
    return name.removeprefix(prefix).lower().replace("_", "-")


def age(moment: Timestamp, now: float) -> str:
    """How long ago, in one or two units; `-` when it is not set."""
    if not moment.ByteSize():
        return "-"
    return span(max(0.0, now - moment.ToNanoseconds() / 1e9))


def until(moment: Timestamp, now: float) -> str:
    """How long until then; nothing is left of what is past."""
    return span(max(0.0, moment.ToNanoseconds() / 1e9 - now))


def span(seconds: float) -> str:
    """A length of time: `3ms`, `0.42s`, `12s`, `3m20s`, `5h10m`, `4d`."""
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.2g}ms"
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    seconds = round(seconds)  # before it is split: there is no 5m60s
    if seconds < 60:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{seconds // 60:.0f}m{seconds % 60:02.0f}s"
    if seconds < 86400:
        return f"{seconds // 3600:.0f}h{seconds % 3600 // 60:02.0f}m"
    return f"{seconds // 86400:.0f}d{seconds % 86400 // 3600:02.0f}h"


def counted(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def entries(number: int) -> str:
    """`1 entry`, `2 entries`."""
    return f"{number} entry" if number == 1 else f"{number} entries"


def size(count: int) -> str:
    """Bytes in binary units: `1.5 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds(text: str, option: str) -> float:
    """Seconds that `text` (`90`, `500ms`, `10m`, `1h30m`) stands for. Raises `InvalidArgumentError`."""
    compact = text.strip()
    if compact.replace(".", "", 1).isdigit():
        return float(compact)
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise InvalidArgumentError(f"not a length of time: {text!r}; write 30s, 10m or 1h30m", field=option)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def duration(text: str, option: str) -> Duration:
    """As `seconds`, as a message."""
    from google.protobuf.duration_pb2 import Duration

    result = Duration()
    result.FromNanoseconds(round(seconds(text, option) * 1e9))
    return result


def pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """`K=V` arguments as a mapping. Raises `InvalidArgumentError`."""
    result = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InvalidArgumentError(f"write KEY=VALUE, not {item!r}", field=option)
        result[key] = value
    return result
