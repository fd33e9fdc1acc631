"""The promises of `gateway.media.frigate` and `gateway.media.files`: real HTTP on loopback, real files."""

from __future__ import annotations

import asyncio
import hashlib
import io
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway.media import frigate, mp4
from gateway.media.files import FileFault, MediaFolder, TooLarge, best_name_of, name_of, place_of
from gateway.media.frigate import Frigate
from gateway.media.recorder import Forbidden, NotThere, Refused, Unanswered, Unreachable, is_of_the_site
from gateway.model import MediaKind
from tests.fakes.clock import FakeClock
from tests.fakes.movies import JPEG, plain_movie
from tests.fakes.recorder import Recorder
from tests.fakes.waiting import until

EVENT_AT = 1_772_366_400_500
RECIPE = {"strategy": "frigate", "camera": "front_cam", "detections": ["1772366398.1-abc", "1772366399.2-def"]}
NAME = name_of("abcdefgh", MediaKind.SNAPSHOT, 0)


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    await recorder.start()
    yield recorder
    await recorder.stop()


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[MediaFolder]:
    folder = MediaFolder(tmp_path / "media")
    folder.prepare()
    yield folder
    folder.close()


@pytest.fixture
async def client(recorder: Recorder) -> AsyncIterator[Frigate]:
    client = Frigate(recorder.url, clock=FakeClock())
    yield client
    await client.close()


async def snapshot(client: Frigate, folder: MediaFolder, *, seq: int = 0, live: bool = True) -> bytes:
    async with folder.draft() as draft:
        await client.snapshot(RECIPE, EVENT_AT, seq=seq, live=live, draft=draft)
        kept = await draft.keep(NAME)
    return folder.path_of(kept.name).read_bytes()


async def test_the_snapshot_of_the_first_detection_that_has_one_is_taken(
    recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    recorder.answer("/api/events/1772366399.2-def/snapshot.jpg", body=JPEG)
    recorder.answer("/latest.jpg", body=b"\xff\xd8\xffthe newest picture\xff\xd9")
    assert await snapshot(client, folder) == JPEG
    assert recorder.requests[0] == "/api/events/1772366398.1-abc/snapshot.jpg"


async def test_the_newest_picture_is_taken_only_while_it_shows_the_alarm(
    recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    """ "Pictures of the right moment": later the recording is asked for that moment, or nothing is taken."""
    recorder.answer("/api/front_cam/latest.jpg", body=JPEG)
    assert await snapshot(client, folder, live=True) == JPEG
    recorder.requests.clear()
    with pytest.raises(NotThere, match="404"):
        await snapshot(client, folder, live=False)
    assert recorder.asked("latest") == []
    assert recorder.requests[-1] == "/api/front_cam/recordings/1772366400.500/snapshot.jpg"


async def test_further_snapshots_are_not_the_one_picture_of_the_detection_again(
    recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    recorder.answer("/api/events/", body=JPEG)
    recorder.answer("/api/front_cam/recordings/", body=JPEG)
    await snapshot(client, folder, seq=1, live=False)
    assert recorder.requests == ["/api/front_cam/recordings/1772366400.500/snapshot.jpg"]


@pytest.mark.parametrize("body", [b"", b"<html>starting</html>", JPEG[:-10]])
async def test_what_is_not_a_whole_jpeg_is_not_taken(
    body: bytes, recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    recorder.answer("/api/events/", body=body)
    recorder.answer("/api/front_cam/recordings/", body=JPEG)
    assert await snapshot(client, folder, live=False) == JPEG


async def test_a_picture_that_is_too_large_is_not_taken(
    recorder: Recorder, client: Frigate, folder: MediaFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frigate, "SNAPSHOT_LIMIT", 500)
    recorder.answer("snapshot.jpg", body=JPEG)
    with pytest.raises(NotThere, match="larger than 500 bytes"):
        await snapshot(client, folder)
    assert await folder.entries() == []


async def test_a_clip_is_asked_for_by_whole_seconds_and_with_another_end_each_time(
    recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    """Frigate caches a range under its exact name: one asked for too early would stay short for ever."""
    movie = plain_movie(30.0, picture_bytes=700_000)
    recorder.answer("clip.mp4", body=movie)
    for attempt in (0, 1):
        async with folder.draft() as draft:
            await client.clip(RECIPE, EVENT_AT - 10_000, EVENT_AT + 20_000, attempt=attempt, draft=draft)
            kept = await draft.keep(name_of("abcdefgh", MediaKind.EVENT_MP4, 0))
            assert (kept.bytes, kept.sha256) == (len(movie), hashlib.sha256(movie).hexdigest())
    assert recorder.requests == [
        "/api/front_cam/start/1772366390/end/1772366421/clip.mp4",
        "/api/front_cam/start/1772366390/end/1772366422/clip.mp4",
    ]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotThere),
        (500, NotThere),
        (400, NotThere),
        (302, NotThere),
        (403, Forbidden),
        (502, Unanswered),
        (503, Unanswered),
    ],
)
async def test_answers_mean_what_they_mean(
    status: int, error: type[Exception], recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    recorder.answer("clip.mp4", status=status)
    with pytest.raises(error, match=str(status)):
        async with folder.draft() as draft:
            await client.clip(RECIPE, EVENT_AT, EVENT_AT + 1000, attempt=0, draft=draft)


async def test_redirects_are_not_followed(recorder: Recorder, client: Frigate, folder: MediaFolder) -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/api/other/latest.jpg")

    recorder.answer_with(elsewhere, "snapshot.jpg")
    recorder.answer("/api/other/latest.jpg", body=JPEG)
    with pytest.raises(NotThere):
        await snapshot(client, folder, live=False)
    assert recorder.asked("other") == []


async def test_an_answer_that_is_cut_off_leaves_nothing(
    recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "1000"})
        await answer.prepare(request)
        await answer.write(JPEG[:100])
        assert request.transport is not None
        request.transport.close()
        return answer

    recorder.answer_with(cut, "snapshot.jpg")
    with pytest.raises(Unanswered, match="cut off"):
        await snapshot(client, folder)
    assert list(folder.root.iterdir()) == []


async def test_a_recorder_that_is_away_is_unreachable(recorder: Recorder, client: Frigate, folder: MediaFolder) -> None:
    await recorder.stop()
    with pytest.raises(Unreachable, match="cannot be connected"):
        await snapshot(client, folder)


async def test_one_login_serves_all_that_wait_and_is_renewed_once_it_has_ended(
    recorder: Recorder, folder: MediaFolder
) -> None:
    recorder.password = "geheim"
    recorder.answer("snapshot.jpg", body=JPEG)
    client = Frigate(recorder.url, clock=FakeClock(), username="viewer", make_password=lambda: "geheim")
    try:
        assert await asyncio.gather(*(snapshot(client, folder) for _ in range(5))) == [JPEG] * 5
        assert recorder.logins == 1
        recorder.forget_sessions()
        assert await snapshot(client, folder) == JPEG
        assert recorder.logins == 2
    finally:
        await client.close()


async def test_a_refused_login_is_not_repeated_at_once(recorder: Recorder, folder: MediaFolder) -> None:
    """Frigate locks out who fails often; and the reason never holds the password."""
    recorder.password = "other"
    clock = FakeClock()
    client = Frigate(recorder.url, clock=clock, username="viewer", make_password=lambda: "geheim")
    try:
        for _ in range(3):
            with pytest.raises(Refused, match="refused the login") as raised:
                await snapshot(client, folder)
            assert "geheim" not in str(raised.value)
        assert recorder.logins == 1
        clock.advance(61)
        recorder.password = "geheim"
        recorder.answer("snapshot.jpg", body=JPEG)
        assert await snapshot(client, folder) == JPEG
        assert recorder.logins == 2
    finally:
        await client.close()


async def test_a_login_that_nobody_configured_is_said(recorder: Recorder, client: Frigate, folder: MediaFolder) -> None:
    recorder.password = "geheim"
    with pytest.raises(Refused, match="password_file"):
        await snapshot(client, folder)


async def test_a_recorder_that_refuses_its_own_login_is_said(recorder: Recorder, folder: MediaFolder) -> None:
    recorder.password = "geheim"
    client = Frigate(recorder.url, clock=FakeClock(), username="viewer", make_password=lambda: "geheim")

    async def unauthorised(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    recorder.answer_with(unauthorised, "snapshot.jpg")
    try:
        with pytest.raises(Refused, match="its own login"):
            await snapshot(client, folder)
        assert recorder.logins == 1
    finally:
        await client.close()


@pytest.mark.parametrize("camera", ["../../etc", "a/b", "front cam?x=1", "früh"])
async def test_names_of_equipment_stay_one_path_segment(
    camera: str, recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    async with folder.draft() as draft:
        with pytest.raises(NotThere):
            await client.clip({"camera": camera}, EVENT_AT, EVENT_AT + 1000, attempt=0, draft=draft)
    assert recorder.requests[0].count("/") == 7
    assert "?" not in recorder.requests[0]


@pytest.mark.parametrize("camera", ["", ".", ".."])
async def test_names_that_are_no_segment_are_not_asked_for(
    camera: str, recorder: Recorder, client: Frigate, folder: MediaFolder
) -> None:
    async with folder.draft() as draft:
        with pytest.raises(NotThere):
            await client.clip({"camera": camera}, EVENT_AT, EVENT_AT + 1000, attempt=0, draft=draft)
    assert recorder.requests == []


@pytest.mark.parametrize(
    "host", ["192.168.1.4", "10.0.0.1", "127.0.0.1", "::1", "fe80::1", "fd00::1", "nvr", "nvr.local", "nvr.home.arpa"]
)
def test_a_host_of_the_site_may_have_its_own_certificate(host: str) -> None:
    assert is_of_the_site(host)


@pytest.mark.parametrize("host", ["", "8.8.8.8", "2a00::1", "nvr.example.com", "example.local.com"])
def test_any_other_host_must_have_a_good_certificate(host: str) -> None:
    assert not is_of_the_site(host)


@pytest.mark.slow
@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize(
    "flags", ["+faststart", "frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof", ""]
)
def test_the_movies_of_ffmpeg_are_read_as_they_are(flags: str, tmp_path: Path) -> None:
    """Frigate makes its clips with ffmpeg: an index in front up to 0.14, fragments from then on."""
    path = tmp_path / "clip.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc=size=160x90:rate=6:duration=8", "-f", "lavfi", "-i", "sine=duration=8"]
    made = [
        "-c:v",
        "mpeg4",
        "-g",
        "12",
        "-c:a",
        "aac",
        *(["-movflags", flags] if flags else []),
        "-f",
        "mp4",
        str(path),
    ]
    subprocess.run(["ffmpeg", "-v", "error", *picture, *made], check=True)
    data = path.read_bytes()
    movie = mp4.read(io.BytesIO(data), len(data))
    assert movie.whole
    assert 8_000 <= movie.duration_ms <= 8_400
    assert movie.fragmented == flags.startswith("frag")
    assert movie.faststart == bool(flags)
    step = max(1, len(data) // 500)
    assert not any(
        mp4.read(io.BytesIO(data[:size]), size).whole for size in [*range(0, len(data), step), len(data) - 1]
    )


async def test_a_kept_file_is_whole_private_and_alone(folder: MediaFolder) -> None:
    async with folder.draft() as draft:
        await draft.restart(10_000)
        await draft.write(b"first")
        await draft.restart(10_000)
        await draft.write(b"second ")
        await draft.write(b"try")
        kept = await draft.keep(NAME)
    path = folder.path_of(NAME)
    assert path.read_bytes() == b"second try"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    assert [entry.name for entry in await folder.entries()] == [NAME]
    assert await folder.require(NAME, kept.bytes, kept.sha256) == path


async def test_a_draft_that_is_not_kept_vanishes(folder: MediaFolder) -> None:
    async with folder.draft() as draft:
        await draft.restart(100)
        await draft.write(b"x" * 50)
        with pytest.raises(TooLarge):
            await draft.write(b"x" * 51)
    assert list(folder.root.iterdir()) == []


async def test_a_draft_of_a_process_that_ended_is_removed_at_the_next_start(folder: MediaFolder) -> None:
    (folder.root / "7.part").write_bytes(b"half")
    folder.prepare()
    assert list(folder.root.iterdir()) == []


async def test_a_cancelled_writer_leaves_nothing_open_and_nothing_behind(folder: MediaFolder) -> None:
    """The thread that writes has ended before the file is closed."""
    writing = asyncio.Event()

    async def write_for_ever() -> None:
        async with folder.draft() as draft:
            await draft.restart(1 << 40)
            while True:
                await draft.write(b"x" * (1 << 18))
                writing.set()

    task = asyncio.create_task(write_for_ever())
    await writing.wait()
    task.cancel()
    await until(task.done)
    assert task.cancelled()
    assert list(folder.root.iterdir()) == []


async def test_a_file_that_changed_on_disk_is_noticed(folder: MediaFolder) -> None:
    async with folder.draft() as draft:
        await draft.restart(100)
        await draft.write(b"whole")
        kept = await draft.keep(NAME)
    path = folder.path_of(NAME)
    path.write_bytes(b"whale")
    with pytest.raises(FileFault, match="content"):
        await folder.require(NAME, kept.bytes, kept.sha256)
    path.write_bytes(b"wh")
    with pytest.raises(FileFault, match="size"):
        await folder.require(NAME, kept.bytes, kept.sha256)
    path.unlink()
    with pytest.raises(FileFault, match="gone"):
        await folder.require(NAME, kept.bytes, kept.sha256)


@pytest.mark.parametrize(
    "name", ["../outbox.db", "/etc/passwd", "outbox.db", "a.snapshot.0.jpg/../b", "a.snapshot.0.exe", ""]
)
def test_only_our_own_names_are_ever_touched(name: str, tmp_path: Path) -> None:
    folder = MediaFolder(tmp_path)
    with pytest.raises(ValueError, match="not a name"):
        folder.path_of(name)
    folder.close()


@pytest.mark.parametrize("event_id", ["", "a/b", "..", "a" * 65, "ä"])
def test_a_name_is_made_of_a_proper_event_id_only(event_id: str) -> None:
    with pytest.raises(ValueError, match="not an event id"):
        name_of(event_id, MediaKind.SNAPSHOT, 0)


def test_a_name_tells_what_its_file_belongs_to() -> None:
    place = place_of(name_of("ab-c_1", MediaKind.EVENT_MP4, 2))
    assert place is not None
    assert (place.event_id, place.kind, place.seq) == ("ab-c_1", MediaKind.EVENT_MP4, 2)
    assert place_of(best_name_of("ab-c_1", MediaKind.EVENT_MP4, 2)) == place
