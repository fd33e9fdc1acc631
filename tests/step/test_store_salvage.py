"""A damaged outbox: set aside with every byte, what can be read goes on in a new one, and it is said."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.host.systemd import Systemd
from gateway.outbox import holes, progress, salvage
from gateway.outbox.opening import open_database
from gateway.outbox.store import Store, StoreDamaged, StoreError, StoreForeign
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until
from tests.step.outbox_kit import SNAPSHOT, Outbox, in_the_writer, open_outbox
from tests.step.test_store_intake import assert_conserved

PAGE = 4_096
ROWS = 300


async def fill(path: Path, rows: int = ROWS) -> None:
    """Alarms with pictures, some of them delivered; closed, so that everything is in the file itself."""
    async with open_outbox(path) as outbox:
        for first in range(0, rows, 50):
            events = [
                outbox.alarm(f"e{n}", f"c{n % 7}", media=(SNAPSHOT,), details={"text": "x" * (n % 5 * 1_500)})
                for n in range(first, min(first + 50, rows))
            ]
            await outbox.add(*events, memory={f"k{first}": "{}"})
        for _ in range(3):
            await outbox.settle_all()
        await outbox.claim()


def damage(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def make_unreadable(monkeypatch: pytest.MonkeyPatch, file: Path, *numbers: int, how: int = errno.EIO) -> None:
    """What read(2) says of these pages of this file from now on, whatever its name."""
    inode, real = file.stat().st_ino, os.pread

    def pread(handle: int, length: int, offset: int) -> bytes:
        hit = any(offset < (page + 1) * PAGE and page * PAGE < offset + length for page in numbers)
        if hit and os.fstat(handle).st_ino == inode:
            raise OSError(how, os.strerror(how))
        return real(handle, length, offset)

    monkeypatch.setattr("gateway.outbox.holes.os.pread", pread)


async def assert_it_goes_on(path: Path, *, least: int, rows: int = ROWS) -> str:
    """Opens it; what was saved is believable, in order, and works. Returns what the store says of it."""
    async with open_outbox(path) as outbox:
        said = outbox.store.salvaged
        assert said is not None
        await outbox.store.recover()
        states = outbox.states()
        assert len(states) >= least, said
        assert outbox.look("PRAGMA integrity_check") == ["ok"]
        assert outbox.look("PRAGMA foreign_key_check") == []
        counters = await outbox.store.counters()
        assert_conserved(counters)
        for state in set(states.values()):
            assert counters[f"state_{state}"] == list(states.values()).count(state)
        assert f"{len(states)} events" in said
        await outbox.add(outbox.alarm("afterwards"))
        assert outbox.look("SELECT seq FROM event WHERE event_id = 'afterwards'")[0] > rows, "numbers are never reused"
        while await outbox.settle_all():
            pass
        await outbox.again()
        assert outbox.store.salvaged is None, "a salvaged outbox is a good one"
        assert set(outbox.states().values()) == {"delivered"}
    return said


DAMAGES = {
    "header": (0, 100, ROWS),
    "first page": (0, PAGE, ROWS),
    "all signposts": (0, 5 * PAGE, ROWS),
    "our name in the header": (68, 4, ROWS),
    "a page of rows": (60 * PAGE, PAGE, ROWS - 12),
    "many pages": (40 * PAGE, 20 * PAGE, ROWS // 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("seed", range(2))
async def test_what_can_be_read_of_a_damaged_file_goes_on(tmp_path: Path, name: str, seed: int) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    offset, size, least = DAMAGES[name]
    damage(path, offset, random.Random(seed).randbytes(size))
    before = path.read_bytes()
    (tmp_path / "outbox.db.lock").write_text("1\ndamaged\n")  # what the run that met the damage has left
    with structlog.testing.capture_logs() as logs:
        said = await assert_it_goes_on(path, least=least)
    [aside] = tmp_path.glob("outbox.db.damaged-*")
    assert aside.name in said
    assert aside.read_bytes() == before
    assert stat.S_IMODE(aside.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["event"] for line in logs] == ["store_salvaging", "store_salvaged"]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([aside.name, "outbox.db", "outbox.db.lock"]), (
        "nothing else is left"
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 50, 3 * PAGE, 30 * PAGE + 7])
async def test_a_file_that_was_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    os.truncate(path, size)
    said = await assert_it_goes_on(path, least=0, rows=0)
    assert "damaged" in said


@pytest.mark.parametrize("how", [errno.EIO, errno.EBADMSG])
async def test_what_the_disk_cannot_read_any_more_is_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: int
) -> None:
    """Its first page is met at the start, another one only when the whole file is read."""
    path = tmp_path / "outbox.db"
    await fill(path)
    make_unreadable(monkeypatch, path, 0, 60, how=how)
    said = await assert_it_goes_on(path, least=ROWS - 12)
    assert "2 pages of it cannot be read from the disk any more" in said


@pytest.mark.slow
async def test_a_file_that_cannot_be_read_at_all_is_given_up_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dying disk tries for seconds before each error. Alarms are taken again, and the old file is kept."""
    path = tmp_path / "outbox.db"
    await fill(path)
    before = path.read_bytes()
    make_unreadable(monkeypatch, path, *range(len(before) // PAGE))
    monkeypatch.setattr(holes, "SINGLY", 10)
    async with open_outbox(path) as outbox:
        said = str(outbox.store.salvaged)
        assert "0 events and 0 pictures were saved into a new one, nobody can tell how many are missing" in said
        assert f"{len(before) // PAGE} pages of it cannot be read" in said
        await outbox.add(outbox.alarm("afterwards"))
    [aside] = tmp_path.glob("outbox.db.damaged-*")
    assert aside.read_bytes() == before


async def test_a_file_that_nobody_has_seen_before_is_not_set_aside_for_being_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be anybody's: said in plain words, at each start."""
    path = tmp_path / "outbox.db"
    await fill(path)
    (tmp_path / "outbox.db.lock").unlink()
    make_unreadable(monkeypatch, path, 0)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be read"):
            await Outbox(path).open()
        (tmp_path / "outbox.db.lock").unlink()
    assert not list(tmp_path.glob("*damaged*"))


async def test_whoever_waits_for_the_start_hears_that_saving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd would end the gateway after TimeoutStartSec=, and start it again to the same work, for ever."""
    path = tmp_path / "outbox.db"
    await fill(path)
    damage(path, 60 * PAGE, b"\xa5" * PAGE)
    (tmp_path / "outbox.db.lock").write_text("1\ndamaged\n")
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(tmp_path / "notify"))
        listener.setblocking(False)
        heard: list[str] = []
        systemd = Systemd({"NOTIFY_SOCKET": os.fspath(tmp_path / "notify")})

        def tell(doing: str) -> None:
            systemd.at_work(doing)
            heard.append(listener.recv(4096).decode())

        store = await Store.open(path, make_clock=FakeClock, tell=tell)
        told = len(heard)
        await store.memory()
        await store.close()
    assert len(heard) == told, "nothing is told once it is open"
    saving = "EXTEND_TIMEOUT_USEC=120000000\nSTATUS=saving what can be read of a damaged outbox"
    looking = "EXTEND_TIMEOUT_USEC=120000000\nSTATUS=looking at the whole outbox, in which damage was met"
    assert heard.index(looking) < heard.index(saving)
    assert heard.count(saving) > ROWS


async def test_an_ordinary_start_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    told: list[str] = []
    store = await Store.open(path, make_clock=FakeClock, tell=told.append)
    await store.close()
    assert told == []


async def test_no_room_for_the_rows_is_no_reason_to_leave_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that does not fit the tables is left out; a disk that is full while it is saved is not the row's fault."""
    path = tmp_path / "outbox.db"
    await fill(path)
    damage(path, 0, bytes(PAGE))
    insert = salvage._insert

    def without_room(new: sqlite3.Connection, *rest: Any) -> None:
        new.execute("PRAGMA max_page_count = 30").fetchall()
        insert(new, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "_insert", without_room)
        with pytest.raises(StoreError, match="no room left"):
            await Outbox(path).open()
    await assert_it_goes_on(path, least=ROWS)


# The journal


async def crashed(folder: Path, target: Path, commits: int = 20) -> Path:
    """The files of a store as a killed process leaves them: everything still stands in the journal."""
    async with open_outbox(folder / "outbox.db") as outbox:
        for n in range(commits):
            await outbox.add(outbox.alarm(f"e{n}"))
        target.mkdir()
        for name in ("outbox.db", "outbox.db-wal", "outbox.db.lock"):
            shutil.copy(folder / name, target / name)
    return target / "outbox.db"


@pytest.mark.parametrize(("offset", "size"), [(0, 32), (32, 100), (32 + 30 * 4_120, 5_000), (32 + 25 * 4_120 + 17, 1)])
async def test_a_damaged_journal_is_noticed_and_its_whole_frames_are_used(
    tmp_path: Path, offset: int, size: int
) -> None:
    """SQLite would end its reading at the damage, without a word, and acknowledged alarms would be gone."""
    path = await crashed(tmp_path, tmp_path / "found")
    wal = path.with_name("outbox.db-wal")
    content = bytearray(wal.read_bytes())
    content[offset : offset + size] = bytes(each ^ 0x55 for each in content[offset : offset + size])
    wal.write_bytes(content)
    async with open_outbox(path) as outbox:
        assert outbox.store.salvaged is not None
        assert len(outbox.states()) >= 17
        assert outbox.look("PRAGMA integrity_check") == ["ok"]
        assert_conserved(await outbox.store.counters())
    [aside] = path.parent.glob("outbox.db.damaged-*-wal")
    assert aside.read_bytes() == content


async def test_a_journal_that_the_disk_cannot_read_everywhere_is_used_as_far_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await crashed(tmp_path, tmp_path / "found")
    make_unreadable(monkeypatch, path.with_name("outbox.db-wal"), 25)
    async with open_outbox(path) as outbox:
        assert "1 pages of it cannot be read from the disk any more" in str(outbox.store.salvaged)
        assert len(outbox.states()) >= 17
        assert_conserved(await outbox.store.counters())


@pytest.mark.parametrize("seed", range(8))
async def test_a_journal_that_a_crash_has_cut_short_is_no_damage(tmp_path: Path, seed: int) -> None:
    path = await crashed(tmp_path, tmp_path / "found")
    wal = path.with_name("outbox.db-wal")
    last = (wal.stat().st_size - 32) // 4_120
    os.truncate(wal, 32 + (last - 1) * 4_120 + random.Random(seed).randrange(4_120))
    async with open_outbox(path) as outbox:
        assert outbox.store.salvaged is None
        assert list(outbox.states()) == [f"e{n}" for n in range(19)]


# While it runs


async def test_damage_that_is_met_while_running_ends_it_and_the_next_start_saves(tmp_path: Path) -> None:
    """No crash loop: the damage lies where a mere opening does not see it."""
    path = tmp_path / "outbox.db"
    await fill(path)
    outbox = Outbox(path)
    await outbox.open()
    try:
        damage(path, 6 * PAGE, b"\xa5" * 30 * PAGE)
        with structlog.testing.capture_logs() as logs, pytest.raises(StoreDamaged):
            for n in range(ROWS):
                await outbox.store.media_of(n)
        await until(lambda: not outbox.store.running, what="the writing thread ends")
        assert "damaged" in str(outbox.store.refusal)
        assert [line["event"] for line in logs] == ["store_damaged"]
        with pytest.raises(StoreError, match="damaged"):
            await outbox.add(outbox.alarm("not acknowledged"))
    finally:
        await outbox.store.close()
    await assert_it_goes_on(path, least=ROWS // 3)


@pytest.mark.parametrize("later", [0.0, 11.0, 10_000.0])
async def test_a_page_that_cannot_be_read_for_long_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """Once is a whim; again and again, over seconds and on another connection, it will not come back."""

    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_READ"
        raise error

    now = 0.0
    real = time.monotonic
    monkeypatch.setattr("gateway.outbox.writer.time.monotonic", lambda: real() + now)
    outbox = Outbox(tmp_path / "outbox.db")
    await outbox.open()
    try:
        with pytest.raises(StoreError) as first:
            await in_the_writer(outbox.store, fail)
        await outbox.add(outbox.alarm("meanwhile"))
        now = later
        with pytest.raises(StoreError) as second:
            await in_the_writer(outbox.store, fail)
        lasting = later == 11.0
        assert [type(each.value) for each in (first, second)] == [StoreError, StoreDamaged if lasting else StoreError]
        if lasting:
            await until(lambda: not outbox.store.running, what="the writing thread ends")
            assert "damaged" in (tmp_path / "outbox.db.lock").read_text()
        else:
            await outbox.add(outbox.alarm("afterwards"))
    finally:
        await outbox.store.close()


async def test_a_suspicion_that_is_not_confirmed_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    (tmp_path / "outbox.db.lock").write_text("1\ndamaged\n")
    for _ in range(2):
        async with open_outbox(path) as outbox:
            assert outbox.store.salvaged is None
            assert len(outbox.states()) == ROWS
    assert "damaged" not in (tmp_path / "outbox.db.lock").read_text()


@pytest.mark.parametrize("step", ["_make_image", "_carry_over", "_forget_the_oldest", "name_aside"])
async def test_a_crash_while_saving_is_followed_by_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    damage(path, 0, bytes(PAGE))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(salvage, step, crash)
        with pytest.raises(KeyboardInterrupt):
            open_database(path)
    await assert_it_goes_on(path, least=ROWS)
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == 1


async def test_a_note_that_could_not_be_taken_away_does_not_bring_the_old_rows_back(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path, 10)
    damage(path, 0, bytes(PAGE))
    async with open_outbox(path) as outbox:
        await outbox.add(outbox.alarm("stored since"))
    [aside] = tmp_path.glob("outbox.db.damaged-*")
    (tmp_path / "outbox.db.lock").write_text(f"1\nsalvaging {aside.name}\n")
    async with open_outbox(path) as outbox:
        assert "stored since" in outbox.states()


async def test_damaged_files_do_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path, 10)
    for _ in range(5):
        damage(path, 0, bytes(PAGE))
        async with open_outbox(path) as outbox:
            assert len(outbox.states()) == 10
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == salvage.KEPT_ASIDE


async def test_the_database_of_another_program_in_the_place_of_ours_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path, 10)
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreForeign, match="another program"):
        await Outbox(path).open()
    assert path.read_bytes() == before


async def test_no_room_for_saving_is_an_error_and_not_the_end_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outbox.db"
    await fill(path)
    damage(path, 0, bytes(PAGE))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "_make_image", full)
        for _ in range(3):
            with pytest.raises(StoreError, match="No space left"):
                await Outbox(path).open()
    await assert_it_goes_on(path, least=ROWS)
