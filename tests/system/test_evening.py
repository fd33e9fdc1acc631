"""An evening of a real site: many kinds of equipment at once on one broker, and everything that befalls them.

The oracle: the cloud hears exactly what was meant, each once; an end after its beginning; arming and alarms in the
order in which they happened; and every message is counted once. Which fault happens when is the seed's; EVENING_RUNS=50
runs more of them.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.fakes.waiting import until
from tests.fakes.wire import Wire
from tests.system.conftest import Premises
from tests.system.evening import ACTS, House


def what_the_cloud_heard(premises: Premises) -> Counter[tuple[str, str, str]]:
    events = premises.cloud.events
    return Counter((e.camera_id, e.request["event_type"], e.request["event_status"]) for e in events)


def check_order(premises: Premises) -> None:
    """By the ledger's own links and times; where the cloud saw one twice, its first."""
    arrived = {event.event_id: place for place, event in enumerate(premises.cloud.events)}
    for event_id, follows in premises.gateway.rows("SELECT event_id, follows FROM event WHERE follows IS NOT NULL"):
        if event_id in arrived:
            assert arrived[follows] < arrived[event_id], event_id
    query = (
        "SELECT event_id, event_at, received_at, seq FROM event "
        "WHERE state = 'delivered' AND event_type = ? AND event_status = ?"
    )
    alarms = premises.gateway.rows(query, "alarm", "active")
    for armed, at, received_at, seq in premises.gateway.rows(query, "arming", "active"):
        for alarm, alarm_at, alarm_received_at, alarm_seq in alarms:
            if (at, seq) < (alarm_at, alarm_seq) and received_at <= alarm_received_at:
                assert arrived[armed] < arrived[alarm], f"{alarm} came before the site was armed"
    for disarmed, at, received_at, seq in premises.gateway.rows(query, "arming", "inactive"):
        for alarm, alarm_at, alarm_received_at, alarm_seq in alarms:
            if (alarm_at, alarm_seq) < (at, seq) and alarm_received_at <= received_at:
                assert arrived[alarm] < arrived[disarmed], f"{alarm} came after the site was disarmed"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(int(os.environ.get("EVENING_RUNS", "3"))))
async def test_an_evening_is_told_as_it_was(premises: Premises, seed: int) -> None:
    dice = random.Random(seed)
    wire = Wire(premises.broker.port)
    await wire.start()
    house = House(premises, wire, dice)
    house.configure()
    try:
        await house.move_in()
        await house.live([act(house) for act in dice.sample(ACTS, len(ACTS))])
        expected = house.expected + Counter(("cam-arming", "arming", state) for state in house.arming)
        why = f"seed {seed}, {', '.join(house.suffered)}"
        await until(
            lambda: premises.gateway.settled() and len(premises.cloud.events) >= expected.total(), timeout=60, what=why
        )
        heard = what_the_cloud_heard(premises)
        assert heard == expected, f"{why}: missing {expected - heard}, too many {heard - expected}"
        assert premises.cloud.duplicates == 0, why
        assert premises.cloud.refusals == [], why
        said = [e.request["event_status"] for e in premises.cloud.events if e.request["event_type"] == "arming"]
        assert said == house.arming, why
        check_order(premises)
        for (camera_id, kind, state), times in house.times.items():
            told = premises.gateway.rows(
                "SELECT event_at FROM event WHERE camera_id = ? AND event_type = ? AND event_status = ?",
                camera_id,
                kind,
                state,
            )
            assert sorted(at for (at,) in told) == sorted(times), f"{camera_id} {kind} {state}: {why}"

        status = await premises.gateway.status()
        messages = dict(status["messages"])
        assert messages.pop("received") == sum(messages.values()), messages
        assert status["events"]["delivered"] == expected.total()
        assert {name: status["events"][name] for name in ("folded", "unmapped", "unreadable")} == dict(house.others)
        assert status["events"]["dead"] == status["events"]["discarded"] == status["events"]["pending"] == 0
        assert "failed_inside" not in premises.gateway.log
        assert await premises.gateway.stop() == 0
    finally:
        if house.equipment is not None:
            await house.equipment.stop()
        await wire.stop()
    premises.gateway.check_conservation()
