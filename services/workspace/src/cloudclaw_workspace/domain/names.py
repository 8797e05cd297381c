"""What a tenant's objects are called, and what a name says about its object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of snapshots: a manifest or a pack. `uid`: the attempt or operation that stored it."""

    uid: str


@dataclass(frozen=True, slots=True)
class Output:
    """An object of one attempt of a task: an artifact, or a result (`artifact` False)."""

    task: str
    uid: str
    artifact: bool


@dataclass(frozen=True, slots=True)
class Log:
    """A segment of one attempt's log."""

    uid: str


@dataclass(frozen=True, slots=True)
class Said:
    """An object that holds a user's message to a conversation."""

    task: str


def swept(tenant: str) -> tuple[str, ...]:
    """Prefixes of what garbage collection looks at, in the order of their names. Not specs: these are put a moment
    before the submit that refers to them."""
    return tuple(f"{kind}/{tenant}/" for kind in ("artifacts", "inputs", "logs", "results", "tenants"))


def everything(tenant: str) -> tuple[str, ...]:
    """Prefixes of all that belongs to a tenant, in the order of their names. Each ends in `/`, so that `acme` is never
    `acme-2`."""
    kinds = ("artifacts", "gc", "history", "inputs", "logs", "results", "specs", "tenants")
    return tuple(f"{kind}/{tenant}/" for kind in kinds)


KINDS = ("artifacts/", "gc/", "inputs/", "logs/", "results/", "tenants/")
"""What objects that may be garbage begin with; the tenant follows."""


def candidates(tenant: str) -> str:
    """The object that remembers what nothing referred to, and since when."""
    return f"gc/{tenant}/candidates"


def parse(name: str) -> Stored | Output | Log | Said | None:
    """What `name` says; None for a name that this version does not know, whose object is left alone."""
    match name.split("/"):
        case ["tenants", _, "manifests" | "packs", uid, _]:
            return Stored(uid)
        case ["artifacts", _, task, uid, _]:
            return Output(task, uid, artifact=True)
        case ["results", _, task, uid]:
            return Output(task, uid, artifact=False)
        case ["logs", _, uid, _]:
            return Log(uid)
        case ["inputs", _, task, _]:
            return Said(task)
        case _:
            return None
