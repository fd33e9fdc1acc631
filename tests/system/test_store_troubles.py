"""The real process and its store: somebody else has it, or holds it up."""

from __future__ import annotations

import sqlite3

from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises
from tests.system.gateway_process import GatewayProcess


async def test_a_second_gateway_on_one_store_refuses_and_does_not_disturb_the_first(premises: Premises) -> None:
    await premises.gateway.start()
    await premises.gateway.subscribed()
    (premises.folder / "second").mkdir()
    second = GatewayProcess(premises.folder / "second", premises.gateway.config, premises.gateway.environment)
    await second.start(ready=False)
    assert await second.wait() == 1
    assert "store_cannot_be_opened" in second.log
    assert "READY=1" not in second.states
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(events=1, timeout=30)
    assert premises.gateway.log.count("mqtt_connected") == 1
    assert await premises.gateway.stop() == 0


async def test_a_store_that_another_process_locks_means_no_acknowledgement_and_everything_arrives(
    premises: Premises,
) -> None:
    """The commit is refused after some seconds; the gateway reconnects, the broker sends again; QoS 0 is kept here."""
    premises.configure(defaults='snapshots = 0\nhold_off = "off"')
    await premises.gateway.start()
    await premises.gateway.subscribed()
    lock = sqlite3.connect(premises.gateway.outbox, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with Publisher(premises.broker.port) as publisher:
        for _ in range(20):
            publisher.publish("frigate/reviews", encode(review("front_door")))
            publisher.publish("frigate/reviews", encode(review("driveway")), qos=0)
        await publisher.confirmed()
        await until(lambda: "store_refused" in premises.gateway.log, timeout=30)
        await until(lambda: "mqtt_dropped" in premises.gateway.log, timeout=30)
        assert lock.execute("SELECT count(*) FROM event").fetchone() == (0,)
        lock.close()
        await premises.cloud.wait_for(events=40, timeout=60)
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    await until(lambda: "store_accepts_again" in premises.gateway.log, timeout=30)
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()
