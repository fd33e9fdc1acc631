"""Rows of pictures: fetched, put, confirmed or lost, each once; what is in hand needs no state of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.model import Media, MediaKind
from gateway.outbox.adding import FETCH_PATIENCE_MS
from gateway.states import IllegalTransition, MediaState
from tests.step.outbox_kit import CLIP, SNAPSHOT, Outbox, delivered, open_outbox, slot


async def with_slots(outbox: Outbox, name: str = "a", where: str = "c1") -> tuple[Media, Media]:
    """A delivered event whose snapshot and clip have slots and no files."""
    now = outbox.clock.wall
    clip = type(CLIP)(CLIP.kind, 0, now, now + 20_000, {})
    await outbox.add(outbox.alarm(name, where, media=(SNAPSHOT, clip)))
    claimed = await outbox.claim_one()
    await outbox.store.settle(claimed.event.seq, delivered(slot(), slot(CLIP.kind)))
    snapshot, movie = await outbox.store.media_of(claimed.event.seq)
    return snapshot, movie


async def test_a_picture_is_fetched_at_once_and_a_clip_when_its_window_has_passed(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, clip = await with_slots(outbox)
        began = outbox.clock.ticks
        assert await outbox.store.media_to_fetch(5) == [snapshot]
        assert await outbox.store.next_fetch_due() == began
        assert snapshot.fetch_until_ticks == began + FETCH_PATIENCE_MS
        outbox.clock.advance(20)
        assert await outbox.store.media_to_fetch(5) == [snapshot, clip]
        assert await outbox.store.media_to_fetch(5, excluding={snapshot.id}) == [clip]
        assert await outbox.store.media_to_fetch(1) == [snapshot]
        assert clip.fetch_until_ticks == began + 20_000 + FETCH_PATIENCE_MS


async def test_an_equipment_clock_that_runs_ahead_does_not_delay_its_pictures(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        ahead = outbox.clock.wall + 86_400_000
        snapshot = type(SNAPSHOT)(SNAPSHOT.kind, 0, ahead, ahead, {})
        clip = type(CLIP)(CLIP.kind, 0, ahead - 10_000, ahead + 20_000, {})
        await outbox.add(outbox.alarm("a", event_at=ahead, media=(snapshot, clip)))
        assert [media.kind for media in await outbox.store.media_to_fetch(5)] == [SNAPSHOT.kind]
        outbox.clock.advance(30)  # the length of the window, and no more
        assert [media.kind for media in await outbox.store.media_to_fetch(5)] == [SNAPSHOT.kind, CLIP.kind]


async def test_the_way_of_a_picture(tmp_path: Path) -> None:
    """Waiting for its file; file and slot; uploaded; done. Each step is there after a restart."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        assert await outbox.store.media_to_put(5) == []
        assert await outbox.store.media_fetched(snapshot.id, "a.jpg", 1_234, "aa")
        await outbox.again()
        (ready,) = await outbox.store.media_to_put(5)
        assert (ready.path, ready.bytes, ready.sha256) == ("a.jpg", 1_234, "aa")
        assert ready.put_url is not None
        assert await outbox.store.media_noted(ready.id, MediaState.UPLOADED)
        await outbox.again()
        assert await outbox.store.media_to_put(5) == []
        (put,) = await outbox.store.media_to_confirm(5)
        assert put.callback_url is not None
        assert await outbox.store.media_noted(put.id, MediaState.DONE)
        await outbox.again()
        assert await outbox.store.media_to_confirm(5) == []
        counters = await outbox.store.counters()
        assert {name: counters[f"media_{name}"] for name in ("waiting", "uploaded", "done", "bytes")} == {
            "waiting": 1,
            "uploaded": 0,
            "done": 1,
            "bytes": 1_234,
        }
        words = outbox.look("SELECT what FROM hop ORDER BY id")
        assert words == ["attempt", "media_fetched", "media_put", "media_confirmed"]


async def test_of_two_files_for_one_picture_the_first_is_kept(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        results = await asyncio.gather(*(outbox.store.media_fetched(snapshot.id, f"{n}.jpg", n, "aa") for n in (1, 2)))
        assert results == [True, False]
        assert not await outbox.store.media_fetched(snapshot.id, "3.jpg", 3, "aa")
        assert outbox.look("SELECT path, bytes FROM media WHERE id = ?", snapshot.id) == [("1.jpg", 1)]
        assert (await outbox.store.counters())["media_bytes"] == 1


async def test_what_fails_is_tried_later_and_told_once(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        for n in range(3):
            due = outbox.clock.ticks + 1_000
            assert await outbox.store.media_fetch_later(snapshot.id, due, "the recorder is away")
            assert await outbox.store.media_to_fetch(5) == []
            outbox.clock.advance(1)
            (again,) = await outbox.store.media_to_fetch(5)
            assert again.fetch_attempts == n + 1
        await outbox.store.media_fetched(snapshot.id, "a.jpg", 1, "aa")
        due = outbox.clock.ticks + 500
        assert await outbox.store.media_later(snapshot.id, due, "503")
        assert await outbox.store.next_upload_due() == due
        assert await outbox.store.media_to_put(5) == []
        outbox.clock.advance(0.5)
        assert [media.attempts for media in await outbox.store.media_to_put(5)] == [1]
        assert outbox.look("SELECT what FROM hop WHERE what = 'media_deferred'") == ["media_deferred"] * 2


@pytest.mark.parametrize(
    ("before", "then"),
    [([], "done"), (["uploaded"], "waiting"), (["uploaded", "done"], "lost"), (["uploaded", "done"], "uploaded")],
)
async def test_no_other_way_leads_on(tmp_path: Path, before: list[str], then: str) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        await outbox.store.media_fetched(snapshot.id, "a.jpg", 1, "aa")
        for state in before:
            await outbox.store.media_noted(snapshot.id, MediaState(state))
        with pytest.raises(IllegalTransition):
            await outbox.store.media_noted(snapshot.id, MediaState(then), "because")


async def test_what_was_lost_meanwhile_is_answered_with_no(tmp_path: Path) -> None:
    """An event may be discarded while its picture is being fetched: no error of anybody."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        assert await outbox.store.media_noted(snapshot.id, MediaState.LOST, "its slot has closed")
        for state in (MediaState.LOST, MediaState.UPLOADED):
            assert not await outbox.store.media_noted(snapshot.id, state)
        assert not await outbox.store.media_noted(999, MediaState.LOST)
        assert not await outbox.store.media_fetched(snapshot.id, "a.jpg", 1, "aa")
        assert not await outbox.store.media_later(snapshot.id, 0, "503")
        assert not await outbox.store.media_fetch_later(snapshot.id, 0, "404")
        assert outbox.look("SELECT put_url, reason FROM media WHERE id = ?", snapshot.id) == [
            (None, "its slot has closed")
        ]


async def test_a_lost_picture_says_why(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        await outbox.store.media_noted(snapshot.id, MediaState.LOST)
        assert outbox.look("SELECT reason FROM media WHERE id = ?", snapshot.id) == ["no reason given"]


async def test_a_slot_that_closes_is_found_with_or_without_a_file(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, clip = await with_slots(outbox)
        assert await outbox.store.next_slot_closing() == 9_000_000
        assert await outbox.store.media_closing(9_000_000, 5) == []
        found = await outbox.store.media_closing(9_000_001, 5)
        assert {media.id for media in found} == {snapshot.id, clip.id}
        assert await outbox.store.media_closing(9_000_001, 5, excluding={snapshot.id, clip.id}) == []


async def test_room_is_made_from_the_oldest_and_what_waited_is_lost(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        for n in range(3):
            snapshot, clip = await with_slots(outbox, f"e{n}", f"c{n}")
            await outbox.store.media_fetched(snapshot.id, f"{n}.jpg", 10, "aa")
            await outbox.store.media_fetched(clip.id, f"{n}.mp4", 1_000, "bb")
        (first,) = (f for f in await outbox.store.media_files_oldest_first(MediaKind.SNAPSHOT, waiting=True, limit=1))
        await outbox.store.media_noted(first.id, MediaState.UPLOADED)
        finished = await outbox.store.media_files_oldest_first(MediaKind.SNAPSHOT, waiting=False)
        assert [file.path for file in finished] == ["0.jpg"]
        clips = await outbox.store.media_files_oldest_first(MediaKind.EVENT_MP4, waiting=True, limit=2)
        assert [(file.path, file.bytes, file.event_id) for file in clips] == [
            ("0.mp4", 1_000, "e0"),
            ("1.mp4", 1_000, "e1"),
        ]
        gone = await outbox.store.media_remove([file.id for file in [*finished, *clips]], "it had to make room")
        assert sorted(gone) == ["0.jpg", "0.mp4", "1.mp4"]
        assert await outbox.store.media_remove([first.id], "twice") == []
        counters = await outbox.store.counters()
        assert (counters["media_bytes"], counters["media_lost"], counters["media_uploaded"]) == (1_020, 2, 1)
        assert [media.id for media in await outbox.store.media_to_confirm(5)] == [first.id], (
            "the callback needs no file"
        )
        assert outbox.look("SELECT DISTINCT reason FROM media WHERE state = 'lost'") == ["it had to make room"]


async def test_files_that_no_row_knows_are_found(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        snapshot, _ = await with_slots(outbox)
        await outbox.store.media_fetched(snapshot.id, "a.jpg", 10, "aa")
        assert await outbox.store.media_known(["a.jpg", "left-by-a-crash.jpg"]) == {"a.jpg"}
