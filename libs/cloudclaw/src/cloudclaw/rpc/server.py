"""A service's gRPC server: who is asking, errors, logs, metrics, health and reflection around its servicers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloudclaw.clock import Clock
from cloudclaw.config import ServerSettings, ServerTls
from cloudclaw.errors import CloudClawError, UnavailableError
from cloudclaw.rpc.auth import Authenticator
from cloudclaw.rpc.call import Interceptor
from cloudclaw.rpc.chain import Chain
from cloudclaw.rpc.health import Health
from cloudclaw.rpc.interceptors.authentication import Authentication
from cloudclaw.rpc.interceptors.errors import ErrorTranslation
from cloudclaw.rpc.interceptors.metrics import CallMetrics
from cloudclaw.rpc.interceptors.request_log import RequestLog

MAX_MESSAGE: Final = 8 * 1024 * 1024
"""Longest message taken or sent, in bytes."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Two services on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
    # Our clients ping every two seconds, also without calls; see channel.py.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # A client whose machine vanished leaves no reset behind: its calls end after at most this.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

Servicer = TypeVar("Servicer")


class RpcServer:
    """One process's gRPC port.

    A service that was added is NOT_SERVING until `set_serving` says otherwise. To stop: `drain`, let the work end,
    `stop`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        authenticator: Authenticator,
        *,
        clock: Clock,
        interceptors: tuple[Interceptor, ...] = (),
    ):
        """Prepare the server; nothing is bound before `start`.

        Args:
            settings: address and TLS.
            authenticator: checks the token of every call but health and reflection.
            clock: for the times of calls.
            interceptors: more of them, run after authentication (roles, quotas).
        """
        self._settings = settings
        chain = Chain(
            (
                RequestLog(clock),
                CallMetrics(clock),
                ErrorTranslation(),
                Authentication(authenticator),
                *interceptors,
            )
        )
        self._server = grpc.aio.server(interceptors=(chain,), options=_OPTIONS)
        self._health = Health()
        self._names = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, service: str, add_to_server: Callable[[Servicer, Any], None], servicer: Servicer) -> None:
        """Serve `servicer`, before `start`.

        Args:
            service: full name, `cloudclaw.v1.SchedulerService`.
            add_to_server: the generated `add_…Servicer_to_server`.
            servicer: what answers its calls; it raises `cloudclaw.errors` and leaves the status to the server.
        """
        add_to_server(servicer, self._server)
        self._names.append(service)
        self._health.set(service, serving=False)

    async def start(self) -> str:
        """Bind and serve; answers the bound address, `host:port` or `unix:PATH`.

        Raises `UnavailableError(reason="ADDRESS_IN_USE")` when the address cannot be had, `CloudClawError` when a
        certificate cannot be read.
        """
        reflection.enable_server_reflection((*self._names, reflection.SERVICE_NAME), self._server)
        listen = self._settings.listen
        credentials = server_credentials(self._settings.tls)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as e:
            raise UnavailableError(
                f"cannot listen on {listen}; does another process? ({e})", reason="ADDRESS_IN_USE"
            ) from e
        await self._server.start()
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    def set_serving(self, service: str, serving: bool) -> None:
        """Say by gRPC health whether `service` serves; its watchers hear at once."""
        self._health.set(service, serving=serving)

    async def drain(self) -> None:
        """Turn health to NOT_SERVING everywhere, for good. Calls are still answered."""
        self._health.drain()

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls; cancel those that still run after `grace` seconds. Idempotent."""
        self._health.drain()
        await self._server.stop(grace)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials | None:
    """What `tls` says, None when it is off. Raises `CloudClawError` when a file cannot be read."""
    if tls.cert is None or tls.key is None:
        return None
    chain = [(read_pem(tls.key), read_pem(tls.cert))]
    if tls.client_ca is None:
        return grpc.ssl_server_credentials(chain)
    return grpc.ssl_server_credentials(chain, read_pem(tls.client_ca), require_client_auth=True)


def read_pem(path: Path) -> bytes:
    """A certificate or key. Raises `CloudClawError` naming the file."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise CloudClawError(f"cannot read {path}: {e.strerror}", reason="BAD_CERTIFICATE") from e
