"""Which recorders cannot be asked now, why, and when to try them again.

A recorder that cannot be connected, or refuses our login, is asked by one row at a time until it answers; it is said
once when that begins and once when it ends. One slow or empty answer says nothing about the rest of a recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.media.recorder import FetchError, Refused, Unreachable
from gateway.model import Clock
from gateway.retry import half_jitter_ms

PROBE_FIRST_MS: Final = 1_000
PROBE_MAX_MS: Final = 15_000

log = structlog.get_logger()


@dataclass(slots=True)
class _Trouble:
    reason: str
    since: int  # ticks
    probes: int = 0
    probe_at: int = 0  # ticks


class Health:
    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._troubles: dict[str, _Trouble] = {}
        self._back: dict[str, int] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Source -> why its pictures fail now."""
        return {source: trouble.reason for source, trouble in self._troubles.items()}

    def probe_at(self, source: str) -> int | None:
        """Ticks before which it is not to be asked; None: it is well."""
        trouble = self._troubles.get(source)
        return None if trouble is None else trouble.probe_at

    def back_since(self, source: str) -> int | None:
        """Ticks at which its last trouble ended; None: it had none."""
        return self._back.get(source)

    def answered(self, source: str) -> None:
        trouble = self._troubles.pop(source, None)
        if trouble is not None:
            now = self._clock.ticks_ms()
            self._back[source] = now
            log.info("recorder_back", source=source, seconds=(now - trouble.since) / 1000)

    def failed(self, source: str, error: FetchError) -> None:
        if not isinstance(error, (Unreachable, Refused)):
            return
        now = self._clock.ticks_ms()
        trouble = self._troubles.get(source)
        if trouble is None:
            trouble = self._troubles[source] = _Trouble(str(error), now)
            if isinstance(error, Refused):
                log.error("recorder_refused", source=source, reason=str(error))
            else:
                log.warning("recorder_unreachable", source=source, reason=str(error))
        elif now < trouble.probe_at:
            return  # requests that were in hand together fail together
        trouble.reason = str(error)
        trouble.probes += 1
        trouble.probe_at = now + half_jitter_ms(trouble.probes, PROBE_FIRST_MS, PROBE_MAX_MS, self._jitter())
