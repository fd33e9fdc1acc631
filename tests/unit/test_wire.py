"""The Event API's words: the bytes of a request, and what every kind of answer means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chekt.addresses import callback_fault, put_url_fault, signed_lifetime_ms, signs_content_type
from gateway.chekt.upload_wire import UploadVerdict, read_callback_answer, read_put_answer
from gateway.chekt.wire import Options, Reply, compose, http_date, no_token, own_fault, read_answer, retry_after
from gateway.chekt.words import MAX_TEXT, excerpt
from gateway.model import MediaKind, MediaOnDisk
from gateway.retry import LONGEST_WAIT_MS, Answer, Verdict
from tests.unit.test_retry import an_event

CLOUD = "https://api.chektdev.com"
TICKS = 9_000_000
DATE = "Thu, 20 Nov 2025 01:46:28 GMT"
WALL = 1_763_603_188_000  # the same moment
RECEIVED = WALL - 3_000
PUT_URL = "https://my-example-bucket.s3.us-east-1.amazonaws.com/device/123/{}?X-Amz-Algorithm=AWS4-HMAC-SHA256"
CALLBACK = CLOUD + "/partner/v1/events/eve-56/uploads/callback?{}&access_token=eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

SNAPSHOT = MediaOnDisk(MediaKind.SNAPSHOT, 0, on_disk=True)
SHORT = MediaOnDisk(MediaKind.SHORT_MP4, 0, on_disk=False)
CLIP = MediaOnDisk(MediaKind.EVENT_MP4, 0, on_disk=False)


def pair(name: str, query: str) -> dict[str, Any]:
    return {"upload_put_url": PUT_URL.format(name), "callback_put_url": CALLBACK.format(query)}


# CHeKT Event API v0.8, "Success Response": two snapshots and a short clip though one and none were asked for.
EXAMPLE: dict[str, Any] = {
    "event_id": "eve-56",
    "response_id": "019a338f-5581-7368-b166-b4235f6f4750",
    "uploads": {
        "snapshots": [{"seq": n, **pair(f"snapshot_{n}.jpg", f"seq={n}&type=snapshot")} for n in (0, 1)],
        "short_mp4": pair("short_mp4.mp4", "type=short_mp4"),
        "event_mp4": pair("event_mp4.mp4", "type=event_mp4"),
    },
    "status": "accepted",
    "reason": None,
}


def composed(media: tuple[MediaOnDisk, ...] = (), *, options: Options | None = None, **event: Any) -> dict[str, Any]:
    values = {"received_at": RECEIVED, "received_ticks": TICKS - 3_000, "event_at": RECEIVED} | event
    request = compose(an_event(**values), media, sent_at=WALL, ticks=TICKS, options=options or Options())
    document = json.loads(request.body)
    assert isinstance(document, dict)
    assert request.signal is document["should_signal_to_monitoring_center"]
    return document


def reply(status: int, document: Any = None, *, body: bytes | None = None, **headers: str) -> Reply:
    if body is None:
        body = json.dumps(document).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"date": DATE} | names, body, complete=True, written=True)


def read(answer: Reply) -> Answer:
    return read_answer(answer, ticks=TICKS, wall=WALL + 77_000, cloud_url=CLOUD)


# The request


def test_the_example_of_the_document_is_composed_to_the_byte() -> None:
    event = an_event(
        location_id="Z6RSOG",
        recorder_id="Z6RANV",
        camera_id="2fe519b4-2438-4aa1-b051-87cf22bb",
        event_id="1763603245534315",
        event_at=WALL - 3_000 + 534,
        received_at=WALL - 2_000,
        received_ticks=TICKS - 2_000,
    )
    request = compose(event, (SNAPSHOT, CLIP), sent_at=WALL + 534, ticks=TICKS, options=Options())
    assert request.body == (
        b'{"version":"1.0","location_id":"Z6RSOG","recorder_id":"Z6RANV",'
        b'"camera_id":"2fe519b4-2438-4aa1-b051-87cf22bb","event_id":"1763603245534315","event_type":"alarm",'
        b'"event_status":"active","event_time":"2025-11-20T01:46:25.534Z","sent_at":"2025-11-20T01:46:28.534Z",'
        b'"should_signal_to_monitoring_center":true,"upload_snapshot_count":1,"upload_short_mp4":false,'
        b'"upload_event_mp4":true,"payload":{}}'
    )
    assert request.idempotency_key == "1763603245534315"
    assert request.announced == {(MediaKind.SNAPSHOT, 0), (MediaKind.EVENT_MP4, 0)}


def test_a_recorder_that_does_not_exist_is_left_out() -> None:
    assert "recorder_id" not in composed(recorder_id=None)


def test_a_fresh_attempt_announces_what_is_configured_and_a_later_one_what_is_on_disk() -> None:
    media = (SNAPSHOT, SHORT, CLIP)
    fresh = composed(media)
    assert (fresh["upload_snapshot_count"], fresh["upload_short_mp4"], fresh["upload_event_mp4"]) == (1, True, True)
    lates: list[dict[str, Any]] = [{"received_ticks": TICKS - 10_000}, {"received_at": WALL - 10_000}]
    for late in lates:
        document = composed(media, **late)
        asked = (document["upload_snapshot_count"], document["upload_short_mp4"], document["upload_event_mp4"])
        assert asked == (1, False, False)


def test_snapshots_keep_their_numbers_where_an_earlier_one_is_missing() -> None:
    media = (MediaOnDisk(MediaKind.SNAPSHOT, 0, on_disk=False), MediaOnDisk(MediaKind.SNAPSHOT, 1, on_disk=True))
    assert composed(media, received_at=WALL - 60_000)["upload_snapshot_count"] == 2
    request = compose(an_event(received_at=0, received_ticks=0), media, sent_at=WALL, ticks=TICKS, options=Options())
    assert request.announced == {(MediaKind.SNAPSHOT, 1)}


@pytest.mark.parametrize(
    ("options", "event", "signals"),
    [
        (Options(), {}, True),
        (Options(), {"signal": False}, False),
        (Options(never_signal=True), {}, False),
        (Options(stale_after_ms=60_000), {"event_at": WALL - 60_000}, True),
        (Options(stale_after_ms=60_000), {"event_at": WALL - 60_001}, False),
        (Options(stale_after_ms=60_000), {"received_ticks": TICKS - 60_001}, False),  # our wall clock was set back
        (Options(stale_after_ms=60_000), {"age_unknown_ms": 57_000}, True),
        (Options(stale_after_ms=60_000), {"age_unknown_ms": 57_001}, False),
        (Options(stale_after_ms=None), {"event_at": 0}, True),
        (Options(stale_after_ms=60_000), {"event_at": 0, "signal_anyway": True}, True),  # `retry --signal`
        (Options(never_signal=True), {"signal_anyway": True}, False),
    ],
)
def test_the_station_is_signalled_unless_somebody_decided_otherwise(
    options: Options, event: dict[str, Any], signals: bool
) -> None:
    assert composed(options=options, **event)["should_signal_to_monitoring_center"] is signals


def test_details_are_sent_only_on_request_and_then_flat_small_and_without_secrets() -> None:
    details = {
        "label": "person",
        "score": 0.9,
        "bad": float("nan"),
        "nested": {"a": 1},
        "url": "http://admin:secret@cam/x.jpg?token=abc",
        "long": "x" * 3_000,
    }
    assert composed(details=details)["payload"] == {}
    payload = composed(details=details, follows="begin", options=Options(send_details=True))["payload"]
    assert payload["follows"] == "begin"
    assert payload["label"] == "person"
    assert payload["url"] == "http://cam/x.jpg?…"
    assert "bad" not in payload
    assert "nested" not in payload
    assert len(json.dumps(payload)) < 2_300


def test_a_lone_surrogate_does_not_make_an_event_impossible_to_send() -> None:
    assert composed(camera_id="c\ud800")["camera_id"] == "c?"


# The answers


def test_the_example_answer_of_the_document_is_read() -> None:
    answer = read(reply(201, EXAMPLE))
    assert answer.verdict is Verdict.ACCEPTED
    assert (answer.chekt_event_id, answer.response_id) == ("eve-56", EXAMPLE["response_id"])
    assert {(slot.kind, slot.seq) for slot in answer.slots} == {
        (MediaKind.SNAPSHOT, 0),
        (MediaKind.SNAPSHOT, 1),
        (MediaKind.SHORT_MP4, 0),
        (MediaKind.EVENT_MP4, 0),
    }
    assert all(slot.deadline_ticks == TICKS + 15 * 60_000 for slot in answer.slots)
    assert answer.slots[0].put_url == PUT_URL.format("snapshot_0.jpg")
    assert answer.warnings == ()
    assert answer.server_date_at == WALL


API_ERROR = {"error": "Bad Request", "message": "Invalid input or params"}
PORTAL_ERROR = {"error": {"code": "idempotency_conflict", "message": "m", "request_id": "req_1", "field": "f"}}
PAGE = b"<html><body>Log in to the hotel's network</body></html>"


@pytest.mark.parametrize(
    ("answer", "verdict", "own_error"),
    [
        (reply(200, {"status": "accepted"}), Verdict.ACCEPTED, False),
        (reply(202, EXAMPLE | {"uploads": None}), Verdict.ACCEPTED, False),
        (reply(201, EXAMPLE | {"status": "queued"}), Verdict.ACCEPTED, False),
        (
            reply(201, {"status": "discarded", "reason": "Event discarded: device is disarmed"}),
            Verdict.DISCARDED,
            False,
        ),
        (reply(200, body=PAGE), Verdict.NOT_THE_API, False),
        (reply(200, {"success": True}), Verdict.NOT_THE_API, False),
        (reply(200, {"status": "ok"}), Verdict.NOT_THE_API, False),
        (reply(200, [1, 2]), Verdict.NOT_THE_API, False),
        (reply(204, body=b""), Verdict.NOT_THE_API, False),
        (reply(302, body=b"", location="http://portal/?token=x"), Verdict.NOT_THE_API, False),
        (reply(511, body=PAGE), Verdict.NOT_THE_API, False),
        (reply(407, body=PAGE), Verdict.NOT_THE_API, False),
        (Reply(201, {}, b'{"event_id"', complete=False, written=True), Verdict.CUT_OFF, False),
        (Reply(200, {}, b'{"status":"accepted"}', complete=False, written=True), Verdict.CUT_OFF, False),
        (reply(400, API_ERROR), Verdict.REFUSED, True),
        (reply(422, PORTAL_ERROR), Verdict.REFUSED, True),
        (reply(413, body=PAGE), Verdict.REFUSED, False),
        (reply(415, {"message": "Unsupported"}), Verdict.REFUSED, False),
        (Reply(400, {}, b'{"error": "Bad', complete=False, written=True), Verdict.REFUSED, False),
        (reply(405, body=b""), Verdict.REFUSED, False),
        (reply(401, {"error": "Unauthorized", "message": "Invalid token or credentials"}), Verdict.UNAUTHORISED, True),
        (reply(403, {"error": "Forbidden", "message": "Access denied"}), Verdict.FORBIDDEN, True),
        (reply(403, {"message": "Forbidden"}), Verdict.FORBIDDEN, False),
        (reply(404, {"error": "Not Found", "message": "Resource does not exist"}), Verdict.UNKNOWN, True),
        (reply(409, PORTAL_ERROR), Verdict.CONFLICT, True),
        (reply(408, body=b""), Verdict.BUSY, False),
        (reply(425, body=b""), Verdict.BUSY, False),
        (reply(429, body=b""), Verdict.THROTTLED, False),
        (reply(500, {"error": "x", "error_description": "y"}), Verdict.BUSY, True),
        (reply(503, body=PAGE), Verdict.BUSY, False),
        (Reply(None, written=True, error="no answer in time"), Verdict.UNANSWERED, False),
        (Reply(None, written=False, error="no connection"), Verdict.UNREACHABLE, False),
    ],
)
def test_each_answer_is_recognised(answer: Reply, verdict: Verdict, own_error: bool) -> None:
    found = read(answer)
    assert found.verdict is verdict
    assert found.own_error is own_error
    assert found.http_status == answer.status


def test_an_unknown_status_is_taken_as_accepted_and_said() -> None:
    answer = read(reply(201, EXAMPLE | {"status": "queued"}))
    assert answer.warnings == ("unknown status 'queued', taken as accepted",)
    assert len(answer.slots) == 4


def test_a_discarded_event_gets_no_slots_though_some_are_offered() -> None:
    answer = read(reply(201, EXAMPLE | {"status": "discarded", "reason": "Event discarded: device is disarmed"}))
    assert answer.slots == ()
    assert answer.reason == "Event discarded: device is disarmed"


@pytest.mark.parametrize(
    ("uploads", "slots", "warned"),
    [
        (None, 0, False),
        ({}, 0, False),
        ({"snapshots": None, "short_mp4": None, "event_mp4": {}}, 0, False),
        ({"snapshots": []}, 0, False),
        ([], 0, True),
        ({"snapshots": "many"}, 0, True),
        ({"snapshots": [None, 3, {}]}, 0, True),
        ({"snapshots": [pair("s", "seq=0")]}, 1, False),  # without seq the place counts
        ({"snapshots": [{"seq": "0", **pair("s", "seq=0")}]}, 0, True),
        ({"snapshots": [{"seq": -1, **pair("s", "seq=0")}]}, 0, True),
        ({"snapshots": [{"seq": True, **pair("s", "seq=0")}]}, 0, True),
        ({"snapshots": [{"seq": 0, **pair("s", "a=0")}, {"seq": 0, **pair("t", "a=0")}]}, 1, True),
        ({"event_mp4": {"upload_put_url": PUT_URL}}, 0, True),
        ({"event_mp4": pair("e", "type=event_mp4"), "future": {"x": 1}}, 1, False),
        ({"event_mp4": pair("e", "a=b") | {"upload_put_url": "http://s3.amazonaws.com/x"}}, 0, True),
        ({"event_mp4": pair("e", "a=b") | {"callback_put_url": "https://evil.example/x"}}, 0, True),
    ],
)
def test_uploads_are_read_leniently_and_what_is_wrong_is_said(uploads: Any, slots: int, warned: bool) -> None:
    answer = read(reply(201, EXAMPLE | {"uploads": uploads}))
    assert answer.verdict is Verdict.ACCEPTED
    assert len(answer.slots) == slots
    assert bool(answer.warnings) is warned


def test_the_deadline_counts_from_the_clouds_own_clock() -> None:
    """X-Amz-Expires less what of it the cloud's Date says is gone; our wall clock, 77 s off here, plays no part."""
    url = PUT_URL.format("s") + "&X-Amz-Date=20251120T014600Z&X-Amz-Expires=300&X-Amz-SignedHeaders=host"
    uploads = {"event_mp4": pair("e", "a=b") | {"upload_put_url": url}}
    (slot,) = read(reply(201, EXAMPLE | {"uploads": uploads})).slots
    assert slot.deadline_ticks == TICKS + (300 - 28) * 1000


@pytest.mark.parametrize(
    ("url", "lifetime"),
    [
        ("https://s3/x", None),
        ("https://s3/x?X-Amz-Expires=300", None),
        ("https://s3/x?X-Amz-Date=yesterday&X-Amz-Expires=300", None),
        ("https://s3/x?X-Amz-Date=20251120T014628Z&X-Amz-Expires=-1", None),
        ("https://s3/x?X-Amz-Date=20251120T014628Z&X-Amz-Expires=300", 300_000),
        ("https://s3/x?x-amz-date=20251120T014628Z&x-amz-expires=300", 300_000),
        ("https://s3/x?X-Amz-Date=20251120T014628Z&X-Amz-Expires=99999999", 7 * 86_400_000),
        ("https://s3/x?X-Amz-Date=20251119T014628Z&X-Amz-Expires=300", 300_000 - 86_400_000),
    ],
)
def test_a_presigned_address_tells_how_long_it_lives(url: str, lifetime: int | None) -> None:
    assert signed_lifetime_ms(url, WALL) == lifetime


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("7", 7_000),
        ("0", 0),
        ("1.5", 1_500),
        ("-3", 0),
        ("999999", LONGEST_WAIT_MS),
        ("nan", None),
        ("inf", LONGEST_WAIT_MS),
        ("soon", None),
        ("Thu, 20 Nov 2025 01:47:28 GMT", 60_000),  # a minute behind the answer's own Date
        ("Thu, 20 Nov 2025 01:00:00 GMT", 0),
        ("Fri, 20 Nov 2026 01:00:00 GMT", LONGEST_WAIT_MS),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str | None, expected: int | None) -> None:
    headers = {"date": DATE} | ({} if text is None else {"retry-after": text})
    assert retry_after(headers, WALL + 500_000) == expected


def test_a_retry_after_date_without_a_date_of_the_server_counts_from_our_clock() -> None:
    assert retry_after({"retry-after": "Thu, 20 Nov 2025 01:47:28 GMT"}, WALL) == 60_000


@given(st.text(max_size=60))
def test_no_text_of_a_header_breaks_the_reading(text: str) -> None:
    headers = {"date": text, "retry-after": text, "x-ratelimit-limit": text, "x-ratelimit-reset": text}
    assert read(Reply(503, headers, text.encode("utf-8", "replace"), True, True)).verdict is Verdict.BUSY
    http_date(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["status", "event_id", "response_id", "uploads", "reason", "error"]


@given(document=st.dictionaries(st.sampled_from(KEYS), json_values), status=st.integers(100, 599))
def test_no_json_breaks_the_reading(document: dict[str, Any], status: int) -> None:
    answer = read(reply(status, document))
    if answer.verdict in (Verdict.ACCEPTED, Verdict.DISCARDED):
        assert 200 <= status < 300


@given(
    snapshots=json_values,
    short=json_values,
    put_url=st.text(max_size=30),
    seq=json_values,
    callback=st.text(max_size=30),
)
def test_no_uploads_break_the_reading(snapshots: Any, short: Any, put_url: str, seq: Any, callback: str) -> None:
    offer = {"seq": seq, "upload_put_url": put_url, "callback_put_url": callback}
    for uploads in ({"snapshots": snapshots, "short_mp4": short}, {"snapshots": [offer], "event_mp4": offer}):
        assert read(reply(201, EXAMPLE | {"uploads": uploads})).verdict is Verdict.ACCEPTED


def test_the_rate_of_an_answer_is_read_against_the_servers_date() -> None:
    rate: dict[str, Any] = {
        "x_ratelimit_limit": "60",
        "x_ratelimit_remaining": "0",
        "x_ratelimit_reset": str(WALL // 1000 + 20),
    }
    answer = read(reply(429, API_ERROR, **rate))
    assert answer.rate is not None
    assert (answer.rate.limit, answer.rate.remaining, answer.rate.reset_in_ms) == (60, 0, 20_000)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("see https://s3/x?X-Amz-Signature=abc now", "see https://s3/x?… now"),
        ("https://user:pass@host/path", "https://host/path"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: …"),
        ('{"access_token": "abc"}', '{"access_token": "…"}'),
        ("key chekt_live_abcdef123 is wrong", "key chekt_… is wrong"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-_x is over", "token … is over"),
        ("two\nlines\x00\tof text", "two lines of text"),
    ],
)
def test_texts_for_people_hold_no_secrets(said: str, kept: str) -> None:
    assert excerpt(said).replace("Authorization: … …", "Authorization: …") == kept


def test_a_long_page_is_kept_to_its_beginning() -> None:
    assert len(read(reply(502, body=b"x" * 100_000)).text) == MAX_TEXT


def test_without_a_token_nothing_was_written() -> None:
    assert no_token(refused=True, text="no", retry_after_ms=5).verdict is Verdict.TOKEN_REFUSED
    unreachable = no_token(refused=False, text="no", retry_after_ms=None)
    assert (unreachable.verdict, unreachable.written) == (Verdict.NO_TOKEN, False)
    assert own_fault("ValueError", written=True).verdict is Verdict.FAULT


# Addresses


@pytest.mark.parametrize(
    ("url", "cloud", "allowed"),
    [
        (PUT_URL.format("x"), CLOUD, True),
        ("http://s3.amazonaws.com/x", CLOUD, False),
        ("http://127.0.0.1:9000/x", CLOUD, False),
        ("http://127.0.0.1:9000/x", "http://127.0.0.1:8000", True),
        ("http://10.0.0.1/x", "http://127.0.0.1:8000", False),
        ("file:///etc/passwd", CLOUD, False),
        ("https://", CLOUD, False),
        ("//host/x", CLOUD, False),
        ("https://user:pass@s3.amazonaws.com/x", CLOUD, False),
        ("https://s3.amazonaws.com/x y", CLOUD, False),
        ("https://s3.amazonaws.com/x\r\nX-Evil: 1", CLOUD, False),
        ("https://s3.amazonaws.com:99999/x", CLOUD, False),
        ("https://[::1/x", CLOUD, False),
        ("https://s3.amazonaws.com/" + "x" * 9_000, CLOUD, False),
    ],
)
def test_a_file_is_put_only_where_it_is_safe(url: str, cloud: str, allowed: bool) -> None:
    assert (put_url_fault(url, cloud) is None) is allowed


@pytest.mark.parametrize(
    ("url", "cloud", "allowed"),
    [
        (CALLBACK.format("a=b"), CLOUD, True),
        (CALLBACK.format("a=b"), CLOUD + ":443/", True),
        ("https://API.chektdev.com/x", CLOUD, True),
        ("https://api.chektdev.com:8443/x", CLOUD, False),
        ("http://api.chektdev.com/x", CLOUD, False),
        ("https://api.chektdev.com.evil.example/x", CLOUD, False),
        ("https://evil.example/api.chektdev.com", CLOUD, False),
        ("http://localhost:8000/x", "http://127.0.0.1:8000", True),
        ("http://localhost:8001/x", "http://127.0.0.1:8000", False),
    ],
)
def test_a_callback_goes_only_to_the_configured_api(url: str, cloud: str, allowed: bool) -> None:
    assert (callback_fault(url, cloud) is None) is allowed


def test_a_signed_content_type_is_recognised() -> None:
    assert signs_content_type("https://s3/x?X-Amz-SignedHeaders=content-type%3Bhost")
    assert not signs_content_type("https://s3/x?X-Amz-SignedHeaders=host")
    assert not signs_content_type("https://s3/x")


# Uploads


def s3(status: int, code: str = "", message: str = "m") -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
    return Reply(status, {"content-type": "application/xml"}, body, True, True)


HTML = Reply(200, {"content-type": "text/html; charset=utf-8"}, PAGE, True, True)


@pytest.mark.parametrize(
    ("answer", "typed", "verdict"),
    [
        (s3(200), False, UploadVerdict.DONE),
        (HTML, False, UploadVerdict.AGAIN),
        (Reply(None, written=True), False, UploadVerdict.AGAIN),
        (Reply(None, written=False), False, UploadVerdict.AGAIN),
        (s3(500, "InternalError"), False, UploadVerdict.AGAIN),
        (s3(503, "SlowDown"), False, UploadVerdict.AGAIN),
        (s3(307, "TemporaryRedirect"), False, UploadVerdict.AGAIN),
        (s3(400, "RequestTimeout"), False, UploadVerdict.AGAIN),
        (s3(400, "AuthorizationQueryParametersError"), False, UploadVerdict.DEAD),
        (s3(403, "AccessDenied", "Request has expired"), False, UploadVerdict.DEAD),
        (s3(403, "ExpiredToken"), False, UploadVerdict.DEAD),
        (s3(403, "SignatureDoesNotMatch"), False, UploadVerdict.AGAIN_WITH_TYPE),
        (s3(403, "SignatureDoesNotMatch"), True, UploadVerdict.DEAD),
        (Reply(403, {"content-type": "text/html"}, PAGE, True, True), False, UploadVerdict.AGAIN),
        (s3(404, "NoSuchBucket"), False, UploadVerdict.DEAD),
        (s3(411, "MissingContentLength"), False, UploadVerdict.DEAD),
        (s3(301, "PermanentRedirect"), False, UploadVerdict.DEAD),
    ],
)
def test_each_answer_to_a_put_leads_where_the_table_says(answer: Reply, typed: bool, verdict: UploadVerdict) -> None:
    assert read_put_answer(answer, wall=WALL, sent_content_type=typed).verdict is verdict


@pytest.mark.parametrize(
    ("answer", "unclear", "verdict"),
    [
        (reply(200, {}), False, UploadVerdict.DONE),
        (reply(204, body=b""), False, UploadVerdict.DONE),
        (HTML, False, UploadVerdict.AGAIN),
        (Reply(None, written=True), False, UploadVerdict.AGAIN),
        (reply(503, body=b""), False, UploadVerdict.AGAIN),
        (reply(429, body=b""), False, UploadVerdict.AGAIN),
        (reply(302, body=b""), False, UploadVerdict.AGAIN),
        (reply(401, API_ERROR), False, UploadVerdict.DEAD),
        (reply(403, API_ERROR), True, UploadVerdict.DEAD),
        (reply(404, API_ERROR), False, UploadVerdict.DEAD),
        (reply(404, API_ERROR), True, UploadVerdict.DONE),
        (reply(409, API_ERROR), True, UploadVerdict.DONE),
        (reply(410, API_ERROR), True, UploadVerdict.DONE),
        (reply(409, API_ERROR), False, UploadVerdict.DEAD),
        (reply(400, API_ERROR), True, UploadVerdict.DEAD),
    ],
)
def test_each_answer_to_a_callback_leads_where_the_table_says(
    answer: Reply, unclear: bool, verdict: UploadVerdict
) -> None:
    assert read_callback_answer(answer, wall=WALL, unclear_before=unclear).verdict is verdict


def test_an_unanswered_callback_may_have_arrived_and_an_unwritten_one_not() -> None:
    assert read_callback_answer(Reply(None, written=True), wall=WALL, unclear_before=False).unclear
    assert not read_callback_answer(Reply(None, written=False), wall=WALL, unclear_before=False).unclear
    assert read_put_answer(s3(503, "SlowDown"), wall=WALL, sent_content_type=False).text == "SlowDown: m"


def test_what_is_kept_of_an_answer_is_plain_and_without_addresses() -> None:
    answer = read(reply(201, EXAMPLE | {"reason": 7, "event_id": 56, "status": "accepted"}))
    assert answer.warnings == ("reason is a int, not a string",)
    assert answer.chekt_event_id == "56"
    kept = answer.for_ledger()
    assert json.loads(json.dumps(kept)) == kept
    assert kept["slots"] == 4
    assert "amazonaws" not in json.dumps(kept)


def test_dates_that_are_none_are_no_dates() -> None:
    assert http_date("Thu, 20 Nov 2025 01:46:28 -0000") == WALL
    assert http_date("Thu, 20 Nov 9999 01:46:28 +0000") is not None
    assert http_date("yesterday") is None


def test_an_address_without_a_host_is_no_address() -> None:
    assert callback_fault("https:///x", CLOUD) == "callback_put_url names no host"
    assert callback_fault(CALLBACK.format("a=b"), "http:///") is not None
    assert put_url_fault("http://localhost/x", "http://") is not None
