"""After an error of the disk: the connection is given up, and nothing it had in hand is believed.

A flush that failed must not be tried again on the same file: the kernel has told its error once, and calls what it
could not write clean from then on (fsync(2); LWN, "PostgreSQL's fsync() surprise", 2018). What was read back then would
be taken for safe, and would be gone after a power cut. So the connection is closed without carrying the journal over,
the journal is cut behind the last commit that returned, and the file is opened anew, with SQLite's own recovery.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gateway.outbox import wal
from gateway.outbox.database import connect_again, sentences
from gateway.outbox.errors import StoreError
from gateway.outbox.opening import Opened


def give_up(opened: Opened, path: Path) -> None:
    """Closes the connection and leaves the journal as it is; closing alone would flush it and carry it over."""
    try:
        # Only the last connection of a file carries over, and one that cannot write does not (sqlite3WalClose).
        keeper = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            keeper.execute("PRAGMA schema_version").fetchone()
            opened.db.close()
        finally:
            keeper.close()
    except sqlite3.Error as error:
        raise StoreError(f"the outbox {path} cannot be closed after an error of the disk: {error}") from error


def reopen(opened: Opened, path: Path) -> Opened:
    """A new connection under the same lock, with what the last successful commit left."""
    try:
        wal.cut(path)
    except OSError as error:
        raise StoreError(f"the journal of the outbox {path} cannot be mended: {error}") from error
    with sentences(path):
        return Opened(connect_again(path), opened.lock, opened.base_ticks)
