"""A broker's persistent session in memory, for intake: QoS 1, redelivery after every lost connection, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from gateway.model import Clock, Message
from gateway.sources.broker_window import AckToken, Received


class SimulatedSession:
    """What intake needs of a session; the broker behind it outlives the gateway's process."""

    def __init__(self, clock: Clock, window: int = 100) -> None:
        self.clock = clock
        self.connected = True
        self.acknowledged: list[tuple[str, bytes]] = []
        self.redelivered = 0
        self._window = window
        self._waiting: deque[tuple[str, bytes, int]] = deque()  # topic, payload, packet id under which it was sent
        self._unacknowledged: dict[int, tuple[str, bytes]] = {}
        self._generation = 1
        self._mid = 0
        self._bell = asyncio.Event()

    def publish(self, topic: str, payload: bytes) -> None:
        self._waiting.append((topic, payload, 0))
        self._bell.set()

    @property
    def left(self) -> int:
        return len(self._waiting) + len(self._unacknowledged)

    def break_off(self) -> None:
        """The connection is lost and made again: what was not acknowledged comes again, marked, before the rest, under
        its own packet id."""
        self._generation += 1
        self.redelivered += len(self._unacknowledged)
        again = [(topic, payload, mid) for mid, (topic, payload) in self._unacknowledged.items()]
        self._waiting.extendleft(reversed(again))
        self._unacknowledged.clear()
        self._bell.set()

    async def receive(self, limit: int) -> list[Received]:
        while not self._waiting or len(self._unacknowledged) >= self._window:
            self._bell.clear()
            await self._bell.wait()
        taken: list[Received] = []
        while self._waiting and len(taken) < limit and len(self._unacknowledged) < self._window:
            topic, payload, mid = self._waiting.popleft()
            again = mid > 0
            if not again:
                mid = self._mid = self._mid + 1
            self._unacknowledged[mid] = (topic, payload)
            message = Message(topic, payload, 1, False, again, False, self.clock.wall_ms(), self.clock.ticks_ms())
            taken.append(Received(message, AckToken(self._generation, mid)))
        return taken

    def acknowledge(self, tokens: Iterable[AckToken]) -> None:
        for token in tokens:
            if self.is_current(token) and token.mid in self._unacknowledged:
                self.acknowledged.append(self._unacknowledged.pop(token.mid))
        self._bell.set()

    def is_current(self, token: AckToken) -> bool:
        return token.generation == self._generation

    def drop(self, reason: str) -> None:
        self.break_off()
