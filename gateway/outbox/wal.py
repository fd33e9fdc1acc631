"""SQLite's journal as bytes: what SQLite itself does not tell, and what it cannot read any more.

SQLite ends its reading of a journal at the first frame that does not fit, silently: behind a damaged frame may be
commits that were acknowledged. A power cut leaves at most one commit behind the end, since each is flushed before the
next begins; two or more are damage. Source: sqlite.org "WAL-mode File Format", sections 1 and 2.1.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.outbox.holes import Reader, pread
from gateway.outbox.pages import PAGE_BYTES

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}  # the order in which checksums are computed
_NATIVE: Final = "<" if sys.byteorder == "little" else ">"
_INDEX: Final = struct.Struct("=IIIBBHIIIIIIII")
_INDEX_BYTES: Final = 48

Sum = tuple[int, int]


class IndexUnusable(Exception):
    """Nobody knows any more where the last commit ended. SQLite makes a new index, once nobody uses the file."""


@dataclass(frozen=True, slots=True)
class Index:
    """What the shared index says of the journal: written only after a commit's flush has succeeded."""

    frames: int
    page_bytes: int
    salts: bytes

    @property
    def size(self) -> int:
        return HEADER_BYTES + self.frames * (FRAME_HEADER_BYTES + self.page_bytes) if self.frames else 0


@dataclass(frozen=True, slots=True)
class Frame:
    page: int
    pages_after_commit: int  # 0: not the last of its commit
    salts: bytes
    whole: bool | None  # None: not looked at
    content: bytes


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def read_index(path: Path) -> Index:
    """No connection of this process may be open: closing the file would take its locks (fcntl(2))."""
    try:
        with path.with_name(path.name + "-shm").open("rb") as file:
            raw, twin = file.read(_INDEX_BYTES), file.read(_INDEX_BYTES)
    except FileNotFoundError as error:
        raise IndexUnusable("its index is gone") from error
    if len(raw) < _INDEX_BYTES or raw != twin or checksum(raw[:40], _NATIVE) != struct.unpack("=II", raw[40:48]):
        raise IndexUnusable("its index is unreadable")
    page_bytes, frames = _INDEX.unpack(raw)[5:7]
    return Index(frames, (page_bytes & 0xFE00) + ((page_bytes & 1) << 16), raw[32:40])


def cut(path: Path) -> None:
    """Behind the last commit that returned. What stands behind it may look written and not be."""
    index = read_index(path)
    journal = os.open(wal_of(path), os.O_RDWR | os.O_CLOEXEC)
    try:
        if index.frames and pread(journal, 8, 16) != index.salts:
            raise IndexUnusable("it belongs to another index")
        os.ftruncate(journal, index.size)
        os.fsync(journal)
    finally:
        os.close(journal)


def rewrite(path: Path) -> None:
    """Writes what is there once more, and flushes it: what an earlier process could not flush may look written."""
    try:
        journal = os.open(wal_of(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = 0
        while piece := pread(journal, 1 << 20, at):
            at += os.pwrite(journal, piece, at)
        if at:
            os.fsync(journal)
    finally:
        os.close(journal)


def commits_behind_the_end(path: Path, recognised: int) -> int:
    """Commits of this generation that SQLite does not reach. Only the heads of the frames are read."""
    with wal_of(path).open("rb") as file:
        salts = _generation(pread(file.fileno(), HEADER_BYTES + FRAME_HEADER_BYTES, 0))
        found, step, size = 0, FRAME_HEADER_BYTES + PAGE_BYTES, os.fstat(file.fileno()).st_size
        for at in range(HEADER_BYTES + recognised * step, size - step + 1, step):
            head = pread(file.fileno(), FRAME_HEADER_BYTES, at)
            found += head[8:16] == salts and head[4:8] != bytes(4)
        return found


def apply_whole_frames(path: Path, image: int, step: Callable[[], None]) -> int:
    """Writes into the file `image` every frame of this generation that is whole by itself, up to the last commit.

    Returns how many pages of the journal could not be read.
    """
    if not wal_of(path).exists():
        return 0
    with wal_of(path).open("rb") as file:
        reader = Reader(file.fileno(), step)
        raw = b"".join(reader.pieces())
    salts = _generation(raw[: HEADER_BYTES + FRAME_HEADER_BYTES])
    frames = [frame for frame in _frames(raw) if frame.salts == salts and frame.whole]
    last = max((at for at, frame in enumerate(frames) if frame.pages_after_commit), default=-1)
    for frame in frames[: last + 1]:
        os.pwrite(image, frame.content, (frame.page - 1) * PAGE_BYTES)
    if last >= 0:
        os.ftruncate(image, frames[last].pages_after_commit * PAGE_BYTES)
    return reader.lost


def _generation(raw: bytes) -> bytes:
    """The salts of what was written last: the header's; where that is damaged, those of the first frame."""
    order = _MAGIC.get(int.from_bytes(raw[:4], "big"))
    if order and len(raw) >= HEADER_BYTES and checksum(raw[:24], order) == struct.unpack(">II", raw[24:32]):
        return raw[16:24]
    return raw[HEADER_BYTES + 8 : HEADER_BYTES + 16]


def _frames(raw: bytes) -> Iterator[Frame]:
    order = _MAGIC.get(int.from_bytes(raw[:4], "big"), _NATIVE)
    before: Sum = (0, 0) if len(raw) < HEADER_BYTES else struct.unpack(">II", raw[24:32])
    step = FRAME_HEADER_BYTES + PAGE_BYTES
    for at in range(HEADER_BYTES, len(raw) - step + 1, step):
        head, content = raw[at : at + FRAME_HEADER_BYTES], raw[at + FRAME_HEADER_BYTES : at + step]
        page, pages = struct.unpack(">II", head[:8])
        told: Sum = struct.unpack(">II", head[16:24])
        whole = page > 0 and checksum(content, order, checksum(head[:8], order, before)) == told
        before = told
        yield Frame(page, pages, head[8:16], whole, content)


def checksum(data: bytes, order: str, start: Sum = (0, 0)) -> Sum:
    first, second = start
    for one, two in struct.iter_unpack(f"{order}II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second
