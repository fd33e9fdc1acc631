"""A damaged outbox is set aside, and what can be read of it goes into a new one.

The damaged file and its journal keep all their bytes under the name `<outbox>.damaged-<time>`. Rows are read by ranges
of their number, down to the single row; then those that no table leads to any more, from the pages themselves
(`pages`). Where the disk cannot read a page, the copy that is worked on has a hole (`holes`). What does not fit the
tables (schema.sql) is not believed. Counters are counted anew. Promises: a crash at any moment is followed by the same
work at the next start (a line in the lock file tells which); the new file is whole and flushed before it has the
outbox's name; whoever waits hears that the work goes on (`progress`).
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.outbox import pages, wal
from gateway.outbox.holes import Reader
from gateway.outbox.progress import Progress, leave

KEPT_ASIDE: Final = 3  # damaged files; a card that dies would fill itself with them
STEP_ROWS: Final = 512  # read at once
COMMIT_ROWS: Final = 5_000  # written at once: bounds the journal of the new file
SINGLE_ROWS: Final = 200_000  # that are tried one by one, before the rest of a table is given up
TICKS_UNKNOWN_MS: Final = 3_600_000  # added where the clock's own value is lost: it must never run backwards

_NUMBERED: Final = {"event": "seq", "media": "id", "hop": "id"}  # in the order of what refers to what
_KEYED: Final = ("memory", "digest", "counter", "camera_seen", "meta")
_ENDS: Final = ("stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")
_TICKS: Final = (
    "received_ticks",
    "stored_ticks",
    "acknowledged_ticks",
    "attempt_ticks",
    "first_refused_ticks",
    "first_fault_ticks",
    "closed_ticks",
)


@dataclass(frozen=True, slots=True)
class Salvaged:
    aside: Path
    events: int
    media: int
    missing: int | None  # events that had been counted and were not found; None: the counts are lost, too
    unreadable: int = 0  # pages that the disk could not read any more

    def __str__(self) -> str:
        lost = f"{self.missing} events could not be read" if self.missing else "no event is missing"
        if self.missing is None:
            lost = "nobody can tell how many are missing"
        holes = f", {self.unreadable} pages of it cannot be read from the disk any more" if self.unreadable else ""
        return (
            f"the outbox was damaged: {self.events} events and {self.media} pictures were saved into a new one, "
            f"{lost}; the damaged file is {self.aside}{holes}"
        )


def name_aside(path: Path) -> str:
    """A name that nothing has yet."""
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
    return next(each for each in names if not path.with_name(each).exists())


def salvage(path: Path, name: str, create: Callable[[Path], sqlite3.Connection], progress: Progress) -> Salvaged:
    """May be called again with the same name after a crash. `create` makes an empty outbox, connected."""
    aside, fresh, image = (path.with_name(each) for each in (name, f"{path.name}.new", f"{path.name}.image"))
    if aside.exists() and path.exists():
        return _done_before(path, aside)
    # The journal first: while the file has its name, the journal without it would be misread.
    if not aside.exists():
        for suffix in ("-wal", "-journal", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        _flush_names(path.parent)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    _remove(fresh)
    new = create(fresh)
    try:
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        unreadable = _make_image(aside, image, fresh, new, progress)
        old = sqlite3.connect(f"{image.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        progress.follow(old)
        progress.follow(new)
        try:
            found = _carry_over(old, new, image, progress)
        finally:
            old.close()
        leave(new)
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        new.close()
        _remove(image)
    fresh.replace(path)
    _flush_names(path.parent)
    _forget_the_oldest(path)
    return Salvaged(aside, *found, unreadable)


def _done_before(path: Path, aside: Path) -> Salvaged:
    """Only the note of it was not taken away: what has been stored since must not be lost."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        events, media = (db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("event", "media"))
        return Salvaged(aside, events, media, missing=0)
    finally:
        db.close()


def _make_image(aside: Path, image: Path, template: Path, new: sqlite3.Connection, progress: Progress) -> int:
    """A copy with everything that the journal still tells; where its tables cannot be found, with new signposts.

    Returns how many pages of both could not be read.
    """
    handle = os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with aside.open("rb") as damaged, open(handle, "wb", closefd=False) as copy:
            reader = Reader(damaged.fileno(), progress.step)
            copy.writelines(reader.pieces())
        unreadable = wal.apply_whole_frames(aside, handle, progress.step)
        if not _shows_its_tables(image):
            _write_signposts(handle, template, new)
    finally:
        os.close(handle)
    return reader.lost + unreadable


def _shows_its_tables(image: Path) -> bool:
    db = sqlite3.connect(f"{image.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return False
    finally:
        db.close()
    return names >= {*_NUMBERED, *_KEYED}


def _write_signposts(image: int, template: Path, new: sqlite3.Connection) -> None:
    """Header and schema of a new file: the tables of every file of a version begin at the same pages."""
    roots = {root for (root,) in new.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0")}
    length = new.execute("PRAGMA page_count").fetchone()[0]
    size = max(os.fstat(image).st_size // pages.PAGE_BYTES, length)
    with template.open("rb") as file:
        for page in range(1, length + 1):
            content = bytearray(file.read(pages.PAGE_BYTES))
            if page == 1:
                content[28:40] = size.to_bytes(4, "big") + bytes(8)  # length; no free pages
                content[92:96] = content[24:28]  # so that the length is believed
            if page != 2 and page not in roots:  # 2: where pages belong, of no use for reading
                os.pwrite(image, content, (page - 1) * pages.PAGE_BYTES)
    os.ftruncate(image, size * pages.PAGE_BYTES)


def _carry_over(
    old: sqlite3.Connection, new: sqlite3.Connection, image: Path, progress: Progress
) -> tuple[int, int, int | None]:
    old.execute("PRAGMA cell_size_check = ON")
    new.execute("BEGIN IMMEDIATE")
    for table, key in _NUMBERED.items():
        columns = ", ".join(row[1] for row in new.execute(f"PRAGMA table_info({table})"))
        _insert(new, table, columns, _numbered_rows(old, table, key, columns, progress))
        _insert(new, table, columns, _stray_rows(new, table, key, columns, image, progress))
    for table in _KEYED:
        columns = ", ".join(row[1] for row in new.execute(f"PRAGMA table_info({table})"))
        _insert(new, table, columns, _keyed_rows(old, table, columns))
    _go_on_counting(old, new)
    events, media, missing = _count_anew(new)
    _go_on_with_the_clock(new)
    new.execute("COMMIT")
    return events, media, missing


def _insert(new: sqlite3.Connection, table: str, columns: str, rows: Iterator[Sequence[Any]]) -> None:
    statement = f"INSERT INTO {table} ({columns}) VALUES ({','.join('?' * (columns.count(',') + 1))})"
    for number, row in enumerate(rows, start=1):
        with contextlib.suppress(sqlite3.IntegrityError, sqlite3.DataError, OverflowError):  # not believable, or twice
            new.execute(statement, row)
        if number % COMMIT_ROWS == 0:
            new.execute("COMMIT")
            new.execute("BEGIN IMMEDIATE")


def _numbered_rows(
    old: sqlite3.Connection, table: str, key: str, columns: str, progress: Progress
) -> Iterator[Sequence[Any]]:
    """By ranges; one that cannot be read is halved until it is a single row."""
    singles = 0
    waiting = [(1, _last(old, table, key))]
    query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE {key} BETWEEN ? AND ? ORDER BY {key} LIMIT {STEP_ROWS}"
    at = columns.split(", ").index(key)
    while waiting and singles < SINGLE_ROWS:
        progress.step()
        first, last = waiting.pop()
        if first > last:
            continue
        try:
            rows = old.execute(query, (first, last)).fetchall()
        except sqlite3.Error:
            if first == last:
                singles += 1
            elif last - first > 4 * STEP_ROWS and last > 1 << 40:
                # The end is not known: look near the beginning first.
                waiting += [(first + 4 * STEP_ROWS + 1, last), (first, first + 4 * STEP_ROWS)]
            else:
                middle = (first + last) // 2
                waiting += [(middle + 1, last), (first, middle)]
            continue
        yield from rows
        if len(rows) == STEP_ROWS:
            waiting.append((rows[-1][at] + 1, last))


def _stray_rows(
    new: sqlite3.Connection, table: str, key: str, columns: str, image: Path, progress: Progress
) -> Iterator[Sequence[Any]]:
    names = columns.split(", ")

    def known(number: int) -> bool:
        return new.execute(f"SELECT 1 FROM {table} WHERE {key} = ?", (number,)).fetchone() is not None

    with image.open("rb") as file:
        for number, values in pages.rows(file, len(names), known, progress.step):
            values[names.index(key)] = number  # stands beside the row, not in it
            yield values


def _last(old: sqlite3.Connection, table: str, key: str) -> int:
    found = 0
    for query in (
        f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'",
        f"SELECT max({key}) FROM {table} NOT INDEXED",
    ):
        with contextlib.suppress(sqlite3.Error, TypeError):
            found = max(found, int(old.execute(query).fetchone()[0]))
    return found or (1 << 62)


def _keyed_rows(old: sqlite3.Connection, table: str, columns: str) -> Iterator[Sequence[Any]]:
    """From both ends."""
    key = columns.partition(",")[0]
    for order in ("ASC", "DESC"):
        try:
            yield from old.execute(f"SELECT {columns} FROM {table} ORDER BY {key} {order}")
        except sqlite3.Error:
            continue
        return


def _go_on_counting(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Numbers are never used twice."""
    for table in ("event", "media"):
        last = _last(old, table, _NUMBERED[table])
        if last < 1 << 62:
            new.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            new.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))


def _count_anew(new: sqlite3.Connection) -> tuple[int, int, int | None]:
    told = dict(new.execute("SELECT name, value FROM counter"))
    pruned = {name: value for name, value in told.items() if name.startswith("pruned_")}
    states = dict(new.execute("SELECT state, count(*) FROM event GROUP BY state"))
    media = dict(new.execute("SELECT state, count(*) FROM media GROUP BY state"))
    size = new.execute("SELECT coalesce(sum(bytes), 0) FROM media WHERE path IS NOT NULL").fetchone()[0]
    events = sum(states.values())
    counted = {f"state_{state}": count for state, count in states.items()}
    counted |= {f"media_{state}": count for state, count in media.items()}
    counted |= pruned | {"media_bytes": size, "events": events + sum(pruned.values())}
    if told.get("received", -1) == sum(told.get(end, 0) for end in _ENDS):
        counted |= {name: told.get(name, 0) for name in ("received", *_ENDS)}
    else:
        own = {end: states.get(end, 0) for end in ("unmapped", "unreadable")}
        counted |= own | {"stored": events - sum(own.values()), "received": events}
    new.execute("DELETE FROM counter")
    new.executemany("INSERT INTO counter (name, value) VALUES (?, ?)", counted.items())
    missing = max(0, told["events"] - counted["events"]) if "events" in told else None
    return events, sum(media.values()), missing


def _go_on_with_the_clock(new: sqlite3.Connection) -> None:
    told = new.execute("SELECT value FROM meta WHERE key = 'ticks'").fetchone()
    seen = new.execute(f"SELECT max({', '.join(f'coalesce(max({name}), 0)' for name in _TICKS)}) FROM event").fetchone()
    is_known = told is not None and str(told[0]).isdigit() and int(told[0]) >= (seen[0] or 0)
    ticks = int(told[0]) if is_known else (seen[0] or 0) + TICKS_UNKNOWN_MS
    new.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('ticks', ?)", (str(ticks),))


def _forget_the_oldest(path: Path) -> None:
    aside = [
        each for each in path.parent.glob(f"{path.name}.damaged-*") if not each.name.endswith(("-wal", "-journal"))
    ]
    aside.sort(key=lambda each: each.stat().st_ctime_ns)  # of the renaming, whatever the clock said
    for old in aside[:-KEPT_ASIDE]:
        _remove(old)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
