"""An upload's share of the line: so many bytes a second for all uploads together, without blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

_SLICE_S: Final = 0.1  # a chunk is what may flow in this time: short enough that an alarm's POST gets in between
_SMALLEST: Final = 1024  # bytes
_LARGEST: Final = 1 << 16


class Throttle:
    """First come, first served: each taker is given its own moment."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.chunk = min(_LARGEST, max(_SMALLEST, int(bytes_per_second * _SLICE_S)))
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        now = asyncio.get_running_loop().time()
        at = max(now, self._free_at)
        self._free_at = at + count / self.bytes_per_second
        if at > now:
            await asyncio.sleep(at - now)


async def read_slowly(file: BinaryIO, throttle: Throttle) -> AsyncIterator[bytes]:
    """The file in chunks, each when its turn comes. Read in a thread: a slow card must not hold up the loop."""
    while chunk := await asyncio.to_thread(file.read, throttle.chunk):
        await throttle.take(len(chunk))
        yield chunk
