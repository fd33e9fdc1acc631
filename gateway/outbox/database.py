"""The file: whose it is, how it is set, which version of the tables it has, and what its errors mean.

Promises: only our own user can read it, its journal and its folder; a commit is on the disk when it returns
(`synchronous=FULL`, checked after setting); a file of a newer version and a file that is not ours are refused
untouched; an older one is brought forward in one transaction. Sources: sqlite.org "PRAGMA Statements", "Database File
Format", "Write-Ahead Logging".
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from gateway.outbox.errors import SchemaTooNew, StoreDamaged, StoreError, StoreForeign
from gateway.outbox.holes import Unreadable, pread

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
MODE: Final = 0o600


def connect_again(path: Path) -> sqlite3.Connection:
    """To a file that `open_database` has opened before, under the same lock; it has begun to write once already."""
    db = connect(path)
    try:
        configure(db, path, fresh=False)
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path) -> sqlite3.Connection:
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
    if look_at_header(path, version):
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


def look_at_header(path: Path, version: int, *, known: bool = False) -> bool:
    """True where there is no database yet. Reads the bytes only, so that a refused file stays as it is."""
    try:
        with path.open("rb") as file:
            header = pread(file.fileno(), 100, 0)
    except FileNotFoundError:
        return True
    except PermissionError as error:
        raise StoreError(f"the outbox {path} is closed to you; run this as root or as chekt-gateway") from error
    except OSError as error:
        if known and isinstance(error, Unreadable):
            raise StoreDamaged(f"the outbox {path} is damaged: {error}") from error
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
    if (found, application) == (0, 0) and (_is_being_made(path) or not _has_tables(path)):
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
    """The power went away while the first page was written, or set to WAL: SQLite's rollback journal goes back to no
    page, or to one, which cannot hold a table."""
    try:
        with path.with_name(path.name + "-journal").open("rb") as journal:
            header = journal.read(20)
    except OSError:
        return False
    return header[:8] == _JOURNAL_MAGIC and int.from_bytes(header[16:20], "big") <= 1


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


def make_private(path: Path) -> None:
    """SQLite gives the journal the mode of the file, so the file's mode is enough where it is there first."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
        for suffix in ("", "-wal", "-shm", ".lock"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(MODE)
    except OSError as error:
        raise StoreError(f"the outbox cannot be opened for writing: {error}") from error


def configure(db: sqlite3.Connection, path: Path, fresh: bool) -> None:
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


def migrate(db: sqlite3.Connection, path: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
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
