"""Tenants' model keys, sealed: AES-256-GCM, bound to the tenant and the upstream that they are for.

A sealed key is text, `v1:` and the base64 of nonce (12 bytes), ciphertext and tag. It is opened only under the names
that it was sealed under, so nobody who can write to etcd turns one tenant's key into another's. Schedulers seal and
gateways open; whatever lies between carries the text.

A key file holds 32 bytes in hex. The first of several seals, all of them open. To rotate: put the new file first on
every scheduler and gateway, have the keys set again, then take the old file away.
"""

from __future__ import annotations

import base64
import binascii
import os
import resource
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from cloudclaw.config import Group
from cloudclaw.errors import CloudClawError, InvalidArgumentError

_PREFIX: Final = "v1:"
_KEY: Final = 32
_NONCE: Final = 12
_TAG: Final = 16
MAX_SECRET: Final = 4096
"""Bytes of a tenant's key at most."""


class SealingSettings(Group):
    """Keys that tenants' model keys are sealed with."""

    keys: list[Path] = Field(
        default_factory=list,
        description="key files of 32 bytes in hex (`openssl rand -hex 32`); the first seals, all of them open",
    )


class SealingError(CloudClawError):
    """A key file cannot be used, or a sealed text cannot be opened. Never tells anything secret."""

    default_reason = "SEALING"


class Sealer:
    """Seals and opens with the keys of `paths`.

    From then on its process leaves no core file, which would have the keys in it.

    Raises `SealingError` when a file cannot be read, holds no key, or others may read it. Without any file everything
    else raises it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        self._ciphers = [AESGCM(_read(path)) for path in paths]

    def seal(self, tenant: str, upstream: str, secret: str) -> str:
        """`secret`, sealed. Two seals of one secret differ.

        Raises `InvalidArgumentError` when it cannot be a key: empty, over 4096 bytes, or with anything but visible
        ASCII, which no HTTP header may carry.
        """
        if not secret or len(secret) > MAX_SECRET or not all("!" <= character <= "~" for character in secret):
            raise InvalidArgumentError(
                f"a key is 1 to {MAX_SECRET} visible ASCII characters, without spaces", field="key"
            )
        nonce = os.urandom(_NONCE)
        data = self._all()[0].encrypt(nonce, secret.encode("ascii"), _bound(tenant, upstream))
        return _PREFIX + base64.b64encode(nonce + data).decode("ascii")

    def open(self, tenant: str, upstream: str, sealed: str) -> str:
        """The secret in `sealed`. Raises `SealingError`."""
        ciphers = self._all()
        where = f"the key of tenant {tenant} for upstream {upstream}"
        if not sealed.startswith(_PREFIX):
            raise SealingError(f"{where} is sealed in a way that this release does not know")
        try:
            data = base64.b64decode(sealed[len(_PREFIX) :], validate=True)
        except (binascii.Error, ValueError):
            raise SealingError(f"{where} is damaged: set it again") from None
        if len(data) < _NONCE + _TAG:
            raise SealingError(f"{where} is damaged: set it again")
        for cipher in ciphers:
            try:
                return cipher.decrypt(data[:_NONCE], data[_NONCE:], _bound(tenant, upstream)).decode("ascii")
            except InvalidTag:
                continue
            except UnicodeDecodeError:
                break
        raise SealingError(
            f"{where} does not open with any of {len(ciphers)} sealing keys: the key files differ from those it was"
            " sealed with, or it was sealed under other names"
        )

    def _all(self) -> list[AESGCM]:
        if not self._ciphers:
            raise SealingError("no sealing keys: set `sealing.keys` to a file of 32 bytes in hex", reason="NO_KEYS")
        return self._ciphers


def write_sealing_key(path: Path) -> None:
    """Write a fresh key to `path`, readable by its owner alone.

    Raises `SealingError` when the file exists: a key in use is never replaced.
    """
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            file.write(secrets.token_hex(_KEY) + "\n")
    except FileExistsError:
        raise SealingError(f"{path} exists; what was sealed with it could not be opened any more") from None
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * _KEY).decode("ascii").strip()
    except OSError as error:
        raise SealingError(f"cannot read the sealing key {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    else:
        if stat.S_IMODE(mode) & 0o007:
            raise SealingError(f"{path}: everybody may read or change this sealing key; chmod 600 it")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY:
        raise SealingError(f"{path}: not a sealing key: 64 hexadecimal digits are needed (`openssl rand -hex 32`)")
    return key


def _bound(tenant: str, upstream: str) -> bytes:
    return f"{tenant}/{upstream}".encode()
