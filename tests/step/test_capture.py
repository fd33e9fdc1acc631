"""The promises of `gateway.capture`: a real recorder's HTTP, a real store, real files, a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.media.files import Draft
from gateway.media.frigate import Frigate
from gateway.model import MediaKind
from gateway.outbox.errors import StoreError
from gateway.simulator.faults import Discard, ExpireSlots
from tests.fakes.movies import JPEG, fragmented_movie, plain_movie
from tests.fakes.waiting import until
from tests.step.media_world import World, open_world

SHOT = "alarm-1.snapshot.0.jpg"
CLIP = "alarm-1.event_mp4.0.mp4"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def run_for(world: World, capture: Any, seconds: float, step: float = 1.0) -> None:
    """Time passes second by second, and everything that is due is fetched."""
    for _ in range(round(seconds / step)):
        await capture.run_once()
        world.clock.advance(step)


# Snapshots


async def test_a_snapshot_is_fetched_at_once_though_the_cloud_is_away(world: World) -> None:
    await world.cloud.go_dark()
    world.recorder.answer("/api/events/", body=JPEG)
    await world.alarm()
    assert await world.capture().run_once()
    assert await world.rows("state, path, bytes") == [("waiting", SHOT, len(JPEG))]
    assert world.folder.path_of(SHOT).read_bytes() == JPEG
    assert world.fetched == 1


async def test_several_snapshots_are_of_several_moments(world: World) -> None:
    """The second picture of an alarm is taken two seconds later, not from the same moment."""
    world.recorder.answer("latest.jpg", body=JPEG)
    await world.alarm(snapshots=3)
    capture = world.capture()
    for fetched in (1, 2, 3):
        await capture.run_once()
        assert len(world.files()) == fetched
        assert len(world.recorder.asked("latest")) == fetched
        world.clock.advance(1.9)
        assert not await capture.run_once()
        world.clock.advance(0.1)


async def test_the_newest_picture_is_never_taken_for_an_alarm_of_an_hour_ago(world: World) -> None:
    """It waited in the broker: what the camera sees now would show the patrol an empty yard."""
    world.recorder.answer("latest.jpg", body=JPEG)
    await world.alarm(happened_ago=3600)
    capture = world.capture()
    await run_for(world, capture, 70)
    assert world.recorder.asked("latest") == []
    assert await world.rows() == [("lost", "the recorder answered 404")]
    at = world.recorder.asked("recordings")[0].split("/")[4]
    assert float(at) == pytest.approx(1_772_366_400 - 3600)


async def test_a_picture_that_comes_late_is_waited_for(world: World) -> None:
    """At `new` Frigate often has no picture of the object yet."""
    await world.alarm()
    capture = world.capture()
    await run_for(world, capture, 20)
    assert await world.states() == ["waiting"]
    world.recorder.answer("/api/events/", body=JPEG)
    await run_for(world, capture, 6)
    assert world.files() == [SHOT]


async def test_a_picture_that_never_comes_is_lost_after_a_minute_and_its_event_goes(world: World) -> None:
    await world.alarm()
    with structlog.testing.capture_logs() as logs:
        await run_for(world, world.capture(), 65)
    assert await world.rows() == [("lost", "the recorder answered 404")]
    assert [line["event_id"] for line in logs if line["event"] == "media_lost"] == ["alarm-1"]
    await world.deliver()
    assert len(world.cloud.events) == 1


async def test_a_source_that_is_configured_no_more_costs_the_picture_only(world: World) -> None:
    await world.alarm(source="old_nvr")
    await world.capture().run_once()
    [(state, reason)] = await world.rows()
    assert state == "lost"
    assert "old_nvr" in reason


async def test_a_picture_of_a_discarded_event_is_not_kept(world: World) -> None:
    """The cloud said "disarmed" while the recorder was still sending."""
    world.cloud.script([Discard()])
    gate = world.recorder.hold("/api/events/", body=JPEG)
    await world.alarm()
    fetching = asyncio.create_task(world.capture().run_once())
    await until(lambda: world.recorder.busy["snapshot"] == 1)
    await world.deliver()
    gate.set()
    await fetching
    assert await world.states() == ["lost"]
    assert world.files() == []


# Clips


async def test_a_clip_is_asked_for_only_when_its_window_is_over_and_settled(world: World) -> None:
    world.recorder.answer("clip.mp4", body=plain_movie(30.0))
    await world.alarm(snapshots=0, event=True)
    capture = world.capture()
    world.clock.advance(24.9)
    assert not await capture.run_once()
    assert world.recorder.requests == []
    world.clock.advance(0.1)
    assert await capture.run_once()
    assert world.files() == [CLIP]
    assert world.recorder.requests == ["/api/front_door/start/1772366390/end/1772366420/clip.mp4"]


@pytest.mark.parametrize("short", [plain_movie(10.0), fragmented_movie(10)])
async def test_a_clip_that_is_too_short_is_asked_for_again_until_it_is_whole(world: World, short: bytes) -> None:
    """The last segment is still being written; the whole one replaces the short one."""
    world.recorder.answer("clip.mp4", body=short)
    await world.alarm(snapshots=0, event=True)
    capture = world.capture()
    world.clock.advance(25)
    await capture.run_once()
    assert await world.rows("state, path") == [("waiting", None)]
    world.recorder.answer("clip.mp4", body=plain_movie(29.0))
    await run_for(world, capture, 10)
    assert world.files() == [CLIP]
    assert world.folder.path_of(CLIP).read_bytes() == plain_movie(29.0)
    assert len(set(world.recorder.requests)) == len(world.recorder.requests) == 2


async def test_a_clip_that_grows_no_more_is_taken_as_it_is(world: World) -> None:
    """A recorder that keeps only what moved has no more, however often it is asked."""
    world.recorder.answer("clip.mp4", body=plain_movie(12.0))
    await world.alarm(snapshots=0, event=True)
    capture = world.capture()
    world.clock.advance(25)
    await run_for(world, capture, 29)
    assert await world.rows("path") == [(None,)]
    await run_for(world, capture, 16)
    assert await world.rows("path") == [(CLIP,)]
    assert world.folder.path_of(CLIP).read_bytes() == plain_movie(12.0)


async def test_the_longest_clip_goes_when_the_recorder_has_lost_the_rest(world: World) -> None:
    """Longer, then shorter, then nothing: time is up two minutes after the window."""
    await world.alarm(snapshots=0, event=True)
    capture = world.capture()
    world.clock.advance(25)
    world.recorder.answer("clip.mp4", body=plain_movie(18.0))
    await capture.run_once()
    world.recorder.answer("clip.mp4", body=plain_movie(6.0))
    await run_for(world, capture, 10)
    world.recorder.answer("clip.mp4", status=500)
    await run_for(world, capture, 100)
    assert await world.rows("path") == [(None,)]
    await run_for(world, capture, 20)
    assert await world.rows("path") == [(CLIP,)]
    assert world.folder.path_of(CLIP).read_bytes() == plain_movie(18.0)
    assert world.files() == [CLIP]


async def test_the_best_clip_so_far_survives_a_restart(world: World) -> None:
    await world.alarm(snapshots=0, event=True)
    world.recorder.answer("clip.mp4", body=plain_movie(18.0))
    world.clock.advance(25)
    await world.capture().run_once()
    world.recorder.answer("clip.mp4", status=404)
    world.folder.prepare()
    await run_for(world, world.capture(), 130)
    assert world.folder.path_of(CLIP).read_bytes() == plain_movie(18.0)


async def test_thirty_seconds_before_its_slot_closes_the_longest_clip_goes(world: World) -> None:
    world.cloud.script([ExpireSlots(seconds=75)])
    world.recorder.answer("clip.mp4", body=plain_movie(20.0))
    await world.alarm(snapshots=0, event=True)
    await world.deliver()
    capture = world.capture()
    await run_for(world, capture, 44)
    assert await world.rows("path") == [(None,)]
    await run_for(world, capture, 2)
    assert await world.rows("path") == [(CLIP,)]


async def test_a_slot_that_closes_before_the_window_is_over_gets_what_there_is(world: World) -> None:
    world.cloud.script([ExpireSlots(seconds=45)])
    world.recorder.answer("clip.mp4", body=fragmented_movie(15))
    await world.alarm(snapshots=0, event=True)
    await world.deliver()
    capture = world.capture()
    await run_for(world, capture, 14)
    assert world.recorder.requests == []
    await run_for(world, capture, 3)
    assert await world.rows("path") == [(CLIP,)]


@pytest.mark.parametrize("body", [plain_movie(30.0)[:-1], b"<html>busy</html>", b"\0" * 5000])
async def test_what_is_not_a_movie_never_becomes_a_file(world: World, body: bytes) -> None:
    world.recorder.answer("clip.mp4", body=body)
    await world.alarm(snapshots=0, event=True)
    await run_for(world, world.capture(), 160)
    [(state, reason)] = await world.rows()
    assert state == "lost"
    assert reason.startswith("not a whole clip")
    assert world.files() == []


async def test_a_clip_of_a_recorder_whose_clock_is_wrong_is_asked_for_in_its_own_time(world: World) -> None:
    draft_seen: list[str] = []
    async with world.folder.draft() as draft:
        world.recorder.answer("clip.mp4", body=plain_movie(30.0))
        recipe = {"camera": "front_door", "clock_offset_ms": 3_600_000}
        await world.frigate.clip(recipe, 1_772_366_390_000, 1_772_366_420_000, attempt=0, draft=draft)
        draft_seen.append(draft.head.decode("latin-1"))
    assert world.recorder.requests == ["/api/front_door/start/1772362790/end/1772362820/clip.mp4"]
    assert draft_seen


# The recorder is away


async def test_a_recorder_that_is_away_is_said_once_and_probed_gently(world: World) -> None:
    """Forty alarms do not mean forty connections a second, and nothing is lost while it may come back."""
    await world.recorder.stop()
    for _ in range(40):
        await world.alarm()
    capture = world.capture()
    with structlog.testing.capture_logs() as logs:
        await run_for(world, capture, 300)
        assert await world.states() == ["waiting"] * 40
        assert list(capture.troubles) == ["nvr"]
        attempts = sum(attempts for (attempts,) in await world.rows("fetch_attempts"))
        assert attempts <= 40
        world.recorder.answer("/api/events/", body=JPEG)
        await world.recorder.start()
        await run_for(world, capture, 30)
    said = [line["event"] for line in logs if line["event"].startswith("recorder_")]
    assert said == ["recorder_unreachable", "recorder_back"]
    assert len(world.files()) == 40
    assert capture.troubles == {}


@pytest.mark.slow
async def test_a_recorder_that_is_away_for_more_than_an_hour_costs_the_pictures(world: World) -> None:
    await world.recorder.stop()
    await world.alarm(event=True)
    capture = world.capture()
    await run_for(world, capture, 3600, step=10)
    assert await world.states() == ["waiting", "waiting"]
    await run_for(world, capture, 120, step=10)
    assert await world.rows() == [("lost", "the recorder cannot be connected")] * 2


async def test_a_recorder_that_is_away_is_waited_for_no_longer_than_the_slot(world: World) -> None:
    world.cloud.script([ExpireSlots(seconds=300)])
    await world.recorder.stop()
    await world.alarm()
    await world.deliver()
    await run_for(world, world.capture(), 290)
    assert await world.states() == ["waiting"]
    await run_for(world, world.capture(), 10)
    assert await world.rows() == [("lost", "the recorder cannot be connected")]


async def test_a_recorder_that_has_just_come_back_gets_a_minute(world: World) -> None:
    """Its newest recordings may not be known to it yet; the clip is two minutes overdue by then."""
    await world.recorder.stop()
    await world.alarm(snapshots=0, event=True)
    capture = world.capture()
    await run_for(world, capture, 600, step=5)
    await world.recorder.start()
    await run_for(world, capture, 30)
    assert await world.states() == ["waiting"]
    world.recorder.answer("clip.mp4", body=plain_movie(30.0))
    await run_for(world, capture, 20)
    assert world.files() == [CLIP]


async def test_a_refused_login_is_an_error_that_is_said_once(world: World) -> None:
    world.recorder.password = "secret"
    await world.alarm()
    await world.alarm(camera="yard")
    with structlog.testing.capture_logs() as logs:
        await run_for(world, world.capture(), 60)
    said = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("recorder_")]
    assert said == [("recorder_refused", "error")]


# Nobody waits for another


async def test_a_slow_camera_holds_up_no_other_and_a_clip_no_snapshot(world: World) -> None:
    slow_clip = world.recorder.hold("/slow/", "clip.mp4", body=plain_movie(30.0))
    slow_picture = world.recorder.hold("/slow/latest", body=JPEG)
    for _ in range(5):
        await world.alarm(camera="slow", event=True, detections=())
    await world.alarm(camera="quick", event=True, detections=())
    world.recorder.answer("/quick/latest", body=JPEG)
    world.recorder.answer("/quick/", "clip.mp4", body=plain_movie(30.0))
    stop = asyncio.Event()
    running = asyncio.create_task(world.capture().run(stop))
    await until(lambda: "alarm-6.snapshot.0.jpg" in world.files())
    slow_picture.set()
    await until(lambda: world.recorder.busy["snapshot"] == 0)
    world.clock.advance(30)
    world.bell.ring()
    await until(lambda: "alarm-6.event_mp4.0.mp4" in world.files())
    # All its clips hang; a new alarm's snapshot goes on.
    world.recorder.answer("/slow/latest", body=JPEG)
    await world.alarm(camera="slow", detections=())
    world.bell.ring()
    await until(lambda: "alarm-7.snapshot.0.jpg" in world.files())
    assert world.recorder.busy["clip"] == 1
    slow_clip.set()
    await until(lambda: len([name for name in world.files() if "event_mp4" in name]) == 6)
    stop.set()
    await running


async def test_a_recorder_is_not_asked_for_everything_at_once(world: World) -> None:
    pictures = world.recorder.hold("latest.jpg", body=JPEG)
    clips = world.recorder.hold("clip.mp4", body=plain_movie(30.0))
    for number in range(12):
        await world.alarm(camera=f"cam{number}", event=True, detections=())
    stop = asyncio.Event()
    running = asyncio.create_task(world.capture().run(stop))
    await until(lambda: world.recorder.busy["snapshot"] == 4)
    pictures.set()
    await until(lambda: len(world.files()) == 12)
    world.clock.advance(30)
    world.bell.ring()
    await until(lambda: world.recorder.busy["clip"] == 2)
    clips.set()
    await until(lambda: len(world.files()) == 24)
    stop.set()
    await running
    assert world.recorder.most_busy == {"snapshot": 4, "clip": 2}


async def test_stopping_leaves_the_row_waiting_and_nothing_half(world: World) -> None:
    world.recorder.hold("/api/events/", body=JPEG)
    await world.alarm()
    stop = asyncio.Event()
    running = asyncio.create_task(world.capture().run(stop))
    await until(lambda: world.recorder.busy["snapshot"] == 1)
    stop.set()
    world.bell.ring()
    await running
    assert await world.states() == ["waiting"]
    assert world.files() == []


# What goes wrong inside


class _Broken:
    settle_ms = 0

    async def snapshot(self, *_: Any, draft: Draft, **__: Any) -> None:
        raise KeyError("a bug of ours")

    clip = snapshot


async def test_a_bug_in_one_row_puts_off_this_row_only(world: World) -> None:
    world.recorder.answer("/api/events/", body=JPEG)
    await world.alarm(source="broken")
    await world.alarm()
    capture = world.capture(recorders={"broken": _Broken(), "nvr": world.frigate})
    with structlog.testing.capture_logs() as logs:
        await capture.run_once()
    assert await world.rows() == [("waiting", "an error inside the gateway: KeyError"), ("waiting", None)]
    assert world.files() == ["alarm-2.snapshot.0.jpg"]
    assert "media_fetch_failed_inside" in [line["event"] for line in logs]


async def test_a_disk_that_is_almost_full_takes_no_pictures_and_asks_for_room(world: World) -> None:
    world.recorder.answer("/api/events/", body=JPEG)
    await world.alarm()
    capture = world.capture(reserve_bytes=1 << 60)
    with structlog.testing.capture_logs() as logs:
        await run_for(world, capture, 30)
    assert world.files() == []
    assert world.recorder.requests == []
    assert world.full == 1
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["media_disk_refused"]
    [(state, reason)] = await world.rows()
    assert state == "waiting"
    assert "almost full" in reason
    assert "almost full" in capture.troubles[""]


async def test_a_store_that_refuses_costs_nothing_but_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.recorder.answer("/api/events/", body=JPEG)
    await world.alarm()
    capture = world.capture()

    async def refuse(*_: object) -> bool:
        raise StoreError("disk full")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(world.store, "media_fetched", refuse)
        await run_for(world, capture, 5)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["capture_waits_for_the_store"]
    await run_for(world, capture, 2)
    assert await world.rows("path") == [(SHOT,)]


async def test_the_bell_is_answered_at_once(world: World) -> None:
    world.recorder.answer("/api/events/", body=JPEG)
    capture = world.capture()
    stop = asyncio.Event()
    running = asyncio.create_task(capture.run(stop))
    await world.alarm()
    world.bell.ring()
    await until(lambda: world.files() == [SHOT], timeout=1.5)
    stop.set()
    world.bell.ring()
    await running


async def test_secrets_of_the_recorder_appear_nowhere(world: World, tmp_path: Path) -> None:
    world.recorder.password = "hunter2-secret"
    world.recorder.answer("/api/events/", body=JPEG)
    frigate = Frigate(world.recorder.url, clock=world.clock, username="viewer", make_password=lambda: "hunter2-secret")
    await world.alarm()
    with structlog.testing.capture_logs() as logs:
        await world.capture(recorders={"nvr": frigate}).run_once()
    await frigate.close()
    assert world.files() == [SHOT]
    await world.store.flush()
    assert "hunter2" not in str(logs)
    for path in tmp_path.glob("outbox.db*"):
        assert b"hunter2" not in path.read_bytes()


def test_every_kind_has_its_times() -> None:
    from gateway import capture
    from gateway.media import timing

    for table in (capture.RETRY_FIRST_MS, capture.RETRY_MAX_MS, timing.BEFORE_SLOT_END_MS, timing.ABSENT_MS):
        assert set(table) == set(MediaKind)
    assert max(timing.BEFORE_SLOT_END_MS.values()) < capture.SLOT_CLOSES_SOON_MS
