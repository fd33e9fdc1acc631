"""Whole sequences of families that speak on change, repeat, tell once, or tell twice; and of alarm panels."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import NewEvent
from gateway.sources.arming import ArmingTerms
from gateway.sources.compiled import Ignored
from gateway.sources.conditions import decide, due, forget_edges
from gateway.sources.families import load_family
from gateway.sources.memory import Memory
from tests.unit.frigate_messages import NOW, message
from tests.unit.test_conditions import AnyPlan
from tests.unit.test_families import axis, compiled, isapi, onvif

MINUTE = 60.0


@dataclass(frozen=True)
class PanelPlan(AnyPlan):
    table: str | None = None
    arming: ArmingTerms | None = None


@dataclass
class Equipment:
    """A family, its conditions, and a memory that survives as JSON."""

    spoken: str
    topic: str
    plan: Any = field(default_factory=AnyPlan)
    seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    rows: list[NewEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = compiled(self.spoken)

    def says(self, payload: Any, topic: str | None = None, *, after: float = 0.0, **flags: Any) -> list[str]:
        """What came of it, together with what the time before came to."""
        before = len(self.rows)
        self.waits(after)
        at = NOW + round(self.seconds * 1000)
        heard = message(payload, topic or self.topic, at=at, ticks=round(self.seconds * 1000), **flags)
        answer = self.source.read(heard)
        for reading in answer if isinstance(answer, list) else []:
            decision = decide(reading, heard, self.plan, self.memory, location_id="L")
            self.memory.apply(json.loads(json.dumps(decision.memory)))
            self.rows += decision.events
        assert isinstance(answer, (list, Ignored)), answer
        return self._said(before)

    def waits(self, seconds: float) -> list[str]:
        before, until = len(self.rows), self.seconds + seconds
        while (ticks := self.memory.next_due()) is not None and ticks <= round(until * 1000):
            for decision in due(self.memory, ticks, now_wall=NOW + ticks, location_id="L"):
                self.memory.apply(decision.memory)
                self.rows += decision.events
        self.seconds = until
        return self._said(before)

    def _said(self, since: int) -> list[str]:
        return [f"{row.event_type} {row.event_status}" for row in self.rows[since:]]


BEGIN, END = ["alarm active"], ["alarm inactive"]
TROUBLE, WELL = ["trouble active"], ["trouble inactive"]


def test_who_speaks_only_on_change_alarms_every_time() -> None:
    """The `off` was lost (QoS 0): the next `on` is another motion."""
    camera = Equipment("neolink", "neolink/Yard/status/motion")
    assert camera.says("on") == BEGIN
    assert camera.says("on", after=40) == END + BEGIN
    assert camera.says("off", after=5) == END
    assert camera.says("off", after=5) == []


def test_a_seed_suppresses_nothing() -> None:
    camera = Equipment("neolink", "neolink/Yard/status/motion")
    assert camera.says("on", retain=True, replay=True) == []
    assert camera.says("on", after=2) == BEGIN


def test_repeats_prolong_and_a_late_one_is_new() -> None:
    topic, inside = "C/onvif-ej/RuleEngine/FieldDetector/ObjectsInside/&1/Z", {"IsInside": True}
    camera = Equipment("onvif-ej", topic)
    assert camera.says(onvif(inside)) == BEGIN
    for _ in range(100):
        assert camera.says(onvif(inside), after=0.1) == []
    assert camera.says(onvif(inside), after=45) == END + BEGIN
    assert camera.says(onvif({"IsInside": False}), after=1) == END


def test_a_pulse_is_closed_by_its_timer_and_prolonged_by_repeats() -> None:
    line = Equipment("onvif-ej", "C/onvif-ej/RuleEngine/LineDetector/Crossed/&1/L")
    assert line.says(onvif({"ObjectId": 1})) == BEGIN
    assert line.says(onvif({"ObjectId": 2}), after=20) == []
    assert line.waits(29) == []
    assert line.waits(2) == END
    assert line.says(onvif({"ObjectId": 3}), after=60) == BEGIN


def test_motion_without_an_end_is_over_when_it_is_quiet() -> None:
    recorder = Equipment("hikvision", "hikvision/nvr/alertStream")
    assert recorder.says(isapi("VMD")) == BEGIN
    assert [recorder.says(isapi("VMD"), after=1) for _ in range(60)] == [[]] * 60
    assert recorder.waits(16) == END
    assert recorder.says(isapi("VMD"), after=60) == BEGIN


def test_the_heartbeat_of_a_healthy_stream_only_ends_a_video_loss() -> None:
    recorder = Equipment("hikvision", "hikvision/nvr/alertStream")
    beat = isapi("videoloss", "inactive", count=0)
    assert [recorder.says(beat, after=10) for _ in range(20)] == [[]] * 20
    lost = [said for _ in range(100) for said in recorder.says(isapi("videoloss"), after=1)]
    assert lost == TROUBLE
    assert recorder.says(beat, after=5) == WELL
    assert recorder.says(beat, after=10) == []


def test_a_video_loss_that_nobody_takes_back_is_over_when_it_is_quiet() -> None:
    recorder = Equipment("hikvision", "hikvision/nvr/alertStream")
    lost = [said for _ in range(100) for said in recorder.says(isapi("videoloss"), after=1)]
    assert lost == TROUBLE
    assert recorder.waits(20) == WELL
    assert recorder.says(isapi("videoloss"), after=5) == []
    assert recorder.waits(2 * MINUTE) == [], "it was repeated once: too short to be told"


def test_a_tampering_that_is_told_once_is_sent_at_once() -> None:
    camera = Equipment("axis", "axis/A/event/VideoSource/Tampering")
    said = axis("onvif:VideoSource/axis:Tampering", {"tampering": "1"}, {"channel": "1"})
    assert camera.says(said) == TROUBLE
    assert camera.says(said, after=200) == []
    assert camera.waits(299) == []
    assert camera.waits(2) == WELL
    assert camera.rows[-1].follows == camera.rows[0].event_id


def test_one_scenario_told_twice_is_one_alarm_and_two_scenarios_are_two() -> None:
    camera = Equipment("axis", "axis/A/event/x")

    def said(scenario: str, active: str, at: int) -> dict[str, Any]:
        name = f"axis:CameraApplicationPlatform/ObjectAnalytics/Device1Scenario{scenario}"
        return {**axis(name, {"active": active}), "timestamp": at}

    assert camera.says(said("1", "1", NOW)) + camera.says(said("ANY", "1", NOW)) == BEGIN
    assert camera.says(said("2", "1", NOW + 900), after=1) == BEGIN
    ends = camera.says(said("1", "0", NOW + 5000), after=5) + camera.says(said("ANY", "0", NOW + 5000))
    assert ends == END


def test_a_publisher_that_went_away_makes_the_next_word_an_edge() -> None:
    viseron = Equipment("viseron", "viseron/binary_sensor/yard_object_detected_person/state")
    assert viseron.says({"state": "on"}) == BEGIN
    assert viseron.says({"state": "on"}, after=10) == []
    viseron.says("dead", "viseron/lwt", after=1)
    assert viseron.says({"state": "on"}, after=1) == END + BEGIN


def test_ids_that_name_pictures_do_not_make_alarms() -> None:
    camera = Equipment("scrypted", "scrypted/gate/ObjectDetector")

    def seen(number: int) -> dict[str, Any]:
        return {"detectionId": f"d{number}", "detections": [{"className": "person", "score": 0.9}]}

    assert camera.says(seen(0)) == BEGIN
    assert [camera.says(seen(n), after=0.3) for n in range(1, 50)] == [[]] * 49
    assert camera.waits(31) == END
    assert camera.says(seen(60), after=5) == BEGIN


def test_an_id_that_counts_from_one_again_is_another_alarm() -> None:
    motion = Equipment("motion", "motion/Yard/event")
    for turn in range(2):
        at = NOW // 1000 + turn * 3600
        motion.seconds = turn * 3600.0
        assert motion.says({"event": "1", "camera": "2", "state": "start", "time": str(at)}) == BEGIN
        assert motion.says({"event": "1", "camera": "2", "state": "end", "time": str(at + 9)}, after=9) == END
    assert motion.rows[0].event_id != motion.rows[2].event_id


@pytest.mark.parametrize(("minutes", "rows"), [(10, 1), (59, 1), (61, 0)])
def test_what_the_equipment_kept_has_its_own_time_and_is_dropped_after_an_hour(minutes: int, rows: int) -> None:
    recorder = Equipment("hikvision", "hikvision/nvr/alertStream")
    kept = isapi("linedetection", more="<isDataRetransmission>true</isDataRetransmission>")
    recorder.seconds = minutes * MINUTE
    recorder.says(kept)
    assert [row.event_at for row in recorder.rows] == [NOW - 2000] * rows


def test_each_camera_has_a_clock_of_its_own() -> None:
    cameras = Equipment("onvif-ej", "")
    for name, at in (("A", "2026-03-01T09:00:00Z"), ("B", "2026-03-01T12:00:00Z")):
        cameras.says(onvif({"State": 1}, at=at), f"{name}/onvif-ej/VideoSource/MotionAlarm/&1")
    assert {k: e["offset"] for k, e in cameras.memory.items() if e["what"] == "clock"} == {
        "clock/s/A": 3 * 3600 * 1000,
        "clock/s/B": 0,
    }
    assert [row.event_at for row in cameras.rows] == [NOW, NOW]


def panel(*, terms: ArmingTerms | None = ArmingTerms(None, False)) -> Equipment:  # noqa: B008, frozen
    return Equipment("panel", "alarmo/state", plan=PanelPlan(arming=terms))


ARMED, DISARMED = ["arming active"], ["arming inactive"]


def test_arming_is_told_when_it_changes() -> None:
    alarmo = panel()
    assert [alarmo.says(word, after=1) for word in ("arming", "armed_away", "armed_away", "armed_home")] == [
        [],
        ARMED,
        [],
        [],
    ]
    assert alarmo.says("pending", after=60) == []
    assert alarmo.says("disarmed", after=5) == DISARMED
    row = alarmo.rows[0]
    assert (row.recorder_id, row.camera_id, row.signal, row.media) == (None, None, False, ())


def test_an_alarm_leaves_the_panel_armed_until_it_is_disarmed() -> None:
    alarmo = panel()
    alarmo.says("armed_away")
    assert alarmo.says("triggered", after=9) == BEGIN
    assert alarmo.says("disarmed", after=30) == DISARMED + END


def test_without_arming_configured_alarms_of_a_panel_come_all_the_same() -> None:
    alarmo = panel(terms=None)
    assert alarmo.says("armed_away") + alarmo.says("triggered") + alarmo.says("disarmed") == BEGIN + END


def test_a_retained_disarmed_waits_until_it_is_said_live() -> None:
    alarmo = panel()
    assert alarmo.says("disarmed", retain=True, replay=True) == []
    assert alarmo.says("disarmed", after=1) == DISARMED
    trusting = panel(terms=ArmingTerms("c", True))
    assert trusting.says("disarmed", retain=True, replay=True) == DISARMED
    assert trusting.rows[0].camera_id == "c"


def test_a_retained_armed_is_told_and_told_again_after_a_lost_session() -> None:
    alarmo = panel()
    retained: dict[str, Any] = {"retain": True, "replay": True}
    assert alarmo.says("armed_away", **retained) == ARMED
    assert alarmo.says("armed_away", **retained) == []
    alarmo.memory.apply(forget_edges(alarmo.memory))
    assert alarmo.says("armed_away", **retained) == ARMED


def test_a_site_is_armed_while_any_partition_is() -> None:
    alarmo = panel()
    house, cellar = "alarmo/house/state", "alarmo/cellar/state"
    assert alarmo.says("armed_away", house) == ARMED
    assert alarmo.says("armed_away", cellar) == []
    assert alarmo.says("disarmed", house) == []
    assert alarmo.says("disarmed", cellar) == DISARMED


def test_a_site_with_two_panels_is_armed_while_either_is() -> None:
    """Told under one camera, a disarmed shed must not silence the house. What is no longer configured has no say."""
    panels = frozenset({"s", "shed"})
    house = Equipment("panel", "alarmo/state", plan=PanelPlan(arming=ArmingTerms("c", False, panels)))
    shed = Equipment("panel", "alarmo/state", plan=house.plan, memory=house.memory)
    shed.source = load_family("panel").compile_source("shed", Source(family="panel"), UTC)
    assert house.says("armed_away") == ARMED
    assert shed.says("armed_away") == []
    assert house.says("disarmed") == []
    assert shed.says("disarmed") == DISARMED
    assert shed.says("armed_home") == ARMED
    house.plan = PanelPlan(arming=ArmingTerms("c", False, frozenset({"s"})))
    assert house.says("disarmed") == DISARMED


words = st.sampled_from(["armed_away", "disarmed", "triggered", "pending", "arming", "unavailable", "armed_home"])
areas = st.sampled_from(["alarmo/a/state", "alarmo/b/state"])


@given(st.lists(st.tuples(areas, words, st.booleans()), max_size=30))
def test_arming_alternates_and_ends_with_the_truth(said: list[tuple[str, str, bool]]) -> None:
    """Whatever a panel says, live or retained: never two equal words in a row, and no false disarmed."""
    alarmo = panel()
    states: dict[str, str] = {}
    for area, word, retained in said:
        alarmo.says(word, area, after=1, retain=retained, replay=retained)
        if word.startswith("armed") or word == "disarmed":
            states[area] = word
    told = [str(row.event_status) for row in alarmo.rows if row.event_type == "arming"]
    assert all(one != other for one, other in itertools.pairwise(told))
    if any(word.startswith("armed") for word in states.values()):
        assert told[-1] == "active"


@given(
    st.lists(
        st.tuples(st.sampled_from(["on", "off", "unknown"]), st.floats(0, 2000, allow_nan=False)),
        min_size=1,
        max_size=25,
    )
)
def test_beginnings_and_ends_alternate(said: list[tuple[str, float]]) -> None:
    """Of one topic: each end follows the last beginning, and every `on` of a family that speaks on change is one."""
    camera = Equipment("neolink", "neolink/Yard/status/motion")
    for word, after in said:
        camera.says(word, after=after)
    begins = [row for row in camera.rows if row.event_status == "active"]
    assert len(begins) == sum(word == "on" for word, _ in said)
    open_now: str | None = None
    for row in camera.rows:
        assert (row.follows is None) == (row.event_status == "active") == (open_now is None)
        assert row.follows in (None, open_now)
        open_now = row.event_id if row.follows is None else None
