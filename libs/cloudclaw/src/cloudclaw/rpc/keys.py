"""Key files of tokens, each bound to the one algorithm it may be used with.

The algorithm comes from the key, never from a token's header: a token that names another one is refused, so an
RSA public key can never be taken for an HMAC secret.

| file | algorithm |
|---|---|
| PEM, Ed25519 | EdDSA |
| PEM, RSA of at least 2048 bits | RS256 |
| PEM, P-256 | ES256 |
| anything else, at least 32 bytes | HS256 |

A key's id (`kid`) is its file's name without the suffix: `dev.key` is `dev`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cloudclaw.errors import CloudClawError

MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2048

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class KeyFileError(CloudClawError):
    """A key file cannot be used; the message names it and says why."""

    default_reason = "BAD_KEY"


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """What tokens are checked with."""

    kid: str
    algorithm: str
    material: PublicKey | bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What tokens are signed with."""

    kid: str
    algorithm: str
    material: PrivateKey | bytes = field(repr=False)


def load_verifying_keys(paths: Sequence[Path]) -> tuple[VerifyingKey, ...]:
    """The keys in `paths`. Raises `KeyFileError`, also when there is none or two have one id."""
    if not paths:
        raise KeyFileError(
            "no keys to check tokens with: set `auth.keys` (`claw token key FILE` makes one for development)"
        )
    keys = tuple(_load_verifying(path) for path in paths)
    ids = [key.kid for key in keys]
    for kid in ids:
        if ids.count(kid) > 1:
            raise KeyFileError(f"two key files have the id {kid!r}; a key's id is its file's name without the suffix")
    return keys


def load_signing_key(path: Path) -> SigningKey:
    """The secret or private key in `path`. Raises `KeyFileError`."""
    data = _read(path)
    if not _is_pem(data):
        return SigningKey(path.stem, "HS256", _secret(path, data))
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as e:
        raise KeyFileError(f"{path}: not an unencrypted PEM private key: {e}") from e
    if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        return SigningKey(path.stem, _algorithm(path, key.public_key()), key)
    raise KeyFileError(f"{path}: keys of this kind are not used; take Ed25519, RSA or P-256")


def write_development_key(path: Path) -> None:
    """Write a fresh HS256 secret to `path`, readable by its owner alone.

    Raises `KeyFileError` when the file exists: a key in use is never replaced.
    """
    try:
        with open(path, "x", opener=_private) as file:
            file.write(secrets.token_urlsafe(48) + "\n")
    except FileExistsError as e:
        raise KeyFileError(f"{path} exists; remove it first if nothing trusts it any more") from e
    except OSError as e:
        raise KeyFileError(f"{path}: {e.strerror}") from e


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _load_verifying(path: Path) -> VerifyingKey:
    data = _read(path)
    if not _is_pem(data):
        return VerifyingKey(path.stem, "HS256", _secret(path, data))
    if b"PRIVATE KEY-----" in data:
        raise KeyFileError(f"{path} holds a private key; a service is given the public one")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as e:
        raise KeyFileError(f"{path}: not a PEM public key: {e}") from e
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return VerifyingKey(path.stem, _algorithm(path, key), key)
    raise KeyFileError(f"{path}: keys of this kind are not used; take Ed25519, RSA or P-256")


def _algorithm(path: Path, key: PublicKey) -> str:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise KeyFileError(f"{path}: RSA key of {key.key_size} bits; at least {MIN_RSA_BITS} are needed")
        return "RS256"
    if not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"{path}: elliptic curve {key.curve.name}; only P-256 is used")
    return "ES256"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise KeyFileError(f"cannot read the key {path}: {e.strerror}") from e


def _is_pem(data: bytes) -> bool:
    # A damaged or unexpected PEM file must never become a secret that everybody knows.
    return b"-----BEGIN" in data or data.startswith((b"ssh-", b"ecdsa-"))


def _secret(path: Path, data: bytes) -> bytes:
    secret = data.strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise KeyFileError(f"{path}: a secret of {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
    return secret
