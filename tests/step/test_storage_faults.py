"""What the storage, the callbacks and the recorder may do to pictures, and that no event ever suffers for it.

The real capture and uploads, the real client and outbox, against the strict practice cloud. Together with
`test_uploads.py` and `test_capture.py` this is the evidence for the rows "pictures" of `docs/evidence.md`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from aiohttp import web

from gateway.chekt import client as client_module
from gateway.simulator.faults import (
    CutOff,
    Drop,
    DropBeforeAnswer,
    ExpireSlots,
    Html,
    Stall,
    Status,
    StorageError,
)
from tests.fakes.movies import jpeg_of, plain_movie
from tests.step.media_world import World, open_world

PICTURE = jpeg_of(30_000)
MOVIE = plain_movie(30.0, picture_bytes=600_000)
HOUR = 3_600


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        world.recorder.answer("snapshot.jpg", body=PICTURE)
        world.recorder.answer("clip.mp4", body=MOVIE)
        yield world
        # Whatever became of the pictures: the event is delivered, once.
        await world.store.flush()
        counters = await world.store.counters()
        assert counters.get("state_delivered", 0) == len(world.cloud.events) > 0
        assert world.cloud.duplicates == 0


async def ready(world: World, **alarm: Any) -> None:
    """An alarm whose files and slots are both there."""
    await world.alarm(**alarm)
    await world.deliver()
    world.clock.advance(30)
    await world.capture().run_once()


async def run_for(world: World, uploads: Any, seconds: int, step: int = 1) -> None:
    for _ in range(0, seconds, step):
        await uploads.run_once()
        world.clock.advance(step)


def asked(world: World, kind: str) -> int:
    return len([request for request in world.cloud.requests if request.kind == kind])


# Storage

PASSING = [
    StorageError(503, "SlowDown"),
    StorageError(500, "InternalError"),
    StorageError(400, "RequestTimeout", "Your socket connection to the server was not read from or written to"),
    StorageError(400, "IncompleteBody", "You did not provide the number of bytes specified by Content-Length"),
    StorageError(400, "BadDigest", "The Content-MD5 you specified did not match what we received"),
    Status(429, retry_after="3"),
    Html(200),
    Html(403),
    Html(302),
    Drop(),
    DropBeforeAnswer(),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: repr(fault)[:40])
async def test_what_passes_is_waited_for_and_the_picture_arrives(world: World, fault: Any) -> None:
    world.cloud.script([fault, fault], on="put")
    await ready(world, event=True)
    await run_for(world, world.uploads(), 60)
    assert await world.states() == ["done", "done"]
    assert {slot.content for slot in world.cloud.done} == {PICTURE, MOVIE}
    assert world.files() == []


REFUSED = [
    StorageError(403, "AccessDenied", "Request has expired"),
    StorageError(403, "RequestTimeTooSkewed", "The difference between the request time and the server's time"),
    StorageError(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist"),
    StorageError(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"),
    StorageError(404, "NoSuchBucket", "The specified bucket does not exist"),
]


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.code)
async def test_what_is_final_costs_this_picture_at_once_and_only_this_one(world: World, fault: StorageError) -> None:
    world.cloud.script([fault], on="put")
    await ready(world, snapshots=2)
    await run_for(world, world.uploads(parallel=1), 5)
    assert sorted(await world.states()) == ["done", "lost"]
    [(reason,)] = [(reason,) for state, reason in await world.rows() if state == "lost"]
    assert fault.code in reason
    assert asked(world, "put") == 2
    assert world.files() == []


async def test_a_put_that_stalls_at_90_percent_is_given_up_and_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STALL_S", 0.3)
    monkeypatch.setattr(client_module, "CONNECT_S", 0.3)
    monkeypatch.setattr(client_module, "ANSWER_S", 0.3)
    world.cloud.script([Stall(at=0.9)], on="put")
    await ready(world, snapshots=0, event=True)
    await run_for(world, world.uploads(), 10)
    assert await world.states() == ["done"]
    assert world.cloud.done[0].content == MOVIE
    assert asked(world, "put") == 2


async def test_an_object_that_is_not_what_we_sent_is_put_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A middlebox that rewrites bodies: storage says 200, and the ETag (MD5 of what it has) is another one's."""
    take = world.cloud.api.bucket.take
    taken = 0

    async def damaged(request: web.Request, slot: Any, length: int, now: float) -> None:
        nonlocal taken
        await take(request, slot, length, now)
        taken += 1
        if taken == 1:
            slot.etag = "0" * 32

    monkeypatch.setattr(world.cloud.api.bucket, "take", damaged)
    await ready(world)
    with structlog.testing.capture_logs() as logs:
        await run_for(world, world.uploads(), 5)
    assert (await world.states(), taken) == (["done"], 2)
    [put_off] = [line for line in logs if line["event"] == "upload_put_off"]
    assert "the storage has other bytes than we sent" in put_off["reason"]


@pytest.mark.parametrize("etag", ["d41d8cd98f00b204e9800998ecf8427e-3", "", "kms-encrypted"])
async def test_an_etag_that_is_no_md5_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch, etag: str) -> None:
    """Encrypted or composed objects have another kind of ETag (AWS S3 API, "Common response headers")."""
    take = world.cloud.api.bucket.take

    async def other(request: web.Request, slot: Any, length: int, now: float) -> None:
        await take(request, slot, length, now)
        slot.etag = etag

    monkeypatch.setattr(world.cloud.api.bucket, "take", other)
    await ready(world)
    await run_for(world, world.uploads(), 3)
    assert (await world.states(), asked(world, "put")) == (["done"], 1)


@pytest.mark.slow
async def test_storage_that_fails_for_a_day_costs_pictures_only(world: World) -> None:
    world.cloud.always("put", StorageError(503, "SlowDown"))
    await ready(world, event=True)
    uploads = world.uploads()
    with structlog.testing.capture_logs() as logs:
        await run_for(world, uploads, HOUR, step=5)
    assert await world.states() == ["lost", "lost"]
    assert world.files() == []
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["upload_lost", "upload_lost"]
    world.cloud.clear()
    await ready(world)
    await run_for(world, uploads, 5)
    assert (await world.states())[-1] == "done"


# Callbacks


@pytest.mark.parametrize("fault", [Status(500), Status(503), DropBeforeAnswer(), CutOff(), Html(200)])
@pytest.mark.slow
async def test_callbacks_that_fail_for_a_day_cost_pictures_only(world: World, fault: Any) -> None:
    world.cloud.always("callback", fault)
    world.cloud.always("event", ExpireSlots(seconds=24 * HOUR))
    await ready(world)
    uploads = world.uploads()
    await run_for(world, uploads, 23 * HOUR, step=60)
    [(state, reason)] = await world.rows()
    if isinstance(fault, CutOff):
        assert state == "done"  # a 2xx is enough, whatever its body
        return
    assert state == "uploaded", reason
    world.cloud.clear("callback")
    await run_for(world, uploads, 60)
    assert await world.states() == ["done"]
    assert asked(world, "put") == 1
    assert world.files() == []


@pytest.mark.parametrize("status", [404, 409, 410])
async def test_a_callback_that_is_used_up_after_a_lost_answer_is_done(world: World, status: int) -> None:
    world.cloud.script([DropBeforeAnswer(), Status(status)], on="callback")
    await ready(world)
    await run_for(world, world.uploads(), 5)
    assert await world.states() == ["done"]


# Recorder


async def capture_for(world: World, capture: Any, seconds: int, step: int = 5) -> None:
    for _ in range(0, seconds, step):
        await capture.run_once()
        world.clock.advance(step)


@pytest.mark.parametrize("status", [404, 500, 503])
@pytest.mark.slow
async def test_a_recorder_that_answers_an_error_for_ever_costs_the_picture_with_a_reason(
    world: World, status: int
) -> None:
    world.recorder.answer("", status=status)
    await world.alarm(event=True)
    await world.deliver()
    capture = world.capture()
    await capture_for(world, capture, 1_000, step=5)
    rows = await world.rows()
    assert [state for state, _ in rows] == ["lost", "lost"]
    assert all(reason for _, reason in rows)
    assert len(world.recorder.requests) < 800  # it is asked every few seconds, also while the slot closes
