"""What was missed, asked of ZoneMinder and UniFi Protect over real HTTP: logins, pages, errors; all of it, once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from gateway.catchup import Asked, CatchUp
from gateway.media.logins import UNIFI, ZONEMINDER
from gateway.media.recorder import Recorder
from gateway.sources.broker_window import Received
from gateway.sources.histories.shape import History
from gateway.sources.histories.unifi import PAGE as UNIFI_PAGE
from gateway.sources.histories.unifi import UnifiProtect
from gateway.sources.histories.zoneminder import PAGE as ZM_PAGE
from gateway.sources.histories.zoneminder import ZoneMinder
from tests.fakes.clock import FakeClock
from tests.fakes.remembering import PASSWORD, USER, UnifiConsole, ZoneMinderServer
from tests.fakes.waiting import until
from tests.step.test_catchup import QUICK, FakeSession, FakeStore


@dataclass
class Listening:
    """A gateway that has heard its recorder until a minute ago, and hears it now."""

    server: Any
    history: History
    login: Any
    session: FakeSession = field(default_factory=FakeSession)
    heard: list[Received] = field(default_factory=list)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(one.message.payload) for one in self.heard]

    @asynccontextmanager
    async def running(self, password: str = PASSWORD) -> AsyncIterator[CatchUp]:
        wall = int(time.time() * 1000)
        clock = FakeClock(wall=wall)
        recorder = Recorder(
            self.server.url, clock=clock, login=self.login, username=USER, make_password=lambda: password
        )
        catch_up = CatchUp(
            session=self.session,
            store=FakeStore({"nvr": wall - 60_000}),
            clock=clock,
            sources={"nvr": Asked(self.history, recorder, lambda topic: True)},
            jitter=lambda: 1.0,
            timing=QUICK,
        )
        await catch_up.load()
        stop = asyncio.Event()

        async def intake() -> None:
            while True:
                got = await catch_up.receive(500)
                self.heard += got
                catch_up.acknowledge([one.token for one in got])

        tasks = [asyncio.create_task(intake()), asyncio.create_task(catch_up.run(stop))]
        try:
            yield catch_up
            stop.set()
            await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await recorder.close()

    async def catch_up(self) -> None:
        async with self.running() as catch_up:
            await until(lambda: not catch_up.facts(), what="the end of the gap")


@pytest.fixture
async def zoneminder() -> AsyncIterator[Listening]:
    server = ZoneMinderServer()
    await server.start()
    yield Listening(server, ZoneMinder(topic_prefix="zoneminder", zone=ZoneInfo("America/Chicago")), ZONEMINDER)
    await server.stop()


@pytest.fixture
async def unifi() -> AsyncIterator[Listening]:
    server = UnifiConsole()
    await server.start()
    yield Listening(server, UnifiProtect(topic_prefix="unifi/protect"), UNIFI)
    await server.stop()


@pytest.fixture(params=["zoneminder", "unifi"])
def either(request: pytest.FixtureRequest) -> Listening:
    listening: Listening = request.getfixturevalue(request.param)
    return listening


async def test_zoneminders_events_come_in_order_over_all_pages(zoneminder: Listening) -> None:
    """The configured zone is not that of the recorder. What is older than was asked for is not read to its end."""
    old = [zoneminder.server.alarm(ago=9_000 - number) for number in range(5 * ZM_PAGE)]
    for row in old:
        zoneminder.server.end(row, lasted=1)
    rows = [zoneminder.server.alarm(ago=300 - number) for number in range(2 * ZM_PAGE + 7)]
    await zoneminder.catch_up()
    assert [one["eventid"] for one in zoneminder.told] == [row["Id"] for row in rows]
    assert {one.message.topic for one in zoneminder.heard} == {"zoneminder/5"}
    asked = [path.partition("&page=")[2].partition("&")[0] for path in zoneminder.server.requests]
    assert asked == ["1", *"123", *"123"], "three pages of eight, and again for what was written meanwhile"
    assert zoneminder.server.logins == 1


async def test_what_the_hook_notes_while_we_ask_is_told_once_more(zoneminder: Listening) -> None:
    row = zoneminder.server.alarm()
    async with zoneminder.running() as catch_up:
        await until(lambda: len(zoneminder.heard) == 1)
        row["Notes"] = "[a] detected:person:91% Motion: All"
        catch_up.connection_began()
        await until(lambda: len(zoneminder.heard) == 2)
        row["ended"] = row["started"] + 5
        catch_up.connection_began()
        await until(lambda: len(zoneminder.heard) == 3)
    kinds = [(one["eventtype"], [seen["label"] for seen in one["detection"]]) for one in zoneminder.told]
    assert kinds == [("event_start", []), ("event_start", ["person"]), ("event_end", [])]


async def test_unifis_events_come_in_order_over_all_pages(unifi: Listening) -> None:
    rows = [unifi.server.alarm() for _ in range(2 * UNIFI_PAGE + 7)]
    for number, row in enumerate(rows):
        row["start"] -= 1000 * (len(rows) - number) // 2  # two in some milliseconds
    await unifi.catch_up()
    assert [one["event_id"] for one in unifi.told] == [row["id"] for row in rows]
    assert unifi.server.logins == 1


async def test_a_recorder_in_trouble_is_asked_until_it_answers_and_said_once(either: Listening) -> None:
    either.server.alarm()
    either.server.answers += [
        (500, b"database gone"),
        (200, b"<html>"),
        (200, b'{"events": 7}'),
        (503, b""),
        (401, b""),
    ]
    with capture_logs() as logs:
        await either.catch_up()
    assert [entry["event"] for entry in logs] == ["catch_up_waits", "caught_up"]
    assert len(either.heard) == 1


async def test_a_session_that_ends_between_two_pages_is_renewed(zoneminder: Listening) -> None:
    rows = [zoneminder.server.alarm(ago=1) for _ in range(ZM_PAGE + 1)]
    zoneminder.server.answers.append((401, b""))
    await zoneminder.catch_up()
    assert len(zoneminder.heard) == len(rows)


async def test_a_refused_login_is_said_once_with_what_to_do(either: Listening) -> None:
    either.server.alarm()
    with capture_logs() as logs:
        async with either.running(password="wrong") as catch_up:
            await until(lambda: len(either.server.requests) > 3)
            assert "password_file" in catch_up.facts()["nvr"]["reason"]
    [said] = logs
    assert said["event"] == "catch_up_waits"
    assert "check username and password_file" in said["reason"]
    assert "wrong" not in repr(said)
    assert either.server.logins == 1
    assert either.heard == []
