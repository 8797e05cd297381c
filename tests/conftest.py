"""What tests of every kind share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import engine


@pytest.fixture(scope="session")
def docker() -> Iterator[engine.Docker]:
    """An engine of the tests' own. One for the session: there is one folder for its data."""
    with engine.engine() as running:
        yield running
