"""Who is asking: bearer tokens, and the caller of the running call.

A token is a JWT with the claims `tenant`, `roles` (a list; without it `["user"]`), `sub`, `iat`, `exp` and `iss`.
The tenant of a call is the token's, never the request's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from cloudclaw.ids import check_name
from cloudclaw.rpc.keys import VerifyingKey, load_signing_key, load_verifying_keys

LEEWAY: Final = 5.0
"""Seconds by which the clocks of issuer and service may differ."""

MAX_TOKEN: Final = 8192
"""Longest token looked at, in characters."""

DEFAULT_ISSUER: Final = "cloudclaw"

ROLES: Final = frozenset({"user", "operator", "node"})
"""`user` works with its tenant's resources; `operator` sees and changes nodes; `node` is for pool-managers and
scheduler replicas, and names tenants itself in Connect and StreamLogs."""

_REMEMBERED: Final = 1024
_OPTIONS: Final = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_iss": False}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    Attributes:
        tenant: whose resources it may touch.
        roles: what it may do (see `ROLES`).
        subject: the person or program, for logs.
    """

    tenant: str
    roles: frozenset[str]
    subject: str


_caller: ContextVar[Caller] = ContextVar("cloudclaw_caller")


def caller() -> Caller:
    """The caller of the running call.

    Raises `UnauthenticatedError` outside of a call, and in calls that need no token (health, reflection).
    """
    try:
        return _caller.get()
    except LookupError:
        raise UnauthenticatedError("this call carries no token") from None


def set_caller(who: Caller) -> None:
    """Make `who` the caller of the running task and of those it starts. For the server and for tests."""
    _caller.set(who)


def require_role(role: str) -> Caller:
    """The caller, when it has `role`. Raises `PermissionDeniedError`."""
    who = caller()
    if role not in who.roles:
        error = PermissionDeniedError(
            f"this needs the role {role!r}; the token has {', '.join(sorted(who.roles)) or 'none'}",
            reason="ROLE_REQUIRED",
            metadata={"role": role},
        )
        raise error
    return who


class Authenticator:
    """Checks tokens against the configured keys.

    A token whose header has a `kid` is checked with the key of that id alone; one without, with every key in turn,
    each by its own algorithm. Tokens that verified are remembered until they expire, so that the signature's cost
    (100 µs for EdDSA) is paid once.
    """

    def __init__(self, keys: Sequence[Path], *, issuer: str = DEFAULT_ISSUER, clock: Clock | None = None):
        """Load `keys`.

        Args:
            keys: key files (see `cloudclaw.rpc.keys`).
            issuer: the `iss` that tokens must carry; empty accepts any.
            clock: source of the time that `exp` is compared with.

        Raises:
            KeyFileError: a key cannot be used, or there is none.
        """
        self._keys = load_verifying_keys(keys)
        self._issuer = issuer
        self._clock = clock or SystemClock()
        self._verified: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def verify(self, token: str) -> Caller:
        """The caller that `token` stands for. Raises `UnauthenticatedError` saying what is wrong with it."""
        now = self._clock.wall()
        remembered = self._verified.get(token)
        if remembered is not None:
            if now < remembered[1] + LEEWAY:
                return remembered[0]
            del self._verified[token]
        if len(token) > MAX_TOKEN:
            raise _refused(f"the token is longer than {MAX_TOKEN} characters", "TOKEN_MALFORMED")
        claims = self._decode(token)
        expires = self._check_times(claims, now)
        if self._issuer and claims.get("iss") != self._issuer:
            raise _refused(f"the token was not issued by {self._issuer!r}", "TOKEN_WRONG_ISSUER")
        who = _caller_of(claims)
        self._verified[token] = (who, expires)
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return who

    def _decode(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as e:
            raise _refused("the token is not a JWT", "TOKEN_MALFORMED") from e
        kid = header.get("kid")
        candidates = self._keys if kid is None else tuple(key for key in self._keys if key.kid == kid)
        if not candidates:
            raise _refused("the token names a key that is not trusted here", "TOKEN_UNKNOWN_KEY")
        matching = [key for key in candidates if key.algorithm == header.get("alg")]
        if not matching:
            raise _refused("the token's algorithm is not the one of its key", "TOKEN_WRONG_ALGORITHM")
        for key in matching:
            claims = _decode_with(key, token)
            if claims is not None:
                return claims
        raise _refused("the token's signature does not verify", "TOKEN_BAD_SIGNATURE")

    @staticmethod
    def _check_times(claims: Mapping[str, Any], now: float) -> float:
        expires = _number(claims, "exp")
        if expires is None:
            raise _refused("the token never expires: it needs an `exp`", "TOKEN_MALFORMED")
        if now >= expires + LEEWAY:
            raise _refused("the token has expired; ask for a new one", "TOKEN_EXPIRED")
        for claim in ("nbf", "iat"):
            begins = _number(claims, claim)
            if begins is not None and begins > now + LEEWAY:
                raise _refused("the token is not valid yet; compare the clocks", "TOKEN_NOT_YET_VALID")
        return expires


class Minter:
    """Makes tokens, for development and between the services of one stack."""

    def __init__(self, key: Path, *, issuer: str = DEFAULT_ISSUER, clock: Clock | None = None):
        """Load the secret or private key in `key`. Raises `KeyFileError`."""
        self._key = load_signing_key(key)
        self._issuer = issuer
        self._clock = clock or SystemClock()

    def mint(
        self, tenant: str, roles: Iterable[str] = ("user",), ttl: float = 12 * 3600.0, subject: str = "development"
    ) -> str:
        """A token for `tenant` with `roles`, valid for `ttl` seconds.

        Raises `InvalidArgumentError` for a name that is none, an unknown role or a `ttl` that is not positive.
        """
        check_name(tenant, "tenant")
        wanted = sorted(set(roles))
        for role in wanted:
            if role not in ROLES:
                raise InvalidArgumentError(
                    f"no such role: {role!r}; there are {', '.join(sorted(ROLES))}", field="roles"
                )
        if not ttl > 0:
            raise InvalidArgumentError("must be positive", field="ttl")
        now = self._clock.wall()
        claims = {
            "iss": self._issuer,
            "sub": subject,
            "tenant": tenant,
            "roles": wanted,
            "iat": int(now),
            "exp": int(now + ttl),
        }
        return jwt.encode(claims, self._key.material, self._key.algorithm, headers={"kid": self._key.kid})


def _decode_with(key: VerifyingKey, token: str) -> dict[str, Any] | None:
    """The claims when `key` verifies the signature, None when it does not."""
    try:
        claims: dict[str, Any] = jwt.decode(token, key.material, algorithms=[key.algorithm], options=_OPTIONS)  # type: ignore[arg-type]
    except jwt.InvalidSignatureError:
        return None
    except jwt.InvalidAudienceError as e:
        raise _refused("the token is meant for another audience", "TOKEN_WRONG_AUDIENCE") from e
    except jwt.InvalidTokenError as e:
        raise _refused(f"the token does not verify: {e}", "TOKEN_MALFORMED") from e
    return claims


def _caller_of(claims: Mapping[str, Any]) -> Caller:
    tenant = claims.get("tenant")
    if not isinstance(tenant, str) or not tenant:
        raise _refused("the token names no tenant", "TOKEN_NO_TENANT")
    try:
        check_name(tenant, "tenant")
    except InvalidArgumentError as e:
        raise _refused(f"the token's tenant {e.message}", "TOKEN_NO_TENANT") from e
    roles = claims.get("roles", ["user"])
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise _refused("the token's `roles` are not a list of names", "TOKEN_MALFORMED")
    subject = claims.get("sub", "")
    return Caller(tenant, frozenset(roles), subject if isinstance(subject, str) else "")


def _number(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f"the token's `{name}` is not a number", "TOKEN_MALFORMED")
    return float(value)


def _refused(message: str, reason: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, reason=reason)
