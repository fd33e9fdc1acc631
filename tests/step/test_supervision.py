"""Own troubles and the clock, with a real outbox: what is stored, said, remembered, and asked of the cloud."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.bell import Bell
from gateway.host.clock import Trust
from gateway.model import EARLIEST_AT
from gateway.outbox.store import Added, IntakeGroup, Store, StoreError
from gateway.parts import Beats
from gateway.supervision import Supervision
from gateway.watch import Facts, Under
from tests.fakes.machine import RIGHT_AT, MachineClock
from tests.fakes.waiting import until
from tests.step.outbox_kit import alarm, compose

YEAR = 365 * 86_400_000
IN_1970 = -RIGHT_AT + 5_000


class Refusing:
    """A store that can be made to refuse what is added."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.refuses = False

    async def add(self, group: IntakeGroup) -> Added:
        if self.refuses:
            raise StoreError("no room")
        return await self._store.add(group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class World:
    def __init__(self, path: Path, camera_id: str | None) -> None:
        self.path, self.camera_id = path, camera_id
        self.facts = Facts()
        self.asked = 0
        self.answers = True
        self.tells_date = True
        self.hangs = False
        self.synchronised: bool | None = True
        self.rung = 0
        self.off_ms = 0

    async def open(self) -> None:
        def make_clock(base: int) -> MachineClock:
            self.clock = MachineClock(base, off_ms=self.off_ms)
            return self.clock

        self.store = await Store.open(self.path, make_clock=make_clock, compose=compose)
        self.outbox = Refusing(self.store)
        self.supervision = Supervision(
            store=self.outbox,
            clock=self.clock,
            bell=Bell(),
            facts=lambda: self.facts,
            under=Under("L", "R", self.camera_id, True),
            delay_ms=60_000,
            synchronised=lambda: self.synchronised,
            ask_the_time=self._ask,
            on_stored=self._ring,
        )
        await self.supervision.load()

    async def again(self) -> None:
        await self.store.close()
        await self.open()

    async def _ask(self) -> bool:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.answers and self.tells_date:
            self.clock.learn_date(self.clock.right_ms())
        return self.answers

    def _ring(self) -> None:
        self.rung += 1

    async def look(self, seconds: float = 0.0, *, every: float = 5.0) -> None:
        """Looks now, and each five seconds until so many have passed."""
        end = self.clock.passed + round(seconds * 1000)
        while True:
            await self.supervision.run_once()
            await asyncio.sleep(0)  # a question to the cloud is a task of its own
            if self.clock.passed >= end:
                return
            self.clock.advance(every)

    async def rows(self) -> list[dict[str, Any]]:
        await self.store.flush()
        with sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True) as db:
            db.row_factory = sqlite3.Row
            rows = [dict(row) for row in db.execute("SELECT * FROM event ORDER BY seq")]
        db.close()
        return rows

    @property
    def open_kinds(self) -> list[object]:
        return [trouble["kind"] for trouble in self.supervision.open_troubles()]


@asynccontextmanager
async def opened(path: Path, camera_id: str | None = "C", **changed: Any) -> AsyncIterator[World]:
    world = World(path / "outbox.db", camera_id)
    for name, value in changed.items():
        setattr(world, name, value)
    await world.open()
    try:
        yield world
    finally:
        await world.store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as world:
        yield world


# Own troubles


async def test_a_lost_broker_is_one_trouble_with_one_end(world: World) -> None:
    await world.look(120)
    assert await world.rows() == []
    world.rung = 0
    world.facts = Facts(broker="the broker is away")
    with structlog.testing.capture_logs() as said:
        await world.look(600)
        world.facts = Facts()
        await world.look(600)
    begin, end = await world.rows()
    assert (begin["event_type"], begin["event_status"], begin["camera_id"]) == ("trouble", "active", "C")
    assert (end["event_status"], end["follows"]) == ("inactive", begin["event_id"])
    assert [(line["event"], line["log_level"]) for line in said if line["event"].startswith("trouble")] == [
        ("trouble_began", "warning"),
        ("trouble_ended", "info"),
    ]
    assert world.rung == 2
    # They are nobody's message, and must not disturb that account.
    counters = await world.store.counters()
    assert counters.get("stored", 0) == counters.get("duplicate", 0) == 0
    assert counters["events"] == 2


async def test_the_end_is_sent_after_its_beginning(world: World) -> None:
    world.facts = Facts(broker="away")
    await world.look(60)
    world.facts = Facts()
    await world.look(60)
    claimed = await world.store.claim(10)
    assert [one.event.event_status for one in claimed] == ["active"]


async def test_a_short_fault_is_none(world: World) -> None:
    for _ in range(20):
        world.facts = Facts(broker="away")
        await world.look(20)
        world.facts = Facts()
        await world.look(40)
    assert await world.rows() == []


async def test_without_a_camera_id_it_is_said_shown_and_not_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, None) as world:
        world.facts = Facts(credentials="refused")
        with structlog.testing.capture_logs() as said:
            await world.look(120)
        assert await world.rows() == []
        assert [line["log_level"] for line in said if line["event"] == "trouble_began"] == ["error"]
        [shown] = world.supervision.open_troubles()
        assert shown["kind"] == "credentials" and shown["local"]
        await world.again()
        assert world.open_kinds == ["credentials"]


async def test_a_restart_neither_repeats_nor_forgets(world: World) -> None:
    world.facts = Facts(broker="away")
    await world.look(60)
    await world.again()
    await world.look(600)
    assert len(await world.rows()) == 1
    await world.again()
    world.facts = Facts()
    await world.look(60)
    begin, end = await world.rows()
    assert end["follows"] == begin["event_id"]
    await world.again()
    await world.look(60)
    assert len(await world.rows()) == 2 and world.open_kinds == []


async def test_a_store_that_refuses_tells_it_when_it_accepts_again(world: World) -> None:
    world.facts = Facts(store="no room")
    world.outbox.refuses = True
    await world.look(90)
    assert world.open_kinds == ["store"]
    assert await world.rows() == []
    world.outbox.refuses = False
    world.facts = Facts()
    await world.look(60)
    begin, end = await world.rows()
    assert (begin["kind"], end["follows"]) == ("store", begin["event_id"])
    assert begin["event_at"] == RIGHT_AT


async def test_a_store_that_refuses_for_days_makes_no_storm_afterwards(world: World) -> None:
    world.outbox.refuses = True
    for _ in range(50):
        world.facts = Facts(store="no room", broker="away")
        await world.look(60)
        world.facts = Facts(store="no room")
        await world.look(30)
    world.outbox.refuses = False
    world.facts = Facts()
    await world.look(60)
    kinds = [(row["kind"], row["event_status"]) for row in await world.rows()]
    assert sorted(kinds) == sorted((kind, word) for kind in ("broker", "store") for word in ("active", "inactive"))


async def test_a_possible_gap_is_told_at_once_and_closes(world: World) -> None:
    await world.look(10)
    world.facts = Facts(gap=(world.clock.ticks_ms(), "session lost"))
    await world.look(0)
    assert [row["kind"] for row in await world.rows()] == ["gap"]
    await world.look(360)
    assert [row["event_status"] for row in await world.rows()] == ["active", "inactive"]


# The clock


async def test_alarms_of_1970_are_kept_and_dated_before_the_first_is_sent(tmp_path: Path) -> None:
    async with opened(tmp_path, off_ms=IN_1970, synchronised=False, answers=False) as world:
        assert world.supervision.judgement.trust is Trust.WRONG
        assert not world.supervision.may_compose
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        await world.look(300)
        assert not world.supervision.may_compose
        assert 5 <= world.asked <= 15  # not a storm either
        assert world.open_kinds == ["clock"]
        world.answers = True
        await world.look(60)
        assert world.supervision.may_compose
        assert world.clock.wall_ms() == world.clock.right_ms()
        assert {row["event_id"]: row["received_at"] for row in await world.rows()}["a"] == RIGHT_AT
        assert all(row["received_at"] > EARLIEST_AT for row in await world.rows())
        assert world.rung > 0
        assert world.open_kinds == ["clock"]  # the machine's own clock is still wrong
        asked = world.asked
        await world.look(600, every=30)
        assert world.asked == asked  # the answer is enough for hours
        world.off_ms = world.clock.off_ms = 0
        await world.look(60)
        assert world.open_kinds == []
        statuses = [row["event_status"] for row in await world.rows() if row["kind"] == "clock"]
        assert statuses == ["active", "inactive"]


async def test_the_next_life_knows_from_where_on_it_must_look(tmp_path: Path) -> None:
    async with opened(tmp_path, off_ms=YEAR, synchronised=False, answers=False) as world:
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        await world.look(20)
        assert await world.store.get_meta("undated_since") is not None
        world.off_ms, world.synchronised = 0, True
        await world.again()
        [row] = await world.rows()
        assert row["received_at"] <= world.clock.right_ms()  # dated before anything is sent
        await world.look(60)
        assert await world.store.get_meta("undated_since") is None


async def test_a_trusted_start_looks_at_no_row(world: World) -> None:
    asked: list[object] = []

    async def correct_times(correction: object) -> int:
        asked.append(correction)
        return 0

    world.outbox.correct_times = correct_times  # type: ignore[attr-defined]
    await world.supervision.load()
    await world.look(60)
    assert asked == []


async def test_a_start_hours_behind_tells_nothing_before_the_cloud_has_told_the_time(tmp_path: Path) -> None:
    """A machine without a battery goes on from the last time that it saved: plausible, and wrong."""
    async with opened(tmp_path, off_ms=-5 * 3_600_000, synchronised=False) as world:
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        assert world.supervision.judgement.trust is Trust.UNSURE
        assert not world.supervision.may_compose
        world.rung = 0
        await world.look(5)
        assert world.supervision.may_compose and world.rung
        [row, *_] = await world.rows()
        assert row["received_at"] == RIGHT_AT


@pytest.mark.parametrize("hangs", [True, False], ids=["a cloud that hangs", "a cloud that is away"])
async def test_the_first_answer_is_not_waited_for_any_longer_than_it_takes(tmp_path: Path, hangs: bool) -> None:
    async with opened(tmp_path, synchronised=False, answers=False, hangs=hangs) as world:
        assert not world.supervision.may_compose
        await world.look(5)
        assert world.supervision.may_compose


async def test_a_trouble_of_1970_is_shown_in_right_time(tmp_path: Path) -> None:
    """Also to a later life, which does not know how long nobody ran."""

    async with opened(tmp_path, off_ms=IN_1970, synchronised=False, answers=False) as world:

        def since_at() -> list[object]:
            return [trouble["since_at"] for trouble in world.supervision.open_troubles() if trouble["kind"] == "broker"]

        world.facts = Facts(broker="away")
        await world.look(120)
        assert since_at() == [5_000]
        world.answers = True
        await world.look(120)
        assert since_at() == [RIGHT_AT]
        world.off_ms, world.synchronised = 3_600_000, True  # time has passed in between, nobody knows how much
        await world.again()
        assert since_at() == [RIGHT_AT]
        world.facts = Facts()
        await world.look(60)
        assert next(row["event_at"] for row in await world.rows() if row["kind"] == "broker") == RIGHT_AT


async def test_the_time_service_may_be_first(tmp_path: Path) -> None:
    async with opened(tmp_path, off_ms=IN_1970, synchronised=False, answers=False) as world:
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        await world.look(20)
        world.clock.off_ms, world.synchronised = 0, True
        await world.look(5)
        assert world.supervision.may_compose
        [row] = await world.rows()
        assert (row["received_at"], row["event_at"]) == (RIGHT_AT, RIGHT_AT)


async def test_the_clock_is_set_by_hand_and_nobody_can_confirm_it(tmp_path: Path) -> None:
    """Then it is believed: it is plausible, and an alarm must not wait for a witness that will not come."""
    async with opened(tmp_path, off_ms=IN_1970, synchronised=False, answers=False) as world:
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        await world.look(20)
        world.clock.off_ms = 0
        await world.look(5)
        assert world.supervision.may_compose
        [row] = await world.rows()
        assert row["received_at"] == RIGHT_AT


async def test_a_cloud_that_tells_no_time_is_sent_to_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path, off_ms=IN_1970, synchronised=False, tells_date=False) as world:
        await world.look(60)
        assert world.supervision.may_compose


async def test_a_jump_of_a_year_reaches_nothing(world: World) -> None:
    await world.look(30)
    world.clock.off_ms, world.synchronised = YEAR, False
    assert world.clock.wall_ms() == world.clock.right_ms()  # also before anybody has looked
    await world.look(120)
    assert world.clock.wall_ms() == world.clock.right_ms()
    assert world.open_kinds == ["clock"]
    assert world.supervision.may_compose


async def test_weeks_without_time_service_while_the_cloud_agrees(tmp_path: Path) -> None:
    async with opened(tmp_path, synchronised=False) as world:
        await world.look(14 * 86_400, every=600)
        assert world.supervision.judgement.trust is Trust.TRUSTED
        assert await world.rows() == []
        assert world.asked <= 14 * 4 + 1


async def test_a_drift_that_the_cloud_contradicts(tmp_path: Path) -> None:
    async with opened(tmp_path, synchronised=False) as world:
        await world.look(60)
        world.clock.off_ms = -45_000
        await world.store.add(IntakeGroup(events=(alarm("a", world.clock),), counts={"received": 1}))
        await world.look(120)
        [row, *_] = await world.rows()
        assert abs(row["received_at"] - (RIGHT_AT + 60_000)) <= 30_000
        assert world.open_kinds == ["clock"]


async def test_nobody_is_asked_while_the_clock_is_disciplined(world: World) -> None:
    await world.look(86_400, every=600)
    assert world.asked == 0


async def test_the_step_runs_until_it_is_stopped(world: World) -> None:
    stop = asyncio.Event()
    beats: list[int] = []
    world.supervision._beat = lambda: beats.append(1)
    task = asyncio.create_task(world.supervision.run(stop))
    await until(lambda: beats)
    stop.set()
    await asyncio.wait_for(task, 5)


# What feeds the watchdog


async def test_a_step_is_stuck_when_it_has_not_gone_round_for_45_seconds() -> None:
    now = 0.0
    beats = Beats()
    loop = asyncio.get_running_loop()
    real = loop.time
    try:
        loop.time = lambda: now  # type: ignore[method-assign]
        intake, delivery = beats.of("intake"), beats.of("delivery")
        intake()
        delivery()
        now = 44.0
        delivery()
        assert beats.stuck() == []
        now = 46.0
        assert beats.stuck() == ["intake"]
        now = 90.0
        assert beats.stuck() == ["delivery", "intake"]
        intake()
        delivery()
        assert beats.stuck() == []
    finally:
        loop.time = real  # type: ignore[method-assign]
