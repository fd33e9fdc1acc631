"""Adding: all or nothing, once, and every message counted as exactly one end."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.model import EventType
from gateway.outbox.store import Added, IntakeGroup
from gateway.states import IllegalTransition
from tests.fakes.waiting import until
from tests.step.outbox_kit import CLIP, SNAPSHOT, Outbox, delivered, discarded, open_outbox

ENDS = ("stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")


def assert_conserved(counters: dict[str, int]) -> None:
    assert counters.get("received", 0) == sum(counters.get(name, 0) for name in ENDS)
    of_states = sum(count for name, count in counters.items() if name.startswith(("state_", "pruned_")))
    assert counters.get("events", 0) == of_states


async def test_what_was_added_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        event = outbox.alarm(
            "a", details={"label": "person", "zone": "Hof ü"}, media=(SNAPSHOT, CLIP), age_unknown_ms=7
        )
        await outbox.add(event)
        await outbox.again()
        claimed = await outbox.claim_one()
        for name in (
            "event_id",
            "event_type",
            "camera",
            "camera_id",
            "signal",
            "event_at",
            "details",
            "age_unknown_ms",
        ):
            assert getattr(claimed.event, name) == getattr(event, name), name
        assert [(m.kind, m.seq) for m in await outbox.store.media_of(claimed.event.seq)] == [
            (SNAPSHOT.kind, 0),
            (CLIP.kind, 0),
        ]


async def test_the_same_event_is_stored_once(tmp_path: Path) -> None:
    """A redelivery after a reconnect is known by its id, in the same group, in another, and after a restart."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        event = outbox.alarm("a", media=(SNAPSHOT,))
        group = IntakeGroup(events=(event,), counts={"received": 1})
        first, second = await asyncio.gather(outbox.store.add(group), outbox.store.add(group))
        assert (first, second) == (Added(frozenset({"a"}), frozenset()), Added(frozenset(), frozenset({"a"})))
        await outbox.again()
        third = await outbox.store.add(IntakeGroup(events=(event, event), counts={"received": 2}))
        assert third == Added(frozenset(), frozenset({"a"}))
        counters = await outbox.store.counters()
        assert (counters["stored"], counters["duplicate"], counters["media_waiting"]) == (1, 3, 1)
        assert_conserved(counters)


async def test_a_duplicate_changes_nothing(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        await outbox.settle_all()
        before = outbox.look("SELECT * FROM event")
        await outbox.store.add(IntakeGroup(events=(outbox.alarm("a", kind="other", signal=False),)))
        assert outbox.look("SELECT * FROM event") == before


async def test_every_message_ends_as_exactly_one_thing(tmp_path: Path) -> None:
    """Of several rows of one message only the first counts; the gateway's own events end no message."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        nobody: dict[str, Any] = {"camera_id": None, "camera": None}
        await outbox.add(
            outbox.alarm("a"),
            outbox.alarm("a-too"),
            outbox.alarm("folded", state="folded"),
            outbox.alarm("unmapped", state="unmapped", **nobody),
            outbox.alarm("unreadable", state="unreadable", raw=b"\xff", raw_bytes=1, raw_sha256="ff", **nobody),
            outbox.alarm("own", event_type=EventType.TROUBLE),
            counts={"received": 9, "closing": 2, "ignored": 3},
            uncounted=frozenset({"a-too", "own"}),
        )
        counters = await outbox.store.counters()
        assert {name: counters.get(name, 0) for name in ENDS} == {
            "stored": 2,
            "duplicate": 0,
            "closing": 2,
            "ignored": 3,
            "unmapped": 1,
            "unreadable": 1,
        }
        assert counters["events"] == 6
        assert_conserved(counters)


async def test_counts_alone_cost_no_flush_of_their_own(tmp_path: Path) -> None:
    """A talkative topic that is ignored must not wear out the disk; the counts ride on the next commit."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        for _ in range(100):
            await outbox.store.add(IntakeGroup(counts={"received": 1, "ignored": 1}))
        assert outbox.store.commits <= 1
        await outbox.store.flush()
        counters = await outbox.store.counters()
        assert (counters["received"], counters["ignored"]) == (100, 100)


async def test_a_count_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        with pytest.raises(ValueError, match="eaten"):
            await outbox.store.add(IntakeGroup(events=(outbox.alarm("a"),), counts={"eaten": 1}))
        assert outbox.states() == {}


async def test_nothing_enters_in_the_middle_of_its_way(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        with pytest.raises(IllegalTransition, match="delivered"):
            await outbox.store.add(IntakeGroup(events=(outbox.alarm("a", state="delivered"),)))


async def test_memory_changes_with_the_rows(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"), memory={"front": '{"open": true}', "back": "{}"})
        await outbox.again()
        assert await outbox.store.memory() == {"front": '{"open": true}', "back": "{}"}
        await outbox.add(memory={"front": None, "back": '{"open": 1}'})
        assert await outbox.store.memory() == {"back": '{"open": 1}'}


async def test_a_message_that_the_broker_was_not_told_of_is_known_after_a_crash(tmp_path: Path) -> None:
    """Its digest stays until the acknowledgement has been noted; equal messages are counted."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        on, off = b"\x01" * 32, b"\x02" * 32
        await outbox.add(outbox.alarm("a"), outbox.alarm("b"), outbox.alarm("c"), digests=(on, on, off))
        await outbox.again()
        assert await outbox.store.unacknowledged() == Counter({on: 2, off: 1})
        outbox.store.acknowledged(["a"], [on], outbox.clock.wall_ms())
        await outbox.store.flush()
        assert await outbox.store.unacknowledged() == Counter({on: 1, off: 1})
        outbox.store.acknowledged(["b", "c", "never heard of"], [on, off, b"\x03" * 32], outbox.clock.wall_ms())
        await outbox.again()
        assert await outbox.store.unacknowledged() == Counter()
        assert outbox.look("SELECT acknowledged_at IS NOT NULL FROM event") == [1, 1, 1]


async def test_notes_ride_on_the_next_commit_or_on_a_timer(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        before = outbox.store.commits
        outbox.store.acknowledged(["a"], [], outbox.clock.wall_ms())
        outbox.store.note("a", "walked", {"by": "foot"})
        outbox.store.note("nobody", "walked")
        assert outbox.look("SELECT count(*) FROM hop") == [0]
        await until(lambda: outbox.look("SELECT what FROM hop") == ["walked"], what="a note of its own accord")
        assert outbox.store.commits == before + 1


async def test_cameras_are_remembered_by_their_last_words(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a", "c1"), seen_cameras={"cam-c1": 5, "nvr": 5})
        await outbox.store.add(IntakeGroup(seen_cameras={"nvr": 9}, counts={"received": 1, "ignored": 1}))
        await outbox.store.flush()
        at = outbox.clock.wall_ms()
        assert outbox.look("SELECT * FROM camera_seen ORDER BY name") == [("cam-c1", 5, at), ("nvr", 9, None)]
        assert await outbox.store.last_heard_at() == 9


async def many(outbox: Outbox, count: int) -> None:
    await outbox.add(
        *(outbox.alarm(f"e{n}", f"c{n % 7}", media=(SNAPSHOT,)) for n in range(count)), counts={"received": count}
    )


async def test_a_group_of_any_size_is_one_commit(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        before = outbox.store.commits
        await many(outbox, 2_500)
        assert outbox.store.commits == before + 1
        assert outbox.look("SELECT count(*), count(DISTINCT seq) FROM event") == [(2_500, 2_500)]
        assert outbox.look("SELECT count(*) FROM media") == [2_500]
        assert_conserved(await outbox.store.counters())


async def test_callers_of_one_moment_share_commits(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        before = outbox.store.commits
        await asyncio.gather(*(outbox.store.add(IntakeGroup(events=(outbox.alarm(f"e{n}"),))) for n in range(200)))
        assert outbox.store.commits - before <= 5
        assert outbox.look("SELECT count(*) FROM event") == [200]


# Ends that follow a beginning


async def test_an_end_waits_for_its_beginning(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("begin"), outbox.alarm("end", follows="begin"))
        claimed = await outbox.claim_one()
        assert claimed.event.event_id == "begin"
        assert await outbox.claim() == []
        assert await outbox.store.next_due() is None
        await outbox.store.settle(claimed.event.seq, delivered())
        assert await outbox.claim() == ["end"]


@pytest.mark.parametrize(
    ("beginning", "state"), [(delivered(), "pending"), (discarded(), "discarded"), (None, "pending")], ids=str
)
async def test_an_end_that_comes_late_follows_what_its_beginning_came_to(
    tmp_path: Path, beginning: object, state: str
) -> None:
    """Delivered, or closed so long ago that it is forgotten: due. Discarded: discarded."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        if beginning is not None:
            await outbox.add(outbox.alarm("begin"))
            claimed = await outbox.claim_one()
            await outbox.store.settle(claimed.event.seq, beginning)  # type: ignore[arg-type]
        await outbox.add(outbox.alarm("end", follows="begin", media=(SNAPSHOT,)))
        assert outbox.states()["end"] == state
        assert await outbox.claim() == (["end"] if state == "pending" else [])
        assert_conserved(await outbox.store.counters())


async def test_the_end_of_what_is_never_sent_is_never_sent(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("folded", state="folded"), outbox.alarm("end", follows="folded"))
        assert outbox.states()["end"] == "discarded"
