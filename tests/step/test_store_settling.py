"""Settling: the state, the slots, the restores and the ledger of one attempt, in one commit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.model import MediaKind, MediaWanted
from gateway.retry import Step
from gateway.states import EVENT_TRANSITIONS, EventState, IllegalTransition
from tests.step.outbox_kit import (
    CLIP,
    SNAPSHOT,
    Outbox,
    dead,
    deferred,
    delivered,
    discarded,
    in_the_writer,
    open_outbox,
    slot,
)
from tests.step.test_store_intake import assert_conserved


async def claimed_seq(outbox: Outbox, name: str = "a", **changes: Any) -> int:
    await outbox.add(outbox.alarm(name, **changes))
    return (await outbox.claim_one()).event.seq


async def test_a_delivered_event_tells_what_the_cloud_said(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        outbox.clock.advance(1)
        await outbox.store.settle(seq, delivered(), answer={"http_status": 201})
        row = outbox.look(
            "SELECT state, chekt_event_id, response_id, http_status, delivered_at, closed_ticks FROM event"
        )
        assert row == [("delivered", "CE", "RE", 201, outbox.clock.wall, outbox.clock.ticks)]


async def test_a_deferred_event_comes_back_at_its_time(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        await outbox.store.settle(seq, deferred(1_500))
        assert await outbox.store.next_due() == outbox.clock.ticks + 1_500
        outbox.clock.advance(1.499)
        assert await outbox.claim() == []
        outbox.clock.advance(0.001)
        assert await outbox.claim() == ["a"]


async def test_unclear_refused_and_faulty_attempts_are_counted(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        began = outbox.clock.ticks
        for step in (
            deferred(0, refusal=True),
            deferred(0, refusal=True, unclear=True),
            deferred(0, fault=True),
            deferred(0, fault=True),
        ):
            await outbox.store.settle(seq, step)
            outbox.clock.advance(1)
            await outbox.claim_one()
        await outbox.store.settle(seq, deferred(0))
        event = (await outbox.claim_one()).event
        assert (event.attempts, event.unclear, event.refusals, event.faults) == (6, 1, 2, 2)
        assert (event.first_refused_ticks, event.first_fault_ticks) == (began, began + 2_000)


async def test_an_attempt_is_settled_once(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        results = await asyncio.gather(
            outbox.store.settle(seq, delivered()), outbox.store.settle(seq, deferred()), return_exceptions=True
        )
        assert results[0] is None
        assert isinstance(results[1], IllegalTransition)
        with pytest.raises(IllegalTransition, match="not being sent"):
            await outbox.store.settle(seq, deferred())
        assert outbox.states() == {"a": "delivered"}
        assert len(outbox.look("SELECT * FROM hop")) == 1


@pytest.mark.parametrize(
    "target", [state for state in EventState if state not in EVENT_TRANSITIONS[EventState.SENDING]]
)
async def test_no_other_way_leads_out_of_sending(tmp_path: Path, target: EventState) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        with pytest.raises(IllegalTransition):
            await outbox.store.settle(seq, Step(target, None, "because"))
        assert outbox.states() == {"a": "sending"}


@pytest.mark.parametrize(
    "step", [Step(EventState.PENDING, None, "when?"), Step(EventState.DELIVERED, 5, None)], ids=str
)
async def test_a_step_that_contradicts_itself_is_refused(tmp_path: Path, step: Step) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        with pytest.raises(ValueError, match="next_in_ms"):
            await outbox.store.settle(seq, step)


async def test_a_wrong_settlement_does_not_hurt_the_others_of_its_commit(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(name, name) for name in "abc"))
        seqs = [one.event.seq for one in await outbox.store.claim(3)]
        results = await asyncio.gather(
            outbox.store.settle(seqs[0], delivered()),
            outbox.store.settle(999, delivered()),
            outbox.store.settle(seqs[1], Step(EventState.PENDING, None, None)),
            outbox.store.settle(seqs[2], delivered()),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), IllegalTransition, ValueError, type(None)]
        assert outbox.states() == {"a": "delivered", "b": "sending", "c": "delivered"}


# Slots


async def test_slots_are_stored_with_the_delivery(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        two = MediaWanted(MediaKind.SNAPSHOT, 1, 0, 0, {})
        seq = await claimed_seq(outbox, media=(SNAPSHOT, two, CLIP))
        offered = (slot(seq=1, deadline_ticks=77), slot(CLIP.kind), slot(MediaKind.SHORT_MP4), slot(seq=5))
        await outbox.store.settle(seq, delivered(*offered))
        assert outbox.look("SELECT kind, seq, state, deadline_ticks, reason FROM media ORDER BY id") == [
            ("snapshot", 0, "lost", None, "no slot offered"),
            ("snapshot", 1, "waiting", 77, None),
            ("event_mp4", 0, "waiting", 9_000_000, None),
        ]
        counters = await outbox.store.counters()
        assert (counters["media_waiting"], counters["media_lost"]) == (2, 1)


async def test_a_discarded_event_has_no_pictures(tmp_path: Path) -> None:
    """Also not if slots were offered (CHeKT Event API v0.8: `discarded` ends it)."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, media=(SNAPSHOT,))
        await outbox.store.settle(seq, discarded())
        assert outbox.look("SELECT state, reason FROM media") == [("lost", "event discarded")]
        assert await outbox.store.media_to_fetch(5) == []


async def test_a_dead_event_keeps_its_pictures_for_a_revival(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, media=(SNAPSHOT,))
        await outbox.store.settle(seq, dead())
        assert outbox.look("SELECT state FROM media") == ["waiting"]


async def test_what_was_lost_before_gets_no_slot(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, media=(SNAPSHOT,))
        (picture,) = await outbox.store.media_of(seq)
        await outbox.store.media_noted(picture.id, "lost", "the recorder has none")  # type: ignore[arg-type]
        await outbox.store.settle(seq, delivered(slot()))
        assert outbox.look("SELECT state, reason, put_url FROM media") == [("lost", "the recorder has none", None)]


# Restores


async def test_a_discarded_beginning_takes_its_end_along(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, "begin")
        await outbox.add(outbox.alarm("end", follows="begin", media=(SNAPSHOT,)))
        await outbox.store.settle(seq, discarded())
        assert outbox.states() == {"begin": "discarded", "end": "discarded"}
        assert outbox.look("SELECT state FROM media") == ["lost"]
        assert_conserved(await outbox.store.counters())


async def test_an_end_waits_while_its_beginning_is_dead(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, "begin")
        await outbox.add(outbox.alarm("end", follows="begin"))
        await outbox.store.settle(seq, dead())
        assert await outbox.claim() == []
        await outbox.store.revive(["begin"])
        assert await outbox.settle_all() == ["begin"]
        assert await outbox.settle_all() == ["end"]


# The ledger


async def test_each_attempt_leaves_its_start_answer_and_verdict(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox)
        began = outbox.clock.wall
        outbox.clock.advance(2)
        await outbox.store.settle(seq, deferred(100, unclear=True), answer={"verdict": "busy", "text": "later"})
        ((what, at, detail),) = outbox.look("SELECT what, at, detail FROM hop")
        assert (what, at) == ("attempt", began + 2_000)
        assert json.loads(detail) == {
            "attempt": 1,
            "started_at": began,
            "started_ticks": outbox.clock.ticks - 2_000,
            "answer": {"verdict": "busy", "text": "later"},
            "verdict": "pending",
            "reason": "busy (503)",
            "next_in_ms": 100,
            "http_status": 503,
            "unclear": True,
        }


async def test_no_secret_is_in_the_ledger(tmp_path: Path) -> None:
    """Addresses of slots are in the media rows alone, and gone when they have served."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await claimed_seq(outbox, media=(SNAPSHOT,))
        await outbox.store.settle(seq, delivered(slot()), answer={"http_status": 201})
        assert not [detail for detail in outbox.look("SELECT detail FROM hop") if "secret" in detail]
        (picture,) = await outbox.store.media_of(seq)
        await outbox.store.media_fetched(picture.id, "a.jpg", 1, "00")
        for state in ("uploaded", "done"):
            assert await outbox.store.media_noted(picture.id, state)  # type: ignore[arg-type]
        assert outbox.look("SELECT put_url, callback_url FROM media") == [(None, None)]


async def test_a_settlement_that_the_schema_refuses_fails_alone(tmp_path: Path) -> None:
    """A bug of ours in one event must not keep the others of the moment from being settled."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(name, name) for name in "abc"))
        seqs = [one.event.seq for one in await outbox.store.claim(3)]
        trigger = (
            "CREATE TRIGGER bug BEFORE UPDATE ON event WHEN new.event_id = 'b' BEGIN SELECT raise(ABORT, 'bug'); END"
        )
        await in_the_writer(outbox.store, lambda db: db.execute(trigger).fetchall())
        results = await asyncio.gather(*(outbox.store.settle(seq, delivered()) for seq in seqs), return_exceptions=True)
        assert [str(result) for result in results] == ["None", "bug", "None"]
        assert outbox.states() == {"a": "delivered", "b": "sending", "c": "delivered"}
        assert_conserved(await outbox.store.counters())
