"""Family files: what the language can say, and that everything wrong with one is found when it is loaded."""

from __future__ import annotations

import copy
import tomllib
from datetime import timedelta, timezone
from typing import Any

import pytest

from gateway.config import Source
from gateway.model import EventStatus
from gateway.sources.families import UnknownFamily, families, load_family, names
from gateway.sources.rules import BadFamily, Ignored, Unreadable, parse_family
from gateway.sources.times import time_reader
from gateway.sources.topics import BadPattern, compile_pattern
from tests.unit.frigate_messages import NOW, message, reason

LAB = tomllib.loads("""
title = "A laboratory of our own"
needs = "nothing"
topic_prefix = "lab"
options = ["labels"]

[[rule]]
name = "tamper"
topic = "{prefix}/{serial}/{camera}_motion"
topic_kind = "alarm_state"
decode = "json"
when = "payload.kind == 'tamper'"
event_type = "trouble"
status = "active"
camera = "topic.camera"

[[rule]]
name = "motion"
topic = "{prefix}/{serial}/{camera}_motion"
topic_kind = "alarm_state"
decode = "json"
when = "payload.kind == 'motion'"
event_type = "alarm"
camera = "topic.camera"
state_key = ["topic.serial", "topic.camera", "payload.missing"]
kind = "'motion'"
pulse_seconds = 30

[rule.status]
of = "coalesce(payload.state, payload.IsMotion)"
words = { true = "active", 1 = "active", on = "active", false = "inactive", 0 = "inactive", off = "inactive" }
otherwise = "a state that we do not know"

[rule.time]
of = "payload.time"
format = ["iso8601", "unix_ms"]

[[rule]]
name = "door bell"
topic = "{prefix}/bell/{rest...}"
topic_kind = "momentary"
decode = "text"
event_type = "alarm"
status = "active"
camera = "topic.rest"
""")


def lab(**changes: Any) -> Any:
    return parse_family("lab", {**LAB, **changes}).compile_source("lab", Source(family="lab"))


def test_every_family_file_can_be_used() -> None:
    assert "frigate" in names()
    for name, family in families().items():
        for dialect in family.dialects or (None,):
            source = Source(family=name, dialect=dialect)
            assert family.filters(source)
            family.compile_source(name, source)
    with pytest.raises(UnknownFamily):
        load_family("frigat")


def test_the_first_rule_whose_condition_holds_decides() -> None:
    source = lab()
    tamper = source.read(message({"kind": "tamper"}, "lab/s1/door_motion"))
    motion = source.read(message({"kind": "motion", "state": "ON"}, "lab/s1/front_door_motion"))
    assert (tamper[0].camera, tamper[0].event_type, tamper[0].kind) == ("door", "trouble", "tamper")
    assert (motion[0].camera, motion[0].event_type, motion[0].kind) == ("front_door", "alarm", "motion")
    assert motion[0].pulse_seconds == 30
    assert "applies" in reason(source.read(message({"kind": "smell"}, "lab/s1/door_motion")))


@pytest.mark.parametrize(
    ("state", "status"),
    [(True, "active"), ("true", "active"), (" On ", "active"), (1, "active"), ("0", "inactive"), (False, "inactive")],
)
def test_one_word_is_written_in_many_ways(state: Any, status: str) -> None:
    for key in ("state", "IsMotion"):
        said = lab().read(message({"kind": "motion", key: state}, "lab/s1/door_motion"))
        assert said[0].event_status == status
        assert said[0].state_key == "s1/door/-"


def test_a_third_word_is_ignored_and_no_word_is_unreadable() -> None:
    source = lab()
    assert isinstance(source.read(message({"kind": "motion", "state": "unknown"}, "lab/s/d_motion")), Ignored)
    assert isinstance(source.read(message({"kind": "motion"}, "lab/s/d_motion")), Unreadable)


def test_a_retained_alarm_state_only_seeds() -> None:
    source = lab()
    retained = {"retain": True, "replay": True}
    on, off = {"kind": "motion", "state": 1}, {"kind": "motion", "state": 0}
    assert "counts" in reason(source.read(message(on, "lab/s/d_motion", **retained)))
    assert source.read(message(off, "lab/s/d_motion", **retained))[0].event_status is EventStatus.INACTIVE
    assert source.read(message(on, "lab/s/d_motion", retain=True, replay=False))[0].opens


def test_several_levels_can_be_captured_at_the_end() -> None:
    assert lab().read(message("", "lab/bell/gate/left"))[0].camera == "gate/left"


def test_the_memory_for_topics_is_bounded() -> None:
    source = lab()
    for number in range(5000):
        assert source.covers(f"lab/bell/{number}")
    assert len(source._matching) <= 2048
    assert source.covers("lab/bell/" + "x" * 60_000)
    assert max(map(len, source._matching)) < 1000


@pytest.mark.parametrize(
    ("value", "formats", "at"),
    [
        ("2026-03-01T12:00:00.1239Z", ["iso8601"], NOW + 123),
        ("2026-03-01T13:00:00+0100", ["iso8601"], NOW),
        ("2026-03-01T06:00:00", ["iso8601"], NOW),
        (1772366400000, ["unix_ms"], NOW),
        ("1772366400", ["unix"], NOW),
        (1772366400, ["iso8601", "unix"], NOW),
        (1772366400000, ["unix", "unix_ms"], NOW),
        ("2026-02-30T00:00:00Z", ["iso8601"], None),
        ("0001-01-01T00:00:00", ["iso8601"], None),
        ("9999-12-31T23:59:59-12:00", ["iso8601"], None),
        ("1_772_366_400", ["unix"], None),
        ("1e9", ["unix"], None),
        ("\u0661\u0662\u0663", ["unix"], None),
        ("+5", ["unix"], None),
        (".", ["unix"], None),
        (True, ["unix"], None),
        (1.5, ["unix"], None),
        (None, ["unix", "iso8601"], None),
        ([1], ["unix", "iso8601"], None),
    ],
)
def test_times_are_read_or_are_no_times(value: Any, formats: list[str], at: int | None) -> None:
    assert time_reader(formats, timezone(timedelta(hours=-6)))(value) == at


@pytest.mark.parametrize(
    ("pattern", "topic_filter", "topic", "captures"),
    [
        ("{prefix}/{camera}/x", "a/b/+/x", "a/b/door/x", {"camera": "door"}),
        ("{prefix}/{camera}/x", "a/b/+/x", "a/b//x", None),
        ("{prefix}/{camera}/x", "a/b/+/x", "a.b/door/x", None),
        ("{prefix}/{camera}/x", "a/b/+/x", "a/b/d/e/x", None),
        ("{prefix}/{camera}/x", "a/b/+/x", "a/b/do\nor/x", {"camera": "do\nor"}),
        ("z/{camera}_o_{label}", "z/+", "z/front_door_o_person", {"camera": "front_door", "label": "person"}),
        ("z/{rest...}", "z/#", "z/a/b", {"rest": "a/b"}),
        ("plain", "plain", "plain", {}),
    ],
)
def test_topic_patterns(pattern: str, topic_filter: str, topic: str, captures: dict[str, str] | None) -> None:
    compiled = compile_pattern([pattern], ["a/b"])
    assert compiled.filters == (topic_filter,)
    found = compiled.match(topic)
    assert found is None if captures is None else found == {**(found or {}), **captures, "all": topic}


@pytest.mark.parametrize(
    "pattern",
    ["{a}/{a}", "{all}", "x{prefix}", "{a...}x", "{A}", "a/+/b", "a/#", "{", "{a b}", "{prefix}x"],
)
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        compile_pattern([pattern], ["a"])


def test_a_pattern_with_a_prefix_needs_one() -> None:
    with pytest.raises(BadPattern, match="topic_prefix"):
        compile_pattern(["{prefix}/a"], [])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("colour", "red", r"rule\[1\].colour: unknown key; allowed: name, "),
        ("topic_kind", "sometimes", r"rule\[1\].topic_kind"),
        ("topic", "a/#", r"rule\[1\].topic: level"),
        ("when", "payload.kind = 'x'", r"rule\[1\].when: not an expression"),
        ("when", "options.colour", r"when: the options are"),
        ("camera", "topic.colour", r"camera: the topic has all, camera, prefix, serial"),
        ("kind", "upper(payload.x)", r"kind: no such function"),
        ("require", ["payload."], r"require"),
        ("state_key", ["$"], r"state_key"),
        ("ignore", [{"when": "payload.a +", "reason": "r"}], r"ignore.when"),
        ("details", {"a": "payload.a.b()"}, r"details.a"),
        ("details", {"A": "payload.a"}, r"rule\[1\].details"),
        ("time", {"of": "payload.t", "format": "swatch"}, r"rule\[1\].time.format"),
        ("time", {"of": "pay.t", "format": "unix"}, r"time.of: starts with none of"),
        ("media", {"strategy": "s", "values": {"a": "b"}}, r"media.values.a"),
        ("media", {"strategy": "s", "times": {"a": {"of": "b", "format": "unix"}}}, r"media.times.a"),
        ("status", {"of": "payload.s", "words": {"ON": "active"}, "otherwise": "o"}, r"status"),
        ("status", {"of": "payload.s", "words": {"on": "begun"}, "otherwise": "o"}, r"status"),
        ("status", {"of": "s", "words": {"on": "active"}, "otherwise": "o"}, r"status.of"),
        ("status", {"of": "payload.s", "words": {"on": "active"}}, r"rule\[1\].status.otherwise: is missing$"),
        (
            "status",
            {"of": "payload.s", "words": {"on": "active"}, "otherwise": "o", "ignord": {}},
            r'rule\[1\].status.ignord: unknown key; did you mean "ignored"\?$',
        ),
        ("status", "on", r'rule\[1\].status: is not one of the allowed words; allowed: "active" or "inactive"$'),
        ("status", {"of": "payload.s", "words": {"a": "on"}, "otherwise": "o"}, r"status.words.a: is not one of"),
        ("repeat", 3, r'rule\[1\].repeat: unknown key; did you mean "repeats"\?$'),
        ("time", {"of": "payload.t", "format": "%Q"}, r"rule\[1\].time.format: is no pattern of times; allowed: unix,"),
        ("time", {"of": "payload.t", "format": "%d %d"}, r"time.format: is no pattern of times: one part comes twice"),
        ("kind", "payload.class", r"kind: not an expression: .*; a key called class is written \['class'\]"),
        ("kind", "payload.a && payload.b", r"kind: not an expression: .*; write and, or, not, ==$"),
        ("kind", "pir", r"kind: starts with none of .*; a text is written 'pir': `pir`"),
        ("kind", "before(payload.x)", r"kind: before takes 2 arguments: "),
        ("topic", "{prefix}/+/x", r"topic: level '\+' cannot be read; write \{name\} for \+"),
        ("topic", "{camera...}", r"topic: is every topic of the broker"),
        ("pulse_seconds", 0, r"pulse_seconds"),
        ("dialects", ["slang"], r"dialects: slang is no dialect"),
        ("name", "tamper", r"two rules have one name"),
        ("event_type", "party", r"event_type"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_with_file_and_key(key: str, value: Any, said: str) -> None:
    document = copy.deepcopy(LAB)
    document["rule"][1][key] = value
    with pytest.raises(BadFamily, match=said) as caught:
        parse_family("lab", document)
    assert str(caught.value).startswith("families/lab.toml: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": []}, "rule"),
        ({"title": None}, "title"),
        ({"options": ["colour"]}, "colour is no option"),
        ({"dialects": {"a": {"title": "A"}}}, "dialect: the default is one of the dialects"),
    ],
)
def test_what_is_wrong_with_a_family_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFamily, match=said):
        parse_family("lab", {**LAB, **changes})


def test_all_faults_are_said_at_once() -> None:
    document = copy.deepcopy(LAB)
    document["rule"][0]["when"] = "payload."
    document["rule"][1]["camera"] = "topic.x"
    with pytest.raises(BadFamily) as caught:
        parse_family("lab", document)
    assert len(caught.value.mistakes) == 2
