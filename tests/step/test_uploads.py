"""The promises of `gateway.uploads`: the real client and store against the practice cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.outbox.errors import StoreError
from gateway.simulator.faults import DropBeforeAnswer, ExpireSlots, Stall, Status, StorageError
from gateway.simulator.terms import Terms
from gateway.states import MediaState
from tests.fakes.movies import jpeg_of, plain_movie
from tests.fakes.waiting import until
from tests.step.media_world import World, open_world

PICTURE = jpeg_of(30_000)
MOVIE = plain_movie(30.0, picture_bytes=600_000)


class PowerCut(BaseException):
    """Nothing in the gateway can contain it."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        world.recorder.answer("snapshot.jpg", body=PICTURE)
        world.recorder.answer("clip.mp4", body=MOVIE)
        yield world


async def ready(world: World, **alarm: Any) -> None:
    """An alarm whose files and slots are both there."""
    await world.alarm(**alarm)
    await world.deliver()
    world.clock.advance(30)
    await world.capture().run_once()


async def run_for(world: World, uploads: Any, seconds: int) -> None:
    for _ in range(seconds):
        await uploads.run_once()
        world.clock.advance(1)


def counts(world: World, kind: str) -> int:
    return len([request for request in world.cloud.requests if request.kind == kind])


async def test_a_picture_is_put_confirmed_noted_and_then_removed(world: World) -> None:
    await ready(world, event=True)
    with structlog.testing.capture_logs() as logs:
        assert await world.uploads().run_once()
    assert [(slot.kind, slot.content) for slot in world.cloud.done] == [("snapshot", PICTURE), ("event_mp4", MOVIE)]
    assert await world.rows("state, path, put_url, callback_url") == [("done", None, None, None)] * 2
    assert world.files() == []
    assert [line["event"] for line in logs] == ["upload_done", "upload_done"]
    assert world.cloud.refusals == []


async def test_nothing_goes_without_a_slot(world: World) -> None:
    await world.alarm()
    await world.capture().run_once()
    assert not await world.uploads().run_once()
    assert counts(world, "put") == 0


async def test_a_file_that_comes_after_its_slot_is_put_then(world: World) -> None:
    await world.alarm()
    await world.deliver()
    assert not await world.uploads().run_once()
    await world.capture().run_once()
    await world.uploads().run_once()
    assert len(world.cloud.done) == 1


@pytest.mark.parametrize("fault", [Status(503), StorageError(), DropBeforeAnswer(), StorageError(500, "InternalError")])
async def test_a_put_that_fails_is_repeated_while_the_slot_lives(world: World, fault: Any) -> None:
    world.cloud.script([fault, fault], on="put")
    await ready(world)
    await run_for(world, world.uploads(), 10)
    assert len(world.cloud.done) == 1
    assert counts(world, "put") == 3


@pytest.mark.parametrize("fault", [Status(503), Status(429, retry_after="5"), DropBeforeAnswer()])
async def test_a_callback_that_fails_is_repeated_and_the_file_is_not_sent_again(world: World, fault: Any) -> None:
    world.cloud.script([fault, fault], on="callback")
    await ready(world)
    await run_for(world, world.uploads(), 20)
    assert await world.states() == ["done"]
    assert (counts(world, "put"), counts(world, "callback")) == (1, 3)


async def test_retry_after_is_obeyed(world: World) -> None:
    world.cloud.script([Status(503, retry_after="60", body="busy")], on="put")
    await ready(world)
    uploads = world.uploads()
    await run_for(world, uploads, 59)
    assert counts(world, "put") == 1
    await run_for(world, uploads, 3)
    assert counts(world, "put") == 2


async def test_an_expired_slot_costs_the_picture_and_not_the_event(world: World) -> None:
    world.cloud.script([ExpireSlots(seconds=60)])
    await ready(world)
    world.clock.advance(31)
    with structlog.testing.capture_logs() as logs:
        await world.uploads().run_once()
    assert await world.rows("state, reason, path") == [("lost", "its slot ended after 0 tries", None)]
    assert world.files() == []
    assert counts(world, "put") == 0
    assert [(line["event"], line["log_level"]) for line in logs] == [("upload_lost", "warning")]
    assert len(world.cloud.events) == 1


async def test_a_slot_that_the_storage_refuses_is_lost_at_once(world: World) -> None:
    world.cloud.script([StorageError(403, "AccessDenied", "Request has expired")], on="put")
    await ready(world)
    await run_for(world, world.uploads(), 5)
    [(state, reason)] = await world.rows()
    assert state == "lost"
    assert "Request has expired" in reason
    assert counts(world, "put") == 1


async def test_a_callback_that_is_refused_is_lost_without_asking_again(world: World) -> None:
    world.cloud.script([Status(401)], on="callback")
    await ready(world)
    await run_for(world, world.uploads(), 5)
    [(state, reason)] = await world.rows()
    assert state == "lost"
    assert reason.startswith("the callback was refused (401)")
    assert counts(world, "callback") == 1


async def test_a_callback_whose_answer_was_lost_counts_when_it_is_used_up(world: World) -> None:
    world.cloud.script([Status(504), Status(404)], on="callback")
    await ready(world)
    await run_for(world, world.uploads(), 5)
    assert await world.states() == ["done"]


async def test_a_callback_that_never_arrived_is_not_taken_for_done(world: World) -> None:
    world.cloud.script([Status(503), Status(404)], on="callback")
    await ready(world)
    await run_for(world, world.uploads(), 5)
    assert await world.states() == ["lost"]


async def test_tries_end_with_the_slot(world: World) -> None:
    world.cloud.script([ExpireSlots(seconds=120)])
    world.cloud.always("put", Status(503))
    await ready(world)
    await run_for(world, world.uploads(), 100)
    [(state, reason)] = await world.rows()
    assert state == "lost"
    assert reason.startswith("its slot ends before the next try")


async def test_the_type_is_sent_where_the_address_binds_it(tmp_path: Path) -> None:
    terms = Terms(auth="api_key", event_header="x-api-key", sign_content_type=True)
    async with open_world(tmp_path, terms) as world:
        world.recorder.answer("snapshot.jpg", body=PICTURE)
        await ready(world)
        await world.uploads().run_once()
        assert [slot.content_type for slot in world.cloud.done] == ["image/jpeg"]


async def test_the_type_is_tried_once_where_the_signature_does_not_match_without(world: World) -> None:
    mismatch = StorageError(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
    world.cloud.script([mismatch, mismatch], on="put")
    await ready(world)
    await run_for(world, world.uploads(), 3)
    types = [request.headers.get("content-type") for request in world.cloud.requests if request.kind == "put"]
    assert types == [None, "image/jpeg"]
    assert await world.states() == ["lost"]


@pytest.mark.parametrize(
    ("damage", "reason"), [("gone", "its file is gone"), ("changed", "its file has changed its content")]
)
async def test_a_file_that_is_not_what_was_fetched_is_not_sent(world: World, damage: str, reason: str) -> None:
    await ready(world)
    path = world.folder.path_of("alarm-1.snapshot.0.jpg")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(jpeg_of(30_000).replace(b"ppp", b"qqq"))
    await world.uploads().run_once()
    assert await world.rows() == [("lost", reason)]
    assert counts(world, "put") == 0


async def test_a_snapshot_of_a_new_alarm_does_not_wait_behind_clips(world: World) -> None:
    """Two clips hang in their PUT; with two places one of them has to wait, not the snapshot."""
    for _ in range(2):
        await ready(world, snapshots=0, event=True)
    world.cloud.script([Stall(at=0.5)], on="put")
    stop = asyncio.Event()
    running = asyncio.create_task(world.uploads().run(stop))
    await until(lambda: not world.cloud.faults.waiting())
    await ready(world)
    world.bell.ring()
    await world.cloud.wait_for(done=1)
    assert [slot.kind for slot in world.cloud.done] == ["snapshot"]
    stop.set()
    world.bell.ring()
    await running
    assert await world.states() == ["waiting", "waiting", "done"]


async def test_with_one_place_snapshots_go_first(world: World) -> None:
    await ready(world, snapshots=0, event=True)
    await ready(world, short=True)
    await ready(world)
    await world.uploads(parallel=1).run_once()
    assert len(world.cloud.done) == 4
    order = [request.target for request in world.cloud.requests if request.kind == "put"]
    assert ["snapshot" in target for target in order] == [True, True, False, False]


async def test_no_more_than_parallel_go_at_once(world: World) -> None:
    for _ in range(6):
        await ready(world)
    most = busy = 0
    put = world.client.put_file

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal most, busy
        busy += 1
        most = max(most, busy)
        try:
            return await put(*arguments, **more)
        finally:
            busy -= 1

    world.client.put_file = counted  # type: ignore[method-assign]
    await world.uploads(parallel=3).run_once()
    assert most == 3
    assert len(world.cloud.done) == 6


async def test_after_a_crash_behind_the_put_the_same_bytes_go_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the crash table: PUT, before the note."""
    await ready(world)

    async def power_cut(*_: object) -> bool:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(world.store, "media_noted", power_cut)
        await world.uploads().run_once()
    assert await world.states() == ["waiting"]
    await world.uploads().run_once()
    assert counts(world, "put") == 2
    assert world.cloud.done[0].content == PICTURE


async def test_after_a_crash_behind_the_callback_only_the_callback_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the crash table: callback, before the note."""
    await ready(world)
    noted = world.store.media_noted

    async def power_cut(media_id: int, state: MediaState, reason: str | None = None) -> bool:
        if state is MediaState.DONE:
            raise PowerCut
        return await noted(media_id, state, reason)

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(world.store, "media_noted", power_cut)
        await world.uploads().run_once()
    assert await world.states() == ["uploaded"]
    await world.uploads().run_once()
    assert await world.states() == ["done"]
    assert (counts(world, "put"), counts(world, "callback")) == (1, 2)
    assert world.files() == []


async def test_a_store_that_refuses_costs_nothing_but_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await ready(world)
    uploads = world.uploads()

    async def refuse(*_: object) -> bool:
        raise StoreError("disk full")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(world.store, "media_noted", refuse)
        await run_for(world, uploads, 4)
    assert [line["event"] for line in logs] == ["uploads_wait_for_the_store"]
    await run_for(world, uploads, 2)
    assert await world.states() == ["done"]


async def test_a_bug_in_one_row_puts_off_this_row_only(world: World) -> None:
    await ready(world)
    await ready(world)
    put = world.client.put_file
    world.client.put_file = _fails_for("alarm-1", put)  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        await world.uploads().run_once()
    world.client.put_file = put  # type: ignore[method-assign]
    assert await world.states() == ["waiting", "done"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["upload_failed_inside"]
    await run_for(world, world.uploads(), 3)
    assert await world.states() == ["done", "done"]


def _fails_for(event_id: str, put: Any) -> Any:
    async def fails(url: str, path: Path, **more: Any) -> Any:
        if event_id in path.name:
            raise KeyError("a bug of ours")
        return await put(url, path, **more)

    return fails


async def test_an_outage_is_said_once_and_everything_goes_when_it_is_over(world: World) -> None:
    for _ in range(3):
        await ready(world)
    await world.cloud.go_dark()
    uploads = world.uploads()
    with structlog.testing.capture_logs() as logs:
        await run_for(world, uploads, 60)
        assert uploads.failing
        await world.cloud.come_back()
        await run_for(world, uploads, 40)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["uploads_failing"]
    assert [line["event"] for line in logs if line["event"] == "uploads_back"] == ["uploads_back"]
    assert await world.states() == ["done"] * 3
    assert not uploads.failing


async def test_addresses_of_slots_appear_in_no_log_and_no_reason(world: World) -> None:
    world.cloud.script([Status(503), DropBeforeAnswer()], on="put")
    world.cloud.script([Status(401)], on="callback")
    await ready(world)
    with structlog.testing.capture_logs() as logs:
        await run_for(world, world.uploads(), 5)
    [(state, reason)] = await world.rows()
    assert state == "lost"
    said = str(logs) + reason
    for secret in ("X-Amz", "access_token", "Signature="):
        assert secret not in said


async def test_the_bell_is_answered_at_once(world: World) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(world.uploads().run(stop))
    await ready(world)
    world.bell.ring()
    await world.cloud.wait_for(done=1, timeout=1.5)
    await until(lambda: world.files() == [])
    stop.set()
    world.bell.ring()
    await running


async def test_all_uploads_together_keep_to_the_rate(tmp_path: Path) -> None:
    """200 KB at 400 KB/s over two uploads: half a second, in real time (the loop's clock paces, not the gateway's)."""
    async with open_world(tmp_path, max_bytes_per_second=400_000) as world:
        world.recorder.answer("snapshot.jpg", body=jpeg_of(100_000))
        for _ in range(2):
            await ready(world)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.uploads().run_once()
        assert 0.3 <= loop.time() - began <= 2.0
        assert len(world.cloud.done) == 2
