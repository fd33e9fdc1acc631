"""ZoneMinder and UniFi Protect speak with QoS 0, too: what nobody heard is asked of them; everything once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.fakes.remembering import PASSWORD, USER, UnifiConsole, ZoneMinderServer
from tests.fakes.waiting import until
from tests.system.conftest import Premises

SOURCE = """
[sources.other]
family = "{family}"
url = "{url}"
username = "{user}"
password_file = "{file}"
{more}
"""
CAMERA = '[cameras.{table}]\nname = "{name}"\nsource = "other"\ncamera_id = "cam-{table}"\n'
UNIFI_CAMERA = "65d8f3a4017b8a03e7000423"


def configure(premises: Premises, family: str, url: str, *names: str, more: str = "") -> None:
    password = premises.folder / "recorder-password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    source = SOURCE.format(family=family, url=url, user=USER, file=password, more=more)
    cameras = "".join(CAMERA.format(table=f"c{number}", name=name) for number, name in enumerate(names))
    premises.configure(defaults='snapshots = 0\nhold_off = "off"', cameras=(), extra=source + cameras)


@pytest.fixture
async def zoneminder(premises: Premises) -> AsyncIterator[ZoneMinderServer]:
    server = ZoneMinderServer()
    await server.start()
    await server.connect(premises.broker.port)
    configure(premises, "zoneminder", server.url, "5", "7")
    yield server
    await server.stop()


@pytest.fixture
async def unifi(premises: Premises) -> AsyncIterator[UnifiConsole]:
    server = UnifiConsole()
    await server.start()
    await server.connect(premises.broker.port)
    configure(premises, "unifi", server.url, UNIFI_CAMERA, more='dialect = "pakerfeldt"')
    yield server
    await server.stop()


async def delivered(premises: Premises, count: int) -> None:
    query = "SELECT count(*) FROM event WHERE state = 'delivered'"
    await until(lambda: (premises.gateway.rows(query) or [(0,)])[0][0] >= count, timeout=30, what=f"{count} delivered")


def told(premises: Premises) -> list[tuple[str, bool]]:
    rows = premises.gateway.rows("SELECT source_id, details FROM event ORDER BY seq")
    return [(str(name), "caught_up" in json.loads(details)) for name, details in rows]


async def test_what_zoneminder_said_while_the_gateway_was_down_arrives_once(
    premises: Premises, zoneminder: ZoneMinderServer
) -> None:
    """With its own time, in order, marked. What was heard, live or before, is not doubled; mere recording is none."""
    await premises.gateway.start()
    await premises.gateway.subscribed()
    heard = zoneminder.alarm("5")
    await delivered(premises, 1)
    still_open = zoneminder.alarm("7")
    await delivered(premises, 2)
    zoneminder.end(heard)
    assert await premises.gateway.stop() == 0

    missed = zoneminder.alarm("5", ago=8)
    zoneminder.end(missed, lasted=3)
    running = zoneminder.alarm("7", ago=4)
    zoneminder.alarm("7", frames=0)
    zoneminder.end(still_open)
    await premises.gateway.start()
    await delivered(premises, 4)
    await premises.gateway.subscribed()
    live = zoneminder.alarm("5")
    await delivered(premises, 5)
    zoneminder.end(running)
    zoneminder.end(live)
    assert await premises.gateway.stop() == 0

    expected = [(heard, False), (still_open, False), (missed, True), (running, True), (live, False)]
    assert told(premises) == [(row["Id"], unheard) for row, unheard in expected]
    assert len(premises.cloud.events) == 5
    assert premises.cloud.duplicates == 0
    times = premises.gateway.rows("SELECT event_at FROM event WHERE details LIKE '%caught_up%' ORDER BY seq")
    assert times == [(missed["started"] * 1000,), (running["started"] * 1000,)]
    assert PASSWORD not in premises.gateway.log
    assert "token" not in premises.gateway.log
    premises.gateway.check_conservation()


async def test_what_unifi_protect_said_while_the_gateway_was_down_arrives_once(
    premises: Premises, unifi: UnifiConsole
) -> None:
    await premises.gateway.start()
    await premises.gateway.subscribed()
    heard = unifi.alarm()
    await delivered(premises, 1)
    unifi.end(heard)
    still_open = unifi.alarm()
    await delivered(premises, 2)
    assert await premises.gateway.stop() == 0

    missed = unifi.alarm(seen=("animal", "person"))
    unifi.end(missed)
    running = unifi.alarm()
    unifi.alarm(seen=("vehicle",))
    unifi.end(still_open)
    await premises.gateway.start()
    await delivered(premises, 4)
    await premises.gateway.subscribed()
    live = unifi.alarm()
    await delivered(premises, 5)
    unifi.end(running)
    unifi.end(live)
    assert await premises.gateway.stop() == 0

    expected = [(heard, False), (still_open, False), (missed, True), (running, True), (live, False)]
    assert told(premises) == [(row["id"], unheard) for row, unheard in expected]
    assert len(premises.cloud.events) == 5
    assert premises.cloud.duplicates == 0
    assert premises.gateway.rows("SELECT event_at FROM event WHERE details LIKE '%caught_up%' ORDER BY seq") == [
        (missed["start"],),
        (running["start"],),
    ]
    assert PASSWORD not in premises.gateway.log
    premises.gateway.check_conservation()
