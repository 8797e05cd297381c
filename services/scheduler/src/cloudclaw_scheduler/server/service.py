"""`SchedulerService`, put together of the users' calls and the nodes'."""

from __future__ import annotations

from typing import Final

from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceServicer
from cloudclaw_scheduler.app.consumers import Consumers
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.server.nodes import NodeCalls
from cloudclaw_scheduler.server.results import ResultCalls
from cloudclaw_scheduler.server.tasks import Services, TaskCalls

SERVICE: Final = "cloudclaw.v1.SchedulerService"


class SchedulerServicer(TaskCalls, ResultCalls, NodeCalls, SchedulerServiceServicer):
    """All of the service."""

    def __init__(self, services: Services, consumers: Consumers, leader: Leader) -> None:
        TaskCalls.__init__(self, services)
        ResultCalls.__init__(self, consumers)
        NodeCalls.__init__(self, leader)
