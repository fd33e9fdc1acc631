"""The real gateway on a disk that fails, is slow, is full, is read-only, or has damaged the store: nothing is lost."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.faults.forgetful_disk import Faults, build, witnessed
from tests.faults.small_disk import SmallDisk, small_disk
from tests.system.conftest import Premises

pytestmark = [pytest.mark.needs("mosquitto", "cc"), pytest.mark.timeout(180)]

ALARMS = 10
ROWS_OF_A_PAGE = 16  # at most
# Of the journal: a place of the disk may hold the end of one and the beginning of another, and the sum of both goes
# into that of the next.
PAGES_OF_A_PLACE = 3


@pytest.fixture
async def place(premises: Premises, tmp_path: Path) -> AsyncIterator[tuple[Premises, Faults]]:
    premises.configure(defaults='snapshots = 0\nhold_off = "off"')
    faults = Faults(tmp_path / "faults")
    premises.gateway.environment |= witnessed(build(tmp_path), premises.folder, faults=faults.path)
    yield premises, faults
    faults.set()


async def publish(premises: Premises, count: int = ALARMS) -> None:
    async with Publisher(premises.broker.port) as publisher:
        for _ in range(count):
            publisher.publish("frigate/reviews", encode(review("front_door")))
        await publisher.confirmed()


async def assert_all_arrive_once(premises: Premises, count: int) -> None:
    await premises.cloud.wait_for(events=count, timeout=60)
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
    assert premises.gateway.log.count("gateway_started") == 1, "it went on without a restart"
    assert_conserved(premises, count)


def assert_conserved(premises: Premises, count: int) -> None:
    """Every message is counted once, and every alarm is one row that was delivered."""
    premises.gateway.check_conservation()
    assert premises.gateway.rows("SELECT state, count(*) FROM event GROUP BY state") == [("delivered", count)]
    counters = premises.gateway.counters()
    assert counters["received"] == count + counters.get("duplicate", 0)


@contextmanager
def store_on_a_small_disk(premises: Premises, size: int) -> Iterator[SmallDisk]:
    with small_disk(premises.folder / "small", size) as disk:
        premises.configure(defaults='snapshots = 0\nhold_off = "off"')
        text = premises.gateway.config.read_text()
        premises.gateway.config.write_text(text.replace(f"{premises.folder}/outbox.db", f"{disk.root}/outbox.db"))
        premises.gateway.outbox_folder = disk.root
        try:
            yield disk
        finally:
            premises.gateway.outbox_folder = None


FAULTS: dict[str, dict[str, Any]] = {
    "flushes fail": {"sync_errno": errno.EIO},
    "writes fail": {"write_errno": errno.EIO},
    "the file system has become read-only": {"write_errno": errno.EROFS},
    "the quota is found used up by a flush": {"sync_errno": errno.EDQUOT},
    "every write is over the quota": {"write_errno": errno.EDQUOT},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_disk_that_fails_for_a_while(place: tuple[Premises, Faults], fault: str) -> None:
    """Of these, no kernel makes a disk read-only at a command while files on it are open for writing."""
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await publish(premises)
    await premises.cloud.wait_for(events=ALARMS, timeout=30)
    await until(premises.gateway.settled, timeout=30)
    faults.set(**FAULTS[fault])
    await publish(premises)
    await until(lambda: "store_refused" in premises.gateway.log, timeout=30)
    await until(lambda: premises.gateway.log.count("mqtt_dropped") >= 1, timeout=30)
    assert len(premises.cloud.events) == ALARMS, "nothing is sent of what is not safe"
    faults.set()
    await assert_all_arrive_once(premises, 2 * ALARMS)
    assert "store_accepts_again" in premises.gateway.log
    assert "store_reopened" in premises.gateway.log


async def test_a_single_flush_that_fails_is_not_believed_the_second_time(place: tuple[Premises, Faults]) -> None:
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    faults.set(sync_errno=errno.EIO)
    await publish(premises, 1)
    await until(lambda: "store_refused" in premises.gateway.log, timeout=30)
    faults.set()
    await assert_all_arrive_once(premises, 1)


async def test_a_disk_that_takes_two_seconds_for_every_flush(place: tuple[Premises, Faults]) -> None:
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    faults.set(sync_ms=2_000)
    await publish(premises)
    await premises.cloud.wait_for(events=ALARMS, timeout=90)
    faults.set()
    await assert_all_arrive_once(premises, ALARMS)
    assert "step_stuck" not in premises.gateway.log


@pytest.mark.small_disk
async def test_a_full_disk_takes_alarms_from_the_reserve_and_goes_on_when_it_has_room_again(premises: Premises) -> None:
    with store_on_a_small_disk(premises, 24 << 20) as disk:
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await premises.cloud.go_dark()
        disk.fill()
        await publish(premises, 1_500)
        await until(lambda: "store_refused" in premises.gateway.log, timeout=60)
        assert "reserve_released" in premises.gateway.log
        disk.free()
        await until(lambda: "store_accepts_again" in premises.gateway.log, timeout=60)
        await premises.cloud.come_back()
        await premises.cloud.wait_for(events=1_500, timeout=100)
        await assert_all_arrive_once(premises, 1_500)


async def test_a_quota_that_is_used_up_is_a_full_disk(place: tuple[Premises, Faults]) -> None:
    """What is there can be written over, nothing can grow; what the reserve gives back counts."""
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.cloud.go_dark()
    faults.set(room_errno=errno.EDQUOT, room=0)
    await publish(premises, 1_500)
    await until(lambda: "store_refused" in premises.gateway.log, timeout=60)
    assert "reserve_released" in premises.gateway.log
    await until(lambda: "mqtt_dropped" in premises.gateway.log, timeout=30)
    faults.set()
    await until(lambda: "store_accepts_again" in premises.gateway.log, timeout=60)
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=1_500, timeout=100)
    await assert_all_arrive_once(premises, 1_500)


@pytest.mark.small_disk
async def test_a_start_on_a_read_only_file_system_says_so_and_the_broker_keeps_the_alarms(premises: Premises) -> None:
    """Remounted as after an error of the file system, or by somebody who has forgotten it."""
    with store_on_a_small_disk(premises, 24 << 20) as disk:
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await publish(premises)
        await premises.cloud.wait_for(events=ALARMS, timeout=30)
        await until(premises.gateway.settled, timeout=30)
        assert await premises.gateway.stop() == 0
        disk.remount(read_only=True)
        await publish(premises)
        for _ in range(2):  # as systemd starts it again
            await premises.gateway.start(ready=False)
            assert await premises.gateway.wait() == 1
            assert "READY=1" not in premises.gateway.states
        assert premises.gateway.log.count("store_cannot_be_opened") == 2
        assert "Read-only file system" in premises.gateway.log
        assert len(premises.cloud.events) == ALARMS
        disk.remount(read_only=False)
        await premises.gateway.start()
        await premises.cloud.wait_for(events=2 * ALARMS, timeout=60)
        assert premises.cloud.duplicates == premises.cloud.repeats == 0
        await until(premises.gateway.settled, timeout=30)
        assert await premises.gateway.stop() == 0
        assert_conserved(premises, 2 * ALARMS)


async def test_a_store_that_is_damaged_while_it_runs_is_saved_by_the_next_start(premises: Premises) -> None:
    premises.configure(defaults='snapshots = 0\nhold_off = "off"')
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.cloud.go_dark()
    await publish(premises, 200)
    await until(lambda: len(premises.gateway.rows("SELECT seq FROM event")) == 200, timeout=30)
    assert await premises.gateway.stop() == 0
    roots = [page for (page,) in premises.gateway.rows("SELECT rootpage FROM sqlite_master WHERE type = 'index'")]
    with premises.gateway.outbox.open("r+b") as file:
        for page in roots:
            if page:
                file.seek((page - 1) * 4_096)
                file.write(b"\xa5" * 4_096)
    await premises.gateway.start(ready=False)
    assert await premises.gateway.wait() == 1
    assert "store_damaged" in premises.gateway.log
    await premises.gateway.start()
    assert_the_start_was_extended(premises)
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=200, timeout=60)
    assert "store_salvaged" in premises.gateway.log
    assert "no event is missing" in premises.gateway.log
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0


def assert_the_start_was_extended(premises: Premises) -> None:
    """systemd must not kill the gateway while it saves what it can, and start it again to the same work."""
    said = premises.gateway.states
    assert "STATUS=saving what can be read of a damaged outbox" in said[: said.index("READY=1")]
    assert any(state.startswith("EXTEND_TIMEOUT_USEC=") for state in said[: said.index("READY=1")])


@pytest.mark.parametrize(
    ("where", "how"),
    [("the first page", errno.EIO), ("rows", errno.EIO), ("rows", errno.EBADMSG), ("the journal", errno.EIO)],
    ids=str,
)
async def test_a_place_that_the_disk_cannot_read_any_more(place: tuple[Premises, Faults], where: str, how: int) -> None:
    """A bad sector, or a checksum that does not fit, stays: neither is it tried for ever, nor begun again for ever."""
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.cloud.go_dark()
    await publish(premises, 200)
    await until(lambda: premises.gateway.rows("SELECT count(*) FROM event") == [(200,)], timeout=30)
    if where == "the journal":
        await premises.gateway.kill()
    else:
        assert await premises.gateway.stop() == 0
    file = premises.gateway.outbox.with_name("outbox.db-wal") if where == "the journal" else premises.gateway.outbox
    page = {"the first page": 0, "the journal": 20}[where] if where != "rows" else find_leaf(premises.gateway.outbox)
    faults.set(read_errno=how, unreadable=(file.stat().st_ino, page * 4_096, (page + 1) * 4_096))
    # As systemd does: again and again, until it runs.
    for _ in range(3):
        await premises.gateway.start(ready=False)
        await until(lambda: "READY=1" in premises.gateway.states or premises.gateway.returncode is not None, timeout=60)
        if "READY=1" in premises.gateway.states:
            await premises.cloud.come_back()
            await until(lambda: premises.gateway.returncode is not None or premises.gateway.settled(), timeout=60)
        if premises.gateway.returncode is None:
            break
        assert await premises.gateway.wait() == 1
        assert "store_damaged" in premises.gateway.log
    assert premises.gateway.returncode is None
    assert premises.gateway.log.count("store_salvaged") == 1
    assert "1 pages of it cannot be read from the disk any more" in premises.gateway.log
    await publish(premises, 1)
    await until(lambda: premises.gateway.counters()["received"] > 200, timeout=30)
    await until(premises.gateway.settled, timeout=30)
    [(events,)] = premises.gateway.rows("SELECT count(*) FROM event WHERE state = 'delivered'")
    assert events >= 201 - ROWS_OF_A_PAGE * (PAGES_OF_A_PLACE if where == "the journal" else 1)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


def find_leaf(outbox: Path) -> int:
    """A page in the middle that holds rows of the event table."""
    content = outbox.read_bytes()
    pages = [content[at : at + 4_096] for at in range(0, len(content), 4_096)]
    leaves = [number for number, page in enumerate(pages) if page[0] == 0x0D and b"frigate/reviews" in page]
    return leaves[len(leaves) // 2]
