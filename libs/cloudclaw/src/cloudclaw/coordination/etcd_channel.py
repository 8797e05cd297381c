"""The gRPC channel to etcd: its target, its security, and how soon it notices and mends a broken connection."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from cloudclaw.errors import InvalidArgumentError

_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.lb_policy_name", "round_robin"),
    # Back within half a second of etcd's own return; gRPC's default lets up to two minutes pass.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A silent peer is given up after 9 s. etcd cuts off clients that ping more often than every 5 s, or while idle.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A transaction is sent once (rule 1), so the channel repeats nothing either.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM bytes. `ca` checks etcd's certificates; `cert` and `key`, together or not at all, are ours (mutual TLS).

    `server_name` is the name that the members' certificates must carry; empty means the host of the endpoint, or of
    the first one when there are several, which every member's certificate must then carry.
    """

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None
    server_name: str = ""


def open_channel(endpoints: Sequence[str], tls: EtcdTls | None = None) -> grpc.aio.Channel:
    """A channel over all `endpoints` (`host:port`, or `[v6]:port`). Needs the running event loop.

    Several host names are resolved here and now, which blocks; a single one is resolved by gRPC, again after every
    failure. `InvalidArgumentError` for an endpoint that is none.
    """
    hosts = [_split(endpoint) for endpoint in endpoints]
    if not hosts:
        raise InvalidArgumentError("at least one etcd endpoint is needed", field="endpoints")
    target = _target(hosts)
    options = list(_OPTIONS)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    name = tls.server_name or (hosts[0][0] if len(hosts) > 1 else "")
    if name:
        options.append(("grpc.ssl_target_name_override", name))
        options.append(("grpc.default_authority", name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _split(endpoint: str) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise InvalidArgumentError(f"an etcd endpoint is host:port, got {endpoint!r}", field="endpoints")
    return host.strip("[]"), int(port)


def _target(hosts: Sequence[tuple[str, int]]) -> str:
    """gRPC takes many addresses of one family, or one name; never several names."""
    versions = {_ip_version(host) for host, _ in hosts}
    if versions == {4}:
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in hosts)
    if versions == {6}:
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in hosts)
    if len(hosts) == 1:
        return f"dns:///{hosts[0][0]}:{hosts[0][1]}"
    addresses = [
        str(info[4][0]) + f":{port}"
        for host, port in hosts
        for info in socket.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    ]
    return "ipv4:" + ",".join(dict.fromkeys(addresses))


def _ip_version(host: str) -> int:
    """4 or 6 for an address, 0 for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0
