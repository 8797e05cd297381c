"""No call without a token that verifies."""

from __future__ import annotations

from typing import Final

import structlog

from cloudclaw.errors import UnauthenticatedError
from cloudclaw.rpc.auth import Authenticator, set_caller
from cloudclaw.rpc.call import Call

_SCHEME: Final = "bearer "


class Authentication:
    """Makes the token's owner the call's caller.

    Interceptors for roles, quotas and fairness go after this one: they find `call.caller` set.
    """

    def __init__(self, authenticator: Authenticator):
        self._authenticator = authenticator

    def enter(self, call: Call) -> None:
        header = _authorization(call)
        if header[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError(
                "the call needs the metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING"
            )
        call.caller = self._authenticator.verify(header[len(_SCHEME) :].strip())
        set_caller(call.caller)
        structlog.contextvars.bind_contextvars(tenant=call.caller.tenant)

    def leave(self, call: Call, error: BaseException | None) -> None:
        pass


def _authorization(call: Call) -> str:
    values = [value for key, value in call.metadata if key == "authorization"]
    if len(values) > 1:
        raise UnauthenticatedError("the call carries more than one token", reason="TOKEN_MALFORMED")
    return values[0] if values and isinstance(values[0], str) else ""
