"""The life of a slot: PROVISIONING → IDLE → ASSIGNED → IDLE, or DRAINING → GONE."""

from __future__ import annotations

import enum


class SlotState(enum.IntEnum):
    """States of a slot, equal to `cloudclaw.v1.SlotState`."""

    PROVISIONING = 1
    IDLE = 2
    ASSIGNED = 3
    DRAINING = 4
    GONE = 5


def quarantine(failures: int) -> float:
    """Seconds to wait before a slot that failed `failures` times in a row is provisioned again.

    The first failure costs nothing; a slot that keeps failing is tried every half minute.
    """
    if failures <= 1:
        return 0.0
    return float(min(0.25 * 2 ** min(failures - 2, 10), 30.0))
