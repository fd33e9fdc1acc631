"""Opening the store: one process, a sound file, and what is done where it is not sound.

Promises: one process works with it (flock on `<path>.lock`); a damaged file of ours, or one that the disk cannot read
any more, is set aside, and what can be read is saved (`salvage`); a full disk does not keep us from starting while
there is a reserve; work that lasts is told (`progress`). Never a fallback to memory.
The lock's file also tells the next start what it has to know: whether a store of ours has been here, whether it was
found damaged, whether saving it is under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.outbox import salvage, wal
from gateway.outbox.database import (
    MIGRATIONS,
    MODE,
    SCHEMA_VERSION,
    configure,
    connect,
    is_about_room,
    look_at_header,
    make_private,
    migrate,
    schema_text,
    sentences,
)
from gateway.outbox.errors import StoreDamaged, StoreError, StoreInUse
from gateway.outbox.holes import is_unreadable
from gateway.outbox.progress import Progress, Tell, leave
from gateway.outbox.reserve import Reserve
from gateway.outbox.salvage import Salvaged

_NOTE_BYTES: Final = 512
_DAMAGED: Final = "damaged"
_SALVAGING: Final = "salvaging "

_Tables = tuple[str, int, Mapping[int, str]]  # schema, its version, steps to it

log = structlog.get_logger()


@dataclass(frozen=True)
class Opened:
    db: sqlite3.Connection
    lock: int  # file descriptor; the lock lasts as long as it is open
    base_ticks: int
    salvaged: Salvaged | None = None  # the file that was there was damaged

    def close(self) -> None:
        try:
            self.db.close()
        finally:
            os.close(self.lock)


def open_database(
    path: Path,
    *,
    schema: str | None = None,
    version: int = SCHEMA_VERSION,
    migrations: Mapping[int, str] = MIGRATIONS,
    tell: Tell | None = None,
) -> Opened:
    """Locks, checks, opens, migrates. The connection may be handed to another thread, once.

    `tell` hears every few seconds what is being done, while it takes long.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder of the outbox cannot be made: {error}") from error
    lock, note = _take_lock(path)
    tables = (schema or schema_text(), version, migrations)
    progress = Progress(tell)
    salvaged = None
    try:
        aside = note.partition(_SALVAGING)[2].strip()
        damage: StoreDamaged | None = StoreDamaged(f"the outbox {path} was being saved") if aside else None
        opened: tuple[sqlite3.Connection, int] | None = None
        if damage is None:
            try:
                opened = _open_with_room(path, tables, progress, known=bool(note), suspect=_DAMAGED in note)
            except StoreDamaged as error:
                damage = error
        if opened is None:
            salvaged = _salvage(path, lock, aside, str(damage), tables, progress)
            opened = _open_undamaged(path, tables, progress, known=True, suspect=False)
        leave(opened[0])
        _write_note(lock, "")
    except BaseException:
        os.close(lock)
        raise
    return Opened(opened[0], lock, opened[1], salvaged)


def _open_with_room(
    path: Path, tables: _Tables, progress: Progress, *, known: bool, suspect: bool
) -> tuple[sqlite3.Connection, int]:
    """Even the shared index of the journal needs some: a full disk must not keep us from starting."""
    try:
        return _open_undamaged(path, tables, progress, known=known, suspect=suspect)
    except StoreError as error:
        if not is_about_room(error.__cause__) or not Reserve(path, 0).release():
            raise
    return _open_undamaged(path, tables, progress, known=known, suspect=suspect)


def _open_undamaged(
    path: Path, tables: _Tables, progress: Progress, *, known: bool, suspect: bool
) -> tuple[sqlite3.Connection, int]:
    """Connection and base of the clock. `known`: a store of ours has been here; `suspect`: it was found damaged."""
    schema, version, migrations = tables
    fresh = look_at_header(path, version, known=known)
    make_private(path)
    with _unreadable_is_damaged(path), sentences(path):
        if not fresh:
            _look_at_journal(path)
        db = connect(path)
        progress.follow(db)
        try:
            configure(db, path, fresh)
            migrate(db, path, schema, version, migrations)
            _look_at_length(db, path)
            if suspect:
                progress.begin("looking at the whole outbox, in which damage was met")
                _look_at_everything(db, path)
            row = db.execute("SELECT value FROM meta WHERE key = 'ticks'").fetchone()
            # One more: no time of this life equals one of an earlier life.
            return db, int(row[0]) + 1 if row else 0
        except BaseException:
            db.close()
            raise


@contextlib.contextmanager
def _unreadable_is_damaged(path: Path) -> Iterator[None]:
    """What the disk cannot read at a start it will not read at the next one either: better saved than tried for ever.

    Should it have been a whim of the disk, everything is read, and nothing is lost by it.
    """
    try:
        yield
    except StoreError as error:
        if not isinstance(error, StoreDamaged) and is_unreadable(error.__cause__):
            raise StoreDamaged(f"the outbox {path} is damaged: {error.__cause__}") from error
        raise


def _salvage(path: Path, lock: int, aside: str, why: str, tables: _Tables, progress: Progress) -> Salvaged:
    name = aside or salvage.name_aside(path)
    progress.begin("saving what can be read of a damaged outbox")
    log.error("store_salvaging", why=why, aside=name)
    _write_note(lock, f"{_SALVAGING}{name}")
    Reserve(path, 0).release()

    def create(fresh: Path) -> sqlite3.Connection:
        make_private(fresh)
        db = connect(fresh)
        configure(db, fresh, fresh=True)
        migrate(db, fresh, *tables)
        return db

    try:
        with sentences(path):
            salvaged = salvage.salvage(path, name, create, progress)
    except OSError as error:
        raise StoreError(f"what can be read of the damaged outbox {path} cannot be saved: {error}") from error
    log.error("store_salvaged", what=str(salvaged), remedy="look at the disk: it may be dying; delete the damaged file")
    return salvaged


def _look_at_journal(path: Path) -> None:
    """Raises StoreDamaged where a commit that was flushed cannot be reached any more."""
    try:
        if wal.wal_of(path).stat().st_size <= wal.HEADER_BYTES:
            return
        wal.rewrite(path)
        # A reader lets SQLite find the end of the journal; it neither carries over nor removes anything.
        reader = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            reader.execute("PRAGMA schema_version").fetchone()
        finally:
            reader.close()
        unreached = wal.commits_behind_the_end(path, wal.read_index(path).frames)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"the journal of the outbox {path} cannot be read: {error}") from error
    if unreached > 1:
        raise StoreDamaged(f"the outbox {path} is damaged: {unreached} commits in its journal cannot be reached")


def _look_at_length(db: sqlite3.Connection, path: Path) -> None:
    pages, size = db.execute("PRAGMA page_count").fetchone()[0], db.execute("PRAGMA page_size").fetchone()[0]
    with contextlib.suppress(FileNotFoundError):
        if wal.wal_of(path).stat().st_size:
            return  # the rest may stand there
    if path.stat().st_size < pages * size:
        raise StoreDamaged(f"the outbox {path} is damaged: {pages * size - path.stat().st_size} bytes are cut off")


def _look_at_everything(db: sqlite3.Connection, path: Path) -> None:
    """As long as the file is large: only after a run that has found damage."""
    found = [row[0] for row in db.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"] or db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise StoreDamaged(f"the outbox {path} is damaged: {'; '.join(found)}")


def mark_damaged(lock: int) -> None:
    """For the next start. The file of the lock has its block: this works on a full disk, too."""
    _write_note(lock, _DAMAGED)


def _take_lock(path: Path) -> tuple[int, str]:
    """Its descriptor, and what the last holder has noted: nothing, where there never was one."""
    name = path.with_name(path.name + ".lock")
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
    except OSError as error:
        raise StoreError(f"the lock of the outbox cannot be opened: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode("ascii", "replace").partition("\n")[0]
        os.close(lock)
        who = f" (process {holder})" if holder else ""
        raise StoreInUse(
            f"the outbox {path} is in use by another chekt-gateway{who}; stop that one, or give this "
            "one a path of its own"
        ) from None
    except OSError as error:
        os.close(lock)
        raise StoreError(f"the outbox cannot be locked, it needs a local file system: {error}") from error
    try:
        return lock, os.read(lock, _NOTE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        os.close(lock)
        raise StoreError(
            f"the lock of the outbox cannot be read: {error}; look at the disk, and remove {name}"
        ) from error


def _write_note(lock: int, note: str) -> None:
    """The process that holds it, and what the next one has to know."""
    with contextlib.suppress(OSError):  # a full disk must not keep us from starting
        text = f"{os.getpid()}\n{note}\n".encode()
        os.pwrite(lock, text, 0)
        os.ftruncate(lock, len(text))
        os.fsync(lock)
