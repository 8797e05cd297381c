"""`SchedulerService`, put together of the users' calls and the nodes'."""

from __future__ import annotations

from typing import Final

from cloudclaw.v1.scheduler_pb2_grpc import SchedulerServiceServicer
from cloudclaw_scheduler.app.consumers import Consumers
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.model_keys import ModelKeys
from cloudclaw_scheduler.server.model_keys import ModelKeyCalls
from cloudclaw_scheduler.server.nodes import NodeCalls
from cloudclaw_scheduler.server.results import ResultCalls
from cloudclaw_scheduler.server.tasks import Services, TaskCalls

SERVICE: Final = "cloudclaw.v1.SchedulerService"


class SchedulerServicer(TaskCalls, ResultCalls, ModelKeyCalls, NodeCalls, SchedulerServiceServicer):
    """All of the service."""

    def __init__(self, services: Services, consumers: Consumers, model_keys: ModelKeys, leader: Leader) -> None:
        TaskCalls.__init__(self, services)
        ResultCalls.__init__(self, consumers)
        ModelKeyCalls.__init__(self, model_keys)
        NodeCalls.__init__(self, leader)
