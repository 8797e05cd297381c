"""Slots are counted once, whoever tells first."""

from __future__ import annotations

from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.capacity import Capacity
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.state import Attempt

A, B = ("t", "a"), ("t", "b")


def link(slots: int = 2, name: str = "n") -> NodeLink:
    pools = [pb.PoolCapacity(pool="p", slots=slots, idle=slots, runtimes=["command"])]
    return NodeLink(pb.Hello(node=name, incarnation=1, pools=pools), term=1, now=0.0)


def attempt(key: tuple[str, str], node: str = "n") -> Attempt:
    return Attempt(node, *key, number=1, uid="u", revision=5)


def test_a_claim_is_counted_from_its_start_to_its_lease_to_its_end() -> None:
    node, links = link(), Links()
    links.join(node)
    capacity = Capacity(links)
    capacity.reserve(A, "n", "p")
    assert capacity.free(node, "p") == 1
    assert not capacity.claimed(attempt(A), "p"), "the reservation counted it already"
    assert not capacity.drop(A)
    assert capacity.free(node, "p") == 1
    assert capacity.released(attempt(A)) == "p"
    assert capacity.released(attempt(A)) is None
    assert capacity.free(node, "p") == 2


def test_a_claim_that_failed_gives_its_slot_back() -> None:
    node, links = link(), Links()
    links.join(node)
    capacity = Capacity(links)
    capacity.reserve(A, "n", "p")
    assert capacity.drop(A)
    assert not capacity.drop(A)
    assert capacity.free(node, "p") == 2


def test_a_lease_of_an_earlier_term_counts() -> None:
    node, links = link(), Links()
    links.join(node)
    capacity = Capacity(links)
    assert capacity.claimed(attempt(A), "p")
    assert capacity.claimed(attempt(B), "p")
    assert capacity.open_nodes("p") == []


def test_pools_that_drain_refuse_or_are_unknown_have_no_slots() -> None:
    node, links = link(), Links()
    links.join(node)
    capacity = Capacity(links)
    assert capacity.free(node, "other") == 0
    node.refused.add("p")
    assert capacity.free(node, "p") == 0
    node.heard(1.0)
    assert capacity.free(node, "p") == 2
    node.draining = True
    assert capacity.free(node, "p") == 0
