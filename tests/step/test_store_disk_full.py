"""A disk that is really full: alarms live on the reserve, then nothing is acknowledged, and all goes on by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing

from gateway.outbox.reserve import SUFFIX, Reserve
from gateway.outbox.store import IntakeGroup, Store, StoreError
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until
from tests.faults.small_disk import SmallDisk, small_disk
from tests.step.outbox_kit import Outbox, alarm, compose
from tests.step.test_store_intake import assert_conserved

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 16 * MIB) as disk:
        yield disk


async def open_with(disk: SmallDisk, reserve: int) -> Outbox:
    outbox = Outbox(disk.root / "outbox.db")
    outbox.store = await Store.open(
        outbox.path, make_clock=lambda _: FakeClock(), compose=compose, reserve_bytes=reserve
    )
    return outbox


async def add(outbox: Outbox, name: str) -> None:
    events = (alarm(name, outbox.clock, details={"text": "x" * 30_000}),)
    await outbox.store.add(IntakeGroup(events=events, counts={"received": 1}))


@pytest.mark.small_disk
async def test_alarms_are_stored_on_a_full_disk_while_the_reserve_lasts(disk: SmallDisk) -> None:
    outbox = await open_with(disk, 2 * MIB)
    stored = 0
    assert not outbox.store.reserve_missing
    disk.fill()
    with structlog.testing.capture_logs() as logs, pytest.raises(StoreError, match="no room left"):
        for stored in range(1_000):
            await add(outbox, f"e{stored}")
    assert stored > 20, "each takes its 30 kB twice: in the journal and in the file"
    assert [line["event"] for line in logs] == ["reserve_released"]
    assert outbox.store.reserve_missing
    assert outbox.store.refusal is not None
    await outbox.store.hold_reserve()
    assert outbox.store.reserve_missing, "there is no room for it"

    disk.free()
    await until(lambda: outbox.store.refusal is None, what="it goes on by itself")
    await add(outbox, "after")
    with structlog.testing.capture_logs() as logs:
        await outbox.store.hold_reserve()
    assert [line["event"] for line in logs] == ["reserve_held"]
    assert not outbox.store.reserve_missing
    assert len(outbox.states()) == stored + 1
    assert_conserved(await outbox.store.counters())
    await outbox.again()
    assert outbox.look("PRAGMA integrity_check") == ["ok"]
    await outbox.store.close()


@pytest.mark.small_disk
async def test_a_start_on_a_full_disk_uses_the_reserve(disk: SmallDisk) -> None:
    outbox = await open_with(disk, 2 * MIB)
    await add(outbox, "a")
    assert await outbox.claim() == ["a"]
    await outbox.store.close()
    disk.fill()
    outbox = await open_with(disk, 2 * MIB)
    assert await outbox.store.recover() == 1
    await add(outbox, "b")
    await outbox.store.close()


@pytest.mark.small_disk
async def test_a_file_system_that_is_read_only_is_a_sentence_and_works_when_it_is_writable_again(
    disk: SmallDisk,
) -> None:
    outbox = await open_with(disk, 0)
    await add(outbox, "a")
    await outbox.store.close()
    disk.remount(read_only=True)
    with pytest.raises(StoreError, match="Read-only file system"):
        await open_with(disk, 0)
    disk.remount(read_only=False)
    outbox = await open_with(disk, 0)
    assert set(outbox.states()) == {"a"}
    await outbox.store.close()


def test_the_reserve_is_really_taken_and_follows_its_setting(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.db"
    file = tmp_path / f"outbox.db{SUFFIX}"
    reserve = Reserve(outbox, 0)
    for size in (3 * MIB, 5 * MIB, MIB):
        reserve = Reserve(outbox, size)
        assert reserve.missing
        assert reserve.hold()
        assert reserve.hold()
        assert not reserve.missing
        assert file.stat().st_size == size <= file.stat().st_blocks * 512
        assert file.stat().st_mode & 0o777 == 0o600
    assert reserve.release()
    assert not Reserve(outbox, 0).hold()
    assert not Reserve(outbox, 0).missing
    assert not file.exists(), "no reserve is wanted any more"


def test_the_reserve_does_not_take_the_last_space(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    reserve = Reserve(tmp_path / "outbox.db", space.f_bavail * space.f_frsize * 2 // 3)
    assert not reserve.hold()
    assert reserve.missing
    assert list(tmp_path.iterdir()) == []
