"""Both clocks of the gateway, from this machine (`gateway.model.Clock`).

Ticks come from CLOCK_BOOTTIME: it never jumps when somebody sets the time, and it goes on while the machine sleeps
(clock_gettime(2)), so that a deadline of the cloud is also over after a suspend. The outbox persists the base, so that
ticks never run backwards over a restart; time in which no gateway ran is not counted.
"""

from __future__ import annotations

import time
from typing import Final

_NS_PER_MS: Final = 1_000_000


class SystemClock:
    def __init__(self, base_ticks: int = 0) -> None:
        self._base = base_ticks
        self._began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // _NS_PER_MS

    def ticks_ms(self) -> int:
        return self._base + (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._began_ns) // _NS_PER_MS
