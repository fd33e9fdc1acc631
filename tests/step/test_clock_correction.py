"""Rows that were received under a wrong clock, after the right time has become known."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.deciding import Decider, Group
from gateway.model import (
    UNBOUNDED_MS,
    EventStatus,
    EventType,
    MediaKind,
    MediaWanted,
    Message,
    NewEvent,
    iso_utc,
)
from gateway.outbox import correcting
from gateway.outbox.correcting import CORRECTED_ROWS
from gateway.outbox.store import Correction
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.times import judge_again
from gateway.states import EventState
from tests.step.outbox_kit import Outbox, deferred, delivered, in_the_writer, open_outbox

HOUR, YEAR = 3_600_000, 365 * 86_400_000
RIGHT = 1_772_366_400_000  # 2026-03-01T12:00:00Z


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        outbox.clock.wall = 7_000  # 1970
        yield outbox


async def correct(
    outbox: Outbox, *, right: int = RIGHT, since: int = 0, life: int = 0, sure: bool = True
) -> tuple[int, list[int]]:
    """`right`: the right time now."""
    adopted: list[int] = []
    base = right - outbox.clock.ticks
    correction = Correction(base, since, life, 0, judge_again, sure, adopted.append)
    count = await outbox.store.correct_times(correction)
    assert adopted == [base]
    return count, adopted


def times(outbox: Outbox, name: str) -> tuple[int, int]:
    [(received_at, event_at)] = outbox.look("SELECT received_at, event_at FROM event WHERE event_id = ?", name)
    return received_at, event_at


async def test_what_was_received_in_1970_gets_the_time_of_its_ticks(outbox: Outbox) -> None:
    await outbox.add(outbox.alarm("first"))
    outbox.clock.advance(60)
    await outbox.add(outbox.alarm("second"))
    outbox.clock.advance(30)
    assert (await correct(outbox))[0] == 2
    assert times(outbox, "first") == (RIGHT - 90_000, RIGHT - 90_000)
    assert times(outbox, "second") == (RIGHT - 30_000, RIGHT - 30_000)
    assert (await correct(outbox))[0] == 0  # once is enough
    [hop] = outbox.look("SELECT detail FROM hop WHERE what = 'clock_corrected' AND event_seq = 1")
    assert json.loads(hop)["received_at"] == 7_000
    [stored] = outbox.look("SELECT stored_at FROM event WHERE event_id = 'first'")
    assert stored == RIGHT - 90_000


async def test_the_request_is_composed_with_the_right_time(outbox: Outbox) -> None:
    await outbox.add(outbox.alarm("a"))
    [before] = await outbox.store.claim(1)
    await outbox.store.settle(before.event.seq, deferred(0, clear_bytes=True))
    await correct(outbox)
    outbox.clock.wall = RIGHT
    [claimed] = await outbox.store.claim(1)
    assert claimed.event.event_at == RIGHT
    assert str(RIGHT).encode() in claimed.body


async def test_what_the_cloud_may_have_seen_stays_as_it_was_sent(outbox: Outbox) -> None:
    await outbox.add(outbox.alarm("a"))
    [before] = await outbox.store.claim(1)
    await outbox.store.settle(before.event.seq, deferred(0, unclear=True))
    await correct(outbox)
    assert times(outbox, "a") == (RIGHT, 7_000)  # its receipt is for people here
    [again] = await outbox.store.claim(1)
    assert again.body == before.body


async def test_delivered_ones_are_history(outbox: Outbox) -> None:
    await outbox.add(outbox.alarm("a"))
    [claimed] = await outbox.store.claim(1)
    await outbox.store.settle(claimed.event.seq, delivered())
    assert (await correct(outbox))[0] == 0


async def test_those_that_wait_for_a_person_are_corrected_too(outbox: Outbox) -> None:
    await outbox.add(
        outbox.alarm("unmapped", state=EventState.UNMAPPED, camera_id=None),
        outbox.alarm("unreadable", state=EventState.UNREADABLE, camera_id=None),
    )
    assert (await correct(outbox))[0] == 2
    assert times(outbox, "unmapped") == (RIGHT, RIGHT)


async def test_of_an_earlier_life_only_the_impossible_is_touched(outbox: Outbox) -> None:
    right_then = RIGHT - 10 * HOUR  # nobody ran for most of these ten hours
    await outbox.add(outbox.alarm("1970"))
    outbox.clock.wall = right_then
    await outbox.add(outbox.alarm("right", "c2"))
    outbox.clock.wall = RIGHT + YEAR
    await outbox.add(outbox.alarm("future", "c3"))
    outbox.clock.wall = RIGHT
    outbox.clock.advance(60)
    await correct(outbox, right=RIGHT + 60_000, since=outbox.clock.ticks, life=outbox.clock.ticks)
    assert times(outbox, "right") == (right_then, right_then)
    assert times(outbox, "1970")[0] == times(outbox, "future")[0] == RIGHT


async def test_a_clock_that_nobody_vouches_for_dates_only_what_was_of_1970(outbox: Outbox) -> None:
    """A box without a battery goes on from the last time that it saved: hours behind."""
    await outbox.add(outbox.alarm("1970"))
    outbox.clock.wall = RIGHT
    await outbox.add(outbox.alarm("right", "c2"))
    outbox.clock.advance(60)
    behind = RIGHT - 5 * HOUR
    await correct(outbox, right=behind, since=outbox.clock.ticks, life=outbox.clock.ticks, sure=False)
    assert times(outbox, "right") == (RIGHT, RIGHT)
    assert times(outbox, "1970")[0] == behind - 60_000


async def test_however_much_waits_only_what_is_suspect_is_looked_at(outbox: Outbox) -> None:
    """A start must not become slower with the backlog."""
    values = dict.fromkeys(("base", "since", "life", "sure", "suspect", "first"), 0)

    def explain(db: sqlite3.Connection) -> list[Any]:
        return db.execute("EXPLAIN QUERY PLAN " + correcting.UNSETTLED, values).fetchall()

    plan = await in_the_writer(outbox.store, explain)
    assert "rank=? AND received_ticks>?" in plan[0][-1], plan


async def test_what_was_received_while_the_clock_was_right_stays(outbox: Outbox) -> None:
    outbox.clock.wall = RIGHT - HOUR
    await outbox.add(outbox.alarm("before"))
    outbox.clock.advance(10)
    await correct(outbox, since=outbox.clock.ticks)
    assert times(outbox, "before") == (RIGHT - HOUR, RIGHT - HOUR)


async def test_a_trouble_tells_the_receipt_of_what_began_it(outbox: Outbox) -> None:
    outbox.clock.wall = RIGHT
    began = outbox.clock.wall - 60_000
    trouble = outbox.alarm("t")._replace(event_type=EventType.TROUBLE, received_at=began, event_at=began)
    await outbox.add(trouble)
    assert (await correct(outbox))[0] == 0


async def test_more_rows_than_one_commit_takes(outbox: Outbox) -> None:
    many = CORRECTED_ROWS + 20
    await outbox.add(*(outbox.alarm(f"e{number}", f"c{number}") for number in range(many)))
    assert (await correct(outbox))[0] == many
    assert outbox.look("SELECT DISTINCT received_at FROM event") == [RIGHT]


async def test_windows_of_pictures_move_along(outbox: Outbox) -> None:
    wanted = (
        MediaWanted(MediaKind.SNAPSHOT, 0, 7_000, 7_000, {"id": "x"}),
        MediaWanted(MediaKind.EVENT_MP4, 0, -3_000, 27_000, {"id": "x", "clock_offset_ms": 7_000 - RIGHT}),
    )
    await outbox.add(outbox.alarm("a", media=wanted))
    await correct(outbox)
    assert outbox.look("SELECT from_at, to_at, recipe FROM media ORDER BY id") == [
        (RIGHT, RIGHT, '{"id":"x"}'),
        (RIGHT - 10_000, RIGHT + 20_000, '{"id":"x"}'),  # the recorder's clock was right all the time
    ]


async def test_what_was_heard_in_the_future_is_heard_now(outbox: Outbox) -> None:
    outbox.clock.wall = RIGHT + YEAR
    await outbox.add(outbox.alarm("a"), seen_cameras={"nvr": RIGHT + YEAR})
    await correct(outbox)
    assert await outbox.store.last_heard_at() == RIGHT


@pytest.mark.parametrize(
    ("what", "at_most", "since_at", "right"),
    [
        ("by ticks: exact, whatever the clock said", HOUR, None, HOUR),
        ("unknown in 1970", UNBOUNDED_MS, RIGHT - 5 * HOUR, 5 * HOUR),
        ("a clock that was behind", 1_000, RIGHT - 5 * HOUR, 5 * HOUR),
        ("a clock that was ahead", YEAR, RIGHT - 5 * HOUR, 5 * HOUR),
        ("heard in 1970 as well", UNBOUNDED_MS, 5_000, UNBOUNDED_MS),
        ("heard in the future", UNBOUNDED_MS, RIGHT + YEAR, UNBOUNDED_MS),
    ],
)
async def test_for_how_long_it_waited_at_most_follows(
    outbox: Outbox, what: str, at_most: int, since_at: int | None, right: int
) -> None:
    await outbox.add(outbox.alarm("a", age_unknown_ms=at_most, away_since_at=since_at))
    await correct(outbox)
    assert outbox.look("SELECT age_unknown_ms FROM event") == [right], what


async def test_of_an_earlier_life_the_bound_still_holds(outbox: Outbox) -> None:
    """It is dated as late as possible, and the bound grows with that: together they go back to the same moment."""
    away = RIGHT - 5 * HOUR
    await outbox.add(outbox.alarm("a", age_unknown_ms=UNBOUNDED_MS, away_since_at=away))
    outbox.clock.advance(60)
    life = outbox.clock.ticks
    await correct(outbox, since=life, life=life)
    [(received_at, at_most)] = outbox.look("SELECT received_at, age_unknown_ms FROM event")
    assert received_at - at_most == away


@pytest.mark.parametrize(
    ("what", "event_at", "received_at", "details", "waited", "right"),
    [
        ("no time of its own", 7_000, 7_000, {}, None, RIGHT),
        ("no time of its own, off by a minute", RIGHT - 60_000, RIGHT - 60_000, {}, None, RIGHT),
        ("the equipment knew better", 7_000, 7_000, {"device_time": iso_utc(RIGHT - 800)}, None, RIGHT - 800),
        ("the equipment was wrong as well", 6_500, 7_000, {}, None, RIGHT - 500),
        ("wrong, and believed by nobody", 7_000, 7_000, {"device_time": iso_utc(RIGHT - YEAR)}, None, RIGHT),
        ("its own time, right", RIGHT - 9_000, RIGHT - 240_000, {}, None, RIGHT - 9_000),
        ("waited for hours", 7_000, 7_000, {"device_time": iso_utc(RIGHT - 5 * HOUR)}, 0, RIGHT - 5 * HOUR),
        ("waited, no time of its own", 7_000, 7_000, {}, 0, RIGHT),
        ("a device_time that is none", 7_000, 7_000, {"device_time": 5}, None, RIGHT),
    ],
)
def test_when_it_happened(
    what: str, event_at: int, received_at: int, details: dict[str, Any], waited: int | None, right: int
) -> None:
    assert judge_again(event_at, received_at, RIGHT, details, waited) == right, what


async def test_a_restore_waits_on_with_its_beginning(outbox: Outbox) -> None:
    begin: NewEvent = outbox.alarm("begin")
    end = outbox.alarm("end")._replace(event_status=EventStatus.INACTIVE, follows="begin")
    await outbox.add(begin, end)
    await correct(outbox)
    assert await outbox.settle_all() == ["begin"]
    assert await outbox.settle_all() == ["end"]


async def test_a_message_that_waited_while_the_clock_was_set_is_dated_when_it_is_decided(outbox: Outbox) -> None:
    clock = outbox.clock
    message = Message("a/b", b"x", 1, False, False, False, clock.wall_ms(), clock.ticks_ms())
    clock.wall = RIGHT
    clock.advance(3)
    backlog = BacklogJudge(None)
    decider = Decider(sources=[], find_plan=lambda _, __: None, location_id="L", backlog=backlog, clock=clock)
    group = Group()
    decider.decide(Received(message, AckToken(0, 1), oversize=10, oversize_sha256="0" * 64), group)
    [row] = group.events
    assert (row.received_at, row.event_at) == (RIGHT, RIGHT)
