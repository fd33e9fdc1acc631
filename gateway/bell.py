"""A hint in memory that there is work. The table stays the truth: every step also looks without being rung."""

from __future__ import annotations

import asyncio


class Bell:
    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, stop: asyncio.Event, timeout: float) -> bool:
        """Returns when rung (once), when `stop` is set, or after `timeout` seconds; whether it was rung."""
        if not self._rung.is_set() and not stop.is_set():
            waits = [asyncio.ensure_future(self._rung.wait()), asyncio.ensure_future(stop.wait())]
            try:
                await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        rung = self._rung.is_set()
        self._rung.clear()
        return rung
