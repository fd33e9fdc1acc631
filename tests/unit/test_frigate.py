"""The family file of Frigate: what each of its messages says, and what the source's options change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import EventStatus, EventType
from gateway.sources.families import load_family
from gateway.sources.rules import BadSource, Ignored, Unreadable
from tests.unit.frigate_messages import NOW, START, compiled, message, reading, reason, review, tracked

ACTIVE, INACTIVE = EventStatus.ACTIVE, EventStatus.INACTIVE


def test_a_review_that_begins_as_an_alert_is_an_alarm() -> None:
    said = reading(review("new"))
    assert (said.event_type, said.event_status, said.opens) == (EventType.ALARM, ACTIVE, True)
    assert (said.source, said.camera, said.kind) == ("nvr", "front_door", "person")
    assert said.source_id == said.state_key == "1772366399.308396-abc123"
    assert said.started == START
    assert said.event_at == said.started_at == said.sent_at == 1_772_366_399_308
    assert said.media == {
        "strategy": "frigate",
        "camera": "front_door",
        "detections": ["1772366397.1-aaa", "1772366398.25-bbb"],
        "start_at": 1_772_366_399_308,
        "end_at": None,
    }
    assert said.details == {"objects": ["person"], "zones": ["yard"]}


def test_a_review_that_becomes_an_alert_in_an_update_is_an_alarm() -> None:
    """Looking at `new` alone would miss it."""
    said = reading(review("update", before="detection"))
    assert (said.event_status, said.opens, said.sent_at) == (ACTIVE, True, None)


def test_any_other_update_of_an_alert_only_continues_it() -> None:
    assert reading(review("update")).opens is False


def test_the_end_of_a_review_is_at_its_end_time_not_at_its_arrival() -> None:
    said = reading(review("end", end=1772366399.9999), at=NOW + 120_000)
    assert (said.event_status, said.event_at, said.started_at) == (INACTIVE, 1_772_366_399_999, 1_772_366_399_308)
    assert said.started == START


@pytest.mark.parametrize("kind", ["new", "update", "end"])
def test_a_detection_is_not_an_alarm(kind: str) -> None:
    assert "only alerts" in reason(compiled().read(message(review(kind, severity="detection"))))


def test_words_that_we_do_not_know_are_ignored_with_the_word() -> None:
    assert "genai" not in reason(compiled().read(message(review("genai"))))
    assert "description" in reason(compiled().read(message(review("genai"))))
    assert reason(compiled().read(message(review("paused")))).endswith(": paused")
    assert "severity" in reason(compiled().read(message(review(severity="significant_motion"))))


def test_several_kinds_of_objects_are_their_own_kind() -> None:
    """A person who comes 5 s after a car must not fold into the car's hold-off."""
    assert reading(review(objects=("person", "car", "person-verified"))).kind == "car+person"
    assert reading(review(objects=("person-verified",))).kind == "person"
    assert reading(review(objects=(), audio=("scream",))).kind == "scream"
    assert reading(review(objects=())).kind == "review"


def test_options_of_reviews_filter_by_label_and_zone() -> None:
    people = compiled(labels=("person",))
    assert reading(review(objects=("person-verified", "car")), source=people).camera == "front_door"
    assert "labels" in reason(people.read(message(review(objects=("car",)))))
    assert reading(review(objects=(), audio=("scream",)), source=compiled(labels=("scream",))).kind == "scream"
    yard = compiled(zones=("yard", "drive"))
    assert reading(review(zones=("street", "drive")), source=yard).opens
    assert "zones" in reason(yard.read(message(review(zones=("street",)))))
    assert "zones" in reason(yard.read(message(review(zones=()))))


def test_a_camera_that_is_left_out_on_purpose_is_ignored_everywhere() -> None:
    source = compiled(ignore=("front_door",))
    for payload, topic in ((review(), "frigate/reviews"), ("offline", "frigate/front_door/status/detect")):
        assert "on purpose" in reason(source.read(message(payload, topic)))


def test_an_object_begins_continues_and_ends() -> None:
    events = compiled("events")
    new = reading(tracked("new"), "frigate/events", events)
    assert (new.event_status, new.opens, new.kind, new.event_at) == (ACTIVE, True, "person", 1_772_366_399_308)
    assert new.sent_at == 1_772_366_399_900
    assert new.media["event_id"] == new.source_id == "1772366399.308396-obj001"
    assert new.media["detections"] == [new.source_id]
    update = reading(tracked("update"), "frigate/events", events)
    assert (update.event_status, update.opens, update.state_key) == (ACTIVE, False, new.state_key)
    end = reading(tracked("end", end_time=1772366405.5), "frigate/events", events)
    assert (end.event_status, end.opens, end.event_at) == (INACTIVE, True, 1_772_366_405_500)


def test_what_stands_still_opens_nothing_but_may_end() -> None:
    """A parked car is updated for days."""
    events = compiled("events")
    assert "stationary" in reason(events.read(message(tracked("update", stationary=True), "frigate/events")))
    end = reading(tracked("end", stationary=True, end_time=1772366405.5), "frigate/events", events)
    assert (end.event_status, end.opens) == (INACTIVE, False)


def test_what_frigate_is_not_sure_of_is_no_alarm() -> None:
    answer = compiled("events").read(message(tracked("new", false_positive=True), "frigate/events"))
    assert "false_positive" in reason(answer)


def test_options_of_objects_filter_by_label_zone_and_score() -> None:
    source = compiled("events", labels=("person", "dog"), zones=("yard",), min_score=0.8)
    assert reading(tracked(), "frigate/events", source).kind == "person"
    for changed, word in (
        ({"label": "car"}, "labels"),
        ({"entered_zones": []}, "zones"),
        ({"top_score": 0.79}, "min_score"),
    ):
        assert word in reason(source.read(message(tracked(**changed), "frigate/events")))
    assert reading(tracked(top_score=None, score=None), "frigate/events", source).opens, "no score is no reason"


def test_the_dialects_do_not_hear_each_other() -> None:
    assert "no rule" in reason(compiled("events").read(message(review(), "frigate/reviews")))
    assert "no rule" in reason(compiled("reviews").read(message(tracked(), "frigate/events")))


@pytest.mark.parametrize(
    ("topic", "word", "camera", "status"),
    [
        ("frigate/available", "offline", None, ACTIVE),
        ("frigate/available", "online", None, INACTIVE),
        ("frigate/front_door/status/detect", "offline", "front_door", ACTIVE),
        ("frigate/front_door/status/record", "online", "front_door", INACTIVE),
        ("frigate/front_door/status/audio", " OFFLINE\n", "front_door", ACTIVE),
    ],
)
def test_availability_is_trouble_and_its_end(topic: str, word: str, camera: str | None, status: EventStatus) -> None:
    for retained in (False, True):  # a retained availability is the truth of now
        said = reading(word, topic, retain=retained, replay=retained)
        assert (said.event_type, said.event_status, said.camera) == (EventType.TROUBLE, status, camera)
        assert (said.state_key, said.source_id, said.event_at) == (topic, None, None)


@pytest.mark.parametrize(
    ("topic", "word"),
    [
        ("frigate/front_door/status/detect", "disabled"),
        ("frigate/front_door/status/detect", "starting"),
        ("frigate/front_door/status/ptz", "offline"),
        ("frigate/available", "stopped"),
        ("frigate/front_door/motion", "ON"),
        ("frigate/front_door/person", "1"),
        ("frigate/front_door/detect/state", "ON"),
        ("frigate/stats", "{}"),
        ("other/available", "offline"),
        ("frigate/a/b/status/detect", "offline"),
    ],
)
def test_everything_else_is_ignored_with_a_reason(topic: str, word: str) -> None:
    answer = compiled().read(message(word, topic))
    assert isinstance(answer, Ignored)
    assert answer.reason


def test_a_retained_review_is_of_any_age_and_no_alarm() -> None:
    assert "any age" in reason(compiled().read(message(review(), retain=True, replay=True)))
    assert reading(review(), retain=True, replay=False).opens, "some brokers forward live messages with the flag"


def test_only_the_topics_that_are_needed_are_subscribed() -> None:
    family = load_family("frigate")
    status = [("site/nvr/available", 0), ("site/nvr/+/status/+", 0)]
    reviews = Source(family="frigate", topic_prefix="site/nvr")
    events = Source(family="frigate", dialect="events", topic_prefix="site/nvr")
    assert family.filters(reviews) == [("site/nvr/reviews", 2), *status]
    assert family.filters(events) == [("site/nvr/events", 2), *status]
    said = reading("offline", "site/nvr/cam/status/detect", compiled(topic_prefix="site/nvr"))
    assert said.camera == "cam"


def test_settings_that_frigate_cannot_follow_name_their_key() -> None:
    with pytest.raises(BadSource, match="min_score") as caught:
        compiled("reviews", min_score=0.7)
    assert caught.value.key == "min_score"
    with pytest.raises(BadSource, match="dialect: frigate has reviews, events"):
        compiled("event")
    family = load_family("frigate")
    for prefix in ("", "a/#", "+/b", "/a", "a/"):
        with pytest.raises(BadSource, match="topic_prefix"):
            family.filters(Source.model_construct(family="frigate", dialect=None, topic_prefix=prefix))


def broken(path: str, value: Any, kind: str = "new") -> dict[str, Any]:
    payload = review(kind)
    at: Any = payload
    *way, last = path.split(".")
    for key in way:
        at = at[key]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return payload


@pytest.mark.parametrize("value", [KeyError, None, [], {}, True, "", " ", "x" * 300, "\ud800", {"id": 1}])
@pytest.mark.parametrize("path", ["after.id", "after.camera", "after.severity", "type"])
def test_an_alarm_without_what_names_it_is_kept_as_unreadable(path: str, value: Any) -> None:
    answer = compiled().read(message(broken(path, value)))
    if path == "type" and value is True:  # a word, if not one that Frigate has
        assert isinstance(answer, Ignored)
        return
    assert isinstance(answer, Unreadable), answer
    assert answer.reason


@pytest.mark.parametrize(
    "payload", [[], {}, "text", 7, None, [review()], {"type": "new"}, {"type": "new", "after": []}]
)
def test_another_shape_is_unreadable(payload: Any) -> None:
    assert isinstance(compiled().read(message(json.dumps(payload))), Unreadable)


@pytest.mark.parametrize(
    "start", [KeyError, None, "", "yesterday", -5, 1e300, 10**40, 0, [], {}, True, float("nan"), 1772366399308]
)
def test_an_alarm_whose_time_is_nonsense_is_still_an_alarm(start: Any) -> None:
    """Its time is then the receipt, and the text that was sent is kept."""
    said = reading(broken("after.start_time", start))
    assert (said.event_at, said.started_at, said.sent_at) == (None, None, None)
    assert said.media["start_at"] is None
    if start in ("yesterday", -5):
        assert said.details["device_time"] == str(start)


def test_a_quoted_time_is_a_time_and_its_digits_stay() -> None:
    said = reading(broken("after.start_time", "1772366399.3083960"))
    assert (said.event_at, said.started) == (1_772_366_399_308, "1772366399.3083960")
    raw = json.dumps(review()).replace(START, "1772366399.3083960").encode()
    assert reading(raw).started == "1772366399.3083960"


def test_milliseconds_are_cut_off_not_rounded() -> None:
    assert reading(broken("after.start_time", 1772366399.9999)).event_at == 1_772_366_399_999
    assert reading(broken("after.start_time", 1772366399.001)).event_at == 1_772_366_399_001


def test_parts_of_another_shape_cost_only_themselves() -> None:
    others: list[Any] = [None, [], "x", 7, {"detections": {"a": 1}, "objects": [[["person"]]], "zones": 3}]
    for value in others:
        said = reading(broken("after.data", value))
        assert said.camera == "front_door"
        assert said.media["detections"] == []
    many = reading(broken("after.data.detections", [f"id{n}" for n in range(1000)]))
    assert len(many.media["detections"]) == 32


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    "type",
    "before",
    "after",
    *(f"after.{k}" for k in review()["after"]),
    "after.data.objects",
    "after.data.zones",
]
TOPICS = ["frigate/reviews", "frigate/events", "frigate/available", "frigate/x/status/detect"]
SOURCES = [
    compiled("reviews", labels=("person",), zones=("yard",)),
    compiled("events", labels=("person",), zones=("yard",), min_score=0.5),
]


def must_be_sound(answer: Any) -> None:
    if isinstance(answer, (Ignored, Unreadable)):
        assert answer.reason
        return
    for said in answer:
        json.dumps([dict(said.media), dict(said.details)], allow_nan=False).encode()
        for name in (said.camera, said.source_id, said.started, said.state_key, said.kind):
            assert name is None or name.encode()


@given(st.sampled_from(TOPICS), json_values)
def test_no_json_value_raises(topic: str, value: Any) -> None:
    for source in SOURCES:
        must_be_sound(source.read(message(json.dumps(value).encode(), topic)))


@given(st.sampled_from(PATHS), json_values, st.sampled_from(["new", "update", "end"]))
def test_no_broken_part_raises(path: str, value: Any, kind: str) -> None:
    must_be_sound(SOURCES[0].read(message(broken(path, value, kind))))
    must_be_sound(compiled().read(message(broken(path, value, kind))))


@given(st.sampled_from([*tracked()["after"], "extra"]), json_values, st.sampled_from(["new", "update", "end"]))
def test_no_broken_part_of_an_object_raises(key: str, value: Any, kind: str) -> None:
    must_be_sound(SOURCES[1].read(message(tracked(kind, **{key: value}), "frigate/events")))


@given(st.sampled_from(TOPICS), st.binary(max_size=200))
def test_no_bytes_raise(topic: str, payload: bytes) -> None:
    for source in SOURCES:
        must_be_sound(source.read(message(payload, topic)))


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_topic_raises(camera: str, role: str) -> None:
    must_be_sound(SOURCES[0].read(message("offline", f"frigate/{camera}/status/{role}")))
