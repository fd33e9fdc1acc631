"""What ZoneMinder remembers of its events -> the messages that its event notification server would have sent.

Event and monitor go by their ids, as over MQTT; the time of an event, which MQTT never tells, is added. What has ended
is told twice, as it would have been. Told is what had an alarm frame (what is merely recorded is no alarm) and overlaps
the time that is asked for. What a hook has seen stands in the notes ("detected:person:97%"). Pure.

Follows ZoneMinder's documentation, "API"; `web/api/app/Controller/EventsController.php`, `web/api/app/Model/Event.php`
(from 1.36 on StartDateTime instead of StartTime, StartTimeSecs, and an EndTime that is invented while it runs); and
`sendOverMQTTBroker` of ZoneMinder/zmeventnotification. Times are local to the recorder: the question allows for every
zone on earth, and the answer is read by StartTimeSecs where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final

from gateway.sources import values
from gateway.sources.histories.shape import Page, Remembered, as_list, read_json
from gateway.sources.values import text

PAGE: Final = 100  # the most that its API gives at once
# What is recorded without a pause is cut into sections, of ten minutes unless set: the alarm in one may come late.
SECTION_SECONDS: Final = 600
_WESTERNMOST: Final = timedelta(hours=12)  # no local time is further behind UTC
_NOTES_LENGTH: Final = 1000
_LATEST: Final = 4_102_444_800  # 2100-01-01
_DETECTED: Final = re.compile(r"([^%:,]+):\s*(\d+(?:\.\d+)?%)")


@dataclass(frozen=True, slots=True)
class _Event:
    id: str
    monitor: str
    started: Decimal
    ended: Decimal | None
    said: str
    seen: tuple[tuple[str, str], ...]  # label, confidence


class ZoneMinder:
    def __init__(self, *, topic_prefix: str, zone: tzinfo) -> None:
        self._prefix = topic_prefix
        self._zone = zone

    def presence(self, topic: str, payload: bytes) -> bool | None:
        return None

    def questions(self, after: float, until: float) -> list[str]:
        return [_page(after, 1)]

    def read(self, body: bytes, after: float) -> Page:
        said = read_json(body)
        said = said if isinstance(said, dict) else {}
        rows = as_list(said.get("events"))
        events = [event for event in (self._event(row, after) for row in rows) if event is not None]
        from_at = Decimal(repr(after)) - SECTION_SECONDS
        told = [event for event in events if event.started >= from_at]
        items = [item for event in told if event.ended is None or event.ended >= after for item in self._items(event)]
        paging = said.get("pagination")
        paging = paging if isinstance(paging, dict) else {}
        # The newest come first: once one is too old, so are the rest.
        if paging.get("nextPage") is True and type(paging.get("page")) is int and len(told) == len(events):
            return Page(tuple(items), _page(after, paging["page"] + 1))
        return Page(tuple(items))

    def _event(self, row: Any, after: float) -> _Event | None:
        """None for what has no identity or no time: nobody could tell whether it was heard, or is of any use."""
        about = row.get("Event") if isinstance(row, dict) else None
        if not isinstance(about, dict):
            return None
        number, monitor = text(about.get("Id")), text(about.get("MonitorId"))
        local = _read_local(about.get("StartDateTime") or about.get("StartTime"))
        started = _read_seconds(about.get("StartTimeSecs"))
        if started is None and local is not None:
            started = self._in_utc(local, after)
        if number is None or monitor is None or not (number + monitor).isdecimal() or started is None:
            return None
        local_end = _read_local(about["EndDateTime"] if "EndDateTime" in about else about.get("EndTime"))
        ended: Decimal | None = None
        if local_end is not None:
            lasted = max(local_end - (local or local_end), timedelta())
            ended = started + Decimal(lasted // timedelta(seconds=1))
        notes = about.get("Notes")
        notes = notes[:_NOTES_LENGTH] if isinstance(notes, str) else ""
        return _Event(number, monitor, started, ended, notes or text(about.get("Cause")) or "", _seen(notes))

    def _in_utc(self, local: datetime, after: float) -> Decimal:
        """In the hour that the end of summer time repeats: the one that was asked for."""
        first, second = (local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return Decimal(int((second if first.timestamp() < after else first).timestamp()))

    def _items(self, event: _Event) -> list[Remembered]:
        topic = f"{self._prefix}/{event.monitor}"
        moments = [("event_start", event.started, event.seen)]
        if event.ended is not None:
            moments.append(("event_end", event.ended, ()))
        return [
            # What was seen may be noted later than the event is: then it is told once more.
            Remembered(event.id, event.started, (what, event.seen), topic, _message(event, what, at, seen))
            for what, at, seen in moments
        ]


def _page(after: float, number: int) -> str:
    asked = datetime.fromtimestamp(max(after - SECTION_SECONDS, 0), UTC) - _WESTERNMOST
    start = f"{asked:%Y-%m-%d%%20%H:%M:%S}"
    paging = f"sort=StartTime&direction=desc&limit={PAGE}&page={number}"
    return f"/api/events/index/StartTime%20%3E=:{start}/AlarmFrames%20%3E=:1.json?{paging}"


def _message(event: _Event, what: str, at: Decimal, seen: tuple[tuple[str, str], ...]) -> bytes:
    said: Mapping[str, Any] = {
        "monitor": event.monitor,
        "name": f"{'Ended:' if what == 'event_end' else ''}({event.id}) {event.said}",
        "state": "alarm",
        "eventid": event.id,
        "eventtype": what,
        "detection": [{"type": "object", "label": label, "confidence": sure} for label, sure in seen],
        "time": int(at),
    }
    return json.dumps(said, ensure_ascii=False).encode()


def _seen(notes: str) -> tuple[tuple[str, str], ...]:
    """`[s] detected:person:98% car:97% Motion: All` -> person, car."""
    _, _, listed = notes.partition("detected:")
    return tuple((label.strip(), sure) for label, sure in _DETECTED.findall(listed))


def _read_local(value: Any) -> datetime | None:
    try:
        read = datetime.fromisoformat(value).replace(tzinfo=None) if type(value) is str else None
    except ValueError:  # "0000-00-00 00:00:00" is how its database writes that there is none
        return None
    return read if read is not None and 1970 < read.year < 2100 else None


def _read_seconds(value: Any) -> Decimal | None:
    read = values.number(value)
    return Decimal(int(read)) if read is not None and 0 < read < _LATEST else None
