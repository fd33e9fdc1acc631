"""When a trouble of the gateway's own begins and ends: tables of what was found, second by second."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import EventStatus, EventType
from gateway.states import EventState
from gateway.watch import GAP_MS, Facts, Transition, Under, Watch, findings

UNDER = Under("L", "R", "C", True)
LOCAL = Under("L", "R", None, True)
WALL = 1_772_366_400_000


def watch(under: Under = UNDER, *, remembered: dict[str, Any] | None = None, ticks: int = 0) -> Watch:
    return Watch(under, delay_ms=60_000, remembered=remembered or {}, ticks=ticks)


def played(story: str, one: Watch | None = None, *, step: int = 10) -> str:
    """`story`: what is found each ten seconds, `x` a fault, `.` none; the answer has `B`, `E` or `-` for each."""
    one, said = one or watch(), ""
    for number, mark in enumerate(story):
        ticks = number * step * 1000
        found = {"broker": "away"} if mark == "x" else {}
        transitions = one.see(found, ticks=ticks, wall=WALL + ticks)
        assert len(transitions) <= 1
        said += ("B" if transitions[0].begins else "E") if transitions else "-"
    return said


@pytest.mark.parametrize(
    ("what", "found", "said"),
    [
        ("well", "..........", "----------"),
        ("shorter than the delay", "xxxxx.....", "----------"),
        ("as long as the delay", "xxxxxxx...", "------B---"),
        ("healthy for 30 s ends it", "xxxxxxx.......", "------B---E---"),
        ("healthy for less does not", "xxxxxxx..x..x...", "------B---------"),
        ("comes and goes: one trouble", "x.x.x.x.x.x....", "------B-------E"),
        ("healthy in between for long enough: not yet", "xxxx...." + "xxxx", "-" * 12),
        ("anew after its end", "xxxxxxx....xxxxxxx", "------B---E------B"),
    ],
)
def test_a_trouble_begins_after_the_delay_and_ends_after_health(what: str, found: str, said: str) -> None:
    assert played(found) == said, what


def test_beginning_and_end_are_two_rows_of_one_trouble() -> None:
    one = watch()
    assert not one.see({"store": "disk full"}, ticks=0, wall=WALL)
    [begin] = one.see({"store": "disk full"}, ticks=60_000, wall=WALL + 60_000)
    assert not one.see({}, ticks=90_000, wall=WALL + 90_000)
    [end] = one.see({}, ticks=120_000, wall=WALL + 120_000)
    assert begin.row is not None and end.row is not None
    assert (begin.row.event_type, begin.row.event_status) == (EventType.TROUBLE, EventStatus.ACTIVE)
    assert (end.row.event_status, end.row.follows) == (EventStatus.INACTIVE, begin.row.event_id)
    assert end.row.event_id != begin.row.event_id
    assert (begin.row.event_at, end.row.event_at) == (WALL, WALL + 90_000)  # when it was so, not when it was said
    assert begin.row.state == EventState.PENDING
    assert (begin.row.location_id, begin.row.recorder_id, begin.row.camera_id) == ("L", "R", "C")
    assert begin.row.details == {"trouble": "store", "why": "disk full"}
    assert end.seconds == 90.0
    assert end.memory == {"own/store": None}


def test_without_a_camera_id_it_stays_local() -> None:
    one = watch(LOCAL)
    one.see({"broker": "away"}, ticks=0, wall=WALL)
    [begin] = one.see({"broker": "away"}, ticks=60_000, wall=WALL)
    assert begin.row is None
    [shown] = one.open_troubles(ticks=60_000, wall=WALL)
    assert (shown["kind"], shown["local"], shown["why"], shown["since_at"]) == ("broker", True, "away", WALL - 60_000)


def test_a_restart_neither_repeats_nor_forgets() -> None:
    first = watch()
    first.see({"broker": "away"}, ticks=0, wall=WALL)
    [begin] = first.see({"broker": "away"}, ticks=60_000, wall=WALL)
    assert begin.row is not None
    remembered = {key: entry for key, entry in begin.memory.items() if entry is not None}
    again = watch(remembered=remembered, ticks=70_000)
    assert [trouble["kind"] for trouble in again.open_troubles(ticks=60_000, wall=WALL)] == ["broker"]
    assert not again.see({"broker": "away"}, ticks=200_000, wall=WALL)
    assert not again.see({}, ticks=210_000, wall=WALL)
    [end] = again.see({}, ticks=240_000, wall=WALL)
    assert end.row is not None and end.row.follows == begin.row.event_id


def test_an_end_is_reported_as_its_beginning_was_whatever_is_configured_by_then() -> None:
    first = watch()
    first.see({"broker": "away"}, ticks=0, wall=WALL)
    [begin] = first.see({"broker": "away"}, ticks=60_000, wall=WALL)
    remembered = {key: entry for key, entry in begin.memory.items() if entry is not None}
    later = watch(LOCAL, remembered=remembered, ticks=70_000)
    later.see({}, ticks=70_000, wall=WALL)
    [end] = later.see({}, ticks=100_000, wall=WALL)
    assert end.row is not None and end.row.camera_id == "C"


def test_memory_of_others_is_not_ours() -> None:
    assert (
        watch(remembered={"open/nvr/1": {"what": "open"}, "serial": {"n": 3}}).open_troubles(ticks=60_000, wall=WALL)
        == []
    )


def gap_seen(one: Watch, ticks: int, newest: int) -> list[Transition]:
    return one.see(findings(Facts(gap=(newest, "session lost")), ticks), ticks=ticks, wall=WALL + ticks)


def test_a_possible_gap_begins_at_once_and_closes_itself() -> None:
    one = watch()
    [begin] = gap_seen(one, 1_000, 1_000)
    assert begin.begins and begin.key == "gap"
    assert not gap_seen(one, 100_000, 100_000)  # another one belongs to it
    assert not gap_seen(one, 100_000 + GAP_MS - 1, 100_000)
    assert not gap_seen(one, 100_000 + GAP_MS, 100_000)
    [end] = gap_seen(one, 100_000 + GAP_MS + 30_000, 100_000)
    assert not end.begins
    assert not gap_seen(one, 900_000, 100_000)


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (Facts(), {}),
        (Facts(broker="b", store="s", disk="d"), {"broker": "b", "store": "s", "disk": "d"}),
        (Facts(cloud="c", credentials="k"), {"credentials": "k"}),
        (Facts(cloud="c", uploads="u"), {"cloud": "c"}),
        (Facts(uploads="u"), {"uploads": "u"}),
        (Facts(disk="d", media_disk="m"), {"disk": "d"}),
        (Facts(media_disk="m"), {"media_disk": "m"}),
        (Facts(recorders={"nvr": "r"}), {"recorder/nvr": "r"}),
        (Facts(recorders={"nvr": "r", "two": "t"}, reported=frozenset({"nvr"})), {"recorder/two": "t"}),
        (Facts(gap=(50_000, "g")), {"gap": "g"}),
        (Facts(gap=(100_000 - GAP_MS, "g")), {}),
    ],
)
def test_one_cause_is_one_finding(facts: Facts, found: dict[str, str]) -> None:
    assert findings(facts, 100_000) == found


def test_two_troubles_never_share_an_id_also_with_a_clock_that_begins_in_1970_each_time() -> None:
    ids = set()
    for life in range(3):
        one = watch(ticks=life * 1_000_000)
        for ticks in (0, 60_000, 70_000, 100_000):
            for each in one.see({"broker": "away"} if ticks <= 60_000 else {}, ticks=life * 1_000_000 + ticks, wall=0):
                assert each.row is not None
                ids.add(each.row.event_id)
    assert len(ids) == 6


@given(st.lists(st.tuples(st.integers(0, 60_000), st.sets(st.sampled_from(["broker", "store", "gap"])))))
def test_each_trouble_begins_and_ends_in_turn_and_at_most_once_in_a_minute_and_a_half(
    looks: list[tuple[int, set[str]]],
) -> None:
    one, ticks = watch(), 0
    last: dict[str, tuple[bool, int]] = {}
    for wait, bad in looks:
        ticks += wait
        for each in one.see(dict.fromkeys(bad, "bad"), ticks=ticks, wall=WALL - ticks):
            begins, at = last.get(each.key, (False, -1_000_000))
            assert each.begins is not begins
            if each.begins and each.key != "gap":
                assert ticks - at >= 60_000
            last[each.key] = (each.begins, ticks)
    assert {trouble["kind"] for trouble in one.open_troubles(ticks=60_000, wall=WALL)} == {
        key for key, (begins, _) in last.items() if begins
    }
