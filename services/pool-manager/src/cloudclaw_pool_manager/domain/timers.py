"""How long an attempt has run and been silent, time frozen not counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloudclaw_pool_manager.domain.attempt import KillReason


@dataclass
class RunTimers:
    """Boot times of one attempt. Limits are seconds, 0 for none.

    A manager that adopts a frozen attempt does not know since when it was frozen and counts from its own
    start: the attempt is charged for at most the time that no manager was there.
    """

    started: float
    run_limit: float
    silence_limit: float
    last_output: float = 0.0
    frozen_since: float | None = None
    _frozen: float = field(default=0.0, repr=False)
    _frozen_in_silence: float = field(default=0.0, repr=False)

    def output(self, at: float) -> None:
        """A byte of output came."""
        if at > self.last_output:
            self.last_output = at
            self._frozen_in_silence = 0.0

    def freeze(self, at: float) -> None:
        """Its processes were stopped."""
        if self.frozen_since is None:
            self.frozen_since = at

    def thaw(self, at: float) -> None:
        """They go on."""
        if self.frozen_since is not None:
            self._frozen += at - self.frozen_since
            self._frozen_in_silence += at - max(self.frozen_since, min(self.last_output, at))
            self.frozen_since = None

    def ran(self, now: float) -> float:
        """Seconds that the program has run."""
        return (now if self.frozen_since is None else self.frozen_since) - self.started - self._frozen

    def due(self, now: float) -> KillReason:
        """Which limit is reached, `NONE` for neither or while frozen."""
        if self.frozen_since is not None:
            return KillReason.NONE
        if self.run_limit and self.ran(now) >= self.run_limit:
            return KillReason.RUN_TIMEOUT
        silent = now - max(self.last_output, self.started) - self._frozen_in_silence
        if self.silence_limit and silent >= self.silence_limit:
            return KillReason.SILENCE_TIMEOUT
        return KillReason.NONE
