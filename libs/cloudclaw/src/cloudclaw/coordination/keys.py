"""The keys of design §5. Nothing but `transactions/`, `lease.py` and `election.py` writes them."""

from __future__ import annotations

ROOT = "/cloudclaw/v1/"
SPECS = ROOT + "specs/"
TASKS = ROOT + "tasks/"
REQUESTS = ROOT + "requests/"
QUEUE = ROOT + "queue/"
DELAYED = ROOT + "delayed/"
ATTEMPTS = ROOT + "attempts/"
NODES = ROOT + "nodes/"
WRITERS = ROOT + "writers/"
WORKSPACES = ROOT + "workspaces/"
SNAPSHOTS = ROOT + "snapshots/"
ELECTION = ROOT + "election/"
CONSUMERS = ROOT + "consumers/"
DELIVERIES = ROOT + "deliveries/"
TOMBSTONES = ROOT + "tombstones/"
INPUTS = ROOT + "inputs/"
EARLIER = ROOT + "earlier/"
MODEL_KEYS = ROOT + "modelkeys/"


def spec(tenant: str, task: str) -> str:
    return f"{SPECS}{tenant}/{task}"


def task(tenant: str, task: str) -> str:
    return f"{TASKS}{tenant}/{task}"


def request(tenant: str, request_id: str) -> str:
    return f"{REQUESTS}{tenant}/{request_id}"


def queue(pool: str, tenant: str, task: str) -> str:
    return f"{QUEUE}{pool}/{tenant}/{task}"


def delayed(pool: str, due_ms: int, tenant: str, task: str) -> str:
    """`due_ms`: milliseconds since the epoch by the leader's clock, so keys sort by due time."""
    return f"{DELAYED}{pool}/{due_ms:015d}/{tenant}/{task}"


def attempt(node: str, tenant: str, task: str) -> str:
    return f"{ATTEMPTS}{node}/{tenant}/{task}"


def node(node: str) -> str:
    return NODES + node


def writer(tenant: str, workspace: str) -> str:
    return f"{WRITERS}{tenant}/{workspace}"


def workspace(tenant: str, workspace: str) -> str:
    return f"{WORKSPACES}{tenant}/{workspace}"


def snapshot(tenant: str, workspace: str, snapshot_id: str) -> str:
    return f"{SNAPSHOTS}{tenant}/{workspace}/{snapshot_id}"


def consumer(tenant: str, consumer: str) -> str:
    return f"{CONSUMERS}{tenant}/{consumer}"


def delivery(tenant: str, consumer: str, task: str) -> str:
    return f"{DELIVERIES}{tenant}/{consumer}/{task}"


def tombstone(tenant: str) -> str:
    return TOMBSTONES + tenant


def input_(tenant: str, task: str, message_id: str) -> str:
    return f"{INPUTS}{tenant}/{task}/{message_id}"


def earlier(tenant: str, task: str, page: int) -> str:
    """`page`: from 0; each has `records.PAGE` attempts of a conversation, the oldest first."""
    return f"{EARLIER}{tenant}/{task}/{page:04d}"


def model_key(tenant: str, upstream: str) -> str:
    return f"{MODEL_KEYS}{tenant}/{upstream}"


def election(service: str, lease: int) -> str:
    return f"{ELECTION}{service}/{lease:x}"


def parts(key: str) -> list[str]:
    """The steps of a key below `ROOT`: `["tasks", tenant, task]` and the like."""
    return key[len(ROOT) :].split("/")
