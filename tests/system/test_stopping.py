"""How the process begins and ends, and what systemd hears of it."""

from __future__ import annotations

import signal

import pytest

from gateway.simulator.faults import Delay
from gateway.simulator.site import Site
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_with_a_flood_coming_and_pictures_under_way_loses_nothing(
    premises: Premises, how: signal.Signals
) -> None:
    """Exit 0; what was acknowledged is on disk, what was not comes again; pictures go on after the next start."""
    site = Site(cameras=("front_door", "driveway", "warehouse"), qos=1)
    await site.start(premises.broker.port)
    try:
        premises.configure(defaults='snapshots = 1\nhold_off = "off"', source=f'url = "{site.url}"')
        premises.cloud.always("put", Delay(0.5))
        premises.cloud.always("event", Delay(0.05))
        await premises.gateway.start()
        await premises.gateway.subscribed()
        alarms = 0
        async with Publisher(premises.broker.port) as publisher:
            for _ in range(3):
                for camera in site.cameras:
                    site.raise_alarm(camera)
                    alarms += 1
                for _ in range(60):
                    publisher.publish("frigate/reviews", encode(review("driveway")))
                    alarms += 1
            await until(lambda: any(record.kind == "put" for record in premises.cloud.requests), timeout=30)
            premises.gateway.signal(how)
            assert await premises.gateway.wait() == 0
            await publisher.confirmed()
        assert "STOPPING=1" in premises.gateway.states
        assert "step_cancelled" not in premises.gateway.log
        assert not premises.gateway.rows("SELECT 1 FROM event WHERE state = 'sending'")
        premises.gateway.check_conservation()
        premises.cloud.clear()
        await premises.gateway.start()
        await premises.cloud.wait_for(events=alarms, timeout=60)
        await until(premises.gateway.settled, timeout=30)
        await until(lambda: len(premises.cloud.done) >= 9, timeout=60)
        assert premises.cloud.duplicates == premises.cloud.repeats == 0
        assert await premises.gateway.stop() == 0
        premises.gateway.check_conservation()
    finally:
        await site.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_while_it_starts_ends_it_without_an_error(premises: Premises, how: signal.Signals) -> None:
    await premises.gateway.start(ready=False)
    await until(lambda: premises.gateway.outbox.exists() or premises.gateway.returncode is not None, timeout=30)
    premises.gateway.signal(how)
    assert await premises.gateway.wait() in (0, -signal.SIGTERM, 130)
    assert "Traceback" not in premises.gateway.log
    assert '"level": "error"' not in premises.gateway.log
    await premises.gateway.start()
    assert await premises.gateway.stop() == 0


async def test_without_cloud_and_broker_it_is_ready_and_feeds_the_watchdog(premises: Premises) -> None:
    """Neither is a reason for systemd to kill it; the status line says what is missing."""
    premises.gateway.environment["WATCHDOG_USEC"] = "600000"
    await premises.cloud.go_dark()
    await premises.broker.stop()
    await premises.gateway.start()
    await until(lambda: premises.gateway.states.count("WATCHDOG=1") >= 10, timeout=30)
    assert any(state.startswith("STATUS=broker away") for state in premises.gateway.states)
    await premises.broker.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE attempts > 0"), timeout=30)
    fed = premises.gateway.states.count("WATCHDOG=1")
    await until(lambda: premises.gateway.states.count("WATCHDOG=1") >= fed + 10, timeout=30)
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=1, timeout=60)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()
