"""Tokens: what is believed, and every attack that is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cloudclaw.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from cloudclaw.rpc.auth import Authenticator, Caller, Minter, caller, require_role, set_caller
from cloudclaw.rpc.keys import KeyFileError, PrivateKey, load_verifying_keys, write_development_key

NOW = 1_800_000_000.0
SECRET = b"0123456789abcdef0123456789abcdef"


class FrozenClock:
    """A clock that stands where it is put."""

    def __init__(self, now: float = NOW):
        self.now = now

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def claims(**changes: Any) -> dict[str, Any]:
    whole = {"tenant": "acme", "roles": ["user"], "sub": "me", "iss": "cloudclaw", "iat": NOW, "exp": NOW + 60}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def segment(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pem(key: PrivateKey) -> tuple[bytes, bytes]:
    """Private and public PEM."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "dev.key"
    path.write_bytes(SECRET + b"\n")
    return path


@pytest.fixture
def authenticator(secret: Path) -> Authenticator:
    return Authenticator([secret], clock=FrozenClock())


def signed(payload: dict[str, Any], **header: Any) -> str:
    return jwt.encode(payload, SECRET, "HS256", headers=header)


def test_a_good_token_names_its_caller(authenticator: Authenticator) -> None:
    assert authenticator.verify(signed(claims())) == Caller("acme", frozenset({"user"}), "me")
    assert authenticator.verify(signed(claims(roles=None))).roles == {"user"}


def test_a_minted_token_verifies_until_it_expires(secret: Path) -> None:
    clock = FrozenClock()
    token = Minter(secret, clock=clock).mint("acme", ["operator", "user"], 60, "someone")
    authenticator = Authenticator([secret], clock=clock)
    for _ in range(2):  # the second time from memory
        assert authenticator.verify(token) == Caller("acme", frozenset({"operator", "user"}), "someone")
    clock.now += 64
    authenticator.verify(token)
    clock.now += 1
    for _ in range(2):
        with pytest.raises(UnauthenticatedError, match="expired"):
            authenticator.verify(token)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": NOW - 6}, "TOKEN_EXPIRED"),
        ({"exp": None}, "TOKEN_MALFORMED"),
        ({"exp": "later"}, "TOKEN_MALFORMED"),
        ({"exp": True}, "TOKEN_MALFORMED"),
        ({"iat": NOW + 60}, "TOKEN_NOT_YET_VALID"),
        ({"nbf": NOW + 60}, "TOKEN_NOT_YET_VALID"),
        ({"iss": "elsewhere"}, "TOKEN_WRONG_ISSUER"),
        ({"iss": None}, "TOKEN_WRONG_ISSUER"),
        ({"aud": "another-service"}, "TOKEN_WRONG_AUDIENCE"),
        ({"tenant": None}, "TOKEN_NO_TENANT"),
        ({"tenant": ""}, "TOKEN_NO_TENANT"),
        ({"tenant": "../other"}, "TOKEN_NO_TENANT"),
        ({"tenant": "a/b"}, "TOKEN_NO_TENANT"),
        ({"tenant": ["acme"]}, "TOKEN_NO_TENANT"),
        ({"roles": "operator"}, "TOKEN_MALFORMED"),
        ({"roles": [1]}, "TOKEN_MALFORMED"),
    ],
)
def test_wrong_claims_are_refused_by_reason(authenticator: Authenticator, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.verify(signed(claims(**changes)))
    assert caught.value.reason == reason


def test_a_clock_that_is_a_little_off_does_no_harm(authenticator: Authenticator) -> None:
    authenticator.verify(signed(claims(exp=NOW - 4)))
    authenticator.verify(signed(claims(iat=NOW + 4)))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
def test_an_unsigned_token_is_refused(authenticator: Authenticator, algorithm: str) -> None:
    for signature in ("", segment(b"x")):
        token = f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment(claims())}.{signature}"
        with pytest.raises(UnauthenticatedError):
            authenticator.verify(token)


def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    _, public = pem(rsa_key)
    path = tmp_path / "issuer.pem"
    path.write_bytes(public)
    authenticator = Authenticator([path], clock=FrozenClock())
    # The classic confusion: the RSA public key, which everybody may know, as HMAC secret.
    for forging in (public, public.strip(), public.replace(b"\n", b"")):
        head = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{segment(claims())}"
        token = f"{head}.{segment(hmac.digest(forging, head.encode(), hashlib.sha256))}"
        with pytest.raises(UnauthenticatedError) as caught:
            authenticator.verify(token)
        assert caught.value.reason == "TOKEN_WRONG_ALGORITHM"


def test_another_key_of_the_same_kind_does_not_verify(authenticator: Authenticator) -> None:
    token = jwt.encode(claims(), b"another secret of enough length!!", "HS256")
    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.verify(token)
    assert caught.value.reason == "TOKEN_BAD_SIGNATURE"


def test_a_changed_payload_does_not_verify(authenticator: Authenticator) -> None:
    head, _, signature = signed(claims()).split(".")
    with pytest.raises(UnauthenticatedError):
        authenticator.verify(f"{head}.{segment(claims(tenant='victim'))}.{signature}")


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.c", "a.b.c.d", "\x00", "ü.ü.ü", "." * 5000, "x" * 100_000])
def test_garbage_is_refused_and_nothing_else_happens(authenticator: Authenticator, token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        authenticator.verify(token)


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_each_kind_of_public_key_verifies_its_own_algorithm(tmp_path: Path, make: Any) -> None:
    private, public = pem(make())
    (tmp_path / "main.pem").write_bytes(public)
    (tmp_path / "private").mkdir()
    signing = tmp_path / "private" / "main.pem"
    signing.write_bytes(private)
    token = Minter(signing, clock=FrozenClock()).mint("acme")
    assert Authenticator([tmp_path / "main.pem"], clock=FrozenClock()).verify(token).tenant == "acme"


def test_a_kid_chooses_its_key_and_no_other(tmp_path: Path) -> None:
    for name, material in (("old.key", SECRET), ("new.key", SECRET[::-1])):
        (tmp_path / name).write_bytes(material)
    authenticator = Authenticator([tmp_path / "old.key", tmp_path / "new.key"], clock=FrozenClock())
    assert authenticator.verify(signed(claims(), kid="old")).tenant == "acme"
    assert authenticator.verify(signed(claims())).tenant == "acme"
    with pytest.raises(UnauthenticatedError) as caught:
        authenticator.verify(signed(claims(), kid="new"))
    assert caught.value.reason == "TOKEN_BAD_SIGNATURE"
    for kid in ("other", "../old", ""):
        with pytest.raises(UnauthenticatedError) as caught:
            authenticator.verify(signed(claims(), kid=kid))
        assert caught.value.reason == "TOKEN_UNKNOWN_KEY"


def test_unusable_key_files_are_refused_with_their_name(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    private, public = pem(rsa_key)
    files = {
        "short.key": b"x" * 31 + b"\n",
        "private.pem": private,
        "damaged.pem": public[:60] + b"\n",
        "certificate.pem": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "ssh.pub": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIiiiiiiiiiiiiiiiiiiiiiiiiiiiii me",
        "small.pem": pem(rsa.generate_private_key(65537, 1024))[1],
        "curve.pem": pem(ec.generate_private_key(ec.SECP384R1()))[1],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KeyFileError, match=name):
            load_verifying_keys([tmp_path / name])
    with pytest.raises(KeyFileError, match="missing"):
        load_verifying_keys([tmp_path / "missing"])
    with pytest.raises(KeyFileError, match=r"auth\.keys"):
        load_verifying_keys([])


def test_two_keys_with_one_id_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "k.key", tmp_path / "a" / "k.pem"):
        path.write_bytes(SECRET)
    with pytest.raises(KeyFileError, match="'k'"):
        load_verifying_keys([tmp_path / "k.key", tmp_path / "a" / "k.pem"])


def test_a_development_key_is_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "dev.key"
    write_development_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists"):
        write_development_key(path)
    assert path.read_bytes() == before
    assert len(before.strip()) >= 32


@pytest.mark.parametrize(
    ("tenant", "roles", "ttl", "field"),
    [("A/b", ["user"], 1, "tenant"), ("a", ["root"], 1, "roles"), ("a", ["user"], 0, "ttl")],
)
def test_the_minter_refuses_what_no_service_would_take(
    secret: Path, tenant: str, roles: list[str], ttl: float, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Minter(secret).mint(tenant, roles, ttl)
    assert caught.value.field == field


async def test_roles_are_demanded_of_the_running_calls_caller() -> None:
    with pytest.raises(UnauthenticatedError):
        caller()
    set_caller(Caller("acme", frozenset({"user"}), ""))
    assert require_role("user").tenant == "acme"
    with pytest.raises(PermissionDeniedError) as caught:
        require_role("operator")
    assert caught.value.metadata == {"role": "operator"}
