"""The media folder: whole files under names of our own, and nothing half.

Promises: a name in the folder is a complete file that survives a power cut (written beside, flushed to the disk, then
renamed, then the folder flushed); names are made of our event id, kind and number, never of what equipment sent; files
are readable by the gateway only. Blocking work runs on threads of its own, so that a slow card holds up neither the
event loop nor name resolution, which share the loop's default threads. Cancelling a caller waits for the piece of work
in hand: a file is never closed while a thread still writes to it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final, ParamSpec, TypeVar

from gateway.model import MediaKind

THREADS: Final = 3  # one may hang in a flush of a slow card while two go on
PIECE_BYTES: Final = 256 << 10  # to the thread at once: a hop costs some 100 µs, a piece of this size more than that
HEAD_BYTES: Final = 16
TAIL_BYTES: Final = 64
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME: Final = re.compile(r"([A-Za-z0-9_-]{1,64})\.(snapshot|short_mp4|event_mp4)\.(\d{1,3})\.(?:jpg|mp4)(\.best)?")
_DRAFT_SUFFIX: Final = ".part"
_BEST_SUFFIX: Final = ".best"
_SUFFIXES: Final = {MediaKind.SNAPSHOT: ".jpg", MediaKind.SHORT_MP4: ".mp4", MediaKind.EVENT_MP4: ".mp4"}

P = ParamSpec("P")
T = TypeVar("T")


class TooLarge(Exception):
    """The file would be larger than its kind may be."""


class FileFault(Exception):
    """A file that we wrote is gone or is not what we wrote; the text says which."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole file in the folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the folder, as a listing sees it."""

    name: str
    bytes: int
    modified_at: int  # wall ms


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """What a file of ours belongs to, as its name says."""

    event_id: str
    kind: MediaKind
    seq: int


def name_of(event_id: str, kind: MediaKind, seq: int) -> str:
    if not _EVENT_ID.fullmatch(event_id):
        raise ValueError(f"not an event id: {event_id!r}")
    return f"{event_id}.{kind.value}.{seq}{_SUFFIXES[kind]}"


def best_name_of(event_id: str, kind: MediaKind, seq: int) -> str:
    """The longest clip so far, kept beside until a whole one comes or time is up."""
    return name_of(event_id, kind, seq) + _BEST_SUFFIX


def is_best(name: str) -> bool:
    return name.endswith(_BEST_SUFFIX)


def place_of(name: str) -> Place | None:
    """What a file belongs to; None for a name that is not ours."""
    match = _NAME.fullmatch(name)
    return Place(match[1], MediaKind(match[2]), int(match[3])) if match else None


class Draft:
    """A file that is being written. `keep` gives it its name; otherwise it vanishes."""

    def __init__(self, folder: MediaFolder, path: Path) -> None:
        self._folder = folder
        self._path = path
        self._raw: FileIO | None = None
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._limit = 0
        self._kept = False
        self.bytes = 0
        self.head = b""
        self.tail = b""

    async def open(self) -> None:
        await self._folder.run(self._open)

    async def restart(self, limit: int) -> None:
        """Forgets what was written; the next file may have at most `limit` bytes."""
        self._buffer.clear()
        self._hash = hashlib.sha256()
        self._limit = limit
        self.bytes = 0
        self.head = self.tail = b""
        await self._folder.run(self._truncate)

    async def write(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self.bytes > self._limit:
            raise TooLarge(f"larger than {self._limit} bytes")
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + chunk)[:HEAD_BYTES]
        self.tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self.tail + chunk)[-TAIL_BYTES:]
        self._buffer += chunk
        if len(self._buffer) >= PIECE_BYTES:
            await self._flush()

    async def inspect(self, reader: Callable[[BinaryIO, int], T]) -> T:
        """What `reader` makes of the file as written so far; it runs on a thread."""
        await self._flush()
        return await self._folder.run(self._inspect, reader)

    async def keep(self, name: str) -> Kept:
        """Makes the file durable under `name`, in the place of any older one."""
        await self._flush()
        await self._folder.run(self._keep, name)
        return Kept(name, self.bytes, self._hash.hexdigest())

    async def close(self) -> None:
        await self._folder.run(self._close)

    async def _flush(self) -> None:
        piece = bytes(self._buffer)
        self._buffer.clear()
        if piece:
            await self._folder.run(self._append, piece)

    @property
    def _file(self) -> FileIO:
        if self._raw is None:
            raise ValueError("the draft is not open")
        return self._raw

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._raw = FileIO(os.open(self._path, flags, 0o600), "r+")

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:  # a write to a disk that is almost full takes a part, and fails only the next time
            rest = rest[self._file.write(rest) :]
        self._hash.update(piece)

    def _truncate(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    def _inspect(self, reader: Callable[[BinaryIO, int], T]) -> T:
        with self._path.open("rb") as file:
            return reader(file, self.bytes)

    def _keep(self, name: str) -> None:
        os.fsync(self._file.fileno())
        self._path.replace(self._folder.path_of(name))
        self._kept = True
        self._folder.flush_names()

    def _close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            if not self._kept:
                self._path.unlink(missing_ok=True)


class MediaFolder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="media")
        self._counter = itertools.count()

    def prepare(self) -> None:
        """Makes the folder, and removes the drafts of a process that ended in the middle. Call before any step runs."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.root.glob(f"*{_DRAFT_SUFFIX}"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def path_of(self, name: str) -> Path:
        """The path of one of our names. Raises ValueError for any other: nothing outside the folder is ever touched."""
        if place_of(name) is None:
            raise ValueError(f"not a name of a media file: {name!r}")
        return self.root / name

    @asynccontextmanager
    async def draft(self) -> AsyncIterator[Draft]:
        draft = Draft(self, self.root / f"{next(self._counter)}{_DRAFT_SUFFIX}")
        try:
            await draft.open()
            yield draft
        finally:
            await draft.close()

    async def look(self, name: str, reader: Callable[[BinaryIO, int], T]) -> T | None:
        """What `reader` makes of a file; None where there is no such file."""
        return await self.run(self._look, name, reader)

    async def adopt(self, old: str, new: str) -> Kept:
        """Renames a file that is in the folder already. Raises FileFault where it is not."""
        return await self.run(self._adopt, old, new)

    async def require(self, name: str, size: int, sha256: str) -> Path:
        """The path of a file that is still exactly what was kept. Raises FileFault, naming what is wrong."""
        return await self.run(self._require, name, size, sha256)

    async def remove(self, names: Iterable[str]) -> None:
        await self.run(self._remove, tuple(names))

    async def entries(self) -> list[Entry]:
        """Every file with a name of ours, without the drafts in hand."""
        return await self.run(self._entries)

    async def free_bytes(self) -> int:
        return await self.run(self._free_bytes)

    async def require_space(self, reserve_bytes: int) -> None:
        """Raises OSError where no more than the reserve is left: the last space of the disk belongs to alarms."""
        if await self.free_bytes() < reserve_bytes:
            raise OSError(errno.ENOSPC, "the disk is almost full; the rest is kept for alarms")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on the folder's threads; a cancelled caller leaves only when it has ended."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # looked at, so that it is not reported as lost
            raise

    def flush_names(self) -> None:
        """A rename is durable only when the folder is on the disk too: fsync(2)."""
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _look(self, name: str, reader: Callable[[BinaryIO, int], T]) -> T | None:
        try:
            with self.path_of(name).open("rb") as file:
                return reader(file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            return None

    def _adopt(self, old: str, new: str) -> Kept:
        try:
            with self.path_of(old).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            self.path_of(old).replace(self.path_of(new))
        except FileNotFoundError as error:
            raise FileFault("its file is gone") from error
        self.flush_names()
        return Kept(new, size, digest)

    def _require(self, name: str, size: int, sha256: str) -> Path:
        path = self.path_of(name)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    raise FileFault("its file has changed its size")
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise FileFault("its file has changed its content")
        except FileNotFoundError as error:
            raise FileFault("its file is gone") from error
        return path

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.path_of(name).unlink(missing_ok=True)

    def _entries(self) -> list[Entry]:
        found = []
        with os.scandir(self.root) as listing:
            for entry in listing:
                if place_of(entry.name) is None:
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed while we were looking
                found.append(Entry(entry.name, facts.st_size, facts.st_mtime_ns // 1_000_000))
        return found

    def _free_bytes(self) -> int:
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize
