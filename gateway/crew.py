"""Tasks for rows in hand: one for each row, at most so many in each lane, and a bell when a place is free.

For steps that serve many rows at once, where a slow one must not hold up the others. A row that finds no free place is
left in the table, where it stays due, so that its turn is always decided on fresh facts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any


class Crew:
    def __init__(self, on_free: Callable[[], None]) -> None:
        """`on_free` is called whenever a task has ended."""
        self._on_free = on_free
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lanes: Counter[str] = Counter()

    @property
    def rows(self) -> frozenset[int]:
        """The rows in hand."""
        return frozenset(self._tasks)

    def has_room(self, lanes: Mapping[str, int]) -> bool:
        """`lanes`: name -> how many may be in it at once."""
        return all(self._lanes[lane] < limit for lane, limit in lanes.items())

    def start(
        self, group: asyncio.TaskGroup, row_id: int, lanes: Mapping[str, int], work: Coroutine[Any, Any, None]
    ) -> None:
        task = group.create_task(work, name=f"row {row_id}")
        self._tasks[row_id] = task
        self._lanes.update(lanes.keys())

        def free(_: asyncio.Task[None]) -> None:
            del self._tasks[row_id]
            for lane in lanes:
                self._lanes[lane] -= 1
                if not self._lanes[lane]:
                    del self._lanes[lane]
            self._on_free()

        task.add_done_callback(free)

    async def finish(self) -> None:
        """Waits until all tasks that are in hand now have ended."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
            await asyncio.sleep(0)  # the callbacks of tasks that have just ended run in the next turn of the loop

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
