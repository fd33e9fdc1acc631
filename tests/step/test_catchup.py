"""Gaps: when they open, what is asked, when they close. The recorder and the broker are scripted, time is short."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from gateway.catchup import BATCH, GAPS, LONGEST_MS, MARGIN_MS, Asked, CatchUp, Timing
from gateway.media.recorder import FetchError, Unreachable
from gateway.model import Message
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.histories.frigate import Frigate
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

WALL = 1_700_000_000_000
QUICK = Timing(look=0.01, away=0.02, again=0.02, retry_first=0.01, retry_max=0.02, refused_max=0.02)
SLOW = Timing(look=60, away=60, again=60, retry_first=60, retry_max=60, refused_max=60)


@dataclass
class FakeSession:
    hears: bool = True
    looks: int = 0
    connected: bool = True
    lines: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    told: list[AckToken] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def is_subscribed(self) -> bool:
        self.looks += 1
        return self.hears

    async def receive(self, limit: int) -> list[Received]:
        got = [await self.lines.get()]
        while not self.lines.empty() and len(got) < limit:
            got.append(self.lines.get_nowait())
        return got

    def hand_in(self, messages: Sequence[Received]) -> None:
        for message in messages:
            self.lines.put_nowait(message)

    def acknowledge(self, tokens: Sequence[AckToken]) -> None:
        self.told += tokens

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)

    def is_current(self, token: AckToken) -> bool:
        return True


@dataclass
class FakeStore:
    heard: dict[str, int] = field(default_factory=dict)
    meta: dict[str, str | None] = field(default_factory=dict)

    async def last_heard_at(self, name: str | None = None) -> int | None:
        return self.heard.get(name or "")

    async def get_meta(self, key: str) -> str | None:
        return self.meta.get(key)

    def set_meta_lazily(self, key: str, value: str | None) -> None:
        self.meta[key] = value

    @property
    def gaps(self) -> dict[str, int]:
        return dict(json.loads(self.meta.get(GAPS) or "{}"))


@dataclass
class FakeRecorder:
    rows: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    fault: FetchError | None = None
    on_asked: Callable[[], None] = lambda: None

    async def read(self, path: str) -> bytes:
        self.asked.append(path)
        self.on_asked()
        if self.fault is not None:
            raise self.fault
        return json.dumps(self.rows).encode()

    def add(self, count: int = 1, **changes: Any) -> None:
        for _ in range(count):
            number = len(self.rows)
            row = {"id": f"r{number}", "camera": "c", "start_time": 1.5 + number, "end_time": None, **changes}
            self.rows.append({**row, "severity": "alert", "data": {}})

    def after(self) -> float:
        return float(parse_qs(urlsplit(self.asked[-1]).query)["after"][0])


class World:
    def __init__(self, heard_at: int | None = WALL - 60_000) -> None:
        self.session, self.recorder = FakeSession(), FakeRecorder()
        self.store = FakeStore({} if heard_at is None else {"nvr": heard_at})
        self.clock = FakeClock(wall=WALL)
        self.offset = 0
        self.heard: list[Received] = []
        self.catch_up = self.make()
        self.commits = asyncio.Event()
        self.commits.set()

    def make(self, timing: Timing = QUICK) -> CatchUp:
        asked = Asked(
            Frigate(dialect="reviews", topic_prefix="frigate"),
            self.recorder,
            lambda topic: topic.startswith("frigate/"),
            lambda: self.offset,
        )
        return CatchUp(
            session=self.session,
            store=self.store,
            clock=self.clock,
            sources={"nvr": asked},
            jitter=lambda: 1.0,
            timing=timing,
        )

    def say(self, topic: str, payload: bytes, *, replay: bool = False) -> None:
        message = Message(topic, payload, 0, replay, False, replay, self.clock.wall_ms(), self.clock.ticks_ms())
        self.session.hand_in([Received(message, AckToken(1, 0))])

    @property
    def missed(self) -> list[str]:
        return [json.loads(one.message.payload)["after"]["id"] for one in self.heard if one.missed_since is not None]

    @asynccontextmanager
    async def running(self, timing: Timing = QUICK) -> AsyncIterator[None]:
        """With an intake that commits at once, or when it may."""
        self.catch_up = self.make(timing)
        await self.catch_up.load()
        stop = asyncio.Event()

        async def intake() -> None:
            while True:
                got = await self.catch_up.receive(500)
                await self.commits.wait()
                self.heard += got
                self.catch_up.acknowledge([one.token for one in got])

        tasks = [asyncio.create_task(intake()), asyncio.create_task(self.catch_up.run(stop))]
        try:
            yield
            stop.set()
            await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def closed(self) -> None:
        await until(lambda: not self.catch_up.facts(), what="the end of the gap")


async def test_a_start_asks_for_the_time_since_the_last_message_and_a_little_more() -> None:
    world = World()
    world.recorder.add(2)
    with capture_logs() as logs:
        async with world.running():
            await world.closed()
    assert world.missed == ["r0", "r1"], "once, although it was asked twice"
    assert world.recorder.after() == (WALL - 60_000 - MARGIN_MS) / 1000
    assert len(world.recorder.asked) == 4, "two questions, and again for what was being written meanwhile"
    [one] = {one.missed_since for one in world.heard}
    assert one == WALL - 60_000
    assert {one.message.topic for one in world.heard} == {"frigate/reviews"}
    assert {one.message.qos for one in world.heard} == {0}
    assert world.store.gaps == {}
    assert [(entry["event"], entry["told"]) for entry in logs] == [("caught_up", 2)]


async def test_a_first_start_asks_nothing() -> None:
    """Alarms from before the gateway was there are nobody's."""
    world = World(heard_at=None)
    world.recorder.add()
    async with world.running():
        world.catch_up.connection_began()
        world.say("frigate/available", b"online", replay=True)
        world.say("frigate/front/status/detect", b"online")
        await until(lambda: len(world.heard) == 2)
        looks = world.session.looks
        await until(lambda: world.session.looks > looks + 5)
        assert world.recorder.asked == []
        world.catch_up.connection_began()
        await until(lambda: world.recorder.asked)


async def test_nothing_is_asked_for_from_more_than_an_hour_ago() -> None:
    world = World(heard_at=WALL - 9 * LONGEST_MS)
    async with world.running():
        await world.closed()
    assert world.recorder.after() == (WALL - LONGEST_MS) / 1000


async def test_the_recorders_clock_is_allowed_for() -> None:
    world = World()
    world.offset = 7_000_000  # ours is ahead by so much
    async with world.running():
        await world.closed()
    assert world.recorder.after() == (WALL - 60_000 - MARGIN_MS - 7_000_000) / 1000


async def test_the_recorder_is_asked_while_the_broker_is_away_and_once_more_when_it_is_back() -> None:
    world = World()
    async with world.running():
        await world.closed()
        world.session.hears = False
        await until(world.catch_up.facts)
        world.recorder.add()
        await until(lambda: world.missed == ["r0"])
        rounds = len(world.recorder.asked)
        await until(lambda: len(world.recorder.asked) > rounds + 4)
        assert world.catch_up.facts()
        world.recorder.rows[0]["end_time"] = 9.5
        await until(lambda: world.missed == ["r0", "r0"], what="its end")
        world.session.hears = True
        world.catch_up.subscribed()
        await world.closed()
    assert world.missed == ["r0", "r0"]


async def test_a_broker_that_goes_away_between_two_rounds_is_noticed_at_once() -> None:
    world = World()
    async with world.running(Timing(look=0.01, away=0.02, again=600)):
        await until(lambda: world.recorder.asked, what="the first round")
        rounds = len(world.recorder.asked)
        world.recorder.add()
        world.session.hears = False
        await until(lambda: world.missed == ["r0"], what="an alarm while nothing can be heard")
        assert len(world.recorder.asked) > rounds


async def test_a_recorder_that_went_away_is_asked_when_it_is_back() -> None:
    """`available` is its last will. What was heard before that is where the gap begins."""
    world = World()
    async with world.running():
        await world.closed()
        world.say("frigate/front/status/detect", b"online")
        await until(lambda: len(world.heard) == 1)
        heard_at = world.clock.wall_ms()
        world.clock.advance(30)
        world.recorder.fault = Unreachable("the recorder cannot be connected")
        world.say("frigate/available", b"offline")
        await until(world.catch_up.facts)
        assert world.catch_up.facts()["nvr"]["since_at"] == heard_at
        await until(lambda: world.catch_up.facts()["nvr"]["reason"])
        world.recorder.add()
        world.recorder.fault = None
        await until(lambda: world.missed == ["r0"], what="asked although its own connection is away")
        assert world.catch_up.facts()
        world.say("frigate/available", b"online")
        await world.closed()


async def test_an_online_out_of_nowhere_opens_a_gap_and_a_retained_one_does_not() -> None:
    world = World()
    async with world.running():
        await world.closed()
        asked = len(world.recorder.asked)
        world.say("frigate/available", b"online", replay=True)
        await until(lambda: len(world.heard) == 1)
        assert len(world.recorder.asked) == asked
        world.say("frigate/available", b"online")
        await until(lambda: len(world.recorder.asked) > asked)


async def test_a_connection_that_broke_while_we_asked_does_not_close_the_gap() -> None:
    world = World()
    breaks = iter([True] * 3)

    def break_it() -> None:
        if next(breaks, False):
            world.catch_up.connection_began()

    world.recorder.on_asked = break_it
    async with world.running():
        await world.closed()
    assert len(world.recorder.asked) > 4


async def test_a_gap_is_on_disk_until_what_it_came_to_is_committed() -> None:
    """A crash in between: the next process begins where this one did, although it has heard live messages since."""
    world = World()
    world.recorder.add()
    world.commits.clear()
    async with world.running():
        await until(lambda: len(world.recorder.asked) == 2)
        world.say("frigate/front/status/detect", b"online")
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(world.recorder.asked) == 2, "no further while intake has not committed"
        assert world.store.gaps == {"nvr": WALL - 60_000}
    world.store.heard["nvr"] = WALL
    world.commits.set()
    async with world.running():
        await world.closed()
    assert world.recorder.after() == (WALL - 60_000 - MARGIN_MS) / 1000
    assert world.missed == ["r0"]
    assert world.store.gaps == {}


@pytest.mark.parametrize("fault", [Unreachable("gone"), FetchError("refused")])
async def test_a_recorder_that_does_not_answer_is_said_once(fault: FetchError) -> None:
    world = World()
    world.recorder.fault = fault
    world.recorder.add()
    with capture_logs() as logs:
        async with world.running():
            await until(lambda: len(world.recorder.asked) > 6)
            world.recorder.fault = None
            await world.closed()
    assert [entry["event"] for entry in logs] == ["catch_up_waits", "caught_up"]
    assert world.missed == ["r0"]


async def test_an_answer_that_is_no_list_is_asked_for_again() -> None:
    world = World()
    world.recorder.rows = {"message": "not a list"}  # type: ignore[assignment]
    async with world.running():
        await until(lambda: world.catch_up.facts()["nvr"]["reason"])
        world.recorder.rows = []
        await world.closed()


async def test_many_come_in_batches_and_in_order() -> None:
    world = World()
    world.recorder.add(2 * BATCH + 7)
    world.recorder.rows.reverse()
    async with world.running():
        await world.closed()
    assert world.missed == [f"r{number}" for number in range(2 * BATCH + 7)]
    assert len({one.token for one in world.heard}) == 3


async def test_a_subscription_is_not_waited_for_longer_than_it_takes() -> None:
    """The first question goes out when we hear again, not after the pause that gives the broker time."""
    world = World()
    async with world.running(SLOW):
        world.catch_up.subscribed()
        await until(lambda: world.recorder.asked)


async def test_a_stop_in_the_middle_ends_at_once() -> None:
    world = World()
    world.commits.clear()
    world.recorder.add()
    async with world.running(SLOW):
        world.catch_up.subscribed()
        await until(lambda: len(world.recorder.asked) == 2)
    assert world.store.gaps


def test_everything_else_goes_to_the_session() -> None:
    async def scenario() -> None:
        world = World()
        world.catch_up.drop("disk full")
        world.catch_up.acknowledge([AckToken(3, 7)])
        assert world.session.dropped == ["disk full"]
        assert world.session.told == [AckToken(3, 7)]
        assert world.catch_up.is_current(AckToken(3, 7))
        assert world.catch_up.connected

    asyncio.run(scenario())
