"""The promises of `gateway.upkeep`: what gives way first, what is never touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.bell import Bell
from gateway.media.files import best_name_of
from gateway.model import MediaKind
from gateway.outbox.errors import StoreError
from gateway.parts import STUCK_SECONDS
from gateway.simulator.faults import Discard
from gateway.upkeep import Upkeep
from tests.fakes.movies import jpeg_of, plain_movie
from tests.fakes.waiting import until
from tests.step.media_world import World, open_world

DAY_MS = 86_400_000
STRANGE = "stranger.snapshot.0.jpg"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        world.recorder.answer("snapshot.jpg", body=jpeg_of(10_000))
        world.recorder.answer("/end/", "clip.mp4", body=plain_movie(30.0, picture_bytes=100_000))
        yield world


def upkeep(world: World, **changed: Any) -> Upkeep:
    arguments: dict[str, Any] = {
        "store": world.store,
        "folder": world.folder,
        "clock": world.clock,
        "bell": Bell(),
        "keep_closed_ms": 30 * DAY_MS,
        "media_limit_bytes": 1 << 40,
        "reserve_bytes": 0,
    }
    return Upkeep(**(arguments | changed))


async def fetched(world: World, alarms: int, **alarm: Any) -> None:
    for _ in range(alarms):
        await world.alarm(**alarm)
    world.clock.advance(30)
    await world.capture().run_once()


async def test_the_oldest_event_clips_give_way_first_then_short_clips_then_snapshots(world: World) -> None:
    await fetched(world, 3, event=True, short=True)
    assert len(world.files()) == 9
    full = sum(entry.bytes for entry in await world.folder.entries())
    gone: list[str] = []
    before = set(world.files())
    for limit in range(full - 1, 0, -5_000):
        await upkeep(world, media_limit_bytes=limit).run_once()
        gone += sorted(before - set(world.files()))
        before = set(world.files())
        assert sum(entry.bytes for entry in await world.folder.entries()) <= limit
    assert [name.rsplit(".", 2)[0] for name in gone] == [
        *(f"alarm-{number}.event_mp4" for number in (1, 2, 3)),
        *(f"alarm-{number}.short_mp4" for number in (1, 2, 3)),
        *(f"alarm-{number}.snapshot" for number in (1, 2, 3)),
    ]
    assert set(await world.rows("state, reason, path")) == {("lost", "it had to make room (media limit)", None)}


async def test_pictures_give_way_when_the_disk_is_almost_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fetched(world, 2, event=True)
    free = 1_000_000

    async def free_bytes() -> int:
        return free + 200_000 - sum(entry.bytes for entry in await world.folder.entries())

    monkeypatch.setattr(world.folder, "free_bytes", free_bytes)
    await upkeep(world, reserve_bytes=free).run_once()
    assert world.files() == ["alarm-1.snapshot.0.jpg", "alarm-2.event_mp4.0.mp4", "alarm-2.snapshot.0.jpg"]


async def test_closed_events_go_before_their_time_only_when_no_picture_is_left_to_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never one that is on its way, nor one that a repetition may still fall on."""
    free = [0]

    async def free_bytes() -> int:
        return free[0]

    monkeypatch.setattr(world.folder, "free_bytes", free_bytes)
    await fetched(world, 1)
    await world.deliver()
    world.clock.advance(2 * 86_400)
    await fetched(world, 1, camera="yard")
    await world.deliver()
    await fetched(world, 1, camera="hall")

    async def events() -> list[int]:
        return [seq for (seq,) in await world.rows("event_seq")]

    pressed = upkeep(world, reserve_bytes=1_000_000, least_keep_ms=DAY_MS)
    free[0] = 2_000_000
    await pressed.run_once()
    assert await events() == [1, 2, 3]
    free[0] = 0
    await pressed.run_once()
    assert await events() == [2, 3]
    assert world.files() == [], "pictures went first"


async def test_events_go_on_when_their_pictures_gave_way(world: World) -> None:
    await fetched(world, 1, event=True)
    with structlog.testing.capture_logs() as logs:
        await upkeep(world, media_limit_bytes=0).run_once()
    assert [(line["event"], line["count"]) for line in logs if line["log_level"] == "warning"] == [
        ("media_shed", 1),
        ("media_shed", 1),
    ]
    await world.deliver()
    assert len(world.cloud.events) == 1


async def test_files_that_nobody_needs_any_more_go(world: World) -> None:
    world.cloud.script([Discard()])
    await fetched(world, 1)
    await world.deliver()
    assert await world.states() == ["lost"]
    assert len(world.files()) == 1
    await upkeep(world).run_once()
    assert world.files() == []
    assert await world.rows("state, path") == [("lost", None)]


async def test_closed_events_are_forgotten_with_their_files_and_open_ones_are_not(world: World) -> None:
    await fetched(world, 1)
    [on_the_wire] = await world.store.claim(1)
    await fetched(world, 1, camera="yard")
    await world.deliver()
    assert on_the_wire.event.event_id == "alarm-1"
    world.clock.advance(31 * 86_400)
    await upkeep(world).run_once()
    assert [path for (path,) in await world.rows("path")] == ["alarm-1.snapshot.0.jpg"]
    assert world.files() == ["alarm-1.snapshot.0.jpg"]


async def test_a_file_that_no_row_knows_goes_but_not_before_it_could_be_noted(world: World) -> None:
    """Between the rename and the note a file has no row; looked at in this moment it must stay."""
    (world.folder.root / STRANGE).write_bytes(b"left by a crash")
    keeper = upkeep(world)
    await keeper.run_once()
    world.clock.advance(59)
    await keeper.run_once()
    assert world.files() == [STRANGE]
    world.clock.advance(1)
    with structlog.testing.capture_logs() as logs:
        assert await keeper.run_once()
    assert world.files() == []
    assert [(line["event"], line["count"]) for line in logs] == [("media_strangers_removed", 1)]


async def test_a_file_that_changes_is_a_new_one(world: World) -> None:
    path = world.folder.root / STRANGE
    path.write_bytes(b"left by a crash")
    keeper = upkeep(world)
    await keeper.run_once()
    world.clock.advance(600)
    path.write_bytes(b"fetched again, and longer")
    await keeper.run_once()
    assert world.files() == [STRANGE]


async def test_files_of_rows_and_files_of_others_stay(world: World) -> None:
    await fetched(world, 2)
    foreign = world.folder.root / "a persons notes.txt"
    foreign.write_text("mine")
    keeper = upkeep(world)
    for _ in range(5):
        await keeper.run_once()
        world.clock.advance(3600)
    assert len(world.files()) == 3


async def test_the_best_clip_so_far_stays_while_its_recorder_may_come_back(world: World) -> None:
    best = best_name_of("alarm-1", MediaKind.EVENT_MP4, 0)
    (world.folder.root / best).write_bytes(plain_movie(10.0))
    keeper = upkeep(world)
    for _ in range(8):
        await keeper.run_once()
        world.clock.advance(600)
    assert world.files() == [best]
    world.clock.advance(600)
    await keeper.run_once()
    assert world.files() == []


async def test_a_store_that_refuses_does_not_end_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = upkeep(world)
    asked = 0

    async def refuse(_: int) -> list[str]:
        nonlocal asked
        asked += 1
        raise StoreError("disk full")

    stop = asyncio.Event()
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(world.store, "prune", refuse)
        running = asyncio.create_task(keeper.run(stop))
        await until(lambda: asked == 1)
        stop.set()
        await running
    assert [line["event"] for line in logs] == ["upkeep_refused"]


async def test_a_full_disk_rings_and_is_served_at_once(world: World) -> None:
    await fetched(world, 1)
    bell = Bell()
    limit = upkeep(world, bell=bell, reserve_bytes=0)
    stop = asyncio.Event()
    looked = asyncio.Event()
    run_once = limit.run_once

    async def counted() -> bool:
        found = await run_once()
        looked.set()
        return found

    limit.run_once = counted  # type: ignore[method-assign]
    running = asyncio.create_task(limit.run(stop))
    await looked.wait()
    looked.clear()
    bell.ring()
    await looked.wait()
    stop.set()
    await running


class Patience(Bell):
    """Nobody rings; the time that is waited passes at once."""

    def __init__(self, enough_seconds: float) -> None:
        super().__init__()
        self.left = enough_seconds
        self.longest = 0.0

    async def wait(self, stop: asyncio.Event, timeout: float) -> bool:
        self.longest = max(self.longest, timeout)
        self.left -= timeout
        if self.left < 0:
            stop.set()
        return False


async def test_upkeep_that_waits_is_not_taken_for_stuck(world: World) -> None:
    """Else the watchdog is not fed, and systemd kills the gateway every few minutes."""
    beats: list[float] = []
    bell = Patience(1800)
    await upkeep(world, bell=bell, beat=lambda: beats.append(bell.left)).run(asyncio.Event())
    silences = [before - after for before, after in pairwise(beats)]
    assert max(silences) < STUCK_SECONDS / 2
    assert bell.longest < STUCK_SECONDS / 2
