"""What ZoneMinder remembers, read as the messages that its event notification server would have sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import Message, NewEvent, Reading
from gateway.sources.conditions import decide
from gateway.sources.families import load_family
from gateway.sources.histories.shape import NotAList, Page, in_order
from gateway.sources.histories.zoneminder import PAGE, SECTION_SECONDS, ZoneMinder
from gateway.sources.memory import Memory
from gateway.sources.rules import CompiledSource
from tests.unit.test_conditions import AnyPlan

NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
BERLIN = ZoneInfo("Europe/Berlin")


def asking(zone: tzinfo = BERLIN) -> ZoneMinder:
    return ZoneMinder(topic_prefix="zoneminder", zone=zone)


def event(number: int = 5060, *, at: int = NOON, lasted: int | None = 20, zone: tzinfo = BERLIN, **changes: Any) -> Any:
    """As ZoneMinder 1.36 and later writes it: everything quoted, an EndTime that is made up while the event runs."""
    start = f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S}"
    end = None if lasted is None else f"{datetime.fromtimestamp(at + lasted, zone):%Y-%m-%d %H:%M:%S}"
    row = {
        "Id": str(number),
        "MonitorId": "5",
        "StorageId": "1",
        "Name": f"Event- {number}",
        "Cause": "Motion",
        "StartDateTime": start,
        "EndDateTime": end,
        "Width": "1920",
        "Length": "20.10",
        "Frames": "120",
        "AlarmFrames": "31",
        "MaxScore": "45",
        "Notes": "Motion: All",
        "StartTimeSecs": str(at),
        "EndTimeSecs": str(at + 99),
        "StartTime": start,
        "EndTime": "2026-03-01 23:59:59",
        "MaxScoreFrameId": "41",
        "FileSystemPath": f"/var/cache/zoneminder/events/5/2026-03-01/{number}",
    }
    return {"Event": {key: value for key, value in {**row, **changes}.items() if value is not ...}}


def old_event(number: int = 5060, **changes: Any) -> Any:
    """As 1.34 and earlier write it: StartTime and EndTime in local time, and nothing else."""
    row = event(number, **changes)["Event"]
    old = {"StartTime": row["StartDateTime"], "EndTime": row["EndDateTime"]}
    gone = ("StartDateTime", "EndDateTime", "StartTimeSecs", "EndTimeSecs")
    return {"Event": {**{key: value for key, value in row.items() if key not in gone}, **old}}


def answer(*rows: Any, page: int = 1, more: bool = False) -> bytes:
    paging = {"page": page, "current": len(rows), "count": 999, "prevPage": page > 1, "nextPage": more}
    return json.dumps({"events": rows, "pagination": {**paging, "pageCount": 9, "limit": PAGE}}).encode()


def read(*rows: Any, after: float = NOON - 60, zone: tzinfo = BERLIN, **paging: Any) -> Page:
    return asking(zone).read(answer(*rows, **paging), after)


def compiled(**settings: Any) -> CompiledSource:
    return load_family("zoneminder").compile_source("zm", Source(family="zoneminder", **settings), BERLIN)


def readings(page: Page, source: CompiledSource | None = None) -> list[Any]:
    source = source or compiled()
    found = []
    for item in page.items:
        assert source.covers(item.topic)
        said = source.read(Message(item.topic, item.payload, 0, False, False, False, 0, 0))
        found.append(said[0] if isinstance(said, list) else said)
    return found


@pytest.mark.parametrize("made", [event, old_event])
def test_an_event_is_the_same_alarm_as_over_mqtt(made: Any) -> None:
    """Identity: monitor and event id, and no start, because MQTT tells none."""
    live = {"monitor": "5", "name": "Garage:(5060) Motion All", "state": "alarm", "eventid": "5060", "detection": []}
    message = Message(
        "zoneminder/5", json.dumps({**live, "eventtype": "event_start"}).encode(), 0, False, False, False, 0, 0
    )
    said = compiled().read(message)
    assert isinstance(said, list)
    [heard] = said
    began, ended = readings(read(made()))
    assert isinstance(began, Reading)
    for name in ("camera", "source_id", "started", "started_at", "state_key", "kind", "event_status", "opens"):
        assert getattr(began, name) == getattr(heard, name), name
    assert (began.event_at, ended.event_at) == (NOON * 1000, (NOON + 20) * 1000)
    assert (ended.event_status, ended.state_key) == ("inactive", heard.state_key)
    assert began.pulse_seconds is None, "its end will be asked for"
    assert began.sent_at is None, "it is not sent now"


def test_what_runs_is_told_without_an_end() -> None:
    """EndTime is then made up by ZoneMinder (now, or start plus length); EndDateTime is null."""
    [item] = read(event(lasted=None)).items
    assert readings(Page((item,)))[0].event_status == "active"
    assert len(read(old_event(lasted=None)).items) == 1
    later = read(event()).items
    assert item.key == later[0].key, "told once"
    assert later[0].key != later[1].key


@pytest.mark.parametrize("key", ["Id", "MonitorId", "StartTimeSecs"])
def test_numbers_of_newer_php_are_the_same(key: str) -> None:
    row = event()
    row["Event"][key] = int(row["Event"][key])
    assert [item.payload for item in read(row).items] == [item.payload for item in read(event()).items]


@pytest.mark.parametrize(
    ("notes", "seen"),
    [
        ("[s] detected:person:98% car:97% Motion: All", ["person", "car"]),
        ("detected:person:97%,dining table:85% Motion: All, Zone 2", ["person", "dining table"]),
        ("detected:bruce:99.5%", ["bruce"]),
        ("Motion: All", []),
        ("", []),
        (None, []),
        ("detected:", []),
        ("x" * 100_000, []),
    ],
)
def test_what_a_hook_noted_was_seen(notes: str | None, seen: list[str]) -> None:
    began, ended = readings(read(event(Notes=notes)))
    assert began.kind == ("+".join(sorted(seen)) or "motion")
    assert ended.event_status == "inactive"


def test_labels_leave_out_what_the_hook_did_not_see() -> None:
    source = compiled(labels=("person",))
    wanted, unwanted = read(event(1, Notes="detected:person:98%")), read(event(2, Notes="Motion: All"))
    assert [one.event_status for one in readings(wanted, source)] == ["active", "inactive"]
    began, ended = readings(unwanted, source)
    assert not isinstance(began, Reading)
    assert not ended.opens, "its end raises nothing"


def test_what_the_hook_sees_later_is_told_once_more() -> None:
    """An event is asked for again a minute later; by then the hook has written its notes."""
    before, after = read(event()), read(event(Notes="detected:person:98%"))
    assert not {item.key for item in before.items} & {item.key for item in after.items}


def test_the_question_finds_it_in_every_time_zone() -> None:
    """The filter compares local times, in the zone of the recorder, whatever is configured here."""
    [question] = asking().questions(NOON, NOON + 60)
    path = unquote(question)
    assert path == (
        "/api/events/index/StartTime >=:2026-02-28 23:50:00/AlarmFrames >=:1.json"
        "?sort=StartTime&direction=desc&limit=100&page=1"
    )
    for zone in ("Etc/GMT+12", "Pacific/Kiritimati", "Asia/Kathmandu"):
        assert f"{datetime.fromtimestamp(NOON, ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}" >= "2026-02-28 23:50:00"


def test_what_lies_before_is_left_out_and_what_reaches_into_the_time_is_not() -> None:
    """Continuous recording is cut into sections of ten minutes: the alarm in one comes after its start."""
    after = NOON - 60
    begun = after - SECTION_SECONDS
    rows = [
        event(1, at=begun, lasted=SECTION_SECONDS),
        event(2, at=begun - 1, lasted=None),
        event(3, at=begun, lasted=9),
    ]
    assert {item.id for item in read(*rows, after=after).items} == {"1"}


def test_pages_go_on_until_one_is_too_old() -> None:
    first = [event(number, at=NOON + 200 - number) for number in range(PAGE)]
    page = read(*first, more=True)
    assert page.earlier is not None
    assert page.earlier.endswith("limit=100&page=2")
    assert page.earlier.removesuffix("2") == asking().questions(NOON - 60, NOON)[0].removesuffix("1")
    assert read(*first, more=False).earlier is None
    assert read(event(1), event(2, at=NOON - 9_999), page=2, more=True).earlier is None
    assert read(event(1), page=2, more=True).earlier is not None


def test_the_hour_that_comes_twice_is_the_one_that_was_asked_for() -> None:
    """Old versions tell local time only. 2026-10-25 02:30 in Berlin is 00:30 and 01:30 UTC."""
    first, second = (int(datetime(2026, 10, 25, hour, 30, tzinfo=UTC).timestamp()) for hour in (0, 1))
    for at in (first, second):
        [began, _] = readings(read(old_event(at=at), after=at - 60))
        assert began.event_at == at * 1000


def test_a_wrong_zone_does_not_matter_where_the_seconds_are_told() -> None:
    began, ended = readings(read(event(zone=UTC), zone=ZoneInfo("Pacific/Auckland")))
    assert (began.event_at, ended.event_at) == (NOON * 1000, (NOON + 20) * 1000)


def test_events_come_in_order_and_each_once() -> None:
    rows = [event(3, at=NOON + 9), event(2, at=NOON + 5, lasted=None), event(1), event(1)]
    told = [(item.id, json.loads(item.payload)["eventtype"]) for item in in_order(read(*rows).items)]
    assert told == [
        ("1", "event_start"),
        ("1", "event_end"),
        ("2", "event_start"),
        ("3", "event_start"),
        ("3", "event_end"),
    ]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Apache</html>", b"[]", b'{"events": {}}', b'{"success": false, "data": {}}', b'{"events"', b"\xff"],
)
def test_what_is_no_list_is_said(body: bytes) -> None:
    with pytest.raises(NotAList):
        asking().read(body, NOON)


@pytest.mark.parametrize(
    "row",
    [
        1,
        None,
        {},
        {"Event": None},
        event(Id=None),
        event(Id="5060/../7"),
        event(MonitorId="5/#"),
        event(MonitorId=True),
        event(StartTimeSecs=..., StartDateTime="0000-00-00 00:00:00"),
        event(StartTimeSecs="-1", StartDateTime=7),
        event(StartTimeSecs="9" * 30, StartDateTime="tomorrow"),
    ],
)
def test_rows_without_identity_or_time_are_passed_over(row: object) -> None:
    assert [item.id for item in read(row, event(7, lasted=None)).items] == ["7"]


def test_an_end_before_its_start_is_none_but_its_start() -> None:
    """The clock was set back, or summer time ended meanwhile."""
    _, ended = readings(read(event(lasted=-3000)))
    assert ended.event_at == NOON * 1000


@pytest.mark.parametrize("is_open", [True, False])
def test_what_was_heard_before_midnight_and_asked_for_after_it_is_one_alarm(is_open: bool) -> None:
    """Without a start, an id is another event in the next `dedupe_window`; what is remembered of it says otherwise."""
    site = _Site(at=(NOON + 12 * 3600 - 10) * 1000)
    started = site.at // 1000
    live = {"monitor": "5", "eventid": "5060", "state": "alarm", "detection": []}
    site.hear("zoneminder/5", json.dumps({**live, "eventtype": "event_start"}).encode())
    if not is_open:
        site.hear("zoneminder/5", json.dumps({**live, "eventtype": "event_end"}).encode())
    site.at += 30_000
    for item in read(event(at=started, lasted=5), after=started - 60).items:
        site.hear(item.topic, item.payload, waited_ms=60_000)
    assert [(row.event_status, row.source_id) for row in site.rows] == [("active", "5060"), ("inactive", "5060")]
    for item in read(event(6000, at=started + 7, lasted=5), after=started - 60).items:
        site.hear(item.topic, item.payload, waited_ms=60_000)
    assert [(row.event_status, row.event_at // 1000 - started) for row in site.rows[2:]] == [
        ("active", 7),
        ("inactive", 12),
    ]


@dataclass
class _Site:
    at: int
    memory: Memory = field(default_factory=Memory)
    rows: list[NewEvent] = field(default_factory=list)

    def hear(self, topic: str, payload: bytes, waited_ms: int | None = None) -> None:
        message = Message(topic, payload, 0, False, False, False, self.at, self.at)
        said = compiled().read(message)
        assert isinstance(said, list)
        [reading] = said
        decision = decide(reading, message, AnyPlan(), self.memory, location_id="L", waited_ms=waited_ms)
        self.memory.apply(decision.memory)
        self.rows += decision.events


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(event()["Event"])), _VALUES, max_size=5), _VALUES)
def test_nothing_that_an_answer_may_hold_stops_the_others(changes: dict[str, Any], paging: Any) -> None:
    row = {"Event": {**event(1)["Event"], **changes}}
    body = json.dumps({"events": [row, event(2, lasted=None)], "pagination": paging}).encode()
    items = asking().read(body, float(NOON - 60)).items
    assert "2" in {item.id for item in items}
    assert all(type(item.started) is Decimal for item in items)
