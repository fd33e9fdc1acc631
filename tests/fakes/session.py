"""A broker session that runs, for tests: what it said, what it received, and ways to end it gently or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from typing import Any, Final

from gateway import config
from gateway.sources.broker import Session
from gateway.sources.broker_filters import Filter
from gateway.sources.broker_target import Timing
from gateway.sources.broker_window import Received
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

LOCATION: Final = "Z6RSOG"
STATE: Final = f"chekt-gateway/{LOCATION}/state"
QUICK: Final = Timing(
    keepalive=5, connect_timeout=3.0, retry_first=0.01, retry_max=0.1, settled=60.0, taken_over=0.01, suback=3.0
)


class Running:
    """`async with Running(url) as running`: connected and subscribed, unless `wait=False`."""

    def __init__(
        self,
        url: str,
        *,
        filters: Sequence[Filter | str] = ("alarm/#",),
        wait: bool = True,
        timing: Timing = QUICK,
        max_message: int = 1 << 20,
        known_filters: Collection[str] = (),
        had_session: bool = False,
        password: str | None = None,
        **broker: Any,
    ) -> None:
        self.clock = FakeClock()
        self.gaps: list[str] = []
        self.known: frozenset[str] = frozenset(known_filters)
        self.waits: list[tuple[float, float]] = []  # the back-off asked for
        self._wait = wait
        self.session = Session(
            config.Broker(url=url, **broker),
            location_id=LOCATION,
            filters=[Filter(f, 0) if isinstance(f, str) else f for f in filters],
            clock=self.clock,
            max_message=max_message,
            known_filters=known_filters,
            had_session=had_session,
            on_gap=self.gaps.append,
            on_filters=self._note_filters,
            password=password,
            timing=timing,
            uniform=self._uniform,
        )
        self._stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def _note_filters(self, topics: frozenset[str]) -> None:
        self.known = topics

    def _uniform(self, least: float, most: float) -> float:
        self.waits.append((least, most))
        return most

    @property
    def facts(self) -> dict[str, Any]:
        return self.session.facts()

    async def connected(self, timeout: float = 10.0) -> None:
        await until(lambda: self.facts["subscribed"] or self._ended(), timeout=timeout, what="the session")
        if self.task is not None and self.task.done():
            self.task.result()

    async def failed(self) -> None:
        await until(lambda: self.facts["last_error"], what="a reason why not")

    def _ended(self) -> bool:
        return self.task is not None and self.task.done()

    async def receive(self, count: int, timeout: float = 20.0) -> list[Received]:
        """Exactly so many, unacknowledged."""
        got: list[Received] = []
        async with asyncio.timeout(timeout):
            while len(got) < count:
                got += await self.session.receive(count - len(got))
        return got

    async def take(self, count: int, timeout: float = 20.0) -> list[bytes]:
        """So many, each acknowledged; their payloads."""
        got = await self.receive(count, timeout)
        self.session.acknowledge([received.token for received in got])
        return [received.message.payload for received in got]

    async def stop(self) -> None:
        """As at SIGTERM."""
        self._stop.set()
        if self.task is not None:
            async with asyncio.timeout(10):
                await self.task

    async def crash(self) -> None:
        """As at `kill -9`: the socket closes, nothing is said."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.session.run(self._stop))
        if self._wait:
            await self.connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
