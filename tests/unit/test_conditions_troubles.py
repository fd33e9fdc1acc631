"""Troubles: the delay, the restore, and whose trouble it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import EventStatus
from gateway.sources.conditions import decide, postponed
from gateway.sources.memory import Memory
from gateway.sources.troubles import open_troubles
from tests.unit.frigate_messages import NOW, message, reading, review
from tests.unit.test_conditions import ALARM, HOUR, RECOVERED, SECOND, TROUBLE, AnyPlan, Site

RECORDER = "frigate/available"
DETECT = "frigate/front_door/status/detect"


def test_a_trouble_is_sent_after_it_has_lasted() -> None:
    site = Site()
    assert "60 s" in str(site.hear("offline", DETECT).reason)
    site.time_passes(59 * SECOND)
    assert site.said() == []
    site.time_passes(1 * SECOND)
    assert site.said() == [TROUBLE]
    (row,) = site.rows
    assert (row.event_at, row.received_at, row.received_ticks) == (NOW, NOW, site.ticks)
    assert (row.camera, row.camera_id, row.kind, row.media) == ("door", "camera-1", "detect", ())


def test_a_trouble_that_was_sent_is_restored_whatever_send_restore_says() -> None:
    site = Site(plan=AnyPlan(send_restore=False))
    site.hear("offline", DETECT)
    site.time_passes(60 * SECOND)
    site.wait(10 * SECOND)
    assert site.hear("online", DETECT).outcome == "stored"
    begin, end = site.rows
    assert (end.follows, end.event_at, end.state_key) == (begin.event_id, NOW + 70 * SECOND, DETECT)
    assert site.said() == [TROUBLE, RECOVERED]


def test_a_short_trouble_is_never_sent() -> None:
    site = Site()
    site.hear("offline", RECORDER)
    site.time_passes(30 * SECOND)
    assert site.hear("online", RECORDER).outcome == "closing"
    site.time_passes(HOUR)
    assert site.said() == []
    assert len(site.memory) == 1, "the count that makes each occurrence its own"


def test_no_timer_ends_a_trouble() -> None:
    site = Site()
    site.hear("offline", RECORDER)
    site.time_passes(60 * SECOND)
    for _ in range(5):
        site.time_passes(24 * HOUR)
    assert site.said() == [TROUBLE]


def test_heartbeats_and_repeats_change_nothing() -> None:
    site = Site()
    assert site.hear("online", DETECT).memory == {}
    site.hear("offline", DETECT)
    assert site.hear("offline", DETECT).memory == {}, "the delay counts from the first"
    assert site.hear("disabled", DETECT).memory == {}


def test_a_delay_of_nothing_sends_at_once() -> None:
    site = Site(plan=AnyPlan(trouble_delay=0.0))
    assert site.hear("offline", DETECT).outcome == "stored"
    assert site.said() == [TROUBLE]


def test_the_recorders_trouble_stands_for_those_of_its_cameras() -> None:
    site = Site()
    site.hear("offline", DETECT)
    site.time_passes(10 * SECOND)
    site.hear("offline", RECORDER)
    site.time_passes(10 * 60 * SECOND)
    assert [row.camera for row in site.rows] == [None]
    site.hear("online", RECORDER)
    site.time_passes(30 * SECOND)
    site.hear("online", DETECT)
    site.time_passes(HOUR)
    assert site.said() == [TROUBLE, RECOVERED]


def test_a_camera_that_is_still_gone_when_its_recorder_is_back_is_a_trouble() -> None:
    site = Site()
    site.hear("offline", DETECT)
    site.hear("offline", RECORDER)
    site.time_passes(59 * SECOND)
    site.hear("online", RECORDER)
    site.time_passes(59 * SECOND)
    assert site.said() == [], "it has the whole delay to speak for itself"
    site.time_passes(1 * SECOND)
    assert [row.camera for row in site.rows] == ["door"]


def test_a_retained_offline_is_the_truth_of_now_and_a_retained_online_only_closes() -> None:
    site = Site()
    assert site.hear("online", RECORDER, retain=True, replay=True).events == ()
    site.hear("offline", RECORDER, retain=True, replay=True)
    site.time_passes(60 * SECOND)
    site.hear("offline", RECORDER, retain=True, replay=True)
    site.time_passes(60 * SECOND)
    site.hear("online", RECORDER, retain=True, replay=True)
    assert site.said() == [TROUBLE, RECOVERED]


def test_nothing_is_concluded_while_nothing_is_heard() -> None:
    site = Site()
    site.hear("offline", DETECT)
    site.time_passes(60 * SECOND, connected=False)
    site.time_passes(HOUR, connected=False)
    assert site.said() == []
    site.memory.apply(postponed(site.memory, site.ticks))
    site.time_passes(59 * SECOND)
    site.hear("online", DETECT)
    site.time_passes(HOUR)
    assert site.said() == []


def test_a_recorder_that_goes_away_leaves_its_alarms_to_max_open() -> None:
    site = Site(plan=AnyPlan(send_restore=False))
    site.hear(review())
    site.hear("offline", RECORDER)
    assert "open/nvr/1772366399.308396-abc123" in site.memory
    assert site.hear(review("end", end=1772366405.5)).outcome == "closing"
    assert site.said() == [ALARM]


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_without_a_camera_id_a_trouble_stays_local_but_is_remembered(delay: float) -> None:
    nowhere = AnyPlan(table=None, camera_id=None, trouble_delay=delay)
    site = Site()
    heard = message("offline", RECORDER)
    decision = site.keep(decide(reading("offline", RECORDER), heard, nowhere, site.memory, location_id="L"))
    assert decision.outcome == "ignored"
    assert "no camera_id configured for nvr" in str(decision.reason)
    site.time_passes(60 * SECOND)
    assert site.rows == []
    (known,) = open_troubles(site.memory)
    assert known == {"source": "nvr", "camera": None, "kind": "recorder", "since_at": NOW, "local": True}
    back = message("online", RECORDER, at=site.at, ticks=site.ticks)
    site.keep(decide(reading("online", RECORDER), back, nowhere, site.memory, location_id="L"))
    assert (site.rows, open_troubles(site.memory)) == ([], [])


def test_the_same_trouble_again_is_another_event() -> None:
    site = Site(plan=AnyPlan(trouble_delay=0.0))
    for word in ("offline", "online", "offline", "online"):
        site.hear(word, DETECT)
    assert len({row.event_id for row in site.rows}) == 4


words = st.lists(
    st.tuples(
        st.sampled_from([RECORDER, DETECT, "frigate/front_door/status/record"]),
        st.sampled_from(["online", "offline", "disabled"]),
        st.sampled_from([0, 1, 30, 60, 600]),
    ),
    max_size=30,
)


@given(words, st.sampled_from([0.0, 60.0]))
def test_troubles_and_restores_alternate(story: list[tuple[str, str, int]], delay: float) -> None:
    site = Site(plan=AnyPlan(trouble_delay=delay))
    for topic, word, pause in story:
        site.time_passes(pause * SECOND)
        site.hear(word, topic)
    site.time_passes(HOUR)
    open_now: dict[str, Any] = {}
    for row in site.rows:
        if row.event_status is EventStatus.ACTIVE:
            assert row.state_key not in open_now
            open_now[row.state_key] = row.event_id
        else:
            assert row.follows == open_now.pop(row.state_key)
    last = {topic: word for topic, word, _ in story if word != "disabled"}
    assert (RECORDER in open_now) == (last.get(RECORDER) == "offline")
    assert {key for key in open_now if last[key] != "offline"} == set()
    if RECORDER not in open_now:
        assert set(open_now) == {key for key, word in last.items() if word == "offline"}
    assert len({row.event_id for row in site.rows}) == len(site.rows)
    assert Memory(json.loads(json.dumps(dict(site.memory)))).next_due() == site.memory.next_due()
