"""TLS and mutual TLS to etcd, as the settings say."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudclaw.clock import SystemClock
from cloudclaw.config import EtcdSettings
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.coordination.port import Put
from cloudclaw.errors import UnavailableError
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.etcd


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and `name`, for servers and clients, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(name)]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        paths = self._folder / f"{name}-cert.pem", self._folder / f"{name}-key.pem"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )


async def test_only_clients_of_the_authority_get_through(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "ca"), Authority(tmp_path, "stranger")
    server_cert, server_key = authority.issue("etcd")
    cert, key = authority.issue("client")
    other_cert, other_key = stranger.issue("other")
    async with EtcdServer(tls=(authority.ca, server_cert, server_key)) as server:
        good = EtcdSettings(endpoints=[server.endpoint], ca=authority.ca, cert=cert, key=key)
        several = good.model_copy(update={"endpoints": [server.endpoint, server.endpoint]})
        for settings in (good, several):
            kv = open_etcd(settings, SystemClock())
            assert (await kv.txn([], [Put("k", b"1")])).succeeded
            await kv.close()
        for settings in (
            good.model_copy(update={"cert": None, "key": None}),
            good.model_copy(update={"cert": other_cert, "key": other_key}),
            good.model_copy(update={"ca": stranger.ca}),
            EtcdSettings(endpoints=[server.endpoint]),
        ):
            kv = open_etcd(settings, SystemClock())
            with pytest.raises(UnavailableError):
                await kv.get("k")
            await kv.close()
