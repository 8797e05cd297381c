"""What a program is given on its standard input after its start, each message once."""

from __future__ import annotations

from cloudclaw_supervisor import protocol
from cloudclaw_supervisor.server import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloudclaw_supervisor.outlet import Outlet

_MOST = 65_536


class Inputs:
    """Of one attempt.

    Args:
        stdin: the program's.

    Attributes:
        ids: of the messages that were taken, in order.
    """

    def __init__(self, stdin: Outlet):
        self._stdin = stdin
        self.ids: dict[str, None] = {}

    @property
    def open(self) -> bool:
        """The program takes input."""
        return self._stdin.open

    def known(self, message_id: str) -> bool:
        """The message was taken before."""
        return message_id in self.ids

    def check(self, data: bytes) -> None:
        """Raise a refusal when `data` cannot be taken now."""
        if not self.open:
            raise RequestError("its standard input is closed", protocol.INPUT_CLOSED)
        if self._stdin.queued + len(data) > protocol.MAX_INPUT:
            raise RequestError(f"{self._stdin.queued} bytes of input are not read yet", protocol.INPUT_FULL)
        if len(self.ids) >= _MOST:
            raise RequestError(f"it was given {_MOST} messages", protocol.INPUT_CLOSED)

    def take(self, message_id: str, data: bytes, close: bool) -> None:
        """Queue `data`, after a `check`."""
        self.ids[message_id] = None
        self._stdin.write(data)
        if close:
            self._stdin.finish()
