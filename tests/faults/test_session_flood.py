"""More than anybody should send: the real gateway takes it in bounded memory, and no alarm among it is lost."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import pytest

from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.fakes.websocket_bridge import WebsocketBridge
from tests.system.conftest import Premises

MEBI = 1 << 20


def peak_bytes(premises: Premises) -> int:
    """The most that the process ever had in memory: `VmHWM`, proc(5)."""
    assert premises.gateway.process is not None
    status = Path(f"/proc/{premises.gateway.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def first_alarm(premises: Premises) -> int:
    """One ordinary alarm, so that everything is loaded; the memory that it takes until then."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as device:
        device.publish("frigate/reviews", encode(review("front_door", objects=("first",))))
        await premises.cloud.wait_for(events=1)
    return peak_bytes(premises)


@pytest.mark.timeout(400)
async def test_100000_messages_that_waited_in_the_broker_all_arrive_in_bounded_memory(premises: Premises) -> None:
    """Debian 12's Mosquitto sends them all at once, whatever window it was told."""
    premises.gateway.environment.pop("PYTHONASYNCIODEBUG")
    usual = await first_alarm(premises)
    assert await premises.gateway.stop() == 0
    total, every = 100_000, 1_000
    noise = encode(review("driveway", severity="detection"))
    async with Publisher(premises.broker.port, inflight=2_000) as device:
        for number in range(total):
            alarm = number % every == every - 1
            device.publish(
                "frigate/reviews", encode(review("driveway", objects=(f"kind{number}",))) if alarm else noise
            )
            if number % 20_000 == 0:
                await device.confirmed(120)
        await device.confirmed(120)
    began = time.monotonic()
    await premises.gateway.start()
    await until(lambda: premises.gateway.counters().get("received", 0) >= total + 1, timeout=200, what="all of them")
    took = time.monotonic() - began
    await premises.cloud.wait_for(events=1 + total // every, timeout=60)
    peak = peak_bytes(premises)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()
    count = premises.gateway.counters()
    assert (count["received"], count["stored"], count.get("duplicate", 0)) == (total + 1, 1 + total // every, 0)
    assert peak < usual + 40 * MEBI, f"{peak / MEBI:.0f} MiB instead of {usual / MEBI:.0f}"
    assert took < 120, f"{took:.0f} s"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("transport", ["mqtt", "ws"])
async def test_a_message_of_200_mb_is_kept_in_part_and_the_alarm_behind_it_arrives(
    premises: Premises, transport: str
) -> None:
    """It must not end the process: it would come again, and end it again, for ever. In one frame, where there are."""
    async with WebsocketBridge(premises.broker.port) as bridge:
        if transport == "ws":
            premises.configure(broker_url=bridge.url)
        await _message_of_200_mb(premises)
        assert (bridge.largest > 200_000_000) is (transport == "ws")


async def _message_of_200_mb(premises: Premises) -> None:
    usual = await first_alarm(premises)
    payload = bytes(200_000_000)
    async with Publisher(premises.broker.port) as device:
        device.publish("frigate/reviews", payload)
        await device.confirmed(60)
        device.publish("frigate/reviews", encode(review("driveway")))
        await premises.cloud.wait_for(events=2, timeout=60)
    peak = peak_bytes(premises)
    rows = premises.gateway.rows("SELECT raw_bytes, raw_sha256, length(raw) FROM event WHERE state = 'unreadable'")
    assert rows == [(len(payload), hashlib.sha256(payload).hexdigest(), 64 << 10)]
    assert peak < usual + 20 * MEBI, f"{peak / MEBI:.0f} MiB instead of {usual / MEBI:.0f}"
    assert await premises.gateway.stop() == 0
    await premises.gateway.start()
    await premises.gateway.subscribed()
    assert premises.gateway.rows("SELECT count(*) FROM event WHERE state = 'unreadable'") == [(1,)]
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


@pytest.mark.timeout(240)
async def test_a_storm_of_retained_values_raises_nothing_and_hides_nothing(premises: Premises) -> None:
    """Reviews that somebody keeps retained are of any age; states of cameras that nobody has configured are no news."""
    async with Publisher(premises.broker.port, inflight=1_000) as device:
        device.publish("frigate/reviews", encode(review("front_door", objects=("retained",))), retain=True)
        for number in range(20_000):
            device.publish(f"frigate/camera{number}/status/detect", "offline", retain=True)
        await device.confirmed(60)
        await premises.gateway.start()
        await until(lambda: premises.gateway.counters().get("received", 0) >= 20_000, timeout=60)
        device.publish("frigate/reviews", encode(review("driveway")))
        await premises.cloud.wait_for(events=1, timeout=60)
    assert [event.camera_id for event in premises.cloud.events] == ["cam-driveway"]
    assert await premises.gateway.stop() == 0
    assert premises.gateway.rows("SELECT count(*) FROM event") == [(1,)]
    premises.gateway.check_conservation()
