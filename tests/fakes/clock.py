"""A clock that stands still until a test moves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FakeClock:
    wall: int = 1_772_366_400_000  # 2026-03-01T12:00:00Z
    ticks: int = 1_000_000

    def wall_ms(self) -> int:
        return self.wall

    def ticks_ms(self) -> int:
        return self.ticks

    def advance(self, seconds: float) -> None:
        self.wall += round(seconds * 1000)
        self.ticks += round(seconds * 1000)
