"""How fast the sender may go: a bucket of requests, filled by what is configured and by what the cloud teaches.

A fifth of the bucket is only for fresh alarms. A 429 without a number starts a learned rate; successes raise it, and a
quarter of an hour without a 429 forgets it. Sources: CHeKT portal, "Rate limits" (smallest tier: 60 a minute, burst 5;
429 with `Retry-After`; `X-RateLimit-*`). ASSUMED: Q17, whether any of it applies to the Event API. Pure.
"""

from __future__ import annotations

from typing import Final

from gateway.retry import LONGEST_WAIT_MS, Rate

THROTTLED_PER_MINUTE: Final = 60.0  # the portal's smallest tier; the start after a 429 that names no rate
SLOWEST_PER_MINUTE: Final = 6.0
FREE_AGAIN_PER_MINUTE: Final = 600.0  # a learned rate that has recovered to this is forgotten
FORGET_RATE_MS: Final = LONGEST_WAIT_MS  # also without traffic: a quiet site would look slowed down for days
RECOVERY: Final = 1.05  # for each success
FRESH_SHARE: Final = 5  # one in five is kept free for fresh alarms
BURST_SHARE: Final = 12  # of a minute: five seconds' worth at once
SMALLEST_BURST: Final = 2.0  # with less, the share for fresh alarms would leave nothing for the backlog


class Pace:
    def __init__(self, max_per_minute: int, parallel: int, ticks: int) -> None:
        self._configured = float(max_per_minute) or None
        self._most_owed = float(parallel)
        self._at = ticks
        self._throttled_at = ticks
        self.learned: float | None = None  # requests a minute
        self._tokens = self.capacity or 0.0

    @property
    def rate(self) -> float | None:
        """Requests a minute; None: as fast as the cloud allows."""
        if self.learned is None or self._configured is None:
            return self.learned or self._configured
        return min(self.learned, self._configured)

    @property
    def capacity(self) -> float | None:
        rate = self.rate
        return None if rate is None else max(SMALLEST_BURST, rate / BURST_SHARE)

    def tokens(self, ticks: int) -> tuple[float, float] | None:
        """How many may go at once, and how many of them are for fresh alarms only; None: no limit."""
        if self.learned is not None and ticks - self._throttled_at >= FORGET_RATE_MS:
            self.learned = None
        self._refill(ticks)
        capacity = self.capacity
        return None if capacity is None else (self._tokens, capacity / FRESH_SHARE)

    def wait_for(self, tokens: float) -> int:
        """Milliseconds until there are so many."""
        rate = self.rate
        return 0 if rate is None else max(1, int((tokens - self._tokens) * 60_000 / rate) + 1)

    def spend(self, ticks: int) -> None:
        """A request goes out. Callbacks do not ask first, so there may be a debt, which is bounded."""
        self._refill(ticks)
        if self.capacity is not None:
            self._tokens = max(-self._most_owed, self._tokens - 1.0)

    def throttled(self, rate: Rate | None, ticks: int) -> None:
        """A 429: the first starts from the named rate, each further one halves what we thought was allowed."""
        self._refill(ticks)
        self._throttled_at = ticks
        before = self.rate
        named = rate.limit * 0.8 if rate is not None and rate.limit else THROTTLED_PER_MINUTE
        learned = named if self.learned is None else min(named, self.learned / 2)
        self.learned = max(SLOWEST_PER_MINUTE, learned if before is None else min(learned, before))
        self._tokens = 1.0 if before is None else min(self._tokens, 1.0)

    def accepted(self, ticks: int) -> None:
        if self.learned is not None:
            self._refill(ticks)
            self.learned *= RECOVERY
            if self.learned >= FREE_AGAIN_PER_MINUTE:
                self.learned = None

    def _refill(self, ticks: int) -> None:
        capacity, rate = self.capacity, self.rate
        if capacity is not None and rate is not None:
            self._tokens = min(capacity, self._tokens + rate * max(0, ticks - self._at) / 60_000)
        self._at = ticks
