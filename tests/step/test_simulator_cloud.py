"""The practice cloud takes what the documents allow, refuses everything else, and remembers both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.simulator.cloud import Cloud
from gateway.simulator.terms import Terms
from tests.step.simulator_client import GOOD_EVENT, JPEG, MP4, Partner

ABSENT = object()


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud() as made:
        yield made


@pytest.fixture
async def partner(cloud: Cloud) -> AsyncIterator[Partner]:
    async with aiohttp.ClientSession() as http:
        yield Partner(cloud, http)


async def test_an_alarm_travels_with_its_pictures(cloud: Cloud, partner: Partner) -> None:
    answer = await partner.post()
    assert answer.status == 201
    assert answer.said["event_id"] == "eve-1"
    assert (answer.said["status"], answer.said["reason"]) == ("accepted", None)
    uploads = answer.said["uploads"]
    assert [slot["seq"] for slot in uploads["snapshots"]] == [0]
    assert uploads["short_mp4"] is None
    for slot, body in ((uploads["snapshots"][0], JPEG), (uploads["event_mp4"], MP4)):
        put = await partner.put(slot["upload_put_url"], body)
        assert put.status == 200
        assert len(put.headers["ETag"].strip('"')) == 32
        assert (await partner.confirm(slot["callback_put_url"])).status == 200
    await cloud.wait_for(events=1, uploads=2, done=2)
    (event,) = cloud.events
    assert event.confirmed
    assert [upload.content for upload in event.uploads] == [JPEG, MP4]
    assert [upload.looks_wrong for upload in event.uploads] == [None, None]
    assert cloud.refusals == []


WRONG_FIELDS: list[tuple[str, Any]] = [
    *((name, ABSENT) for name in GOOD_EVENT if name != "recorder_id"),
    *((name, None) for name in GOOD_EVENT),
    ("version", "1.1"),
    ("version", 1.0),
    ("location_id", ""),
    ("location_id", 17),
    ("recorder_id", ""),
    ("camera_id", " padded "),
    ("camera_id", "x" * 129),
    ("camera_id", "line\nbreak"),
    ("event_id", ""),
    ("event_id", "x" * 65),
    ("event_id", "with space"),
    ("event_id", "ü"),
    ("event_id", 1763603245534315),
    ("event_type", "netloss"),
    ("event_type", "Alarm"),
    ("event_status", "on"),
    ("event_time", "2025-11-20T01:46:25Z"),
    ("event_time", "2025-11-20T01:46:25.534"),
    ("event_time", "2025-11-20T01:46:25.534+00:00"),
    ("event_time", "2025-11-20T01:46:25.534123Z"),
    ("event_time", "2025-11-31T01:46:25.534Z"),
    ("event_time", "2025-11-20T24:61:25.534Z"),
    ("event_time", 1763603185.534),
    ("sent_at", "2025-11-20 01:46:28.534Z"),
    ("should_signal_to_monitoring_center", 1),
    ("should_signal_to_monitoring_center", "true"),
    ("upload_snapshot_count", -1),
    ("upload_snapshot_count", 11),
    ("upload_snapshot_count", 1.0),
    ("upload_snapshot_count", True),
    ("upload_snapshot_count", "1"),
    ("upload_short_mp4", 0),
    ("upload_event_mp4", "false"),
    ("payload", []),
    ("payload", "{}"),
    ("zone", "front"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_FIELDS, ids=lambda part: repr(part)[:30])
async def test_a_wrong_field_is_refused_by_its_name(cloud: Cloud, partner: Partner, name: str, value: Any) -> None:
    said = {field: given for field, given in GOOD_EVENT.items() if field != name}
    if value is not ABSENT:
        said[name] = value
    answer = await partner.post(said)
    assert answer.status == 400
    assert answer.said["error"] == "Bad Request"
    assert answer.said["message"].startswith("Invalid input or params")
    assert f"{name}: " in answer.said["message"]
    assert cloud.events == []


@pytest.mark.parametrize(
    "changed",
    [
        {"event_type": "trouble", "event_status": "inactive", "upload_snapshot_count": 0, "upload_event_mp4": False},
        {"event_type": "arming"},
        {"event_id": "a" * 64},
        {"upload_snapshot_count": 10},
        {"payload": {"zone": "porch"}},
        {"camera_id": "Überwachung 1"},
    ],
    ids=str,
)
async def test_what_the_document_allows_is_taken(partner: Partner, changed: dict[str, Any]) -> None:
    assert (await partner.post(**changed)).status == 201


async def test_the_recorder_may_be_left_out(partner: Partner) -> None:
    said = {name: value for name, value in GOOD_EVENT.items() if name != "recorder_id"}
    assert (await partner.post(said)).status == 201


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b'"text"', b'{"version": "1.0", "version": "1.0"}', b'{"payload": NaN}', b"\xff{}"],
)
async def test_a_body_that_is_no_event_is_refused(cloud: Cloud, partner: Partner, body: bytes) -> None:
    assert (await partner.post_bytes(body)).status == 400
    assert cloud.events == []


async def test_unknown_fields_pass_only_where_the_cloud_is_lenient() -> None:
    async with Cloud(Terms(strict=False)) as cloud, aiohttp.ClientSession() as http:
        assert (await Partner(cloud, http).post(zone="front")).status == 201


async def test_a_chunked_or_mistyped_or_huge_body_is_refused(cloud: Cloud, partner: Partner) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(GOOD_EVENT).encode()

    assert (await partner.post_bytes(pieces())).status == 411
    assert (await partner.post(headers={"Content-Type": "text/plain"})).status == 415
    assert (await partner.post(payload={"x": "y" * 300_000})).status == 413
    assert cloud.events == []
    assert len(cloud.refusals) == 3


async def test_other_methods_and_addresses_are_refused(cloud: Cloud, partner: Partner) -> None:
    assert (await partner.request("GET", cloud.url + "/partner/v1/events")).status == 405
    assert (await partner.request("POST", cloud.url + "/v1/events")).status == 404
    assert {request.kind for request in cloud.requests} == {"other"}


async def test_a_camera_that_is_not_registered_is_not_found() -> None:
    known = {GOOD_EVENT["location_id"]: frozenset({GOOD_EVENT["camera_id"]})}
    async with Cloud(Terms(cameras=known)) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        assert (await partner.post()).status == 201
        answer = await partner.post(camera_id="another", event_id="2")
        assert (answer.status, answer.said["error"]) == (404, "Not Found")
        assert (await partner.post(location_id="another", event_id="3")).status == 404


# Repeats


async def test_the_same_key_and_bytes_get_the_stored_answer(cloud: Cloud, partner: Partner) -> None:
    first = await partner.post(headers={"Idempotency-Key": "k1"})
    again = await partner.post(headers={"Idempotency-Key": "k1"})
    assert (again.status, again.body) == (201, first.body)
    assert (len(cloud.events), cloud.repeats, cloud.duplicates) == (1, 1, 0)


async def test_the_same_key_with_other_bytes_is_a_conflict(cloud: Cloud, partner: Partner) -> None:
    await partner.post(headers={"Idempotency-Key": "k1"})
    answer = await partner.post(sent_at="2025-11-20T01:46:29.534Z", headers={"Idempotency-Key": "k1"})
    assert answer.status == 409
    assert "idempotency_conflict" in answer.said["message"]
    assert (len(cloud.events), cloud.repeats) == (1, 0)


async def test_without_a_key_or_with_another_one_the_alarm_is_doubled(cloud: Cloud, partner: Partner) -> None:
    for headers in ({}, {}, {"Idempotency-Key": "k1"}, {"Idempotency-Key": "k2"}):
        assert (await partner.post(headers=headers)).status == 201
    assert (len(cloud.events), cloud.duplicates) == (4, 3)
    assert cloud.event(GOOD_EVENT["event_id"]).chekt_event_id == "eve-1"


async def test_a_stored_answer_is_forgotten_after_a_day() -> None:
    moment = [1_772_366_400.0]
    async with Cloud(now=lambda: moment[0]) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        answer = await partner.ask_token(partner.assertion(exp=int(moment[0]) + 60, iat=int(moment[0])))
        partner.token = answer.said["access_token"]
        first = await partner.post(headers={"Idempotency-Key": "k1"})
        moment[0] += 24 * 3600 + 1
        answer = await partner.ask_token(partner.assertion(exp=int(moment[0]) + 60, iat=int(moment[0])))
        partner.token = answer.said["access_token"]
        again = await partner.post(headers={"Idempotency-Key": "k1"})
        assert first.said["event_id"] != again.said["event_id"]
        assert "2026" in again.headers["Date"]


async def test_the_rate_limit_says_when_to_come_again() -> None:
    async with (
        Cloud(Terms(per_minute=60, burst=2), now=lambda: 1_772_366_400.0) as cloud,
        aiohttp.ClientSession() as http,
    ):
        partner = Partner(cloud, http)
        answer = await partner.ask_token(partner.assertion(exp=1_772_366_460, iat=1_772_366_400))
        partner.token = answer.said["access_token"]
        answers = [await partner.post(event_id=str(number)) for number in range(3)]
        assert [answer.status for answer in answers] == [201, 201, 429]
        assert answers[0].headers["X-RateLimit-Remaining"] == "1"
        assert answers[2].headers["Retry-After"] == "2"
        assert len(cloud.events) == 2


# Callbacks


async def test_a_callback_counts_only_after_its_picture_and_only_with_its_token(cloud: Cloud, partner: Partner) -> None:
    uploads = (await partner.post(upload_snapshot_count=2)).said["uploads"]
    first, second = uploads["snapshots"]
    assert (await partner.confirm(first["callback_put_url"])).status == 404
    await partner.put(first["upload_put_url"])
    assert (await partner.confirm(first["callback_put_url"].replace("seq=0", "seq=1"))).status == 401
    assert (await partner.confirm(first["callback_put_url"][:-4] + "AAAA")).status == 401
    assert (await partner.confirm(first["callback_put_url"] + "&x=1")).status == 400
    assert (await partner.confirm(first["callback_put_url"], data=b"{}")).status == 400
    assert (await partner.request("POST", first["callback_put_url"])).status == 405
    assert (await partner.confirm(second["callback_put_url"])).status == 404
    assert cloud.done == []
    for _ in range(2):
        assert (await partner.confirm(first["callback_put_url"])).status == 200
    (done,) = cloud.done
    assert (done.seq, done.callbacks) == (0, 2)


async def test_a_callback_may_need_the_bearer_token_too() -> None:
    async with Cloud(Terms(callback_auth=True)) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        slot = (await partner.post()).said["uploads"]["snapshots"][0]
        await partner.put(slot["upload_put_url"])
        assert (await partner.confirm(slot["callback_put_url"])).status == 401
        bearer = {"Authorization": f"Bearer {partner.token}"}
        assert (await partner.confirm(slot["callback_put_url"], headers=bearer)).status == 200


# The record


async def test_waiting_in_vain_says_what_there_is(cloud: Cloud, partner: Partner) -> None:
    await partner.post()
    with pytest.raises(TimeoutError, match=r"1 events, 0 of 2 uploads.*POST /partner/v1/events 201"):
        await cloud.wait_for(events=2, timeout=0.01)


async def test_waiting_ends_with_the_request_that_was_waited_for(cloud: Cloud, partner: Partner) -> None:
    waiting = asyncio.create_task(cloud.wait_for(events=2))
    await partner.post()
    await partner.post(event_id="2")
    await waiting
    await cloud.wait_for(fact=lambda: cloud.event("2").camera_id == GOOD_EVENT["camera_id"], tokens=1, requests=3)


async def test_every_request_is_on_the_record_with_its_raw_target(cloud: Cloud, partner: Partner) -> None:
    await partner.request("PUT", cloud.url + "/practice-bucket/a%2Fb%20c?x=%7E+y")
    assert cloud.requests[-1].target == "/practice-bucket/a%2Fb%20c?x=%7E+y"
    assert cloud.requests[-1].status == 403
