"""Waiting for a fact: the one place in the tests that polls, always with a deadline and never for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class StillNotTrue(AssertionError):
    pass


async def until(fact: Callable[[], object], *, timeout: float = 10.0, what: str = "") -> None:
    """Returns as soon as `fact()` is true; raises StillNotTrue after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not fact():
        if time.monotonic() > deadline:
            raise StillNotTrue(what or getattr(fact, "__name__", "the fact") + f" is still not true after {timeout} s")
        await asyncio.sleep(0.005)
