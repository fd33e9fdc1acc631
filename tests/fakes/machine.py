"""A machine whose clock can be set: the gateway's real `SystemClock` on top of times that a test decides."""

from __future__ import annotations

from gateway.host.clock import SystemClock

RIGHT_AT = 1_772_366_400_000  # 2026-03-01T12:00:00Z, when the test begins


class MachineClock(SystemClock):
    def __init__(self, base_ticks: int = 0, *, off_ms: int = 0) -> None:
        super().__init__(base_ticks)
        self.passed = 0
        self.off_ms = off_ms  # how wrong the machine's clock is

    def right_ms(self) -> int:
        return RIGHT_AT + self.passed

    def system_ms(self) -> int:
        return self.right_ms() + self.off_ms

    def ticks_ms(self) -> int:
        return self.began_ticks + self.passed

    def advance(self, seconds: float) -> None:
        self.passed += round(seconds * 1000)
