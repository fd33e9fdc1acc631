"""The whole way of an alarm through the real process, with the real broker and the strict practice cloud."""

from __future__ import annotations

import json

from gateway.simulator.faults import Delay, Discard, Status
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises


async def test_an_alarm_reaches_the_cloud_with_every_field_as_documented(premises: Premises) -> None:
    """One review becomes one accepted event; the strict cloud refuses what the document does not name."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        message = review("front_door")
        publisher.publish("frigate/reviews", encode(message))
        await premises.cloud.wait_for(events=1)
    [event] = premises.cloud.events
    request = event.request
    assert request["location_id"] == "Z6RSOG"
    assert request["recorder_id"] == "Z6RANV"
    assert request["camera_id"] == "cam-front_door"
    assert request["event_type"] == "alarm"
    assert request["event_status"] == "active"
    assert request["should_signal_to_monitoring_center"] is True
    assert request["upload_snapshot_count"] == 0
    assert event.idempotency_key == request["event_id"]
    assert premises.cloud.refusals == []
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE state = 'delivered' AND acknowledged_at > 0"))
    code, out, _ = await premises.gateway.ask("trace", request["event_id"], "--json")
    assert code == 0
    hops = json.loads(out)["hops"]
    words = ["received", "stored", "acknowledged", "attempt_started", "answered", "settled"]
    assert sorted(hop["what"] for hop in hops) == sorted(words)
    assert all(isinstance(hop["ticks"], int) and hop["at"].endswith("Z") for hop in hops)
    assert [hop["ticks"] for hop in hops] == sorted(hop["ticks"] for hop in hops)
    assert [hop["what"] for hop in hops if hop["what"] != "acknowledged"] == [w for w in words if w != "acknowledged"]
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_an_update_and_an_end_do_not_double_the_alarm(premises: Premises) -> None:
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        first = review("front_door")
        again = {**first, "type": "update"}
        end = review(
            "front_door",
            phase="end",
            start=first["after"]["start_time"],
            end=first["after"]["start_time"] + 9,
            review_id=first["after"]["id"],
        )
        for message in (first, again, again, end):
            publisher.publish("frigate/reviews", encode(message))
        publisher.publish("frigate/reviews", encode(review("driveway")))
        await premises.cloud.wait_for(events=2)
        await until(lambda: premises.gateway.counters().get("received", 0) >= 5)
    assert sorted(event.camera_id for event in premises.cloud.events) == ["cam-driveway", "cam-front_door"]
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_the_cloud_goes_away_and_comes_back(premises: Premises) -> None:
    """What arrives while the cloud is away is delivered afterwards, each exactly once."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.cloud.go_dark()
    async with Publisher(premises.broker.port) as publisher:
        for number in range(12):
            publisher.publish(
                "frigate/reviews",
                encode(review(("front_door", "driveway", "warehouse")[number % 3], objects=(f"kind{number}",))),
            )
        await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE attempts > 0"))
        await until(lambda: premises.gateway.rows("SELECT count(*) FROM event")[0][0] == 12)
    status = await premises.gateway.status()
    assert status["events"]["delivered"] == 0
    await premises.cloud.come_back()
    await premises.cloud.wait_for(events=12, timeout=45)
    assert premises.cloud.duplicates == 0
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_broker_that_restarts_loses_nothing_that_it_kept(premises: Premises) -> None:
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(events=1)
    await premises.broker.stop()
    await premises.broker.start()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("driveway")))
        await premises.cloud.wait_for(events=2, timeout=45)
    assert premises.cloud.duplicates == 0
    assert await premises.gateway.stop() == 0


async def test_a_stop_in_the_middle_finishes_the_request_in_hand(premises: Premises) -> None:
    """SIGTERM while the cloud is thinking: the answer is still waited for and noted, and the exit is clean."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    premises.cloud.script([Delay(1.0)])
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE state = 'sending'"))
        assert await premises.gateway.stop() == 0
    assert "STOPPING=1" in premises.gateway.states
    assert premises.gateway.rows("SELECT state FROM event") == [("delivered",)]
    assert len(premises.cloud.events) == 1
    premises.gateway.check_conservation()


async def test_a_discarded_event_is_final_and_a_refused_one_is_tried_again(premises: Premises) -> None:
    await premises.gateway.start()
    await premises.gateway.subscribed()
    premises.cloud.script([Discard(), Status(503)])
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(requests=2)
        publisher.publish("frigate/reviews", encode(review("driveway")))
        await until(
            lambda: (
                premises.gateway.rows("SELECT count(*) FROM event WHERE state IN ('delivered', 'discarded')")[0][0] == 2
            )
        )
    assert sorted(premises.gateway.rows("SELECT state, reason FROM event WHERE state = 'discarded'")) == [
        ("discarded", "Event discarded: device is disarmed")
    ]
    assert await premises.gateway.stop() == 0


async def test_a_wrong_configuration_never_starts_and_never_touches_the_store(premises: Premises) -> None:
    premises.configure(extra="\n[delivry]\nparallel = 3\n")
    await premises.gateway.start(ready=False)
    assert await premises.gateway.wait() == 78
    assert "delivry" in premises.gateway.log
    assert "did you mean" in premises.gateway.log
    assert not premises.gateway.outbox.exists()
