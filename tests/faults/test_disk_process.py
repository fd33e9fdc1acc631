"""The real gateway on a disk that fails, is slow, is full, or has damaged the store: nothing is lost, no restart."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.faults.forgetful_disk import Faults, build, witnessed
from tests.faults.small_disk import small_disk
from tests.system.conftest import Premises

pytestmark = [pytest.mark.needs("mosquitto", "cc"), pytest.mark.timeout(180)]

ALARMS = 10


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


@pytest.mark.parametrize(
    "fault", [{"sync_errno": errno.EIO}, {"write_errno": errno.EIO}, {"write_errno": errno.EROFS}], ids=str
)
async def test_a_disk_that_fails_for_a_while(place: tuple[Premises, Faults], fault: dict[str, int]) -> None:
    premises, faults = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await publish(premises)
    await premises.cloud.wait_for(events=ALARMS, timeout=30)
    await until(premises.gateway.settled, timeout=30)
    faults.set(**fault)
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


async def test_a_full_disk_takes_alarms_from_the_reserve_and_goes_on_when_it_has_room_again(
    premises: Premises, tmp_path: Path
) -> None:
    try:
        with small_disk(premises.folder / "small", 24 << 20) as disk:
            premises.configure(defaults='snapshots = 0\nhold_off = "off"')
            text = premises.gateway.config.read_text()
            premises.gateway.config.write_text(text.replace(f"{premises.folder}/outbox.db", f"{disk.root}/outbox.db"))
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
            assert premises.cloud.duplicates == premises.cloud.repeats == 0
            assert await premises.gateway.stop() == 0
            assert premises.gateway.log.count("gateway_started") == 1
    except PermissionError:
        pytest.skip("no file system may be mounted here (needs root)")


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
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=200, timeout=60)
    assert "store_salvaged" in premises.gateway.log
    assert "no event is missing" in premises.gateway.log
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
