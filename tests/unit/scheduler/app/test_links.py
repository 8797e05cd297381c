"""Links of one term."""

from __future__ import annotations

import pytest

from cloudclaw.errors import UnavailableError
from cloudclaw.v1.scheduler_pb2 import Hello
from cloudclaw_scheduler.app.links import Links, NodeLink


def test_a_term_that_is_over_takes_no_node() -> None:
    links = Links()
    early = NodeLink(Hello(node="one", incarnation=1), 5, 0.0)
    links.join(early)
    links.close(UnavailableError("the term is over"))
    with pytest.raises(UnavailableError, match="over"):
        links.join(NodeLink(Hello(node="two", incarnation=1), 5, 0.0))
    assert len(links) == 0
