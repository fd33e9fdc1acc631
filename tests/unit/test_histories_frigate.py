"""What a Frigate recorder remembers, read as the messages that it would have sent."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from gateway.config import Source
from gateway.model import Message, Reading
from gateway.sources.families import load_family
from gateway.sources.histories.frigate import PAGE, Frigate
from gateway.sources.histories.shape import NotAList, in_order
from gateway.sources.rules import CompiledSource

START = 1_718_987_129.308396
REVIEWS = Frigate(dialect="reviews", topic_prefix="frigate")
EVENTS = Frigate(dialect="events", topic_prefix="frigate")


def review(**changes: Any) -> dict[str, Any]:
    data = {"detections": ["1718987128.947436-g92ztx"], "objects": ["person"], "zones": ["yard"], "audio": []}
    row = {"id": f"{START}-fqk5ka", "camera": "front", "start_time": START, "end_time": None, "severity": "alert"}
    return {**row, "has_been_reviewed": False, "data": data, **changes}


def tracked(**changes: Any) -> dict[str, Any]:
    data = {"type": "object", "score": 0.8, "top_score": 0.91, "box": [0.1, 0.2, 0.3, 0.4]}
    row = {"id": f"{START}-mxklsc", "camera": "front", "label": "person", "start_time": START, "end_time": None}
    return {**row, "zones": ["yard"], "false_positive": None, "top_score": None, "data": data, **changes}


def compiled(dialect: str, **settings: Any) -> CompiledSource:
    source = Source(family="frigate", dialect=dialect, **settings)
    return load_family("frigate").compile_source("nvr", source)


def read(history: Frigate, source: CompiledSource, payload: bytes) -> Any:
    topic = f"frigate/{'reviews' if history is REVIEWS else 'events'}"
    assert source.covers(topic)
    answer = source.read(Message(topic, payload, 0, False, False, False, 0, 0))
    return answer[0] if isinstance(answer, list) else answer


@pytest.mark.parametrize("start", [START, 1_718_987_129.3, 1_718_987_129.0, 1_718_987_129])
def test_a_review_is_the_same_alarm_as_over_mqtt(start: float) -> None:
    """Identity: camera, id, and the start digit for digit. SQLite keeps a whole number without its point."""
    source = compiled("reviews")
    said = {"type": "new", "before": review(), "after": review(start_time=float(start))}
    live = read(REVIEWS, source, json.dumps(said).encode())
    [item] = REVIEWS.read(json.dumps([review(start_time=start)]).encode(), 0).items
    missed = read(REVIEWS, source, item.payload)
    assert isinstance(live, Reading)
    for name in ("camera", "source_id", "started", "started_at", "state_key", "kind", "event_at", "media", "details"):
        assert getattr(missed, name) == getattr(live, name), name
    assert missed.opens
    assert missed.sent_at is None, "it is not sent now"


def test_what_has_ended_is_an_end_with_its_time() -> None:
    [item] = REVIEWS.read(json.dumps([review(end_time=START + 9)]).encode(), 0).items
    ended = read(REVIEWS, compiled("reviews"), item.payload)
    assert (ended.event_status, ended.event_at, ended.opens) == ("inactive", int((START + 9) * 1000), True)
    assert item.key == (f"{START}-fqk5ka", True)


def test_a_tracked_object_has_what_filters_look_at() -> None:
    """The table of events names some things otherwise than MQTT does."""
    [item] = EVENTS.read(json.dumps([tracked()]).encode(), 0).items
    reading = read(EVENTS, compiled("events", zones=("yard",), min_score=0.9, labels=("person",)), item.payload)
    assert isinstance(reading, Reading)
    assert (reading.kind, reading.started) == ("person", str(START))
    assert not isinstance(read(EVENTS, compiled("events", min_score=0.95), item.payload), Reading)


@pytest.mark.parametrize("row", [tracked(data={"type": "audio"}), tracked(data={"type": "api"})])
def test_what_mqtt_never_tells_is_left_out(row: dict[str, Any]) -> None:
    assert EVENTS.read(json.dumps([row]).encode(), 0).items == ()


def test_reviews_are_asked_for_twice() -> None:
    """Older versions leave out what a person has looked at unless `reviewed` is 1; newer ones then all else."""
    assert REVIEWS.questions(12.5, 99.0) == [
        "/api/review?after=12.5&severity=alert",
        "/api/review?after=12.5&reviewed=1&severity=alert",
    ]


def test_pages_go_on_from_the_oldest_object_and_overlap() -> None:
    """Objects of one frame have the same start, and `before` excludes it."""
    [first] = EVENTS.questions(5.0, 99.0)
    rows = [tracked(id=str(number), start_time=START + PAGE - number) for number in range(PAGE)]
    page = EVENTS.read(json.dumps(rows).encode(), 5.0)
    assert page.earlier == first.replace("after=5.0", f"after=5.0&before={Decimal(str(START + 1)) + Decimal('0.001')}")
    assert EVENTS.read(json.dumps(rows[1:]).encode(), 5.0).earlier is None


def test_answers_are_put_in_order_and_each_counts_once() -> None:
    late, early = review(id="b", start_time=START + 5), review(id="a")
    items = REVIEWS.read(json.dumps([late, early, early]).encode(), 0).items
    assert [item.id for item in in_order(items)] == ["a", "b"]


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"success": false}', b"[1", b"\xff"])
def test_what_is_no_list_is_said(body: bytes) -> None:
    with pytest.raises(NotAList):
        REVIEWS.read(body, 0)


@pytest.mark.parametrize("row", [1, None, [], {}, {"id": 5, "start_time": 1.5}, {"id": "x", "start_time": "1.5"}])
def test_rows_without_identity_are_passed_over(row: object) -> None:
    assert [item.id for item in REVIEWS.read(json.dumps([row, review(id="good")]).encode(), 0).items] == ["good"]
