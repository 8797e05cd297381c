"""Whether this replica leads, and its term while it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.tail import not_leader
from cloudclaw_scheduler.app.term import Term, Tools

_log = structlog.get_logger()


class Leader:
    """Runs one `Term` after another, whenever the election gives one to this replica."""

    def __init__(self, tools: Tools, address: Callable[[], str]) -> None:
        """`address` answers where the present leader listens, "" during an election."""
        self._tools = tools
        self._address = address
        self._term: Term | None = None

    @property
    def term(self) -> Term | None:
        """The present term, None while this replica follows."""
        return self._term

    @property
    def hub(self) -> LogHub | None:
        """The log hub of the present term."""
        return self._term.hub if self._term else None

    def require(self) -> Term:
        """The present term. `PreconditionError(reason="NOT_LEADER")` while this replica follows."""
        if self._term is None:
            raise not_leader(self._address())
        return self._term

    async def lead(self, leading: Leading) -> None:
        """Lead until cancelled; everything of the term ends with it."""
        async with asyncio.TaskGroup() as group:
            term = Term(self._tools, leading, group)
            try:
                await term.run(lambda: self._begin(term))
            finally:
                self._term = None
                self._tools.metrics.term.set(0)
                self._tools.metrics.nodes.set(0)
                term.close(not_leader(""))
                _log.info("the term is over", term=leading.term)

    def _begin(self, term: Term) -> None:
        self._term = term
        self._tools.metrics.term.set(term.term)
        _log.info("this replica leads", term=term.term)
