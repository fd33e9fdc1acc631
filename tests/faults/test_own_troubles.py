"""Troubles of the gateway's own, from the real process to the cloud: one beginning, one end, and no storm."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from gateway.simulator.faults import RefuseCredentials
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises

pytestmark = [pytest.mark.timeout(180), pytest.mark.needs("mosquitto")]

QUICK: Final = 'snapshots = 0\ntrouble_delay = "1s"'
OURS: Final = {"CHEKT_GATEWAY_SITE__CAMERA_ID": "cam-gateway"}


def troubles(premises: Premises) -> list[dict[str, Any]]:
    """What the cloud was told of the gateway itself."""
    bodies = [json.loads(event.body) for event in premises.cloud.events]
    return [body for body in bodies if body["event_type"] == "trouble"]


def token_requests(premises: Premises) -> int:
    """Those that were refused included."""
    return sum(request.kind == "token" for request in premises.cloud.requests)


def said(premises: Premises, name: str) -> int:
    return premises.gateway.log.count(name)


async def test_a_lost_broker_is_told_and_its_return(premises: Premises) -> None:
    premises.gateway.environment |= OURS
    premises.configure(defaults=QUICK)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.broker.stop()
    await until(lambda: len(troubles(premises)) == 1, timeout=30)
    [begin] = troubles(premises)
    assert (begin["event_status"], begin["camera_id"]) == ("active", "cam-gateway")
    assert begin["upload_snapshot_count"] == 0
    await premises.gateway.kill()  # in the middle of it
    await premises.gateway.start()
    status = await premises.gateway.status()
    assert [trouble["kind"] for trouble in status["troubles"]] == ["broker"]
    await premises.broker.start()
    await until(lambda: len(troubles(premises)) == 2, timeout=60)
    _, end = troubles(premises)
    assert end["event_status"] == "inactive" and end["event_id"] != begin["event_id"]
    assert said(premises, "trouble_began") == said(premises, "trouble_ended") == 1
    status = await premises.gateway.status()
    assert status["troubles"] == []
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()
    assert len(troubles(premises)) == 2


async def test_a_lost_session_is_a_possible_gap(premises: Premises) -> None:
    premises.gateway.environment |= OURS
    premises.configure(defaults=QUICK)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.broker.kill()
    premises.broker.forget()
    await premises.broker.start()
    await until(lambda: [one for one in troubles(premises) if one["event_status"] == "active"], timeout=30)
    rows = premises.gateway.rows("SELECT kind, event_status FROM event WHERE source = 'gateway'")
    assert ("gap", "active") in rows
    assert await premises.gateway.stop() == 0


async def test_without_a_camera_id_they_stay_here(premises: Premises) -> None:
    premises.configure(defaults=QUICK)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await premises.broker.stop()
    await until(lambda: said(premises, "trouble_began") == 1, timeout=30)
    status = await premises.gateway.status()
    assert [(trouble["kind"], trouble["local"]) for trouble in status["troubles"]] == [("broker", True)]
    assert premises.gateway.rows("SELECT count(*) FROM event") == [(0,)]
    assert troubles(premises) == []
    assert await premises.gateway.stop() == 0


@pytest.mark.timeout(300)
async def test_refused_credentials_are_told_once_they_are_taken_again(premises: Premises) -> None:
    """A revoked key: nobody can be told meanwhile, nothing is lost, and the token endpoint is not stormed."""
    premises.gateway.environment |= OURS
    premises.configure(defaults=QUICK)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as recorder:
        recorder.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(events=1, timeout=30)
        premises.cloud.always("token", RefuseCredentials())
        premises.cloud.revoke_tokens()
        asked = token_requests(premises)
        for number in range(30):
            recorder.publish("frigate/reviews", encode(review("driveway", objects=(f"kind{number}",))))
        await recorder.confirmed()
    await until(lambda: premises.gateway.rows("SELECT 1 FROM event WHERE kind = 'credentials'"), timeout=60)
    status = await premises.gateway.status()
    assert status["state"] == "critical"
    assert [(trouble["kind"], trouble["local"]) for trouble in status["troubles"]] == [("credentials", False)]
    await premises.gateway.kill()  # what is paused, open and waiting is on disk
    await premises.gateway.start()
    await until(lambda: said(premises, "cloud_paused") == 2, timeout=60)
    assert troubles(premises) == []
    premises.cloud.clear()
    await until(lambda: len(troubles(premises)) == 2, timeout=200)
    begin, end = troubles(premises)
    assert (begin["event_status"], end["event_status"]) == ("active", "inactive")
    assert begin["camera_id"] == end["camera_id"] == "cam-gateway"
    assert said(premises, "trouble_began") == said(premises, "trouble_ended") == 1
    # Of the two lives together; the last one was granted.
    assert 3 <= token_requests(premises) - asked <= 8
    await until(premises.gateway.settled, timeout=60)
    assert premises.gateway.rows("SELECT count(*) FROM event WHERE state = 'delivered' AND event_type = 'alarm'") == [
        (31,)
    ]
    assert premises.cloud.duplicates == 0
    assert (await premises.gateway.status())["troubles"] == []
    assert await premises.gateway.stop() == 0
