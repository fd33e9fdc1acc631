"""After an error of the disk: the connection is given up, and nothing it had in hand is believed.

A flush that failed must not be tried again on the same file: the kernel has told its error once, and calls what it
could not write clean from then on (fsync(2); LWN, "PostgreSQL's fsync() surprise", 2018). What was read back then would
be taken for safe, and would be gone after a power cut. So the connection is closed without carrying the journal over,
the journal is cut behind the last commit that returned, and the file is opened anew, with SQLite's own recovery.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.outbox import wal
from gateway.outbox.database import connect_again, sentences
from gateway.outbox.errors import StoreError, StoreGone
from gateway.outbox.opening import Opened

LOCKED_SECONDS: Final = 60.0  # for so long a lock may keep a connection from being given up
_LOCKS: Final = ("SQLITE_BUSY", "SQLITE_PROTOCOL", "SQLITE_LOCKED")


class Reopening:
    """Of one connection. What has succeeded is not done again: a cut journal may be carried over by the next part."""

    def __init__(self, opened: Opened, path: Path) -> None:
        self._opened = opened
        self._path = path
        self._left: list[Callable[[], None]] = [self._give_up, self._cut]
        self._locked_since: float | None = None

    def go_on(self) -> Opened:
        """A new connection under the same lock, with what the last successful commit left.

        Raises StoreError: to be called again. StoreGone: this process cannot do it, the next one can.
        """
        while self._left:
            self._left[0]()
            del self._left[0]
        with sentences(self._path):
            return Opened(connect_again(self._path), self._opened.lock, self._opened.base_ticks)

    def _give_up(self) -> None:
        """Closes the connection and leaves the journal as it is; closing alone would flush it and carry it over."""
        try:
            # Only the last connection of a file carries over, and one that cannot write does not (sqlite3WalClose).
            keeper = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
            try:
                keeper.execute("PRAGMA schema_version").fetchone()
                self._opened.db.close()
            finally:
                keeper.close()
        except sqlite3.Error as error:
            words = f"the outbox {self._path} cannot be closed after an error of the disk: {error}"
            if getattr(error, "sqlite_errorname", "").startswith(_LOCKS) and self._is_locked_for_long():
                # A lock that the system did not let go stands in the memory of this process, and goes with it.
                raise StoreGone(f"{words}; the gateway ends and begins anew") from error
            raise StoreError(words) from error

    def _is_locked_for_long(self) -> bool:
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        return now - self._locked_since > LOCKED_SECONDS

    def _cut(self) -> None:
        try:
            wal.cut(self._path)
        except wal.IndexUnusable as error:
            raise StoreGone(
                f"the journal of the outbox {self._path}: {error}; the gateway ends and begins anew"
            ) from error
        except OSError as error:
            raise StoreError(f"the journal of the outbox {self._path} cannot be mended: {error}") from error
