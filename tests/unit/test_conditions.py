"""Reading -> event over time: edges, ends, hold-off, limits, and what a Decision never does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import EventStatus, EventType, MediaKind, Message, NewEvent, Reading
from gateway.sources.conditions import Decision, decide, due, forget_edges
from gateway.sources.memory import Memory
from gateway.sources.rules import Ignored
from tests.unit.frigate_messages import NOW, compiled, message, review, tracked

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class AnyPlan:
    table: str | None = "door"
    camera_id: str | None = "camera-1"
    recorder_id: str | None = "recorder-1"
    signal: bool = True
    snapshots: int = 1
    short_mp4: bool = False
    event_mp4: bool = False
    hold_off: float | None = None
    send_restore: bool = True
    short_before: float = 2.0
    short_after: float = 4.0
    clip_before: float = 10.0
    clip_after: float = 20.0
    max_open: float = 900.0
    trouble_delay: float = 60.0
    dedupe_window: float = 86400.0


@dataclass
class Site:
    """Rules, conditions and a memory that survives as JSON, as the store keeps it."""

    plan: AnyPlan | None = field(default_factory=AnyPlan)
    dialect: str = "reviews"
    at: int = NOW
    ticks: int = 1_000_000
    memory: Memory = field(default_factory=Memory)
    rows: list[NewEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = compiled(self.dialect)
        self.topic = f"frigate/{self.dialect}"

    def wait(self, milliseconds: int) -> None:
        self.at += milliseconds
        self.ticks += milliseconds

    def hear(self, payload: Any, topic: str | None = None, *, waited_ms: int | None = None, **flags: Any) -> Decision:
        heard = message(payload, topic or self.topic, at=self.at, ticks=self.ticks, **flags)
        answer = self.source.read(heard)
        if isinstance(answer, Ignored):
            return Decision("ignored", answer.reason)
        assert isinstance(answer, list), answer
        return self.take(answer[0], heard, waited_ms)

    def take(self, reading: Reading, heard: Message, waited_ms: int | None = None) -> Decision:
        plan = self.plan if reading.camera is not None else AnyPlan(table=None, camera_id="site")
        return self.keep(decide(reading, heard, plan, self.memory, location_id="L", waited_ms=waited_ms))

    def keep(self, decision: Decision) -> Decision:
        self.memory.apply(json.loads(json.dumps(decision.memory)))
        self.rows += decision.events
        for row in decision.events:
            json.dumps([row.details, [m.recipe for m in row.media]])
        return decision

    def time_passes(self, milliseconds: int = 0, **given: Any) -> list[Decision]:
        self.wait(milliseconds)
        decisions = due(self.memory, self.ticks, now_wall=self.at, location_id="L", **given)
        return [self.keep(d) for d in decisions]

    def said(self) -> list[tuple[str, str, str]]:
        return [(row.event_type, row.event_status, row.state) for row in self.rows]

    def forget_everything(self) -> None:
        self.memory = Memory()


ALARM = ("alarm", "active", "pending")
RESTORE = ("alarm", "inactive", "pending")
FOLDED = ("alarm", "active", "folded")
TROUBLE = ("trouble", "active", "pending")
RECOVERED = ("trouble", "inactive", "pending")


def test_an_alarm_becomes_a_complete_row() -> None:
    site = Site(plan=AnyPlan(snapshots=2, short_mp4=True, event_mp4=True))
    decision = site.hear(review())
    assert (decision.outcome, decision.reason) == ("stored", None)
    (row,) = decision.events
    assert (row.camera, row.source_camera, row.camera_id, row.recorder_id) == (
        "door",
        "front_door",
        "camera-1",
        "recorder-1",
    )
    assert (row.location_id, row.source, row.kind, row.signal, row.state) == ("L", "nvr", "person", True, "pending")
    assert (row.event_at, row.received_at, row.received_ticks) == (1_772_366_399_308, NOW, 1_000_000)
    assert (row.topic, row.follows, row.age_unknown_ms) == ("frigate/reviews", None, None)
    start = 1_772_366_399_308
    assert [(m.kind, m.seq, m.from_at - start, m.to_at - start) for m in row.media] == [
        (MediaKind.SNAPSHOT, 0, 0, 0),
        (MediaKind.SNAPSHOT, 1, 2000, 2000),
        (MediaKind.SHORT_MP4, 0, -2000, 4000),
        (MediaKind.EVENT_MP4, 0, -10_000, 20_000),
    ]
    assert row.media[0].recipe["detections"] == ["1772366397.1-aaa", "1772366398.25-bbb"]


REVIEW_STORIES = [
    ("new, update, end", ["new", "update", "end"], [ALARM, RESTORE]),
    ("detection first", ["detection", "upgrade", "update", "end"], [ALARM, RESTORE]),
    ("the beginning was lost", ["update", "end"], [ALARM, RESTORE]),
    ("only the end came", ["end"], [ALARM, RESTORE]),
    ("said twice", ["new", "new", "update", "update", "end", "end"], [ALARM, RESTORE]),
    ("stragglers after the end", ["new", "end", "update", "new", "upgrade", "end"], [ALARM, RESTORE]),
    ("a description after the end", ["new", "end", "genai"], [ALARM, RESTORE]),
    ("never an alert", ["detection", "detection-update", "detection-end"], []),
]

WORDS = {
    "new": review("new"),
    "update": review("update"),
    "end": review("end", end=1772366405.5),
    "genai": review("genai", end=1772366405.5),
    "detection": review("new", severity="detection"),
    "detection-update": review("update", severity="detection"),
    "detection-end": review("end", severity="detection", end=1772366405.5),
    "upgrade": review("update", before="detection"),
}


@pytest.mark.parametrize(("name", "words", "said"), REVIEW_STORIES, ids=[s[0] for s in REVIEW_STORIES])
def test_one_review_is_one_alarm_and_one_restore(name: str, words: list[str], said: list[Any]) -> None:
    site = Site()
    for word in words:
        site.hear(WORDS[word])
        site.wait(2 * SECOND)
    assert site.said() == said
    if said:
        begin, end = site.rows
        assert end.follows == begin.event_id
        assert end.event_id != begin.event_id
        assert end.event_at == 1_772_366_405_500
        assert begin.event_at == 1_772_366_399_308


def test_without_send_restore_an_end_only_closes() -> None:
    site = Site(plan=AnyPlan(send_restore=False))
    site.hear(WORDS["new"])
    assert site.hear(WORDS["end"]).outcome == "closing"
    assert site.said() == [ALARM]
    assert site.hear(WORDS["update"]).outcome == "duplicate", "it stays ended"


def test_outcomes_say_what_became_of_a_message() -> None:
    site = Site()
    said = [site.hear(WORDS[w]).outcome for w in ("new", "new", "update", "end", "update", "end", "detection")]
    assert said == ["stored", "duplicate", "ignored", "stored", "duplicate", "duplicate", "ignored"]


def test_an_end_whose_beginning_was_missed_raises_the_alarm() -> None:
    site = Site(at=1_772_366_405_500 + 90 * SECOND)
    site.hear(WORDS["end"])
    begin, end = site.rows
    assert begin.details["begun_unseen"] is True
    assert (begin.event_at, end.event_at, end.follows) == (1_772_366_399_308, 1_772_366_405_500, begin.event_id)
    assert begin.media, "its pictures can still be had"
    assert "device_time" not in begin.details


def test_a_beginning_that_was_missed_an_hour_ago_is_of_no_use() -> None:
    start = NOW / 1000 - 3700
    site = Site()
    decision = site.hear(review("end", start=start, end=NOW / 1000 - 60))
    assert (decision.outcome, site.rows) == ("ignored", [])
    assert "an hour" in str(decision.reason)


def test_what_never_was_an_alarm_does_not_become_one_by_its_end() -> None:
    site = Site(dialect="events")
    site.hear(tracked("end", stationary=True, end_time=1772366405.5))
    assert site.rows == []


def test_an_object_that_comes_to_pass_the_filters_is_an_alarm() -> None:
    site = Site(dialect="events")
    site.source = compiled("events", zones=("yard",))
    site.hear(tracked("new", entered_zones=[]))
    assert site.rows == []
    site.hear(tracked("update", entered_zones=["street", "yard"]))
    site.hear(tracked("update", entered_zones=["street", "yard"]))
    assert site.said() == [ALARM]


def test_the_same_id_with_another_start_is_another_alarm() -> None:
    site = Site()
    site.hear(review(id="5060", start=1772366399.1))
    site.hear(review(id="5060", start=1772366399.2))
    site.hear(review("end", id="5060", start=1772366399.2, end=1772366400.0))
    site.hear(review(id="5060", start=1772366400.3))
    assert site.said() == [ALARM, RESTORE, ALARM, RESTORE, ALARM]
    assert len({row.event_id for row in site.rows}) == 5


def test_an_id_without_a_start_counts_for_the_dedupe_window() -> None:
    site = Site(plan=AnyPlan(send_restore=False, dedupe_window=3600.0))
    begin, end = review(id="5060", start=None), review("end", id="5060", start=None)
    site.hear(begin)
    site.hear(end)
    site.time_passes(59 * MINUTE)
    assert site.hear(begin).outcome == "duplicate"
    site.time_passes(2 * MINUTE)
    assert site.hear(begin).outcome == "stored"
    assert len({row.event_id for row in site.rows}) == len(site.rows) == 2


def test_the_same_alarm_has_the_same_id_in_every_process() -> None:
    first, second = Site(), Site(at=NOW + 3 * SECOND, ticks=5)
    first.hear(WORDS["new"])
    second.hear(WORDS["upgrade"])
    assert first.rows[0].event_id == second.rows[0].event_id
    elsewhere = Site()
    elsewhere.source = compiled()
    elsewhere.hear(review(camera="back_door"))
    assert elsewhere.rows[0].event_id != first.rows[0].event_id


# Hold-off


def hold_off_story(*alarms: tuple[float, str]) -> list[str]:
    """States of alarms at (seconds, kind) with a hold-off of 10 s."""
    site = Site(plan=AnyPlan(hold_off=10.0, send_restore=False))
    began_at = site.at
    for number, (second, kind) in enumerate(alarms):
        site.wait(began_at + round(second * SECOND) - site.at if began_at + second * SECOND > site.at else 0)
        start = (began_at + second * SECOND) / SECOND
        site.hear(review(id=f"id{number}", start=start, objects=(kind,)))
    return [row.state for row in site.rows]


@pytest.mark.parametrize(
    ("alarms", "states"),
    [
        ([(0, "person"), (5, "person")], ["pending", "folded"]),
        ([(0, "person"), (9.999, "person"), (10, "person")], ["pending", "folded", "pending"]),
        ([(0, "person"), (6, "person"), (12, "person")], ["pending", "folded", "pending"]),
        ([(0, "person"), (5, "car")], ["pending", "pending"]),
        ([(0, "fire"), (1, "fire")], ["pending", "pending"]),
        ([(8, "person"), (0, "person"), (19, "person")], ["pending", "folded", "pending"]),
        ([(60, "person"), (0, "person"), (65, "person")], ["pending", "pending", "folded"]),
    ],
)
def test_hold_off_folds_the_same_kind_by_event_time(alarms: list[tuple[float, str]], states: list[str]) -> None:
    assert hold_off_story(*alarms) == states


def test_a_folded_alarm_has_a_reason_no_pictures_and_no_restore() -> None:
    site = Site(plan=AnyPlan(hold_off=10.0))
    site.hear(review(id="a"))
    site.hear(review(id="b"))
    site.hear(review("end", id="b", end=1772366405.5))
    assert site.said() == [ALARM, FOLDED]
    assert "hold-off" in str(site.rows[1].reason)
    assert site.rows[1].media == ()


# Cameras that are not configured, and what has no camera


def test_an_alarm_of_an_unknown_camera_is_kept_with_the_stanza_to_add() -> None:
    site = Site(plan=None)
    decision = site.hear(review(camera="Front Door"))
    assert decision.outcome == "unmapped"
    (row,) = site.rows
    assert (row.state, row.camera, row.source_camera, row.camera_id) == ("unmapped", None, "Front Door", None)
    assert str(row.reason).endswith('[cameras.Front_Door]\ncamera_id = "…"\nname = "Front Door"\nsource = "nvr"')
    assert site.hear(review("update", camera="Front Door")).outcome == "ignored"
    assert site.hear(review("end", camera="Front Door", end=1772366405.5)).outcome == "closing"
    assert len(site.rows) == 1


def test_troubles_of_an_unknown_camera_are_not_reported() -> None:
    site = Site(plan=None)
    assert "not configured" in str(site.hear("offline", "frigate/shed/status/detect").reason)
    assert len(site.memory) == 0


# Limits of time


def test_max_open_counts_from_the_last_message() -> None:
    site = Site(plan=AnyPlan(max_open=900.0))
    site.hear(WORDS["new"])
    site.time_passes(10 * MINUTE)
    site.hear(WORDS["update"])
    site.time_passes(14 * MINUTE)
    assert site.said() == [ALARM]
    site.time_passes(1 * MINUTE)
    assert site.said() == [ALARM, RESTORE]
    assert site.rows[1].details == {"ended_by": "max_open"}
    assert site.rows[1].event_at == site.at
    assert site.hear(WORDS["end"]).outcome == "duplicate"
    assert site.hear(WORDS["update"]).outcome == "duplicate"


def test_max_open_without_restore_closes_silently() -> None:
    site = Site(plan=AnyPlan(send_restore=False))
    site.hear(WORDS["new"])
    (decision,) = site.time_passes(15 * MINUTE)
    assert decision.outcome == "closing"
    assert site.said() == [ALARM]


def test_an_end_is_never_dated_before_its_beginning() -> None:
    site = Site()
    site.hear(WORDS["new"])
    site.hear(review("end", end=1772366390.0))
    begin, end = site.rows
    assert end.event_at == begin.event_at


def test_what_is_due_stays_due_until_it_is_applied() -> None:
    """The commit may fail between asking and applying."""
    site = Site()
    site.hear(WORDS["new"])
    site.hear("offline", "frigate/available")
    site.wait(HOUR)
    first = due(site.memory, site.ticks, now_wall=site.at, location_id="L")
    assert due(site.memory, site.ticks, now_wall=site.at, location_id="L") == first
    assert [row.event_type for decision in first for row in decision.events] == ["trouble", "alarm"]


def test_everything_that_is_over_is_forgotten() -> None:
    site = Site(plan=AnyPlan(hold_off=10.0))
    for number in range(50):
        site.hear(review(id=f"id{number}", start=1772366399 + number))
        site.hear(review("end", id=f"id{number}", start=1772366399 + number, end=1772366400 + number))
        site.time_passes(SECOND)
    assert len(site.memory) > 50
    site.time_passes(25 * HOUR)
    assert {entry["what"] for entry in site.memory.values()} <= {"clock"}
    assert site.memory.next_due() is None


def test_memory_is_bounded_whatever_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sources.memory.LIMIT", 30)
    site = Site()
    site.hear(review(id="open"))
    for number in range(100):
        site.hear(review("end", id=f"id{number}", end=1772366400.0))
        site.time_passes(1)
    assert len(site.memory) <= 30
    assert "open/nvr/open" in site.memory


# Clocks


def test_a_live_alarm_with_an_impossible_time_takes_the_receipt() -> None:
    for off in (-3.5 * HOUR, 3.5 * HOUR, -301 * SECOND, 301 * SECOND):
        site = Site(plan=AnyPlan(snapshots=1))
        site.hear(review(start=(NOW + off) / SECOND))
        (row,) = site.rows
        assert row.event_at == NOW
        assert row.details["device_time"].endswith("Z")
        assert row.media[0].from_at == NOW
        assert row.media[0].recipe["clock_offset_ms"] == -off


def test_a_few_minutes_are_left_as_the_equipment_says() -> None:
    for off in (-299, 299):
        site = Site()
        site.hear(review(start=NOW / SECOND + off))
        assert site.rows[0].event_at == NOW + off * SECOND


def test_a_review_that_becomes_an_alert_late_is_an_alarm_of_now() -> None:
    site = Site()
    site.hear(review("update", before="detection", start=NOW / SECOND - 600))
    (row,) = site.rows
    assert row.event_at == NOW
    assert "clock_offset_ms" not in row.media[0].recipe, "nothing is wrong with the clock"


def test_a_missed_beginning_is_shifted_like_its_end() -> None:
    site = Site()
    site.hear(review("end", start=NOW / SECOND - 7230, end=NOW / SECOND - 7200))
    assert [row.event_at for row in site.rows] == [NOW - 30 * SECOND, NOW]


def test_what_waited_in_the_broker_keeps_the_time_of_the_equipment() -> None:
    site = Site()
    hour_ago = NOW / SECOND - 3600
    site.hear(review(id="a", start=hour_ago), waited_ms=2 * HOUR)
    (row,) = site.rows
    assert (row.event_at, row.age_unknown_ms) == (NOW - HOUR, 2 * HOUR)
    site.hear(review(id="b"))
    site.hear(review(id="c", start=hour_ago), waited_ms=2 * HOUR)
    assert (site.rows[2].event_at, site.rows[2].age_unknown_ms) == (NOW - HOUR, None), "its clock is known to be right"


def test_what_waited_is_corrected_by_the_known_offset_of_the_clock() -> None:
    site = Site()
    slow = 3.5 * 3600
    site.hear(review(id="a", start=NOW / SECOND - slow))
    site.hear(review(id="b", start=NOW / SECOND - slow - 600), waited_ms=HOUR)
    row = site.rows[1]
    assert (row.event_at, row.age_unknown_ms) == (NOW - 600 * SECOND, None)


def test_nothing_happens_after_its_receipt() -> None:
    site = Site()
    site.hear(review(start=NOW / SECOND + 3600), waited_ms=HOUR)
    assert (site.rows[0].event_at, site.rows[0].age_unknown_ms) == (NOW, HOUR)


# Readings without an id: edges


def motion(status: EventStatus, **given: Any) -> Reading:
    return Reading(
        source="cams",
        event_type=EventType.ALARM,
        event_status=status,
        camera="front_door",
        source_id=None,
        started=None,
        state_key="motion/front_door",
        kind="motion",
        event_at=None,
        topic_kind="alarm_state",
        **given,
    )


def test_without_an_id_the_edges_count() -> None:
    site = Site()
    on, off = motion(EventStatus.ACTIVE), motion(EventStatus.INACTIVE)
    outcomes = []
    for said in (off, on, on, off, off, on):
        outcomes.append(site.take(said, message("x", "t", at=site.at, ticks=site.ticks)).outcome)
        site.wait(SECOND)
    assert outcomes == ["ignored", "stored", "ignored", "stored", "ignored", "stored"]
    assert site.said() == [ALARM, RESTORE, ALARM]


def test_two_equal_alarms_in_one_millisecond_are_two() -> None:
    """Equal bytes alone are not the same alarm: a motion topic says ON every time."""
    site = Site()
    for status in (EventStatus.ACTIVE, EventStatus.INACTIVE, EventStatus.ACTIVE):
        site.take(motion(status), message("ON", "t"))
    begins = [row.event_id for row in site.rows if row.event_status is EventStatus.ACTIVE]
    assert len(set(begins)) == 2


def test_a_time_without_an_id_belongs_to_what_it_is_the_time_of() -> None:
    first, again, later = Site(), Site(at=NOW + 5), Site()
    for where, started in ((first, "12:00:00"), (again, "12:00:00"), (later, "12:00:01")):
        where.take(motion(EventStatus.ACTIVE)._replace(started=started), message("ON", "t", at=where.at))
    assert first.rows[0].event_id == again.rows[0].event_id != later.rows[0].event_id


def test_what_waited_without_a_time_of_its_own_has_an_unknown_age() -> None:
    site = Site()
    site.take(motion(EventStatus.ACTIVE), message("ON", "t"), waited_ms=HOUR)
    assert (site.rows[0].event_at, site.rows[0].age_unknown_ms) == (NOW, HOUR)
    assert site.rows[0].media == (), "no recipe, no pictures"


def test_prolonging_for_a_day_does_not_grow_the_index() -> None:
    site = Site()
    for _ in range(3000):
        site.hear(WORDS["new"])
        site.wait(SECOND)
    assert len(site.memory._due) < 1100
    site.time_passes(HOUR)
    assert site.said() == [ALARM, RESTORE]


def test_after_a_silence_the_next_live_active_is_an_edge() -> None:
    site = Site()
    site.take(motion(EventStatus.ACTIVE), message("ON", "t"))
    site.memory.apply(forget_edges(site.memory, "cams"))
    assert site.take(motion(EventStatus.ACTIVE), message("ON", "t")).outcome == "stored"
    assert site.said() == [ALARM, RESTORE, ALARM]
    assert forget_edges(site.memory, "another source") == {}


def test_a_pulse_ends_by_itself_and_is_prolonged_by_each_repeat() -> None:
    site = Site()
    pulse = motion(EventStatus.ACTIVE, pulse_seconds=30.0)
    site.take(pulse, message("x", "t", at=site.at, ticks=site.ticks))
    site.time_passes(20 * SECOND)
    site.take(pulse, message("x", "t", at=site.at, ticks=site.ticks))
    site.time_passes(29 * SECOND)
    assert site.said() == [ALARM]
    site.time_passes(5 * SECOND)
    assert site.said() == [ALARM, RESTORE]
    assert site.rows[1].event_at == NOW + 50 * SECOND


def test_what_cannot_be_reported_stays_local() -> None:
    panel = motion(EventStatus.ACTIVE)._replace(camera=None)
    heard = message("x", "t")
    nowhere = AnyPlan(table=None, camera_id=None)
    decision = decide(panel, heard, nowhere, Memory(), location_id="L")
    assert (decision.outcome, decision.events) == ("ignored", ())
    assert "no camera_id configured for cams" in str(decision.reason)
    assert decide(panel._replace(event_type=EventType.ARMING), heard, nowhere, Memory(), location_id="L").events == ()
    assert decide(panel, heard, None, Memory(), location_id="L").outcome == "ignored"


# Whatever order messages come in

IDS = ("a", "b", "c")
KINDS = ("new", "update", "upgrade", "detection", "end")


def spoken(name: str, word: str) -> dict[str, Any]:
    said = json.loads(json.dumps(WORDS[word]))
    for half in ("before", "after"):
        said[half]["id"] = name
    return dict(said)


stories = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(KINDS), st.integers(0, 400)), max_size=25)


def told(site: Site, story: Iterable[tuple[str, str, int]]) -> None:
    for name, word, pause in story:
        site.time_passes(pause * SECOND)
        site.hear(spoken(name, word))


@given(stories, st.booleans())
def test_any_interleaving_gives_one_alarm_for_each_id(story: list[tuple[str, str, int]], restores: bool) -> None:
    site = Site(plan=AnyPlan(send_restore=restores, hold_off=None))
    told(site, story)
    site.time_passes(2 * HOUR)
    alerts = {name for name, word, _ in story if word != "detection"}
    begins = [row for row in site.rows if row.event_status is EventStatus.ACTIVE]
    ends = [row for row in site.rows if row.event_status is EventStatus.INACTIVE]
    heard_at, in_time = NOW, set()
    for name, word, pause in story:
        heard_at += pause * SECOND
        if word in ("new", "update", "upgrade") or (word == "end" and heard_at - 1_772_366_399_308 <= HOUR):
            in_time.add(name)
    assert {row.source_id for row in begins} == in_time <= alerts
    assert len({row.event_id for row in begins}) == len(begins) == len({row.source_id for row in begins})
    known = set()
    for row in site.rows:  # a restore never before, and never without, its own alarm
        if row.event_status is EventStatus.INACTIVE:
            assert row.follows in known
            assert row.event_at >= NOW - 1000
        known.add(row.event_id)
    assert len({row.follows for row in ends}) == len(ends) == (len(begins) if restores else 0)


@given(stories, st.integers(0, 25), st.booleans())
def test_replaying_any_end_of_a_story_gives_no_new_event(
    story: list[tuple[str, str, int]], position: int, memory_lost: bool
) -> None:
    """After a reconnect nothing is even asked for; after a lost memory the outbox knows each id already."""
    site = Site(plan=AnyPlan(hold_off=None))
    told(site, story)
    before, known = len(site.rows), {row.event_id for row in site.rows}
    if memory_lost:
        site.forget_everything()
    told(site, [(name, word, 0) for name, word, _ in story[position:]])
    assert {row.event_id for row in site.rows} == known
    assert memory_lost or len(site.rows) == before


@given(stories)
def test_a_failed_commit_leaves_the_memory_as_it_was(story: list[tuple[str, str, int]]) -> None:
    site = Site(plan=AnyPlan(hold_off=10.0))
    told(site, story)
    entries = {key: dict(site.memory[key]) for key in site.memory}
    undo = []
    for name in IDS:
        heard = message(spoken(name, "upgrade"), at=site.at, ticks=site.ticks)
        answer = site.source.read(heard)
        assert isinstance(answer, list)
        decision = decide(answer[0], heard, site.plan, site.memory, location_id="L")
        undo.append(site.memory.apply(decision.memory))
    for before in reversed(undo):
        site.memory.apply(before)
    assert {key: dict(site.memory[key]) for key in site.memory} == entries
    expected = min((e["due"] for e in entries.values() if e.get("due") is not None), default=None)
    assert site.memory.next_due() == expected


def test_an_entry_that_cannot_be_handled_is_put_off_and_holds_up_no_other() -> None:
    """It stands in the store: raised, it would end this process and each that follows."""
    memory = Memory({"open/nvr/x": {"what": "open", "due": 5}, "held/y": {"what": "held", "due": 6}})
    faulty, other = due(memory, 10, now_wall=0, location_id="L")
    assert (faulty.outcome, other.memory) == ("fault", {"held/y": None})
    memory.apply(faulty.memory)
    memory.apply(other.memory)
    assert due(memory, 10, now_wall=0, location_id="L") == []
