"""Space that is taken in good times, so that alarms can still be stored when the disk is full.

A file beside the outbox, with blocks of its own (posix_fallocate(3)). It is given up when a commit finds no room, and
taken again when there is room for it and as much beside it. Used by the writing thread and by upkeep.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

SUFFIX: Final = "-reserve"


class Reserve:
    def __init__(self, outbox: Path, size: int) -> None:
        self._path = outbox.with_name(outbox.name + SUFFIX)
        self._size = size
        self._lock = threading.Lock()
        self.held = False

    @property
    def missing(self) -> bool:
        """It is wanted, and given up."""
        return self._size > 0 and not self.held

    def hold(self) -> bool:
        """Takes it, or what is missing of it; whether it is held now. Blocks."""
        with self._lock, contextlib.suppress(OSError):
            self.held = self._size > 0 and self._take()
            if not self.held:
                self._path.unlink(missing_ok=True)
        return self.held

    def release(self) -> bool:
        """Gives it up; False where there was nothing to give."""
        with self._lock:
            self.held = False
            try:
                # Emptied first: the blocks are free even where another process still has the file open.
                os.truncate(self._path, 0)
                self._path.unlink()
            except OSError:
                return False
            return True

    def _take(self) -> bool:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            facts, space = os.fstat(handle), os.fstatvfs(handle)
            taken = min(facts.st_blocks * 512, facts.st_size)
            if taken < self._size:
                # Without the second half it would come and go with every row.
                if space.f_bavail * space.f_frsize < self._size - taken + self._size:
                    return False
                os.posix_fallocate(handle, 0, self._size)
            elif facts.st_size > self._size:
                os.ftruncate(handle, self._size)
            return True
        finally:
            os.close(handle)
