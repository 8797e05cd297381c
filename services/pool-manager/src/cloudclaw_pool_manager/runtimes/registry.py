"""Runtimes and backends are found through entry points, so that a third party's is a package.

[project.entry-points."cloudclaw.runtimes"]
my-agent = "my_package.agent:MyAgent"        # called with its `runtime_options`, gives a `RuntimeAdapter`

[project.entry-points."cloudclaw.backends"]
my-backend = "my_package.slots:MyPool"       # called with (BackendConfig, Clock), gives a `PoolAdapter`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.ports.backend import PoolAdapter
from cloudclaw_pool_manager.ports.runtime import RuntimeAdapter

RUNTIMES: Final = "cloudclaw.runtimes"
BACKENDS: Final = "cloudclaw.backends"

_RUNTIME_NEEDS: Final = ("name", "validate", "launch", "judge")


def load_runtimes(
    wanted: Iterable[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    found: Iterable[EntryPoint] | None = None,
) -> dict[str, RuntimeAdapter]:
    """The runtimes `wanted` (all that are installed when empty), by name, each made with its `options` as keywords.

    Raises `PreconditionError` naming the entry point that is missing or broken, and its package.
    """
    points = {point.name: point for point in _points(RUNTIMES, found)}
    runtimes: dict[str, RuntimeAdapter] = {}
    for name in list(wanted) or sorted(points):
        point = _named(points, name, "runtime")
        try:
            runtime = point.load()(**(options or {}).get(name, {}))
        except Exception as error:
            raise _broken(point, f"{type(error).__name__}: {error}") from error
        missing = [need for need in _RUNTIME_NEEDS if not hasattr(runtime, need)]
        if missing:
            raise _broken(point, f"it has no {', '.join(missing)}")
        if runtime.name != name:
            raise _broken(point, f"it calls itself {runtime.name!r}")
        runtimes[name] = runtime
    return runtimes


def load_backend(name: str, *, found: Iterable[EntryPoint] | None = None) -> Callable[..., PoolAdapter]:
    """The backend `name`, to be called with its configuration and a clock. Raises as `load_runtimes` does."""
    points = {point.name: point for point in _points(BACKENDS, found)}
    point = _named(points, name, "backend")
    try:
        backend: Any = point.load()
    except Exception as error:
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    if not callable(backend):
        raise _broken(point, "it cannot be called")
    made: Callable[..., PoolAdapter] = backend
    return made


def _points(group: str, found: Iterable[EntryPoint] | None) -> Iterable[EntryPoint]:
    return entry_points(group=group) if found is None else [point for point in found if point.group == group]


def _named(points: dict[str, EntryPoint], name: str, kind: str) -> EntryPoint:
    if name not in points:
        raise PreconditionError(
            f"there is no {kind} {name!r}; installed are {', '.join(sorted(points)) or 'none'}",
            subject=name,
            reason=f"UNKNOWN_{kind.upper()}",
        )
    return points[name]


def _broken(point: EntryPoint, why: str) -> PreconditionError:
    package = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return PreconditionError(
        f"the entry point {point.name!r} = {point.value!r} ({point.group}){package} is broken: {why}",
        subject=point.name,
        reason="BROKEN_ENTRY_POINT",
    )
