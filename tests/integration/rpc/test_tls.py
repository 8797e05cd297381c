"""TLS and mutual TLS, with certificates made here."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudclaw.config import ClientTls, ServerSettings, ServerTls
from cloudclaw.errors import CloudClawError, UnavailableError
from tests.integration.rpc.conftest import Loopback, Start
from tests.integration.rpc.test_errors_travel import unary_unary


@dataclass
class Identity:
    cert: Path
    key: Path


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path, name: str):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._cert = self._sign(self._name, self._key, ca=True)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, ca=False)
        identity = Identity(self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem")
        identity.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return identity

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("claw.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            ).add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def refused(loopback: Loopback, channel: grpc.aio.Channel) -> None:
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(unary_unary(channel), 20)
    assert not loopback.scheduler.seen.tenants


async def tls_server(start: Start, authority: Authority, *, mutual: bool) -> Loopback:
    server = authority.issue("server")
    tls = ServerTls(cert=server.cert, key=server.key, client_ca=authority.ca if mutual else None)
    return await start(ServerSettings(listen="127.0.0.1:0", tls=tls))


async def test_a_client_that_trusts_the_authority_is_served(start: Start, authority: Authority) -> None:
    loopback = await tls_server(start, authority, mutual=False)
    await unary_unary(loopback.channel(tls=ClientTls(ca=authority.ca)))
    await unary_unary(loopback.channel(tls=ClientTls(ca=authority.ca, server_name="claw.test")))
    assert loopback.scheduler.seen.tenants == ["acme", "acme"]


async def test_plain_text_wrong_authorities_and_wrong_names_are_refused(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    loopback = await tls_server(start, authority, mutual=False)
    stranger = Authority(tmp_path, "stranger")
    await refused(loopback, loopback.channel())
    await refused(loopback, loopback.channel(tls=ClientTls(ca=stranger.ca)))
    await refused(loopback, loopback.channel(tls=ClientTls(ca=authority.ca, server_name="other.test")))
    # The system's authorities do not know ours.
    await refused(loopback, loopback.channel(target=f"https://{loopback.address}"))


async def test_mutual_tls_serves_only_clients_with_a_certificate(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    loopback = await tls_server(start, authority, mutual=True)
    await refused(loopback, loopback.channel(tls=ClientTls(ca=authority.ca)))
    false = Authority(tmp_path, "stranger").issue("false-client")
    await refused(loopback, loopback.channel(tls=ClientTls(ca=authority.ca, cert=false.cert, key=false.key)))
    client = authority.issue("client")
    tls = ClientTls(ca=authority.ca, cert=client.cert, key=client.key)
    await unary_unary(loopback.channel(tls=tls))
    assert loopback.scheduler.seen.tenants == ["acme"]


async def test_a_certificate_that_is_not_there_is_named(start: Start, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(CloudClawError, match=r"missing\.pem"):
        await start(ServerSettings(listen="127.0.0.1:0", tls=ServerTls(cert=missing, key=missing)))
    loopback = await start(ServerSettings(listen="127.0.0.1:0"))
    with pytest.raises(CloudClawError, match=r"missing\.pem"):
        loopback.channel(tls=ClientTls(ca=missing))
