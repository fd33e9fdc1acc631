"""What a UniFi Protect console remembers, read as the messages of the bridge pakerfeldt/unifi-protect-mqtt."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import Message, Reading
from gateway.sources.families import load_family
from gateway.sources.histories.shape import NotAList, Page
from gateway.sources.histories.unifi import PAGE, UnifiProtect
from gateway.sources.rules import CompiledSource

START = 1_772_366_400_123
ASKING = UnifiProtect(topic_prefix="unifi/protect")
CAMERA = "65d8f3a4017b8a03e7000423"


def event(**changes: Any) -> dict[str, Any]:
    """As `GET /proxy/protect/api/events` writes it."""
    row = {
        "id": "67c2f4a1003e5c03e40b1c9d",
        "type": "smartDetectZone",
        "start": START,
        "end": START + 9_000,
        "score": 87,
        "smartDetectTypes": ["person"],
        "smartDetectEvents": [],
        "camera": CAMERA,
        "partition": None,
        "user": None,
        "metadata": {"detectedThumbnails": []},
        "thumbnail": "e-67c2f4a1003e5c03e40b1c9d",
        "modelKey": "event",
    }
    return {**row, **changes}


def read(*rows: Any) -> Page:
    return ASKING.read(json.dumps(rows).encode(), 0)


def compiled(**settings: Any) -> CompiledSource:
    return load_family("unifi").compile_source("nvr", Source(family="unifi", dialect="pakerfeldt", **settings))


def readings(page: Page, source: CompiledSource | None = None) -> list[Any]:
    source = source or compiled()
    found = []
    for item in page.items:
        assert source.covers(item.topic)
        said = source.read(Message(item.topic, item.payload, 0, False, False, False, 0, 0))
        found.append(said[0] if isinstance(said, list) else said)
    return found


@pytest.mark.parametrize("end", [None, START + 9_000])
def test_an_event_is_the_same_alarm_as_over_mqtt(end: int | None) -> None:
    """Identity: camera, id and start."""
    said = {
        "event_id": event()["id"],
        "type": "person",
        "camera_id": CAMERA,
        "camera_name": "Front Door",
        "score": 87,
        "start": START,
        "end": end or 0,
        "timestamp": "2026-03-01T12:00:02.5Z",
        "thumbnail_url": "http://localhost:8080/thumbnail/67c2f4a1003e5c03e40b1c9d?w=640&h=360",
    }
    topic = "unifi/protect/events/person/Front_Door"
    live = compiled().read(Message(topic, json.dumps(said).encode(), 0, False, False, False, 0, 0))
    assert isinstance(live, list)
    [heard] = live
    [missed] = readings(read(event(end=end)))
    assert isinstance(missed, Reading)
    for name in (
        *("camera", "source_id", "started", "started_at", "state_key", "kind", "event_at", "event_status"),
        *("opens", "topic_kind"),
    ):
        assert getattr(missed, name) == getattr(heard, name), name
    assert missed.sent_at is None, "it is not sent now"


def test_what_the_bridge_never_tells_is_left_out() -> None:
    """It speaks of persons and animals; a second one in the same event is the same alarm."""
    assert read(event(smartDetectTypes=["vehicle"]), event(smartDetectTypes=[]), event(type="motion")).items == ()
    person, animal = readings(read(event(smartDetectTypes=["vehicle", "animal", "person"])))
    assert (person.kind, animal.kind) == ("person", "animal")
    assert person.state_key == animal.state_key


def test_labels_count() -> None:
    [said] = readings(read(event()), compiled(labels=("animal",)))
    assert not isinstance(said, Reading)


def test_what_runs_is_told_and_its_end_once_more() -> None:
    [running], [ended] = read(event(end=None)).items, read(event()).items
    assert running.key != ended.key
    assert running.id == ended.id


def test_the_question_names_the_time_in_milliseconds() -> None:
    zones, lines = ASKING.questions(1_772_366_400.5, 1_772_370_000.25)
    assert parse_qs(urlsplit(zones).query) == {
        "start": ["1772366400500"],
        "end": ["1772370000250"],
        "types": ["smartDetectZone"],
        "orderDirection": ["DESC"],
        "limit": [str(PAGE)],
    }
    assert lines == zones.replace("smartDetectZone", "smartDetectLine")


def test_pages_go_on_from_the_oldest_event() -> None:
    rows = [event(id=f"e{number}", start=START - number, type="smartDetectLine") for number in range(PAGE)]
    page = ASKING.read(json.dumps(rows).encode(), 5.0)
    assert page.earlier is not None
    asked = parse_qs(urlsplit(page.earlier).query)
    assert (asked["start"], asked["end"], asked["types"]) == (["5000"], [str(START - PAGE + 2)], ["smartDetectLine"])
    assert ASKING.read(json.dumps(rows[1:]).encode(), 5.0).earlier is None


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "x"}', b"[1", b"\xff"])
def test_what_is_no_list_is_said(body: bytes) -> None:
    with pytest.raises(NotAList):
        ASKING.read(body, 0)


@pytest.mark.parametrize(
    "row",
    [1, None, [], {}, event(id=None), event(camera="a/b"), event(camera=None), event(start="1"), event(start=True)],
)
def test_rows_without_identity_are_passed_over(row: object) -> None:
    assert [item.id for item in read(row, event(id="good")).items] == ["good/person"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(event())), _VALUES, max_size=5))
def test_nothing_that_an_answer_may_hold_stops_the_others(changes: dict[str, Any]) -> None:
    assert "good/person" in {item.id for item in read(event(**changes), event(id="good")).items}
