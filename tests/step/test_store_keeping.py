"""Recovered, woken, given up, revived, pruned: what happens to rows beside their way to the cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.model import EventType
from gateway.outbox import keeping
from gateway.outbox.keeping import SILENT_AFTER_MS, UNMAPPED_KEPT
from gateway.outbox.store import IntakeGroup, Mapped
from tests.step.outbox_kit import (
    CLIP,
    SNAPSHOT,
    Outbox,
    compose_what_is_there,
    dead,
    deferred,
    delivered,
    discarded,
    in_the_writer,
    open_outbox,
    slot,
)
from tests.step.test_store_intake import assert_conserved


async def died(outbox: Outbox, name: str = "a", **changes: Any) -> int:
    await outbox.add(outbox.alarm(name, **changes))
    seq = (await outbox.claim_one()).event.seq
    await outbox.store.settle(seq, dead())
    return seq


# recover


async def test_what_was_on_the_wire_is_sent_again_with_the_same_bytes(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"), outbox.alarm("b", "c2"), outbox.alarm("waits"))
        first = (await outbox.store.claim(2))[0]
        await outbox.again()
        assert await outbox.store.recover() == 2
        assert await outbox.store.recover() == 0
        again = (await outbox.store.claim(1))[0]
        assert (again.body, again.idempotency_key) == (first.body, first.idempotency_key)
        assert (again.event.unclear, again.event.attempts, again.first_use) == (1, 2, False)
        assert outbox.look("SELECT what FROM hop") == ["recovered"] * 2
        assert_conserved(await outbox.store.counters())


async def test_bytes_of_a_recovered_event_are_never_set_anew(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.recover()
        again = await outbox.claim_one()
        await outbox.store.settle(again.event.seq, deferred(0, clear_bytes=True))
        outbox.clock.advance(1)
        assert (await outbox.claim_one()).body == first.body


async def test_recovered_bytes_have_announced_what_they_have_announced(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        outbox.store.compose = compose_what_is_there
        await outbox.add(outbox.alarm("a", media=(SNAPSHOT,)))
        await outbox.claim_one()
        await outbox.store.recover()
        assert outbox.look("SELECT state FROM media") == ["lost"]
        assert (await outbox.store.counters())["media_lost"] == 1


# wake


async def test_a_success_makes_all_deferred_ones_due_in_the_order_of_their_age(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("begin", "x"), outbox.alarm("end", "x", follows="begin"))
        await outbox.add(*(outbox.alarm(f"e{n}") for n in range(3)))
        for _ in range(4):
            for claimed in await outbox.store.claim(5):
                await outbox.store.settle(claimed.event.seq, deferred(90_000 - claimed.event.seq))
        assert await outbox.claim() == []
        assert await outbox.store.wake(held={"L/x"}) == 3
        assert await outbox.settle_all() == ["e0"]
        assert await outbox.store.wake(held_locations={"L"}) == 0
        assert await outbox.store.wake() == 1, "the end still waits for its beginning"
        assert await outbox.settle_all() == ["begin", "e1"]
        assert await outbox.store.wake() == 0


async def test_many_are_woken_in_several_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that intake has its turn in between."""
    monkeypatch.setattr(keeping, "WOKEN_ROWS", 10)
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(*(outbox.alarm(f"e{n}") for n in range(35)))
        await in_the_writer(
            outbox.store, lambda db: db.execute("UPDATE event SET ready = 0, next_at = 1 << 50").fetchall()
        )
        before = outbox.store.commits
        assert await outbox.store.wake() == 35
        assert outbox.store.commits == before + 4


# expire


async def test_what_waits_too_long_needs_a_person(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("deferred", "a"), outbox.alarm("sending", "b"), outbox.alarm("begin", "c"))
        await outbox.add(outbox.alarm("end", "d", follows="begin"))
        claimed = await outbox.store.claim(2)
        await outbox.store.settle(claimed[0].event.seq, deferred(10_000_000))
        limit = outbox.clock.ticks + 1
        outbox.clock.advance(5)
        await outbox.add(outbox.alarm("young", "e", event_type=EventType.TROUBLE))
        assert await outbox.store.expire(limit) == 3
        states = {"deferred": "dead", "sending": "sending", "begin": "dead", "end": "dead", "young": "pending"}
        assert outbox.states() == states
        assert "expired; last: busy" in outbox.look("SELECT reason FROM event WHERE event_id = 'deferred'")[0]
        assert await outbox.store.expire(limit) == 0
        assert_conserved(await outbox.store.counters())


async def test_a_revived_event_has_its_patience_back(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        outbox.clock.advance(1_000)
        assert await outbox.store.expire(outbox.clock.ticks) == 1
        await outbox.store.revive(["a"])
        assert await outbox.store.expire(outbox.clock.ticks) == 0
        outbox.clock.advance(1)
        assert await outbox.store.expire(outbox.clock.ticks) == 1


# revive


async def test_a_revived_event_has_new_bytes_and_a_new_key(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, refusal=True, fault=True))
        again = await outbox.claim_one()
        await outbox.store.settle(again.event.seq, dead())
        outbox.clock.advance(60)
        revived = await outbox.store.revive(["a"])
        assert (revived.revived, revived.silent, revived.unchanged) == (("a",), (), ())
        third = await outbox.claim_one()
        assert third.first_use
        assert third.body != first.body
        assert third.idempotency_key != first.idempotency_key
        assert (third.event.refusals, third.event.faults, third.event.attempts, third.event.signal) == (0, 0, 3, True)


async def test_what_the_cloud_may_have_is_revived_with_the_same_bytes(tmp_path: Path) -> None:
    """Only these can be recognised there; so they also signal as they did."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        first = await outbox.claim_one()
        await outbox.store.settle(first.event.seq, deferred(0, unclear=True))
        again = await outbox.claim_one()
        await outbox.store.settle(again.event.seq, dead())
        outbox.clock.advance(SILENT_AFTER_MS)
        revived = await outbox.store.revive(["a"])
        assert (revived.revived, revived.silent, revived.unchanged) == (("a",), (), ("a",))
        third = await outbox.claim_one()
        assert (third.body, third.idempotency_key) == (first.body, first.idempotency_key)


@pytest.mark.parametrize(
    ("age_seconds", "signal", "signals"),
    [
        (SILENT_AFTER_MS / 1000, None, True),
        (SILENT_AFTER_MS / 1000 + 1, None, False),
        (SILENT_AFTER_MS / 1000 + 1, True, True),
        (0, False, False),
    ],
)
async def test_an_old_alarm_sends_nobody_out_by_itself(
    tmp_path: Path, age_seconds: float, signal: bool | None, signals: bool
) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await died(outbox)
        outbox.clock.advance(age_seconds)
        revived = await outbox.store.revive(["a"], signal=signal)
        assert revived.silent == (() if signals else ("a",))
        event = (await outbox.claim_one()).event
        assert event.signal is signals
        assert event.signal_anyway is (signal is True)


async def test_only_the_dead_and_the_unmapped_come_back(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("delivered", "a"), outbox.alarm("discarded", "b"), outbox.alarm("sending", "c"))
        claimed = await outbox.store.claim(3)
        await outbox.store.settle(claimed[0].event.seq, delivered())
        await outbox.store.settle(claimed[1].event.seq, discarded())
        await outbox.add(outbox.alarm("pending"), outbox.alarm("folded", state="folded"))
        before = outbox.states()
        revived = await outbox.store.revive([*before, "nobody"])
        assert revived.refused == before
        assert (revived.revived, revived.unknown) == ((), ("nobody",))
        assert outbox.states() == before


async def test_all_dead_ones_come_back(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        for n in range(3):
            await died(outbox, f"e{n}")
        await outbox.add(outbox.alarm("unmapped", state="unmapped", camera_id=None))
        revived = await outbox.store.revive(None)
        assert revived.revived == ("e0", "e1", "e2")
        assert_conserved(await outbox.store.counters())


async def test_an_unmapped_event_comes_back_once_its_camera_is_configured(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a", "cam7", state="unmapped", camera_id=None, camera=None, recorder_id=None))
        assert (await outbox.store.revive(["a"])).unmapped == ("a",)
        assert (await outbox.store.revive(["a"], find_camera=lambda source, camera: None)).unmapped == ("a",)

        def find(source: str, camera: str | None) -> Mapped | None:
            return Mapped("yard", "id7", "R7", True) if (source, camera) == ("nvr", "cam7") else None

        assert (await outbox.store.revive(["a"], find_camera=find)).revived == ("a",)
        event = (await outbox.claim_one()).event
        assert (event.camera, event.camera_id, event.recorder_id, event.lane) == ("yard", "id7", "R7", "L/id7")


async def test_a_dead_event_that_a_person_saw_is_remembered_as_seen(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        seq = await died(outbox)
        await outbox.add(outbox.alarm("pending"))
        assert await outbox.store.looked_at(["a", "pending", "nobody"]) == 1
        assert await outbox.store.looked_at(["a"]) == 0
        await outbox.store.revive(["a"])
        (again,) = await outbox.store.claim(1)
        assert again.event.seq == seq
        await outbox.store.settle(seq, dead())
        assert await outbox.store.looked_at(["a"]) == 1, "it has died once more"


# prune


async def test_what_is_closed_is_forgotten_after_its_time_and_the_dead_never(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await died(outbox, "dead")
        nobody: dict[str, Any] = {"camera_id": None, "raw": b"\xff"}
        await outbox.add(outbox.alarm("a", media=(SNAPSHOT, CLIP)), outbox.alarm("folded", state="folded"))
        await outbox.add(outbox.alarm("unreadable", state="unreadable", **nobody), outbox.alarm("pending", "c9"))
        claimed = (await outbox.store.claim(1))[0]
        await outbox.store.settle(claimed.event.seq, delivered(slot(), slot(CLIP.kind)))
        for media in await outbox.store.media_of(claimed.event.seq):
            await outbox.store.media_fetched(media.id, f"{media.kind}.bin", 100, "aa")
        closed = outbox.clock.ticks
        assert await outbox.store.prune(closed) == []
        outbox.clock.advance(1)
        await outbox.add(outbox.alarm("later", state="folded"))
        assert sorted(await outbox.store.prune(closed + 1)) == ["event_mp4.bin", "snapshot.bin"]
        assert outbox.states() == {"dead": "dead", "pending": "pending", "later": "folded"}
        assert outbox.look("SELECT (SELECT count(*) FROM media), (SELECT count(*) FROM hop)") == [(0, 1)]
        counters = await outbox.store.counters()
        assert (counters["pruned_delivered"], counters["pruned_folded"], counters["pruned_unreadable"]) == (1, 1, 1)
        assert (counters["media_bytes"], counters["media_waiting"]) == (0, 0)
        assert_conserved(counters)


async def test_a_pruned_number_is_never_used_again(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        await outbox.settle_all()
        await outbox.store.prune(outbox.clock.ticks + 1)
        assert outbox.states() == {}
        await outbox.again()
        await outbox.add(outbox.alarm("b"))
        assert outbox.look("SELECT seq FROM event") == [2]


async def test_of_unmapped_events_the_newest_are_kept(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        many = UNMAPPED_KEPT + 450
        events = tuple(outbox.alarm(f"e{n}", state="unmapped", camera_id=None) for n in range(many))
        await outbox.store.add(IntakeGroup(events=events, counts={"received": many}))
        await outbox.store.prune(0)
        assert outbox.look("SELECT count(*), min(seq) FROM event") == [(UNMAPPED_KEPT, 451)]
        assert_conserved(await outbox.store.counters())


@pytest.mark.slow
async def test_space_is_given_back(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        events = tuple(outbox.alarm(f"e{n}", state="folded", details={"text": "x" * 2_000}) for n in range(2_000))
        await outbox.store.add(IntakeGroup(events=events))
        await outbox.store.prune(outbox.clock.ticks + 1)
        await outbox.store.give_space_back(keep_pages=10)
        await outbox.again()
        assert outbox.path.stat().st_size < 400_000
