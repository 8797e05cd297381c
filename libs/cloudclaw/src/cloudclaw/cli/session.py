"""One command's view of CloudClaw: where it is, who asks, and how to print."""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from cloudclaw.cli.output import Output
from cloudclaw.errors import PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from cloudclaw.cli.command import Given
    from cloudclaw.client import AsyncClient
    from cloudclaw.client.retry import OnWait
    from cloudclaw.errors import UnavailableError

AWAY_AFTER: Final = 2.0
"""Seconds that a service may be away before somebody who waits is told."""
DEFAULT_ENDPOINT: Final = "127.0.0.1:7401"
ONE_CALL: Final = 3.0
STREAM: Final = 120.0
"""Seconds of patience while a service is away: for one question, and for what somebody follows."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What a running `claw dev` says of itself in DIR/ready.json."""

    token: str
    operator_token: str
    endpoints: dict[str, str]


def data_directory() -> Path:
    """Where `claw dev` keeps its state unless it is told otherwise: CLAW_DATA_DIR, else the user's state folder."""
    given = os.environ.get("CLAW_DATA_DIR")
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "cloudclaw"


def local_stack() -> Stack | None:
    """The user's own `claw dev`, if one runs."""
    try:
        facts: dict[str, Any] = json.loads((data_directory() / "ready.json").read_text("utf-8"))
        return Stack(str(facts["token"]), str(facts.get("operator_token", facts["token"])), dict(facts["endpoints"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none runs, or it is not ours to read: then the options and variables decide


class Session:
    """Connections and output of one command.

    Endpoint and token come from the options, then from the environment, then from a running `claw dev` of the same
    user; its token goes to no other endpoint.

    Attributes:
        output: where results go.
        endpoint_tried: for messages about what does not answer.
    """

    def __init__(self, given: Given):
        self.given = given
        self.output = Output(json=given.json)
        self._stack = local_stack()
        self._clients: list[AsyncClient] = []
        self.endpoint = given.endpoint or (self._stack.endpoints["scheduler"] if self._stack else DEFAULT_ENDPOINT)
        self.endpoint_tried = self.endpoint

    def client(self, *, patience: float = ONE_CALL) -> AsyncClient:
        """The client of this command's endpoint and token."""
        return self._connect(self.endpoint, patience, operator=False)

    def operator(self, endpoint: str) -> AsyncClient:
        """A client for calls to one node's own service, with an operator's token."""
        self.endpoint_tried = endpoint
        return self._connect(endpoint, ONE_CALL, operator=True)

    def _connect(self, endpoint: str, patience: float, *, operator: bool) -> AsyncClient:
        from cloudclaw.client import AsyncClient

        given = self.given
        client = AsyncClient(
            endpoint,
            self._token(endpoint, operator=operator),
            workspace_endpoint=given.workspace_endpoint or self._local_workspace(),
            tls=self._tls(),
            patience=patience,
            on_wait=self._away(endpoint, patience),
        )
        self._clients.append(client)
        return client

    def _away(self, endpoint: str, patience: float) -> OnWait | None:
        """Says once in an outage that it is waited for; not of one that is over within moments."""
        if patience <= ONE_CALL:
            return None
        told = False

        def away(error: UnavailableError, seconds: float) -> None:
            nonlocal told
            if seconds < AWAY_AFTER:
                told = False
            elif not told:
                told = True
                self.output.remark(f"{endpoint} does not answer; trying again for {patience:.0f} s (Ctrl-C stops)")

        return away

    def _token(self, endpoint: str, *, operator: bool) -> str:
        token = self.given.token
        if not token and self._stack and endpoint in self._stack.endpoints.values():
            token = self._stack.operator_token if operator else self._stack.token
        if not token:
            raise UnauthenticatedError("no token", reason="TOKEN_MISSING")
        token = token.strip()
        if not (token.isascii() and token.isprintable()):
            raise UnauthenticatedError("the token is not a JWT: it is not one line of ASCII", reason="TOKEN_MALFORMED")
        if self.given.tenant:
            claimed = _tenant_of(token)
            if claimed != self.given.tenant:
                raise PermissionDeniedError(
                    f"the token is for tenant {claimed!r}, not {self.given.tenant!r}", reason="WRONG_TENANT"
                )
        return token

    def _local_workspace(self) -> str | None:
        if self._stack and self.endpoint == self._stack.endpoints["scheduler"]:
            return self._stack.endpoints.get("workspace")
        return None

    def _tls(self) -> Any:
        from cloudclaw.config import ClientTls

        given = self.given
        return ClientTls(
            ca=given.tls_ca, cert=given.tls_cert, key=given.tls_key, server_name=given.tls_server_name or ""
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()


def _tenant_of(token: str) -> str:
    """The tenant that a token claims, unchecked; the service checks it."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(claims.get("tenant", ""))
    except (IndexError, ValueError, AttributeError, binascii.Error):
        raise UnauthenticatedError("the token is not a JWT", reason="TOKEN_MALFORMED") from None
