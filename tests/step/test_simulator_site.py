"""The fake recorder has the habits of a real Frigate, and the site knows what the broker took."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.simulator.recorder import USER, Recorder, SeenObject
from gateway.simulator.site import Site
from tests.fakes.mosquitto import Mosquitto

START = 1_772_366_400.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def recorder(clock: Clock) -> AsyncIterator[Recorder]:
    made = Recorder(("front_door",), now=clock, recorded_since=START - 3600)
    made.objects["17-abc"] = SeenObject("17-abc", "front_door", START)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    # Cookies of an address without a name are not sent by default.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as made:
        yield made


async def get(recorder: Recorder, http: aiohttp.ClientSession, path: str, **extra: Any) -> tuple[int, bytes]:
    async with http.get(recorder.url + path, **extra) as response:
        return response.status, await response.read()


def seconds_of(film: bytes) -> float:
    at = film.index(b"mvhd") + 4
    return int.from_bytes(film[at + 16 : at + 20], "big") / int.from_bytes(film[at + 12 : at + 16], "big")


async def test_snapshots_of_events_the_newest_and_the_recorded(
    recorder: Recorder, http: aiohttp.ClientSession, clock: Clock
) -> None:
    status, picture = await get(recorder, http, "/api/events/17-abc/snapshot.jpg")
    assert (status, b"event 17-abc" in picture) == (200, True)
    assert (await get(recorder, http, "/api/front_door/latest.jpg"))[0] == 200
    assert (await get(recorder, http, f"/api/front_door/recordings/{START - 60}/snapshot.jpg"))[0] == 200
    assert (await get(recorder, http, f"/api/front_door/recordings/{START}/snapshot.jpg"))[0] == 404
    clock.now += 20
    assert (await get(recorder, http, f"/api/front_door/recordings/{START}/snapshot.jpg"))[0] == 200
    status, said = await get(recorder, http, "/api/events/unknown/snapshot.jpg")
    assert (status, json.loads(said)) == (404, {"success": False, "message": "Event not found"})
    assert (await get(recorder, http, "/api/no_such_camera/latest.jpg"))[0] == 404
    recorder.objects["17-abc"].has_snapshot = False
    assert (await get(recorder, http, "/api/events/17-abc/snapshot.jpg"))[0] == 404


async def test_a_clip_is_complete_only_when_its_last_segment_is_archived(
    recorder: Recorder, http: aiohttp.ClientSession, clock: Clock
) -> None:
    recorder.freezes_clips = False
    path = f"/api/front_door/start/{START - 10}/end/{START + 15}/clip.mp4"
    clock.now += 1
    lengths = []
    for _ in range(4):
        status, film = await get(recorder, http, path)
        assert status == 200
        lengths.append(seconds_of(film))
        clock.now += 10.5
    # 12:00:01, :11.5, :22, :32.5; segments of 10 s, archived 1 s after their end.
    assert lengths == [10.0, 20.0, 25.0, 25.0]


async def test_nothing_is_there_before_the_first_segment(
    recorder: Recorder, http: aiohttp.ClientSession, clock: Clock
) -> None:
    path = f"/api/front_door/start/{START + 1}/end/{START + 4}/clip.mp4"
    assert (await get(recorder, http, path))[0] == 404
    recorder.nothing_status = 500
    assert (await get(recorder, http, path))[0] == 500
    clock.now += 11
    assert (await get(recorder, http, path))[0] == 200


async def test_a_clip_that_was_asked_for_too_early_stays_short(
    recorder: Recorder, http: aiohttp.ClientSession, clock: Clock
) -> None:
    path = f"/api/front_door/start/{START - 10}/end/{START + 5}/clip.mp4"
    clock.now += 4
    early = seconds_of((await get(recorder, http, path))[1])
    clock.now += 60
    assert seconds_of((await get(recorder, http, path))[1]) == early == 10.0
    later = f"/api/front_door/start/{START - 10}/end/{START + 6}/clip.mp4"
    assert seconds_of((await get(recorder, http, later))[1]) == 16.0


async def test_cuts_are_made_at_whole_seconds(recorder: Recorder, clock: Clock) -> None:
    clock.now += 60
    assert recorder.recorded_seconds(START + 1.9, START + 8.9) == 7.0
    assert recorder.recorded_seconds(START + 1.1, START + 18.9) == 17.0
    assert recorder.recorded_seconds(START - 7200, START - 3590) == 10.0


async def test_clips_fail_on_request(recorder: Recorder, http: aiohttp.ClientSession, clock: Clock) -> None:
    clock.now += 60
    recorder.script("clip", [500, 404])
    path = "/api/events/17-abc/clip.mp4"
    statuses = [(await get(recorder, http, path))[0] for _ in range(3)]
    assert statuses == [500, 404, 200]
    recorder.always("clip", 500)
    status, said = await get(recorder, http, path)
    assert (status, json.loads(said)["message"]) == (500, "Could not create clip from recordings")
    recorder.clear()
    assert (await get(recorder, http, path))[0] == 200


async def test_a_password_means_a_login_by_cookie_or_bearer(
    recorder: Recorder, http: aiohttp.ClientSession, clock: Clock
) -> None:
    recorder.password = "practice"
    assert (await get(recorder, http, "/api/version"))[0] == 401

    async def login(password: str) -> tuple[int, str | None]:
        async with http.post(recorder.url + "/api/login", json={"user": USER, "password": password}) as response:
            token = response.cookies.get("frigate_token")
            return response.status, token.value if token else None

    assert await login("wrong") == (401, None)
    status, token = await login("practice")
    assert (status, await get(recorder, http, "/api/version")) == (200, (200, b"0.16.2-practice"))
    http.cookie_jar.clear()
    assert (await get(recorder, http, "/api/version", headers={"Authorization": f"Bearer {token}"}))[0] == 200
    recorder.forget_logins()
    assert (await get(recorder, http, "/api/version", headers={"Authorization": f"Bearer {token}"}))[0] == 401
    statuses = [(await login("wrong"))[0] for _ in range(5)]
    assert statuses == [401, 401, 401, 401, 429]
    clock.now += 61
    assert (await login("practice"))[0] == 200


# Messages


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    made = await Mosquitto(tmp_path).start()
    yield made
    await made.stop()


@pytest.mark.needs("mosquitto")
async def test_an_alarm_is_told_as_frigate_tells_it(broker: Mosquitto) -> None:
    site, listener = Site(("front_door",), qos=1, heartbeat_seconds=0.2), Site((), prefix="listener")
    await listener.start(broker.port)
    await site.start(broker.port)
    try:
        alarm = site.raise_alarm("front_door", "person", severity="detection")
        site.update(alarm, severity="alert")
        site.end(alarm)
        await site.all_acknowledged()
        reviews = [json.loads(one.payload) for one in site.published if one.topic == "frigate/reviews"]
        events = [json.loads(one.payload) for one in site.published if one.topic == "frigate/events"]
        assert [review["type"] for review in reviews] == ["new", "update", "end"]
        assert [review["after"]["severity"] for review in reviews] == ["detection", "alert", "alert"]
        assert [review["before"]["severity"] for review in reviews] == ["detection", "detection", "alert"]
        assert {review["after"]["id"] for review in reviews} == {alarm.review_id}
        assert reviews[0]["after"]["data"]["detections"] == [alarm.object_id] == [events[0]["after"]["id"]]
        assert [review["after"]["end_time"] for review in reviews] == [None, None, alarm.ended]
        assert events[0]["before"]["false_positive"] and not events[0]["after"]["false_positive"]
        # The broker has them, and the shapes are those of the samples.
        await listener.hear("frigate/available", b"online")
        await listener.hear("frigate/front_door/status/detect", b"online", timeout=15)
        alarms = [one for one in site.published if one.topic in ("frigate/reviews", "frigate/events")]
        assert len(alarms) == 6
        assert all(one.acknowledged_at for one in alarms)
        async with aiohttp.ClientSession() as http:
            assert (await get(site.recorder, http, f"/api/events/{alarm.object_id}/snapshot.jpg"))[0] == 200
    finally:
        await site.stop()
        await listener.hear("frigate/available", b"offline")
        await listener.stop()


@pytest.mark.needs("mosquitto")
async def test_a_recorder_without_power_is_missed_by_the_broker(broker: Mosquitto) -> None:
    site, listener = Site(), Site((), prefix="listener")
    await listener.start(broker.port)
    await site.start(broker.port)
    await listener.hear("frigate/available", b"online")
    await site.vanish()
    await listener.hear("frigate/available", b"offline")
    await listener.stop()


@pytest.mark.needs("mosquitto")
async def test_only_acknowledged_messages_count_as_acknowledged(broker: Mosquitto) -> None:
    site = Site(("front_door",), qos=1)
    await site.start(broker.port)
    await site.all_acknowledged()
    before = len(site.acknowledged)
    await broker.stop()
    alarm = site.raise_alarm("front_door")
    with pytest.raises(TimeoutError):
        await site.all_acknowledged(timeout=0.3)
    assert len(site.acknowledged) == before
    await broker.start()
    await site.all_acknowledged(timeout=20)
    assert alarm.review_id.encode() in b"".join(one.payload for one in site.acknowledged)
    await site.stop()


async def test_a_site_without_a_broker_says_so() -> None:
    with pytest.raises(TimeoutError, match="no broker answers"):
        await Site().start(1, timeout=0.3)
