"""A disk that forgets what was not flushed: the recorded history of one run, and what a power cut leaves of it.

`witness.c` records every write, flush, rename and removal below a folder. `Disk` plays the history up to any point and
writes down what may be there afterwards: everything that was flushed; of the rest, by chance from a seed, nothing, all,
a beginning, or any part, with writes torn at sectors of 512 bytes. Names (created, renamed, removed) are durable only
after a flush of their folder; until then a beginning of them may be. What a failed flush had in hand may be lost,
though a program that reads it still sees it (fsync(2), "EIO": what could not be written is not tried again).
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

SECTOR: Final = 512
HERE: Final = Path(__file__).parent
_HEADER: Final = struct.Struct("=IIQQ")
_FAULTS: Final = struct.Struct("=iiiiiiQQQq")


class Op:
    """As in witness.c."""

    CREATE, WRITE, TRUNCATE, SYNC, SYNC_FAILED, RENAME, UNLINK, SYNC_FOLDER, MARK, LINK, GROW, SEEN = range(1, 13)


class Record(NamedTuple):
    op: int
    file: int
    offset: int
    data: bytes


@dataclass(eq=False)
class Inode:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)


class Renaming(NamedTuple):
    op: int
    first: str
    second: str
    inode: Inode | None

    def apply(self, names: dict[str, Inode]) -> None:
        if self.op == Op.CREATE and self.inode is not None:
            names[self.first] = self.inode
        elif self.op == Op.UNLINK:
            names.pop(self.first, None)
        elif self.op == Op.LINK:
            names[self.second] = names[self.first]
        else:
            names[self.second] = names.pop(self.first)


class Disk:
    """Plays a history; `cut` writes down what a power cut at this moment leaves."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._files: dict[int, Inode] = {}
        self._names: dict[str, Inode] = {}  # durable
        self._renamings: list[Renaming] = []  # not yet
        self.marks: list[str] = []
        self._played = 0

    def play(self, record: Record) -> None:
        self._played += 1
        op, file, _, data = record
        if op in (Op.CREATE, Op.RENAME, Op.UNLINK, Op.LINK):
            if op == Op.CREATE:
                self._files[file] = Inode()
            first, _, second = os.fsdecode(data).partition("\0")
            self._renamings.append(Renaming(op, first, second, self._files.get(file)))
        elif op in (Op.WRITE, Op.TRUNCATE, Op.GROW):
            self._files[file].pending.append(record)
        elif op == Op.SYNC:
            for one in self._files[file].pending:
                _apply(self._files[file].durable, one)
            self._files[file].pending.clear()
        elif op == Op.SYNC_FAILED:
            _survive(self._files[file].durable, self._files[file].pending, random.Random(self._played))
            self._files[file].pending.clear()
        elif op == Op.SYNC_FOLDER:
            flushed = [one for one in self._renamings if Path(one.first).parent == Path(os.fsdecode(data))]
            for each in flushed:
                each.apply(self._names)
            self._renamings = [one for one in self._renamings if one not in flushed]
        elif op == Op.MARK:
            self.marks.append(data.decode())

    def cut(self, chance: random.Random, target: Path) -> None:
        names = dict(self._names)
        most = len(self._renamings)
        for renaming in self._renamings[: chance.choice((0, most, chance.randint(0, most)))]:
            renaming.apply(names)
        found: dict[Inode, bytes] = {}
        for path, inode in names.items():
            if inode not in found:
                content = bytearray(inode.durable)
                _survive(content, inode.pending, chance)
                found[inode] = bytes(content)
            place = target / os.path.relpath(path, self._folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(found[inode])


def _survive(content: bytearray, pending: list[Record], chance: random.Random) -> None:
    """What was not flushed: nothing, all, a beginning with its last write torn, or any part of it."""
    match chance.choice(("nothing", "all", "beginning", "any")):
        case "all":
            for record in pending:
                _apply(content, record)
        case "beginning" if pending:
            last = chance.randrange(len(pending))
            for record in pending[:last]:
                _apply(content, record)
            _tear(content, pending[last], chance)
        case "any":
            share = chance.random()
            for record in pending:
                if chance.random() < share:
                    _tear(content, record, chance) if chance.random() < 0.3 else _apply(content, record)


def _apply(content: bytearray, record: Record) -> None:
    end = record.offset + len(record.data)
    if record.op == Op.TRUNCATE and record.offset < len(content):
        del content[record.offset :]
        return
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if record.op == Op.WRITE:
        content[record.offset : end] = record.data


def _tear(content: bytearray, record: Record, chance: random.Random) -> None:
    """Some of its sectors."""
    at = record.offset
    while record.op == Op.WRITE and at < record.offset + len(record.data):
        end = min((at // SECTOR + 1) * SECTOR, record.offset + len(record.data))
        if chance.random() < 0.5:
            _apply(content, record._replace(offset=at, data=record.data[at - record.offset : end - record.offset]))
        at = end


def records(log: Path) -> Iterator[Record]:
    raw = log.read_bytes()
    at = 0
    while at < len(raw):
        op, length, file, offset = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        yield Record(op, file, offset, raw[at : at + length])
        at += length


def build(folder: Path) -> Path:
    """The compiled witness."""
    library = folder / "witness.so"
    if not library.exists():
        words = ["cc", "-shared", "-fPIC", "-O1", "-o", os.fspath(library), os.fspath(HERE / "witness.c")]
        subprocess.run([*words, "-ldl", "-lpthread"], check=True, timeout=60)
    return library


class Faults:
    """What the witness does to every program that has been given this file; may be changed while it runs."""

    def __init__(self, path: Path, *, fresh: bool = True) -> None:
        if fresh:
            path.write_bytes(bytes(_FAULTS.size))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FAULTS.size)

    def set(
        self,
        *,
        sync_errno: int = 0,
        write_errno: int = 0,
        sync_ms: int = 0,
        syncs_left: int = 0,
        read_errno: int = 0,
        room_errno: int = 0,
        unreadable: tuple[int, int, int] = (0, 0, 0),  # inode, first byte, behind the last byte
        room: int = 0,
    ) -> None:
        numbers = (sync_errno, write_errno, sync_ms, syncs_left, read_errno, room_errno, *unreadable, room)
        self._map[:] = _FAULTS.pack(*numbers)


def witnessed(library: Path, folder: Path, *, log: Path | None = None, faults: Path | None = None) -> dict[str, str]:
    """The environment for a program whose files below `folder` are watched."""
    environment = {"LD_PRELOAD": os.fspath(library), "WITNESS_FOLDER": os.fspath(folder)}
    if log is not None:
        environment["WITNESS_LOG"] = os.fspath(log)
    if faults is not None:
        environment["WITNESS_FAULTS"] = os.fspath(faults)
    return environment


def record_life(library: Path, folder: Path, program: str, *arguments: object) -> list[Record]:
    """One run of a program in `folder`/state, as it happened to the disk."""
    state, log = folder / "state", folder / "history"
    state.mkdir(parents=True)
    faults = Faults(folder / "faults")
    subprocess.run(
        [sys.executable, "-m", program, os.fspath(state), os.fspath(faults.path), *map(str, arguments)],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "0", **witnessed(library, state, log=log, faults=faults.path)},
    )
    return list(records(log))
