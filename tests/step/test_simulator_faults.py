"""What goes wrong on request goes wrong exactly so, once, and can be asked for over HTTP too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.simulator.cloud import Cloud
from gateway.simulator.faults import (
    WORDS,
    CutOff,
    Delay,
    Discard,
    Drop,
    DropBeforeAnswer,
    Fault,
    FaultBook,
    Html,
    NoUploads,
    Slots,
    Status,
    Trickle,
    fault_from_json,
)
from tests.step.simulator_client import GOOD_EVENT, JPEG, Partner


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud() as made:
        yield made


@pytest.fixture
async def partner(cloud: Cloud) -> AsyncIterator[Partner]:
    async with aiohttp.ClientSession() as http:
        yield Partner(cloud, http)


async def test_a_script_is_used_up_entry_by_entry(cloud: Cloud, partner: Partner) -> None:
    cloud.script([Status(503), Status(429, retry_after="2"), Html(200), None, Status(404)])
    answers = [await partner.post(event_id=str(number)) for number in range(6)]
    assert [answer.status for answer in answers] == [503, 429, 200, 201, 404, 201]
    assert answers[1].headers["Retry-After"] == "2"
    assert answers[2].headers["Content-Type"].startswith("text/html")
    assert answers[4].said == {"error": "Not Found", "message": "Resource does not exist"}
    assert [event.event_id for event in cloud.events] == ["3", "5"]
    assert cloud.refusals == []


async def test_a_dropped_request_was_not_taken_and_a_dropped_answer_was(cloud: Cloud, partner: Partner) -> None:
    await partner.sign_in()
    cloud.script([Drop(), DropBeforeAnswer(), None])
    for _ in range(2):
        with pytest.raises(aiohttp.ClientError):
            await partner.post(headers={"Idempotency-Key": "k1"})
    assert [request.status for request in cloud.requests[-2:]] == [None, None]
    assert len(cloud.events) == 1
    assert (await partner.post(headers={"Idempotency-Key": "k1"})).status == 201
    assert (len(cloud.events), cloud.repeats) == (1, 1)


async def test_a_cut_off_answer_is_201_with_half_a_body(cloud: Cloud, partner: Partner) -> None:
    await partner.sign_in()
    cloud.script([CutOff()])
    with pytest.raises(aiohttp.ClientPayloadError):
        await partner.post()
    assert len(cloud.events) == 1


async def test_a_delayed_answer_belongs_to_an_accepted_event(cloud: Cloud, partner: Partner) -> None:
    await partner.sign_in()
    cloud.script([Delay(30, after=True), Delay(30)])
    impatient = aiohttp.ClientTimeout(sock_read=0.1)
    headers = {"Authorization": f"Bearer {partner.token}"}
    for number in range(2):
        with pytest.raises(TimeoutError):
            said = GOOD_EVENT | {"event_id": str(number)}
            await partner.request(
                "POST", cloud.url + "/partner/v1/events", json=said, headers=headers, timeout=impatient
            )
    assert [event.event_id for event in cloud.events] == ["0"]


async def test_an_answer_in_drops_arrives_whole(cloud: Cloud, partner: Partner) -> None:
    cloud.script([Trickle(seconds=0.05, drops=7)])
    assert (await partner.post()).said["event_id"] == "eve-1"


async def test_a_discarded_event_has_a_reason_and_no_slots(cloud: Cloud, partner: Partner) -> None:
    cloud.script([Discard()])
    answer = await partner.post()
    assert answer.status == 201
    assert (answer.said["status"], answer.said["uploads"]) == ("discarded", None)
    assert answer.said["reason"] == "Event discarded: device is disarmed"
    assert (cloud.events[0].status, cloud.slots) == ("discarded", [])


async def test_slots_may_be_more_fewer_or_none(cloud: Cloud, partner: Partner) -> None:
    cloud.script(
        [
            Slots(snapshots=2, short=True),
            Slots(snapshots=0, event=False),
            NoUploads(),
            NoUploads("empty"),
            NoUploads("absent"),
        ]
    )
    answers = [(await partner.post(event_id=str(number))).said for number in range(5)]
    more = answers[0]["uploads"]
    assert [slot["seq"] for slot in more["snapshots"]] == [0, 1]
    assert more["short_mp4"] and more["event_mp4"]
    assert answers[1]["uploads"] == {"snapshots": [], "short_mp4": None, "event_mp4": None}
    assert answers[2]["uploads"] is None
    assert answers[3]["uploads"] == {}
    assert "uploads" not in answers[4]


async def test_faults_of_one_request_add_up(cloud: Cloud, partner: Partner) -> None:
    cloud.script([(Slots(snapshots=3), Delay(0.01), Trickle(0.01))])
    assert len((await partner.post()).said["uploads"]["snapshots"]) == 3


async def test_a_standing_fault_lasts_until_cleared_and_may_be_for_one_camera(cloud: Cloud, partner: Partner) -> None:
    cloud.always("event", Status(403), camera_id="cam2")
    for camera, status in (("cam1", 201), ("cam2", 403), ("cam2", 403), ("cam1", 201)):
        assert (await partner.post(camera_id=camera)).status == status
    cloud.clear()
    assert (await partner.post(camera_id="cam2")).status == 201


async def test_tokens_storage_and_callbacks_have_faults_of_their_own(cloud: Cloud, partner: Partner) -> None:
    cloud.script([Status(503), None], on="token")
    answer = await partner.ask_token()
    assert (answer.status, answer.said["error"]) == (503, "server_error")
    slot = (await partner.post()).said["uploads"]["snapshots"][0]
    cloud.script([Status(500)], on="put")
    cloud.script([Status(502), DropBeforeAnswer()], on="callback")
    assert (await partner.put(slot["upload_put_url"], JPEG)).status == 500
    assert cloud.uploads == []
    await partner.put(slot["upload_put_url"], JPEG)
    assert (await partner.confirm(slot["callback_put_url"])).status == 502
    assert cloud.done == []
    # aiohttp itself repeats a PUT whose kept connection broke before an answer.
    assert (await partner.confirm(slot["callback_put_url"])).status == 200
    assert [request.status for request in cloud.requests if request.kind == "callback"] == [502, None, 200]
    assert [upload.callbacks for upload in cloud.done] == [2]


async def test_a_rate_with_a_seed_is_the_same_every_time() -> None:
    def run(seed: int) -> list[bool]:
        book = FaultBook()
        book.always("event", Status(503), rate=0.3, seed=seed)
        return [bool(book.take("event")) for _ in range(200)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert 30 < sum(run(7)) < 90


async def test_the_cloud_goes_dark_and_comes_back_on_the_same_port(cloud: Cloud, partner: Partner) -> None:
    await partner.sign_in()
    port = cloud.port
    await cloud.go_dark()
    with pytest.raises(aiohttp.ClientConnectionError):
        await partner.post()
    await cloud.come_back()
    assert cloud.port == port
    assert (await partner.post()).status == 201


async def test_stopping_does_not_wait_for_a_delay() -> None:
    cloud = Cloud()
    await cloud.start()
    cloud.always("event", Delay(3600))
    async with aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        await partner.sign_in()
        posting = asyncio.create_task(partner.post())
        await cloud.wait_for(requests=1, tokens=1)
        async with asyncio.timeout(5):
            await cloud.stop()
            with pytest.raises(aiohttp.ClientError):
                await posting


# Over HTTP


async def order(partner: Partner, said: Any) -> int:
    answer = await partner.request("POST", partner.cloud.url + "/_simulator/faults", json=said)
    return answer.status


async def test_every_fault_can_be_said_in_json() -> None:
    for word, made in WORDS.items():
        needed = {"status": {"status": 503}, "delay": {"seconds": 1}}.get(word, {})
        assert isinstance(fault_from_json({"fault": word} | needed), made)
    subclasses = set(Fault.__subclasses__())
    assert subclasses == set(WORDS.values())


async def test_faults_can_be_ordered_over_http(cloud: Cloud, partner: Partner) -> None:
    script = [
        {"fault": "status", "status": 503},
        [{"fault": "discard", "reason": "off"}, {"fault": "delay", "seconds": 0}],
    ]
    assert await order(partner, {"on": "event", "script": script}) == 200
    assert (await partner.post()).status == 503
    assert (await partner.post()).said["reason"] == "off"
    assert await order(partner, {"on": "event", "always": {"fault": "html", "status": 200}}) == 200
    assert (await partner.post()).body.startswith(b"<!DOCTYPE html>")
    assert await order(partner, {"clear": True, "revoke_tokens": True}) == 200
    assert (await partner.post()).status == 401


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"faults": []},
        {"script": {"fault": "status"}},
        {"script": [{"fault": "status"}]},
        {"script": [{"fault": "earthquake"}]},
        {"script": [{"fault": "html", "colour": "red"}]},
        {"on": "nothing", "script": [None]},
        {"always": {"fault": "html"}, "rate": 2},
        {"dark_seconds": -1},
        {"clear": "nothing"},
    ],
    ids=str,
)
async def test_an_order_that_makes_no_sense_is_refused(cloud: Cloud, partner: Partner, said: Any) -> None:
    assert await order(partner, said) == 400
    assert (await partner.post()).status == 201


async def test_darkness_can_be_ordered(cloud: Cloud, partner: Partner) -> None:
    assert await order(partner, {"dark_seconds": 0.2}) == 200

    async def reachable() -> bool:
        try:
            return (await partner.request("GET", cloud.url + "/_simulator/state")).status == 200
        except aiohttp.ClientConnectionError:
            return False

    async with asyncio.timeout(10):
        while await reachable():
            pass
        while not await reachable():
            pass


async def test_the_state_tells_what_arrived_without_the_secrets(cloud: Cloud, partner: Partner) -> None:
    slot = (await partner.post()).said["uploads"]["snapshots"][0]
    await partner.put(slot["upload_put_url"], JPEG)
    await partner.post(zone="x")
    answer = await partner.request("GET", cloud.url + "/_simulator/state")
    assert answer.said["counts"] | {"events": 1, "uploads": 1, "confirmed": 0, "refused": 1} == answer.said["counts"]
    (event,) = answer.said["events"]
    assert event["request"]["camera_id"] == GOOD_EVENT["camera_id"]
    assert "zone: is unknown" in answer.said["refusals"][0]["why"]
    for secret in (b"X-Amz-Signature", b"access_token=", partner.token.encode()):
        assert secret not in answer.body
    picture = await partner.request("GET", cloud.url + event["uploads"][0]["href"])
    assert (picture.status, picture.headers["Content-Type"], picture.body) == (200, "image/jpeg", JPEG)
    assert (await partner.request("GET", cloud.url + "/_simulator/media/eve-1/event_mp4/0")).status == 404
    # The simulator's own addresses are no requests to CHeKT.
    assert {request.kind for request in cloud.requests} == {"token", "event", "put"}


async def test_pages_of_elsewhere_cannot_order_faults(cloud: Cloud, partner: Partner) -> None:
    url = cloud.url + "/_simulator/faults"
    body = json.dumps({"clear": True})
    plain = await partner.request("POST", url, data=body, headers={"Content-Type": "text/plain"})
    assert plain.status == 415
    rebound = await partner.request("GET", cloud.url + "/_simulator/state", headers={"Host": "evil.example"})
    assert rebound.status == 403


async def test_the_page_is_self_contained_and_hears_of_alarms_at_once(cloud: Cloud, partner: Partner) -> None:
    for path in ("/", "/_simulator/page.js", "/_simulator/page.css"):
        answer = await partner.request("GET", cloud.url + path)
        assert answer.status == 200
        assert b"http://" not in answer.body and b"https://" not in answer.body
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    async with asyncio.timeout(10), partner.http.get(cloud.url + "/_simulator/stream") as stream:
        heard = [await stream.content.readline() for _ in range(3)]
        assert heard[0] == b"event: summary\n"
        await partner.post()
        heard = [await stream.content.readline() for _ in range(2)]
        while heard[-2] != b"event: alarm\n":
            heard.append(await stream.content.readline())
        assert json.loads(heard[-1].removeprefix(b"data: "))["chekt_event_id"] == "eve-1"
