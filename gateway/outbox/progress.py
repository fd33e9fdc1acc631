"""Long work at the opening of the store: whoever waits for the start hears that it goes on, and what it is.

Told by the work itself, never by a timer: work that hangs is not called alive.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final

TELL_SECONDS: Final = 5.0
_INSTRUCTIONS: Final = 100_000  # of SQLite's machine; some milliseconds

Tell = Callable[[str], object]  # what is being done; called in the thread that does it


class Progress:
    def __init__(self, tell: Tell | None = None) -> None:
        self._tell = tell
        self._doing = "opening the outbox"
        self._due = time.monotonic() + TELL_SECONDS  # an ordinary opening says nothing

    def begin(self, doing: str) -> None:
        """Something that is known to take its time."""
        self._doing, self._due = doing, 0.0
        self.step()

    def step(self) -> None:
        """A part of it is done."""
        if self._tell is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + TELL_SECONDS
            self._tell(self._doing)

    def follow(self, db: sqlite3.Connection) -> None:
        """A statement that lasts is progress, too."""
        db.set_progress_handler(self.step, _INSTRUCTIONS)


def leave(db: sqlite3.Connection) -> None:
    db.set_progress_handler(None, 0)
