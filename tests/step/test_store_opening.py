"""Opening: for one process, for our own eyes, durable; never a file that is not ours or that we do not understand."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.outbox.database import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    read_only,
    schema_text,
    statements,
)
from gateway.outbox.ledger import Ledger
from gateway.outbox.opening import open_database
from gateway.outbox.store import SchemaTooNew, Store, StoreError, StoreForeign, StoreInUse
from tests.fakes.clock import FakeClock
from tests.step.outbox_kit import in_the_writer, open_outbox

DATABASES = Path(__file__).parent.parent / "data" / "databases"


def ask_pragma(name: str, db: sqlite3.Connection) -> Any:
    return db.execute(f"PRAGMA {name}").fetchone()


async def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """WAL and FULL really took effect on the connection that writes."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "auto_vacuum": 2}.items():
            found = await in_the_writer(outbox.store, partial(ask_pragma, pragma))
            assert found == (value,), pragma


async def test_only_our_own_user_can_read_it(tmp_path: Path) -> None:
    """File, journal, index, lock 0600 and the folder 0700, whatever the umask."""
    before = os.umask(0)
    try:
        async with open_outbox(tmp_path / "state" / "outbox.db") as outbox:
            await outbox.add(outbox.alarm("a"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()}
            assert modes == dict.fromkeys(("outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.db.lock"), 0o600)
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db"):
        pass
    (tmp_path / "outbox.db").chmod(0o644)
    async with open_outbox(tmp_path / "outbox.db"):
        assert stat.S_IMODE((tmp_path / "outbox.db").stat().st_mode) == 0o600


async def python(code: str, *arguments: object) -> tuple[int | None, str]:
    """Runs it in another process; its exit code and what it printed."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), timeout=30)
    return process.returncode, said.decode()


async def test_one_outbox_is_for_one_process(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    async with open_outbox(path):
        code = (
            "import asyncio, pathlib, sys\n"
            "from gateway.outbox.store import Store, StoreInUse\n"
            "from gateway.host.clock import SystemClock\n"
            "try:\n"
            "    asyncio.run(Store.open(pathlib.Path(sys.argv[1]), make_clock=SystemClock))\n"
            "except StoreInUse as error:\n"
            "    print(error)\n"
        )
        code_of_other, said = await python(code, path)
        assert code_of_other == 0
        assert f"in use by another chekt-gateway (process {os.getpid()})" in said
        with pytest.raises(StoreInUse):
            await Store.open(path, make_clock=FakeClock)
    async with open_outbox(path):
        pass  # the lock went with its owner


async def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    code = (
        "import os, pathlib, sys\n"
        "from gateway.outbox.opening import open_database\n"
        "opened = open_database(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert (await python(code, path))[0] == -9
    async with open_outbox(path) as outbox:
        await outbox.add(outbox.alarm("a"))


async def test_ticks_never_run_backwards_over_a_restart(tmp_path: Path) -> None:
    bases: list[int] = []

    def make_clock(base: int) -> FakeClock:
        bases.append(base)
        return FakeClock(ticks=base)

    for _ in range(3):
        store = await Store.open(tmp_path / "outbox.db", make_clock=make_clock)
        assert isinstance(store.clock, FakeClock)
        store.clock.advance(100)
        await store.set_meta("x", "y")
        store.clock.advance(5)
        await store.close()
    assert bases == [0, 105_001, 210_002]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_tables_of_a_newer_version_are_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    async with open_outbox(path):
        pass
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    before = digest(path)
    with pytest.raises(SchemaTooNew, match="newer chekt-gateway"):
        await Store.open(path, make_clock=FakeClock)
    with pytest.raises(SchemaTooNew):
        Ledger(path)
    assert digest(path) == before


@pytest.mark.parametrize("content", [b"not a database, but notes of somebody\n" * 10, b"SQLite format 3\x00 cut off"])
async def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(content)
    with pytest.raises(StoreForeign, match="move it away"):
        await Store.open(path, make_clock=FakeClock)
    assert path.read_bytes() == content


async def test_the_database_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (x)")
    db.close()
    before = digest(path)
    with pytest.raises(StoreForeign, match="another program"):
        await Store.open(path, make_clock=FakeClock)
    assert digest(path) == before


async def test_a_first_start_that_the_power_cut_short_is_done_again(tmp_path: Path) -> None:
    """An empty file, or one in which only the journal's mode was set."""
    path = tmp_path / "outbox.db"
    path.touch()
    async with open_outbox(path) as outbox:
        await outbox.add(outbox.alarm("a"))
    half = tmp_path / "half.db"
    db = sqlite3.connect(half)
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert half.stat().st_size > 0
    async with open_outbox(half) as outbox:
        await outbox.add(outbox.alarm("a"))


@pytest.mark.parametrize("known", ["", "123\n\n"], ids=["the first start", "a later one"])
async def test_a_first_page_that_the_power_cut_short_is_written_again(tmp_path: Path, known: str) -> None:
    """SQLite's rollback journal was flushed before: it says that the file was empty."""
    path = tmp_path / "outbox.db"
    path.write_bytes(bytes(2_048) + b"the second half of a page".ljust(2_048, b"."))
    numbers = (0, 0x64C16C25, 0, 512, 4_096)  # rows, nonce, length before, sector, page
    header = bytes.fromhex("d9d505f920a163d7") + b"".join(number.to_bytes(4, "big") for number in numbers)
    (tmp_path / "outbox.db-journal").write_bytes(header.ljust(512, b"\0"))
    (tmp_path / "outbox.db.lock").write_text(known)
    async with open_outbox(path) as outbox:
        assert outbox.store.salvaged is None
        await outbox.add(outbox.alarm("a"))


async def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StoreError, match="folder of the outbox"):
        await Store.open(tmp_path / "state" / "outbox.db", make_clock=FakeClock)


def test_a_file_that_does_not_exist_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no outbox"):
        Ledger(tmp_path / "outbox.db")
    assert not list(tmp_path.iterdir())


async def test_reading_cannot_write(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        db = read_only(outbox.path)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM event")
        db.close()


# Versions


def bare(schema: str) -> str:
    """Without comments and blanks: what SQLite keeps of both is not the point."""
    return re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", schema)).strip()


def shape(path: Path) -> dict[str, str]:
    db = sqlite3.connect(path)
    try:
        return {
            name: bare(sql) for name, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        }
    finally:
        db.close()


def restore(dump: Path, path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(dump.read_text())
    db.close()


@pytest.mark.parametrize("dump", sorted(DATABASES.glob("v*.sql")), ids=lambda dump: dump.stem)
async def test_every_older_version_is_brought_forward(tmp_path: Path, dump: Path) -> None:
    """From dumps of real files of that version; opened twice; nothing in it is lost, and it works."""
    path = tmp_path / "outbox.db"
    restore(dump, path)
    for life in range(2):
        async with open_outbox(path) as outbox:
            assert await outbox.store.recover() == (1 if life == 0 else 0)
            assert set(outbox.states()) == {
                "delivered",
                "was-sending",
                "waits",
                "dead",
                "folded",
                "unmapped",
                "unreadable",
            }
    async with open_outbox(tmp_path / "fresh.db"):
        pass
    assert shape(path) == shape(tmp_path / "fresh.db")
    async with open_outbox(path) as outbox:
        assert set(await outbox.claim()) >= {"was-sending", "waits"}
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


def test_the_schema_of_today_has_a_dump() -> None:
    """Whoever changes the schema gives it a number, a step, and a dump of the version before."""
    dump = DATABASES / f"v{SCHEMA_VERSION}.sql"
    assert dump.exists()
    of_dump = [bare(s) for s in statements(dump.read_text()) if bare(s).startswith("CREATE")]
    of_schema = [bare(s) for s in statements(schema_text())]
    assert sorted(s for s in of_dump if "sqlite_sequence" not in s) == sorted(of_schema)


def test_steps_are_applied_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    open_database(path).close()
    steps = {
        SCHEMA_VERSION + 1: "CREATE TABLE extra (x INTEGER);\nINSERT INTO extra VALUES (1);",
        SCHEMA_VERSION + 2: "UPDATE extra SET x = x + 10;",
    }
    for _ in range(2):
        opened = open_database(path, version=SCHEMA_VERSION + 2, migrations=steps)
        assert opened.db.execute("SELECT x FROM extra").fetchall() == [(11,)]
        opened.close()


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    open_database(path).close()
    steps = {SCHEMA_VERSION + 1: "CREATE TABLE extra (x INTEGER);\nINSERT INTO nowhere VALUES (1);"}
    with pytest.raises(StoreError):
        open_database(path, version=SCHEMA_VERSION + 1, migrations=steps)
    opened = open_database(path)
    assert opened.db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert not opened.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchall()
    opened.close()


def test_a_script_that_ends_within_a_statement_is_an_error() -> None:
    with pytest.raises(ValueError, match="within a statement"):
        list(statements("CREATE TABLE a (x);\nCREATE TABLE b (x"))
    assert len(list(statements("-- a comment at the end is none\nCREATE TABLE a (x);\n-- the end\n"))) == 1


async def test_the_header_says_whose_file_it_is(tmp_path: Path) -> None:
    """Also in the bytes, right after the first start, while the journal is not carried over."""
    async with open_outbox(tmp_path / "outbox.db"):
        header = (tmp_path / "outbox.db").read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == SCHEMA_VERSION


async def test_it_is_read_from_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    """A copy on a read-only medium: no journal can be made there."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shutil.copy(tmp_path / "outbox.db", shelf / "outbox.db")
    shelf.chmod(0o500)
    try:
        with Ledger(shelf / "outbox.db") as ledger:
            assert ledger.overview().events["pending"] == 1
    finally:
        shelf.chmod(0o700)
