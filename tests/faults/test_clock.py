"""The real gateway on a machine whose clock is wrong (libfaketime): every alarm is kept, and told in right time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from gateway.model import UNBOUNDED_MS
from gateway.simulator.cloud import Cloud
from tests.fakes.frigate import encode, review
from tests.fakes.mosquitto import Mosquitto
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises
from tests.system.gateway_process import GatewayProcess

pytestmark = [pytest.mark.needs("mosquitto", "faketime"), pytest.mark.timeout(120)]

DAY: Final = 86_400
YEAR: Final = 365 * DAY
CLOSE_SECONDS: Final = 40.0  # two clocks agree within 30 s, and a test takes its time


class WrongClock:
    """What the gateway's machine believes, to be changed while it runs. The rest of the test lives in real time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.seconds = 0

    def set(self, seconds: int) -> None:
        self.seconds = seconds
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)

    def to_1970(self) -> None:
        self.set(-int(datetime.now(UTC).timestamp()) + 60)

    @property
    def environment(self) -> dict[str, str]:
        program = shutil.which("faketime")
        assert program is not None
        [library] = list(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"))[:1]
        return {
            "LD_PRELOAD": os.fspath(library),
            "FAKETIME_TIMESTAMP_FILE": os.fspath(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a wrong clock says nothing about how fast time passes
        }


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Premises, WrongClock]]:
    (tmp_path / "broker").mkdir()
    folder = tmp_path / "gateway"
    folder.mkdir()
    clock = WrongClock(folder)
    clock.set(0)
    async with Mosquitto(tmp_path / "broker") as broker:
        cloud = Cloud()
        await cloud.start()
        gateway = GatewayProcess(folder, folder / "gateway.toml", {"NO_COLOR": "1", **clock.environment})
        premises = Premises(folder, broker, cloud, gateway)
        premises.configure()
        try:
            yield premises, clock
        finally:
            await gateway.end()
            await cloud.stop()


async def alarm(premises: Premises, camera: str = "front_door") -> None:
    """An alarm of a recorder whose clock is right."""
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review(camera)))


def told(premises: Premises) -> list[datetime]:
    """The times that the cloud was told."""
    return [datetime.fromisoformat(json.loads(event.body)["event_time"]) for event in premises.cloud.events]


def is_now(moment: datetime) -> bool:
    return abs((datetime.now(UTC) - moment).total_seconds()) < CLOSE_SECONDS


async def test_in_1970_at_boot_with_the_cloud_there(place: tuple[Premises, WrongClock]) -> None:
    premises, clock = place
    clock.to_1970()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await alarm(premises)
    await premises.cloud.wait_for(events=1, timeout=60)
    [moment] = told(premises)
    assert is_now(moment)
    status = await premises.gateway.status()
    assert status["clock"]["trust"] == "wrong"
    assert any("clock" in reason for reason in status["reasons"])
    assert status["oldest_undelivered_seconds"] is None
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_in_1970_at_boot_alarms_wait_for_the_time_and_are_dated(place: tuple[Premises, WrongClock]) -> None:
    """Nobody can be asked; then the time service sets the clock, and later the cloud is back."""
    premises, clock = place
    clock.to_1970()
    await premises.cloud.go_dark()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await alarm(premises)
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event"), timeout=20)
    [(received_at, state)] = premises.gateway.rows("SELECT received_at, state FROM event")
    assert received_at < 1_000_000_000 and state == "pending"
    assert premises.gateway.rows("SELECT attempts FROM event") == [(0,)]
    await until(lambda: any("the time is unknown" in state for state in premises.gateway.states), timeout=15)
    clock.set(0)
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE received_at > 1e12"), timeout=30)
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=1, timeout=60)
    [moment] = told(premises)
    assert is_now(moment)
    assert "times_corrected" in premises.gateway.log
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_killed_in_1970_and_right_afterwards(place: tuple[Premises, WrongClock]) -> None:
    premises, clock = place
    clock.to_1970()
    await premises.cloud.go_dark()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await alarm(premises)
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event"), timeout=20)
    await premises.gateway.kill()
    clock.set(0)
    await premises.cloud.come_back()
    await premises.gateway.start()
    await premises.cloud.wait_for(events=1, timeout=60)
    [moment] = told(premises)
    assert is_now(moment)
    assert await premises.gateway.stop() == 0


@pytest.mark.parametrize("jump", [YEAR, -3600, -YEAR], ids=["a year ahead", "back an hour", "back a year"])
async def test_the_clock_jumps_while_it_runs(place: tuple[Premises, WrongClock], jump: int) -> None:
    premises, clock = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await alarm(premises)
    await premises.cloud.wait_for(events=1, timeout=30)
    clock.set(jump)
    await alarm(premises, "driveway")
    await premises.cloud.wait_for(events=2, timeout=30)
    clock.set(0)
    await alarm(premises, "warehouse")
    await premises.cloud.wait_for(events=3, timeout=30)
    assert all(is_now(moment) for moment in told(premises))
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_jump_during_an_outage_delays_nothing(place: tuple[Premises, WrongClock]) -> None:
    """Back-off counts in ticks: a clock that was set back by a year must not postpone the next attempt by a year."""
    premises, clock = place
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.cloud.go_dark()
    await alarm(premises)
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE attempts >= 2"), timeout=30)
    clock.set(-YEAR)
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=1, timeout=45)
    assert await premises.gateway.stop() == 0


async def test_weeks_without_time_service(place: tuple[Premises, WrongClock]) -> None:
    """Three minutes behind from the start: the alarm goes out, signed and dated by the cloud's time."""
    premises, clock = place
    clock.set(-180)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await until(lambda: premises.gateway.rows("SELECT 1"), timeout=10)
    await alarm(premises)
    await premises.cloud.wait_for(events=1, timeout=30)
    assert is_now(told(premises)[0])
    status = await premises.gateway.status()
    assert status["clock"]["trust"] == "wrong"
    assert any("behind" in reason for reason in status["reasons"])
    assert await premises.gateway.stop() == 0


@pytest.mark.parametrize("boot", ["in 1970", "hours behind"])
async def test_what_waited_in_the_broker_is_as_old_as_it_may_be(place: tuple[Premises, WrongClock], boot: str) -> None:
    """A bell without a clock rings while nobody runs: as little as its receipt says, as much it may be hours ago."""
    premises, clock = place
    premises.gateway.environment["CHEKT_GATEWAY_DELIVERY__STALE_AFTER"] = "1h"
    premises.configure(extra='\n[sources.bell]\nfamily = "generic"\n')
    hours = 5
    clock.set(-hours * 3600)  # the past, when the bell was heard last
    await premises.cloud.go_dark()  # which would contradict it
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as bell:
        bell.publish("site/front_door/alarm", "OFF")
        await bell.confirmed()
        await until(lambda: premises.gateway.rows("SELECT 1 FROM camera_seen WHERE name = 'bell'"), timeout=20)
        assert await premises.gateway.stop() == 0
        bell.publish("site/front_door/alarm", "ON")
        await bell.confirmed()
    if boot == "in 1970":
        clock.to_1970()
    else:
        await premises.cloud.come_back()
    await premises.gateway.start()
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event"), timeout=20)
    if boot == "in 1970":
        assert premises.gateway.rows("SELECT age_unknown_ms FROM event") == [(UNBOUNDED_MS,)]
        clock.set(0)
        await premises.cloud.come_back()
    await premises.cloud.wait_for(events=1, timeout=90)
    [told_once] = premises.cloud.events
    assert json.loads(told_once.body)["should_signal_to_monitoring_center"] is False
    [(at_most,)] = premises.gateway.rows("SELECT age_unknown_ms FROM event")
    assert abs(at_most / 1000 - hours * 3600) < CLOSE_SECONDS
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()
