"""Opening the file: whose it is, how it is set, and which version of the tables it has.

Promises: one process works with it (flock on `<path>.lock`); only our own user can read it, its journal and its folder;
a commit is on the disk when it returns (`synchronous=FULL`, checked after setting); a file of a newer version and a
file that is not ours are refused untouched; an older one is brought forward in one transaction; a damaged one of ours
is set aside and what can be read is saved (`salvage`). Never a fallback to memory. Sources: sqlite.org "PRAGMA
Statements", "Database File Format", "Write-Ahead Logging".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import structlog

from gateway.outbox import salvage, wal
from gateway.outbox.errors import SchemaTooNew, StoreDamaged, StoreError, StoreForeign, StoreInUse
from gateway.outbox.reserve import Reserve
from gateway.outbox.salvage import Salvaged

APPLICATION_ID: Final = 0x43484B54  # "CHKT", in the header of every file of ours
SCHEMA_VERSION: Final = 1  # of schema.sql, in the header as user_version
# What brings a file from the version before to this one: {2: "ALTER TABLE …;"}.
MIGRATIONS: Final[Mapping[int, str]] = {}

BUSY_MS: Final = 5_000  # another connection may be reading or backing up
CACHE_KIB: Final = 4_096
WAL_PAGES: Final = 1_000  # of 4 KiB: then the journal is carried over into the file
WAL_LIMIT_BYTES: Final = 16 << 20  # what a burst leaves of the journal on the disk
_MAGIC: Final = b"SQLite format 3\x00"
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_MODE: Final = 0o600
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
) -> Opened:
    """Locks, checks, opens, migrates. The connection may be handed to another thread, once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder of the outbox cannot be made: {error}") from error
    lock, note = _take_lock(path)
    tables = (schema or schema_text(), version, migrations)
    salvaged = None
    try:
        aside = note.partition(_SALVAGING)[2].strip()
        damage: StoreDamaged | None = StoreDamaged(f"the outbox {path} was being saved") if aside else None
        opened: tuple[sqlite3.Connection, int] | None = None
        if damage is None:
            try:
                opened = _open_with_room(path, tables, known=bool(note), suspect=_DAMAGED in note)
            except StoreDamaged as error:
                damage = error
        if opened is None:
            salvaged = _salvage(path, lock, aside, str(damage), tables)
            opened = _open_undamaged(path, tables, known=True, suspect=False)
        _write_note(lock, "")
    except BaseException:
        os.close(lock)
        raise
    return Opened(opened[0], lock, opened[1], salvaged)


def _open_with_room(path: Path, tables: _Tables, *, known: bool, suspect: bool) -> tuple[sqlite3.Connection, int]:
    """Even the shared index of the journal needs some: a full disk must not keep us from starting."""
    try:
        return _open_undamaged(path, tables, known=known, suspect=suspect)
    except StoreError as error:
        if not is_about_room(error.__cause__) or not Reserve(path, 0).release():
            raise
    return _open_undamaged(path, tables, known=known, suspect=suspect)


def _open_undamaged(path: Path, tables: _Tables, *, known: bool, suspect: bool) -> tuple[sqlite3.Connection, int]:
    """Connection and base of the clock. `known`: a store of ours has been here; `suspect`: it was found damaged."""
    schema, version, migrations = tables
    fresh = _look_at_header(path, version, known=known)
    _make_private(path)
    with sentences(path):
        if not fresh:
            _look_at_journal(path)
        db = _connect(path)
        try:
            _configure(db, path, fresh)
            _migrate(db, path, schema, version, migrations)
            _look_at_length(db, path)
            if suspect:
                _look_at_everything(db, path)
            row = db.execute("SELECT value FROM meta WHERE key = 'ticks'").fetchone()
            # One more: no time of this life equals one of an earlier life.
            return db, int(row[0]) + 1 if row else 0
        except BaseException:
            db.close()
            raise


def _salvage(path: Path, lock: int, aside: str, why: str, tables: _Tables) -> Salvaged:
    name = aside or salvage.name_aside(path)
    log.error("store_salvaging", why=why, aside=name)
    _write_note(lock, f"{_SALVAGING}{name}")
    Reserve(path, 0).release()

    def create(fresh: Path) -> sqlite3.Connection:
        _make_private(fresh)
        db = _connect(fresh)
        _configure(db, fresh, fresh=True)
        _migrate(db, fresh, *tables)
        return db

    try:
        with sentences(path):
            salvaged = salvage.salvage(path, name, create)
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


def connect_again(path: Path) -> sqlite3.Connection:
    """To a file that `open_database` has opened before, under the same lock."""
    db = _connect(path)
    try:
        _configure(db, path, fresh=False)
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)


def schema_text() -> str:
    return resources.files("gateway.outbox").joinpath("schema.sql").read_text(encoding="utf-8")


def read_only(path: Path, *, version: int = SCHEMA_VERSION) -> sqlite3.Connection:
    """A connection that can only read, beside a running gateway or without one."""
    try:
        is_there = path.exists()
    except PermissionError:  # the folder is closed to others
        is_there = True
    if not is_there:
        raise StoreError(f"there is no outbox at {path}; it is made at the first start of the gateway")
    if _look_at_header(path, version):
        raise StoreError(f"the outbox {path} is empty; it is filled at the first start of the gateway")
    with sentences(path):
        address = path.absolute().as_uri()
        try:
            db = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None)
            db.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError:
            # sqlite.org/wal.html, "Read-Only Databases": where no journal is and none can be made, the file says all.
            if path.with_name(path.name + "-wal").exists():
                raise
            db = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, isolation_level=None)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            db.close()
            raise SchemaTooNew(_too_new(path, found, version))
        if found < version:
            db.close()
            raise StoreError(
                f"the outbox {path} has the tables of version {found}; start the gateway once to bring it to {version}"
            )
    return db


def _take_lock(path: Path) -> tuple[int, str]:
    """Its descriptor, and what the last holder has noted: nothing, where there never was one."""
    name = path.with_name(path.name + ".lock")
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
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
    return lock, os.read(lock, _NOTE_BYTES).decode("utf-8", "replace")


def _write_note(lock: int, note: str) -> None:
    """The process that holds it, and what the next one has to know."""
    with contextlib.suppress(OSError):  # a full disk must not keep us from starting
        text = f"{os.getpid()}\n{note}\n".encode()
        os.pwrite(lock, text, 0)
        os.ftruncate(lock, len(text))
        os.fsync(lock)


def _look_at_header(path: Path, version: int, *, known: bool = False) -> bool:
    """True where there is no database yet. Reads the bytes only, so that a refused file stays as it is."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return True
    except PermissionError as error:
        raise StoreError(f"the outbox {path} is closed to you; run this as root or as chekt-gateway") from error
    except OSError as error:
        raise StoreError(f"the outbox cannot be read: {error}") from error
    if (header[:16] != _MAGIC or len(header) < 100) and _is_being_made(path):
        return True
    if known and (header[:16] != _MAGIC or len(header) < 100):
        raise StoreDamaged(f"the outbox {path} is damaged: it does not begin like a database")
    if not header:
        return True
    if header[:16] != _MAGIC or len(header) < 100:
        raise StoreForeign(f"{path} is not a database; move it away, or set another outbox.path")
    found, application = int.from_bytes(header[60:64], "big"), int.from_bytes(header[68:72], "big")
    if (found, application) == (0, 0) and not _has_tables(path):
        return True  # the power went away during the first start
    if application != APPLICATION_ID:
        if known and _has_our_tables(path):
            raise StoreDamaged(f"the outbox {path} is damaged: its header does not say that it is ours")
        raise StoreForeign(f"{path} is a database of another program; move it away, or set another outbox.path")
    if found > version:
        raise SchemaTooNew(_too_new(path, found, version))
    return False


def _has_tables(path: Path) -> bool:
    """Looked at through the journal, too: the header of a file that was just made may stand only there."""
    with sentences(path):
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
                return False
            return bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        finally:
            db.close()


def _is_being_made(path: Path) -> bool:
    """The power went away while the first page was written: SQLite's rollback journal still tells of an empty file."""
    try:
        with path.with_name(path.name + "-journal").open("rb") as journal:
            return journal.read(len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC
    except OSError:
        return False


def _has_our_tables(path: Path) -> bool:
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)  # leaves nothing beside it
        try:
            return {"event", "hop"} <= {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        finally:
            db.close()
    except sqlite3.Error:
        return True  # nothing speaks for another program


def _too_new(path: Path, found: int, version: int) -> str:
    return (
        f"the outbox {path} was written by a newer chekt-gateway (tables of version {found}, this one "
        f"knows {version}); "
        "install that version again, nothing was changed"
    )


def _make_private(path: Path) -> None:
    """SQLite gives the journal the mode of the file, so the file's mode is enough where it is there first."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))
        for suffix in ("", "-wal", "-shm", ".lock"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(_MODE)
    except OSError as error:
        raise StoreError(f"the outbox cannot be opened for writing: {error}") from error


def _configure(db: sqlite3.Connection, path: Path, fresh: bool) -> None:
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    if fresh:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first page is written, else it has no effect
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL: the journal is flushed in every commit
        "foreign_keys": 1,
        "auto_vacuum": 2,  # INCREMENTAL
    }
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}").fetchone()
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}").fetchone()
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute("PRAGMA temp_store = MEMORY")
    for name, value in wanted.items():
        found = db.execute(f"PRAGMA {name}").fetchone()[0]
        if found != value:
            raise StoreError(
                f"the outbox {path} does not take {name} = {value} (it stays {found}); it needs a local file system"
            )


def _migrate(db: sqlite3.Connection, path: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > version:
        raise SchemaTooNew(_too_new(path, found, version))
    if found == version:
        return
    steps = [schema] if found == 0 else [migrations[number] for number in range(found + 1, version + 1)]
    db.execute("BEGIN EXCLUSIVE")
    try:
        for step in steps:
            for statement in statements(step):
                db.execute(statement)
        # Both are in the header, and part of the transaction.
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")
        broken = db.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise StoreError(
                f"the step to tables of version {version} would break {len(broken)} rows; nothing was changed"
            )
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    # So that the header says at once whose file this is, also to those who only read its bytes.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit on its own."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if any(line.strip() and not line.strip().startswith("--") for line in pending.splitlines()):
        raise ValueError("the script ends within a statement")


@contextlib.contextmanager
def sentences(path: Path) -> Iterator[None]:
    """What SQLite says, as a StoreError for people."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error


@contextlib.contextmanager
def reading(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """One consistent look: what is committed meanwhile is not seen."""
    with sentences(path):
        nested = db.in_transaction
        if not nested:
            db.execute("BEGIN")
        try:
            yield
        finally:
            if not nested:
                db.execute("ROLLBACK")


def is_about_room(error: BaseException | None) -> bool:
    """It may be: a quota that is used up is told as a failed write."""
    name = getattr(error, "sqlite_errorname", "")
    return bool(name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHM")))


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreDamaged(f"the outbox {path} is damaged: {error}")
    if name.startswith("SQLITE_FULL"):
        return StoreError(f"there is no room left for the outbox {path}: {error}")
    return StoreError(f"the outbox {path} refuses: {error} ({name or type(error).__name__})")
