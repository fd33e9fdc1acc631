"""What a recorder said with QoS 0 while nobody heard it, through the real process: everything once, nothing twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from gateway.simulator.site import Site
from tests.fakes.waiting import until
from tests.system.conftest import Premises


@pytest.fixture
async def site(premises: Premises) -> AsyncIterator[Site]:
    """A recorder with Frigate's own QoS 0, on a broker that keeps nothing of that."""
    site = Site()
    await site.start(premises.broker.port)
    configure(premises, site)
    yield site
    await site.stop()


def configure(premises: Premises, site: Site, dialect: str = "reviews") -> None:
    premises.configure(defaults='snapshots = 0\nhold_off = "off"', source=f'url = "{site.url}"\ndialect = "{dialect}"')


def ids(premises: Premises) -> list[str]:
    return [str(row[0]) for row in premises.gateway.rows("SELECT source_id FROM event ORDER BY seq")]


async def delivered(premises: Premises, count: int) -> None:
    query = "SELECT count(*) FROM event WHERE state = 'delivered'"
    await until(lambda: (premises.gateway.rows(query) or [(0,)])[0][0] >= count, timeout=30, what=f"{count} delivered")


@pytest.mark.parametrize("dialect", ["reviews", "events"])
@pytest.mark.parametrize("older", [False, True])
async def test_what_was_said_while_the_gateway_was_down_arrives_once(
    premises: Premises, site: Site, dialect: str, older: bool
) -> None:
    """With the pictures' recipe, in order, marked; what was heard live is not doubled."""
    configure(premises, site, dialect)
    site.recorder.reviews_by_start = older
    await premises.gateway.start()
    await premises.gateway.subscribed()
    heard = site.raise_alarm("front_door")
    still_open = site.raise_alarm("driveway")
    site.end(heard)
    await delivered(premises, 2)
    assert await premises.gateway.stop() == 0

    missed = [site.raise_alarm(camera) for camera in site.cameras]
    site.end(missed[0])
    site.end(missed[1])
    site.end(still_open)
    detection = site.raise_alarm("warehouse", severity="detection")
    for row in site.recorder.reviews.values():
        row["has_been_reviewed"] = True  # somebody has already looked
    await site.all_acknowledged()
    await premises.gateway.start()
    await delivered(premises, 5 if dialect == "reviews" else 6)
    live = site.raise_alarm("driveway")
    expected = [heard, still_open, *missed] + ([detection] if dialect == "events" else []) + [live]
    await delivered(premises, len(expected))

    assert await premises.gateway.stop() == 0
    assert ids(premises) == [one.review_id if dialect == "reviews" else one.object_id for one in expected]
    assert len(premises.cloud.events) == len(expected)
    assert premises.cloud.duplicates == 0
    marked = premises.gateway.rows(
        "SELECT source_id, event_at FROM event WHERE details LIKE '%caught_up%' ORDER BY seq"
    )
    began = [
        one.started_at if dialect == "reviews" else int(site.recorder.objects[one.object_id].started * 1000)
        for one in expected[2:-1]
    ]
    assert [at for _, at in marked] == began
    premises.gateway.check_conservation()


async def test_a_recorder_that_answers_late_is_asked_until_it_does(premises: Premises, site: Site) -> None:
    """Also over a crash in between, in which live messages were heard already."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    site.raise_alarm("front_door")
    await delivered(premises, 1)
    assert await premises.gateway.stop() == 0
    missed = site.raise_alarm("warehouse")
    await site.all_acknowledged()
    port = site.recorder.port
    await site.recorder.stop()

    await premises.gateway.start()
    await premises.gateway.subscribed()
    await until(lambda: "catch_up_waits" in premises.gateway.log, timeout=20)
    site.raise_alarm("driveway")
    await delivered(premises, 2)
    await premises.gateway.kill()

    await premises.gateway.start()
    await premises.gateway.subscribed()
    assert json.loads(premises.gateway.rows("SELECT value FROM meta WHERE key = 'gaps'")[0][0])["nvr"]
    await site.recorder.start(port)
    await delivered(premises, 3)
    assert missed.review_id in ids(premises)
    assert await premises.gateway.stop() == 0
    assert len(premises.cloud.events) == 3
    premises.gateway.check_conservation()


async def test_alarms_arrive_while_the_broker_is_dead(premises: Premises, site: Site) -> None:
    """The recorder is asked meanwhile; what it says again over MQTT afterwards is the same alarm."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    site.raise_alarm("front_door")
    await delivered(premises, 1)
    await premises.broker.kill()
    missed = site.raise_alarm("driveway")
    await delivered(premises, 2)
    await premises.broker.start()
    await premises.gateway.subscribed()
    await until(site._connected.is_set)
    site.update(missed)
    site.raise_alarm("warehouse")
    await delivered(premises, 3)
    assert await premises.gateway.stop() == 0
    assert len(premises.cloud.events) == 3
    premises.gateway.check_conservation()


async def test_a_new_installation_raises_nothing_from_before(premises: Premises, site: Site) -> None:
    site.raise_alarm("front_door")
    await site.all_acknowledged()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    new = site.raise_alarm("driveway")
    await delivered(premises, 1)
    assert await premises.gateway.stop() == 0
    assert ids(premises) == [new.review_id]
