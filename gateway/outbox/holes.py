"""Reading what a disk still gives: a file that has places which cannot be read any more.

A bad sector, or a checksum of the file system that does not fit, is an error of read(2) and stays one. A copy gets
zeros there: for SQLite a damaged page, for its journal a damaged frame, and both are dealt with as such (`salvage`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from gateway.outbox.pages import PAGE_BYTES

PIECE_BYTES: Final = 1 << 20
SINGLY: Final = 256  # lost pages, until whole pieces are given up: a dying disk tries for seconds before each error

# EIO: the medium, dm-error, btrfs; ENODATA: "critical medium error"; EBADMSG, EUCLEAN, EILSEQ: checksums do not fit.
_ERRORS: Final = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ})
# For EIO SQLite says CORRUPTFS (os_unix.c, unixRead).
_SQLITE_ERRORS: Final = frozenset({"SQLITE_IOERR_READ", "SQLITE_IOERR_CORRUPTFS"})


class Unreadable(OSError):
    """The disk does not give what had been written."""


def pread(handle: int, length: int, offset: int) -> bytes:
    try:
        return os.pread(handle, length, offset)
    except OSError as error:
        if error.errno in _ERRORS:
            raise Unreadable(error.errno, f"{os.strerror(error.errno)} while reading") from error
        raise


def is_unreadable(error: BaseException | None) -> bool:
    """Whether it says, in the words of SQLite or of the system, that something cannot be read any more."""
    return isinstance(error, Unreadable) or getattr(error, "sqlite_errorname", "") in _SQLITE_ERRORS


class Reader:
    """One file from its beginning to its end. `lost`: how many of its pages could not be read."""

    def __init__(self, handle: int, step: Callable[[], None]) -> None:
        self._handle = handle
        self._step = step
        self.lost = 0

    def pieces(self) -> Iterator[bytes]:
        at = 0
        while piece := self._piece(at, PIECE_BYTES):
            self._step()
            yield piece
            at += len(piece)

    def _piece(self, at: int, length: int) -> bytes:
        try:
            return pread(self._handle, length, at)
        except Unreadable:
            length = min(length, os.fstat(self._handle).st_size - at)
            if length > PAGE_BYTES and self.lost < SINGLY:
                return b"".join(self._page(at + each, length - each) for each in range(0, length, PAGE_BYTES))
            self.lost += -(-length // PAGE_BYTES)
            return bytes(length)

    def _page(self, at: int, left: int) -> bytes:
        self._step()
        return self._piece(at, min(PAGE_BYTES, left))
