"""The calls of those who have keys for models."""

from __future__ import annotations

from typing import Any

import grpc

from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.model_keys import ModelKeys
from cloudclaw_scheduler.app.results import timestamp

Context = grpc.aio.ServicerContext[Any, Any]


class ModelKeyCalls:
    """Each method validates, converts, calls, converts back. All of them are of the caller's tenant."""

    def __init__(self, model_keys: ModelKeys) -> None:
        self._model_keys = model_keys

    async def SetModelKey(self, request: pb.SetModelKeyRequest, context: Context) -> pb.SetModelKeyResponse:
        await self._model_keys.set(caller().tenant, request.upstream, request.key)
        return pb.SetModelKeyResponse()

    async def ListModelKeys(self, request: pb.ListModelKeysRequest, context: Context) -> pb.ListModelKeysResponse:
        kept = await self._model_keys.list(caller().tenant)
        return pb.ListModelKeysResponse(
            keys=[
                pb.ModelKey(upstream=upstream, hint=record.hint, update_time=timestamp(record.updated))
                for upstream, record in sorted(kept.items())
            ]
        )

    async def DeleteModelKey(self, request: pb.DeleteModelKeyRequest, context: Context) -> pb.DeleteModelKeyResponse:
        await self._model_keys.delete(caller().tenant, request.upstream)
        return pb.DeleteModelKeyResponse()
