"""A fault that repeats is said when it begins, then with a count, and when it ends."""

from __future__ import annotations

from typing import Any

import structlog

_log = structlog.get_logger()


class Repeated:
    """A fault that repeats: said when it begins, then with a count at most once in `every_seconds`, and when it ends.

    Not the fault itself: only what is said of it. `began` and `ended` are names of log lines.
    """

    def __init__(self, began: str, ended: str, *, every_seconds: float = 300.0) -> None:
        self._began = began
        self._ended = ended
        self._every_ms = every_seconds * 1000
        self.count = 0
        self._began_ticks = 0
        self._said_ticks = 0

    def again(self, now_ticks: int, **facts: Any) -> None:
        self.count += 1
        if self.count == 1:
            self._began_ticks = self._said_ticks = now_ticks
            _log.warning(self._began, **facts)
        elif now_ticks - self._said_ticks >= self._every_ms:
            self._said_ticks = now_ticks
            _log.warning(self._began, count=self.count, seconds=(now_ticks - self._began_ticks) / 1000, **facts)

    def over(self, now_ticks: int, **facts: Any) -> None:
        if self.count:
            _log.info(self._ended, count=self.count, seconds=(now_ticks - self._began_ticks) / 1000, **facts)
        self.count = 0
