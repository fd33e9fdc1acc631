"""`kill -9` in each row of the table in DESIGN.md: nothing is lost, and doubled only where the table allows it.

The place is found from outside, with real parts: a locked database holds up the commit, a swallowing wire the
acknowledgement, a slow cloud each of the answers. A control that acknowledges before it commits must lose, or
these tests would be blind.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.simulator.faults import Delay
from gateway.simulator.site import Site
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.fakes.wire import Wire
from tests.system.conftest import Premises


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()


async def restart_and_deliver(premises: Premises, *, events: int = 1, done: int = 0) -> None:
    await premises.gateway.start()
    await premises.cloud.wait_for(events=events, done=done, timeout=30)
    await until(lambda: premises.gateway.rows("SELECT count(*) FROM event WHERE state = 'delivered'")[0][0] == events)


async def test_killed_after_the_message_was_received_before_the_commit(premises: Premises) -> None:
    """Nothing is on disk; the broker, unacknowledged, sends it again."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    lock = sqlite3.connect(premises.gateway.outbox, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await until(lambda: "Sending PUBLISH to chekt-gateway-Z6RSOG" in premises.broker.log_text())
    await premises.gateway.kill()
    lock.close()
    assert premises.gateway.rows("SELECT count(*) FROM event") == [(0,)]
    await restart_and_deliver(premises)
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_killed_after_the_commit_before_the_acknowledgement(premises: Premises) -> None:
    """The broker sends it again; it is known, acknowledged, and not doubled."""
    async with wire_to(premises.broker.port) as wire:
        premises.configure(broker_url=f"mqtt://127.0.0.1:{wire.port}")
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await premises.cloud.go_dark()
        wire.swallow = True
        async with Publisher(premises.broker.port) as publisher:
            publisher.publish("frigate/reviews", encode(review("front_door")))
            await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE state IN ('pending', 'sending')"))
            await until(lambda: wire.swallowed > 0)
        await premises.gateway.kill()
        wire.swallow = False
        wire.cut()
        await premises.cloud.come_back()
        await restart_and_deliver(premises)
        await until(lambda: premises.gateway.counters().get("duplicate", 0) == 1)
        assert premises.gateway.rows("SELECT count(*) FROM event") == [(1,)]
        assert premises.cloud.duplicates == premises.cloud.repeats == 0
        assert await premises.gateway.stop() == 0
        premises.gateway.check_conservation()


async def test_killed_after_the_claim_before_the_request(premises: Premises) -> None:
    """The row is `sending`, no byte has left: `recover` brings it back, the cloud sees it once."""
    premises.cloud.always("token", Delay(60.0))
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE state = 'sending'"))
    [(before,)] = premises.gateway.rows("SELECT body FROM event")
    await premises.gateway.kill()
    premises.cloud.clear()
    await restart_and_deliver(premises)
    assert premises.cloud.events[0].body == before
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    assert await premises.gateway.stop() == 0


async def test_killed_with_the_request_on_the_wire(premises: Premises) -> None:
    """The only place where the cloud may see it twice: then with the same bytes and key, and counted as unclear."""
    premises.cloud.script([Delay(60.0, after=True)])
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await until(lambda: len(premises.cloud.events) == 1)
    await premises.gateway.kill()
    await premises.gateway.start()
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE state = 'delivered'"))
    assert len(premises.cloud.events) == 1
    assert premises.cloud.repeats == 1
    assert premises.gateway.rows("SELECT unclear FROM event") == [(1,)]
    assert await premises.gateway.stop() == 0


async def wait_for_state(premises: Premises, state: str) -> None:
    await until(lambda: premises.gateway.rows("SELECT 1 FROM media WHERE state = ?", state), timeout=20)


@pytest.mark.parametrize(
    ("fault_on", "state_at_the_kill"),
    [("put", "waiting"), ("callback", "uploaded")],
    ids=["settled-or-put-before-its-note", "callback-before-its-note"],
)
async def test_killed_while_the_picture_is_under_way(
    premises: Premises, tmp_path: Path, fault_on: str, state_at_the_kill: str
) -> None:
    """The event is settled with its slots; the picture goes on where it was, also where the cloud already had it."""
    site = Site(cameras=("front_door",), qos=1)
    await site.start(premises.broker.port)
    try:
        premises.configure(defaults="snapshots = 1", source=f'url = "{site.url}"')
        premises.cloud.always(fault_on, Delay(60.0, after=True))
        await premises.gateway.start()
        await premises.gateway.subscribed()
        site.raise_alarm("front_door")
        await until(lambda: premises.cloud.done if fault_on == "callback" else premises.cloud.uploads, timeout=20)
        await wait_for_state(premises, state_at_the_kill)
        await premises.gateway.kill()
        assert premises.gateway.rows("SELECT state FROM media") == [(state_at_the_kill,)]
        premises.cloud.clear()
        await premises.gateway.start()
        await wait_for_state(premises, "done")
        assert len(premises.cloud.events) == 1
        assert premises.cloud.repeats == 0
        assert len(premises.cloud.done) == 1
        assert await premises.gateway.stop() == 0
    finally:
        await site.stop()


CAMERAS = ("front_door", "driveway", "warehouse")
ALARMS = 1_500
KILLS = 8


async def publish_all(premises: Premises, seed: int) -> set[str]:
    """Publishes ALARMS reviews and returns the payload ids that the broker has acknowledged: those must not be lost."""
    kept: set[str] = set()
    async with Publisher(premises.broker.port) as publisher:
        for number in range(ALARMS):
            message = review(CAMERAS[number % 3], review_id=f"s{seed}-{number:05d}")
            publisher.publish("frigate/reviews", encode(message))
            if number % 50 == 49:
                await publisher.confirmed()
            kept.add(message["after"]["id"])
        await publisher.confirmed()
    return kept


async def test_thousands_of_alarms_and_kills_at_random_lose_nothing(premises: Premises) -> None:
    """Every alarm that the broker took reaches the cloud, repeated at most where a request was in flight."""
    seed = random.SystemRandom().randrange(1 << 30)
    dice = random.Random(seed)
    premises.configure(defaults='snapshots = 0\nhold_off = "off"')
    await premises.gateway.start()
    await premises.gateway.subscribed()
    publishing = asyncio.create_task(publish_all(premises, seed))
    for kill in range(KILLS):
        goal = ALARMS * (kill + 1) // (KILLS + 2) - dice.randrange(20)
        await premises.cloud.wait_for(events=goal, timeout=60)
        await premises.gateway.kill()
        await premises.gateway.start()
    kept = await publishing
    await premises.cloud.wait_for(events=ALARMS, timeout=60)
    await until(
        lambda: premises.gateway.rows("SELECT count(*) FROM event WHERE state = 'delivered'")[0][0] == ALARMS,
        timeout=30,
    )
    stored = {source_id for (source_id,) in premises.gateway.rows("SELECT source_id FROM event")}
    assert kept - stored == set(), f"lost, seed {seed}"
    assert premises.cloud.duplicates == 0, f"seed {seed}"
    assert premises.cloud.repeats <= KILLS * len(CAMERAS), f"seed {seed}"
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_control_that_acknowledges_early_loses_under_the_same_kills(premises: Premises, tmp_path: Path) -> None:
    """Without this, the tests above could pass by being blind."""
    database = tmp_path / "control.db"
    script = Path(__file__).parent.parent / "fakes" / "early_acknowledger.py"

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, os.fspath(script), str(premises.broker.port), os.fspath(database)
        )

    def rows(payload: bytes | None = None) -> int:
        try:
            connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        except sqlite3.OperationalError:
            return 0
        try:
            query = "SELECT count(DISTINCT payload) FROM event WHERE payload = ifnull(?, payload)"
            count: int = connection.execute(query, (payload,)).fetchone()[0]
            return count
        except sqlite3.OperationalError:
            return 0
        finally:
            connection.close()

    control = await start()
    try:
        await until(lambda: "Sending SUBACK to control" in premises.broker.log_text())
        publishing = asyncio.create_task(publish_all(premises, 0))
        await until(lambda: rows() >= 20, timeout=30)
        control.send_signal(signal.SIGKILL)
        await control.wait()
        control = await start()
        kept = await publishing
        # First in, first out: once the last one is in, everything before it that will ever come is in.
        async with Publisher(premises.broker.port) as publisher:
            publisher.publish("frigate/reviews", b"the last one")
        await until(lambda: rows(b"the last one") == 1, timeout=60)
        assert rows() - 1 < len(kept)
    finally:
        control.send_signal(signal.SIGKILL)
        await control.wait()
