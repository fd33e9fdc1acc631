"""An event loop in which time passes only when nobody has anything left to do: hours in seconds, the same every time.

For steps that run with doubles in place of the network and the broker. The real outbox has a thread of its own: while
somebody waits for it (`Patient`), the loop waits for it in real time and no virtual time passes; and the thread does
not run while the loop does, so that what it finds waiting, and commits together, is the same in every run.
"""

from __future__ import annotations

import asyncio
import inspect
import selectors
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_REAL_SECONDS = 30.0  # the store has answered by then, or never will


class _Owner(Protocol):
    outside: int
    now: float


class _Selector(selectors.DefaultSelector):
    """Moves the loop's clock instead of waiting."""

    owner: _Owner

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return []  # callbacks are ready; no system call, so that the other thread does not run in between
        if self.owner.outside:
            found = super().select(_REAL_SECONDS)
            if not found:
                raise RuntimeError("the store does not answer")
            return found
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else: nothing will ever happen again")
        self.owner.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        self.outside = 0  # operations in the other thread that somebody waits for
        selector = _Selector()
        selector.owner = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class VirtualClock:
    """The gateway's two clocks on virtual time. `wall_offset` may be changed: a clock that jumps."""

    def __init__(self, loop: VirtualLoop, base_ticks: int, wall: int) -> None:
        self._loop = loop
        self._base = base_ticks - round(loop.now * 1000)
        self.wall_offset = wall

    def wall_ms(self) -> int:
        return round(self._loop.now * 1000) + self.wall_offset

    def ticks_ms(self) -> int:
        return round(self._loop.now * 1000) + self._base


class Patient:
    """Stands before a store: the loop's time stands still while one of its operations runs."""

    def __init__(self, store: Any, loop: VirtualLoop) -> None:
        self._store = store
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def wait(*arguments: Any, **named: Any) -> Any:
            return await self._loop_waits(found(*arguments, **named))

        return wait

    async def _loop_waits(self, operation: Awaitable[Any]) -> Any:
        return await outside(self._loop, operation)


async def outside(loop: VirtualLoop, work: Awaitable[Any]) -> Any:
    """Something that another thread does."""
    loop.outside += 1
    try:
        return await work
    finally:
        loop.outside -= 1


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # a thread keeps the interpreter until it waits for something
    try:
        yield loop
    finally:
        sys.setswitchinterval(interval)
        loop.close()
