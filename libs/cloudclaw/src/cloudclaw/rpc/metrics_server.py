"""Where Prometheus collects a service's metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from cloudclaw.config import MetricsSettings
from cloudclaw.errors import UnavailableError


def serve_metrics(settings: MetricsSettings) -> Callable[[], None]:
    """Serve `/metrics` from a thread of its own; answers what stops it.

    Does nothing when `settings.listen` is empty. Raises `UnavailableError` when the address cannot be had.
    """
    if not settings.listen:
        return lambda: None
    host, _, port = settings.listen.rpartition(":")
    server: WSGIServer
    thread: threading.Thread
    try:
        server, thread = start_http_server(int(port), host)
    except OSError as e:
        raise UnavailableError(
            f"cannot serve metrics on {settings.listen}: {e.strerror}", reason="ADDRESS_IN_USE"
        ) from e

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
