"""Choosing: the order of house, lanes, holds, and a cost that does not grow with what waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.model import Composed, Event, EventStatus, EventType
from gateway.outbox.choosing import ALARM_WAITS_MS, DISARM_WAITS_MS, FRESH_MS, HEAD_ROWS, Candidate, merge
from gateway.outbox.claims import COMPOSE_FAULTS_SPAN_MS
from gateway.outbox.store import IntakeGroup
from tests.step.outbox_kit import (
    CLIP,
    SNAPSHOT,
    Outbox,
    compose,
    compose_what_is_there,
    deferred,
    delivered,
    in_the_writer,
    open_outbox,
    slot,
)

TROUBLE = {"event_type": EventType.TROUBLE}
ARMED: dict[str, Any] = {"event_type": EventType.ARMING, "camera_id": None, "camera": None}
DISARMED = ARMED | {"event_status": EventStatus.INACTIVE}
OLD_SECONDS = FRESH_MS / 1000 + 1


async def in_turn(outbox: Outbox, limit: int = 1) -> list[str]:
    """What goes, one claim after the other, each settled before the next."""
    order: list[str] = []
    while names := await outbox.settle_all(limit):
        order += names
    return order


async def test_one_of_a_camera_at_a_time_the_oldest_first(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"{camera}{n}", camera) for n in range(3) for camera in "ab"))
        assert await outbox.claim() == ["a0", "b0"]
        assert await outbox.claim() == [], "both cameras have one on the wire"


async def test_busy_and_held_lanes_are_left_alone(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(camera, camera) for camera in "abc"), outbox.alarm("far", "d", location_id="M"))
        assert await outbox.claim(busy_lanes={"L/a"}, held={"L/b"}, held_locations={"M"}) == ["c"]
        assert await outbox.claim(held_locations={"L"}) == ["far"]
        assert await outbox.claim() == ["a", "b"]


async def test_a_deferred_event_does_not_block_its_camera(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("old"), outbox.alarm("new"))
        old = await outbox.claim_one()
        await outbox.store.settle(old.event.seq, deferred(1_000))
        assert await outbox.claim() == ["new"]


async def test_among_due_ones_of_a_camera_the_oldest_goes_first(tmp_path: Path) -> None:
    """Also when it became due last: its waiting was not its own fault."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("first"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(1_000))
        outbox.clock.advance(0.5)
        await outbox.add(outbox.alarm("second"))
        outbox.clock.advance(1)
        assert await in_turn(outbox) == ["first", "second"]


async def test_fresh_alarms_go_first_even_before_their_own_cameras_backlog(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("old-a", "a"), outbox.alarm("old-b", "b"))
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(outbox.alarm("fresh-a", "a"))
        outbox.clock.advance(1)
        await outbox.add(outbox.alarm("fresher-a", "a"))
        assert await outbox.claim(2) == ["fresh-a", "old-b"]


async def test_only_alarms_are_fresh(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("old", "a"))
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(outbox.alarm("trouble", "b", **TROUBLE))
        assert await in_turn(outbox) == ["old", "trouble"]


async def test_the_backlog_goes_alarms_troubles_arming_each_oldest_first(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        arming = {"event_type": EventType.ARMING}
        await outbox.add(
            outbox.alarm("arming", "a", **arming, event_at=outbox.clock.wall + 1),
            outbox.alarm("trouble1", "b", **TROUBLE),
            outbox.alarm("alarm1", "c"),
            outbox.alarm("trouble2", "d", **TROUBLE),
            outbox.alarm("alarm2", "e"),
        )
        outbox.clock.advance(OLD_SECONDS)
        assert await in_turn(outbox, 100) == ["alarm1", "alarm2", "trouble1", "trouble2", "arming"]


@pytest.mark.parametrize("limit", [1, 3, 8])
async def test_the_backlog_gets_one_in_four_while_both_wait(tmp_path: Path, limit: int) -> None:
    """Whether few or many are claimed at a time."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"old{n}", f"o{n}") for n in range(10)))
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(*(outbox.alarm(f"new{n}", f"n{n}") for n in range(40)))
        order = await in_turn(outbox, limit)
        assert [name for name in order if name.startswith("old")] == [f"old{n}" for n in range(10)]
        assert [name for name in order if name.startswith("new")] == [f"new{n}" for n in range(40)]
        for start in range(0, 40, 4):
            assert sum(name.startswith("old") for name in order[start : start + 4]) == 1, order


async def test_one_camera_with_both_shares_its_turns(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"old{n}") for n in range(4)))
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(*(outbox.alarm(f"new{n}") for n in range(12)))
        order = await in_turn(outbox, 8)
        assert [n for n, name in enumerate(order) if name.startswith("old")] == [3, 7, 11, 15]


async def test_only_fresh_ones_where_only_these_are_wanted(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("old", "a"), outbox.alarm("trouble", "b", **TROUBLE))
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(outbox.alarm("fresh", "c"))
        assert await outbox.claim(fresh_only=True) == ["fresh"]
        assert await outbox.claim(fresh_only=True) == []
        assert await outbox.claim() == ["old", "trouble"]


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_flood_of_one_camera_does_not_hide_the_others(tmp_path: Path, fresh: bool) -> None:
    """Far more at the head of the queue than are looked at: the others are found from lane to lane."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        flood = [outbox.alarm(f"flood{n}", "flood") for n in range(3 * HEAD_ROWS)]
        await outbox.add(*flood, outbox.alarm("b", "b"), outbox.alarm("c", "c"), outbox.alarm("t", "t", **TROUBLE))
        if not fresh:
            outbox.clock.advance(OLD_SECONDS)
        assert await outbox.claim(busy_lanes={"L/flood"}) == ["b", "c", "t"]
        assert await outbox.claim() == ["flood0"]


async def test_a_flood_keeps_the_order_of_the_others(tmp_path: Path) -> None:
    """On the way from lane to lane, too: fresh, backlog, one in four, alarms before troubles."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"flood{n}", "flood") for n in range(3 * HEAD_ROWS)))
        await outbox.add(
            outbox.alarm("old-trouble", "a", **TROUBLE), outbox.alarm("old1", "z"), outbox.alarm("old2", "b")
        )
        outbox.clock.advance(OLD_SECONDS)
        await outbox.add(*(outbox.alarm(f"wet{n}", "flood") for n in range(3 * HEAD_ROWS)))
        await outbox.add(outbox.alarm("new1", "y"), outbox.alarm("new2", "c"), outbox.alarm("new3", "z"))
        order = await outbox.claim(20, busy_lanes={"L/flood"})
        assert order == ["new1", "new2", "new3", "old2", "old-trouble"]
        assert await outbox.claim(20, busy_lanes={"L/y", "L/c", "L/z", "L/b", "L/a"}) == ["wet0"]


@pytest.mark.slow
async def test_what_becomes_due_is_found_whatever_else_waits(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"e{n}", f"c{n}") for n in range(600)))
        for claimed in await outbox.store.claim(600):
            await outbox.store.settle(claimed.event.seq, deferred(1_000))
        assert await outbox.claim(600) == []
        assert await outbox.store.next_due() == outbox.clock.ticks + 1_000
        outbox.clock.advance(1)
        found = [name for _ in range(4) for name in await outbox.claim(600)]
        assert sorted(found) == sorted(f"e{n}" for n in range(600))


def test_a_lane_is_taken_once_whatever_it_offers() -> None:
    def candidate(seq: int, lane: str) -> Candidate:
        return Candidate(seq, lane, "L", "alarm", "active", 0, 0)

    fresh = [candidate(10, "a"), candidate(11, "a"), candidate(12, "b")]
    backlog = [candidate(1, "a"), candidate(2, "b"), candidate(3, "c")]
    assert merge(fresh, backlog, 10, 0) == ([10, 12, 3], 0)
    assert merge(fresh, backlog, 10, 3) == ([1, 12, 3], 0)
    assert merge(fresh, [], 1, 7) == ([10], 8)
    assert merge([], [], 5, 2) == ([], 2)


# Arming


async def test_an_alarm_waits_a_while_for_an_older_armed(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before", "a", event_at=outbox.clock.wall - 5))
        await outbox.add(outbox.alarm("armed", **ARMED), outbox.alarm("after", "b", event_at=outbox.clock.wall + 5))
        await outbox.add(outbox.alarm("elsewhere", "c", event_at=outbox.clock.wall + 5, location_id="M"))
        claimed = await outbox.store.claim(10)
        assert [one.event.event_id for one in claimed] == ["before", "elsewhere", "armed"]
        armed = claimed[-1]
        await outbox.store.settle(armed.event.seq, deferred(10 * ALARM_WAITS_MS))
        assert await outbox.claim() == []
        outbox.clock.advance(ALARM_WAITS_MS / 1000)
        assert await outbox.claim() == ["after"]


async def test_a_disarmed_waits_until_older_alarms_are_settled(tmp_path: Path) -> None:
    """Else the cloud would discard what happened while the site was armed."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("burglar", "a"))
        outbox.clock.advance(1)
        await outbox.add(outbox.alarm("disarmed", **DISARMED))
        outbox.clock.advance(1)
        await outbox.add(outbox.alarm("later", "b"))
        claimed = await outbox.store.claim(10)
        assert [one.event.event_id for one in claimed] == ["burglar", "later"]
        assert await outbox.claim() == [], "on the wire is not settled"
        await outbox.store.settle(claimed[0].event.seq, deferred(10 * DISARM_WAITS_MS))
        assert await outbox.claim() == [], "deferred is not settled"
        outbox.clock.advance(DISARM_WAITS_MS / 1000)
        assert await outbox.claim() == ["disarmed"], "but it does not wait for ever"


async def test_what_came_in_one_moment_goes_in_the_order_in_which_it_came(tmp_path: Path) -> None:
    """A panel's words that waited in the broker arrive together, and have no times of their own."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        at = outbox.clock.wall
        for name, terms in (("armed", ARMED), ("burglar", {"camera_id": "b"}), ("disarmed", DISARMED)):
            await outbox.add(outbox.alarm(name, name, **terms, event_at=at))
        assert [await outbox.settle_all(10) for _ in range(3)] == [["armed"], ["burglar"], ["disarmed"]]


async def test_two_panels_of_a_site_within_one_millisecond_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """The alarm for the `armed`, that for the `disarmed` before it, and that one for the alarm: for half a minute."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(
            outbox.alarm("alarm", "shed"),
            outbox.alarm("shed disarmed", **DISARMED),
            outbox.alarm("house armed", **ARMED),
        )
        assert await in_turn(outbox, 10) == ["alarm", "shed disarmed", "house armed"]


async def test_arming_keeps_its_order_within_a_site(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        now = outbox.clock.wall
        await outbox.add(
            outbox.alarm("disarmed", "p2", **(DISARMED | {"camera_id": "p2"}), event_at=now + 2),
            outbox.alarm("armed", "p1", **(ARMED | {"camera_id": "p1"}), event_at=now + 1),
        )
        assert await in_turn(outbox, 10) == ["armed", "disarmed"]


# Bytes


async def test_bytes_are_fixed_in_the_commit_of_the_claim(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        claimed = await outbox.claim_one()
        row = outbox.look("SELECT state, body, idempotency_key, sent_at, attempts, signalled FROM event")
        assert row == [("sending", claimed.body, claimed.idempotency_key, claimed.sent_at, 1, 1)]
        assert claimed.first_use
        assert claimed.event.attempts == 1


async def test_a_later_attempt_has_the_same_bytes_and_key(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, unclear=True))
        outbox.clock.advance(60)
        again = await outbox.claim_one()
        assert (again.body, again.idempotency_key, again.sent_at) == (first.body, first.idempotency_key, first.sent_at)
        assert not again.first_use
        assert (again.event.attempts, again.event.unclear) == (2, 1)


async def test_bytes_are_set_anew_only_if_none_was_written(tmp_path: Path) -> None:
    """No token, DNS, connect, TLS: nothing has been seen, and the sending time shall be true."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, clear_bytes=True))
        outbox.clock.advance(60)
        again = await outbox.claim_one()
        assert again.first_use
        assert again.sent_at == outbox.clock.wall
        assert again.body != first.body


async def test_bytes_that_may_have_been_seen_are_kept_whatever_a_step_says(tmp_path: Path) -> None:
    """First answered with 503, then unreachable: the cloud has read these bytes."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0))
        await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, clear_bytes=True))
        outbox.clock.advance(60)
        assert (await outbox.claim_one()).body == first.body


async def test_what_is_not_announced_is_lost_once_the_bytes_are_final(tmp_path: Path) -> None:
    """But not while they may be composed anew, with the file there."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        outbox.store.compose = compose_what_is_there
        await outbox.add(outbox.alarm("a", media=(SNAPSHOT, CLIP)))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, clear_bytes=True))
        assert outbox.look("SELECT state FROM media") == ["waiting", "waiting"]
        picture = (await outbox.store.media_to_fetch(1))[0]
        assert await outbox.store.media_fetched(picture.id, "a.jpg", 5, "00")
        again = await outbox.claim_one()
        await outbox.store.settle(again.event.seq, delivered(slot(), slot(CLIP.kind)))
        assert outbox.look("SELECT kind, state, put_url IS NOT NULL FROM media ORDER BY id") == [
            ("snapshot", "waiting", 1),
            ("event_mp4", "lost", 0),
        ]
        assert "not announced" in outbox.look("SELECT reason FROM media WHERE state = 'lost'")[0]


async def test_an_error_while_composing_defers_that_event_alone(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:

        def fails(event: Event, media: object, sent_at: int) -> Composed:
            if event.event_id == "bad":
                raise KeyError("no such field")
            return compose(event, (), sent_at)

        outbox.store.compose = fails
        await outbox.add(outbox.alarm("bad", "a"), outbox.alarm("good", "b"))
        assert await outbox.claim() == ["good"]
        state, faults, reason = outbox.look("SELECT state, faults, reason FROM event WHERE event_id = 'bad'")[0]
        assert (state, faults) == ("pending", 1)
        assert "KeyError" in reason
        assert await outbox.claim() == []


async def test_an_event_that_cannot_be_composed_dies_only_after_an_hour(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:

        def fails(event: Event, media: object, sent_at: int) -> Composed:
            raise KeyError("no such field")

        outbox.store.compose = fails
        await outbox.add(outbox.alarm("bad"))
        began = outbox.clock.ticks
        while outbox.states()["bad"] == "pending":
            assert await outbox.claim() == []
            due = await outbox.store.next_due()
            if due is not None:
                outbox.clock.advance((due - outbox.clock.ticks) / 1000)
        assert outbox.states()["bad"] == "dead"
        assert outbox.look("SELECT faults FROM event")[0] >= 5
        assert outbox.clock.ticks - began >= COMPOSE_FAULTS_SPAN_MS


async def test_claims_of_one_moment_never_share_an_event_or_a_lane(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"e{n}", f"c{n % 5}") for n in range(50)))
        groups = await asyncio.gather(*(outbox.store.claim(2) for _ in range(10)))
        claimed = [one.event for group in groups for one in group]
        assert len(claimed) == len({event.lane for event in claimed}) == len({event.seq for event in claimed}) == 5


# Cost, in steps of SQLite's machine: unlike seconds the same on every machine


async def steps_of_a_claim(
    tmp_path: Path, rows: int, prepare: Callable[[sqlite3.Connection], object], **wish: object
) -> int:
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    async with open_outbox(tmp_path / f"{rows}.db") as outbox:
        for start in range(0, rows, 2_000):
            events = (outbox.alarm(f"e{n}", f"c{n % 40}") for n in range(start, min(rows, start + 2_000)))
            await outbox.store.add(IntakeGroup(events=tuple(events)))
        outbox.clock.advance(OLD_SECONDS)
        await in_the_writer(outbox.store, prepare)
        await in_the_writer(outbox.store, lambda db: db.set_progress_handler(count, 1))
        claimed = await outbox.store.claim(8, **wish)  # type: ignore[arg-type]
        await in_the_writer(outbox.store, lambda db: db.set_progress_handler(None, 1))
        assert len(claimed) == 8
    return counted


def nothing(db: sqlite3.Connection) -> None:
    pass


def back_off(db: sqlite3.Connection) -> None:
    """Nine of ten wait for a later attempt, the oldest among them."""
    db.execute("UPDATE event SET ready = 0, next_at = 1 << 50 WHERE abs(random()) % 10 <> 0 OR seq < 50")


def flood(db: sqlite3.Connection) -> None:
    """The older half belongs to one camera."""
    db.execute("UPDATE event SET camera_id = 'flood' WHERE seq <= (SELECT count(*) FROM event) / 2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "wish"),
    [
        (nothing, {}),
        (back_off, {}),
        (flood, {}),
        (flood, {"busy_lanes": frozenset({"L/flood"})}),
        (flood, {"held": frozenset({"L/flood"})}),
    ],
    ids=["plain", "90 % in back-off", "one camera's flood", "of a busy camera", "of a held camera"],
)
async def test_a_claim_costs_the_same_however_much_waits(
    tmp_path: Path, prepare: Callable[[sqlite3.Connection], object], wish: dict[str, object]
) -> None:
    few = await steps_of_a_claim(tmp_path, 1_000, prepare, **wish)
    many = await steps_of_a_claim(tmp_path, 20_000, prepare, **wish)
    assert many <= 1.5 * few, (few, many)


async def test_what_was_received_before_the_fresh_ones_and_stored_after_them_waits_for_none_of_them(
    tmp_path: Path,
) -> None:
    """Intake could not store it at once."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("fresh", "a"))
        await outbox.add(outbox.alarm("belated", "b", received_ticks=outbox.clock.ticks - 20_000))
        assert await outbox.claim(2) == ["fresh", "belated"]
