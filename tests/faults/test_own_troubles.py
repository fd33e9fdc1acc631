"""Troubles of the gateway's own, from the real process to the cloud: one beginning, one end, and no storm."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.fakes.waiting import until
from tests.system.conftest import Premises

pytestmark = [pytest.mark.timeout(180), pytest.mark.needs("mosquitto")]

QUICK: Final = 'snapshots = 0\ntrouble_delay = "1s"'
OURS: Final = {"CHEKT_GATEWAY_SITE__CAMERA_ID": "cam-gateway"}


def troubles(premises: Premises) -> list[dict[str, Any]]:
    """What the cloud was told of the gateway itself."""
    bodies = [json.loads(event.body) for event in premises.cloud.events]
    return [body for body in bodies if body["event_type"] == "trouble"]


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
