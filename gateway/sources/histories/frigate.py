"""What a Frigate recorder remembers of its alarms -> the messages that it would have sent.

Camera, id and start are written digit for digit as the recorder writes them over MQTT. What has ended is told as an
end: the conditions raise its beginning where that was missed. Pure.

Follows `frigate/api/review.py`, `frigate/api/event.py` and the documentation, "HTTP API". Versions differ: reviews by
`after` are those that overlap that time in newer ones, those that began later in older ones (0.14, 0.15); without
`reviewed` the older ones leave out what a person has looked at, and with it the newer ones leave out all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

from gateway.sources.histories.shape import Page, Remembered, as_list, read_json

PAGE: Final = 500  # tracked objects in one answer; each may hold the path that it took
# Objects of one frame have the same start. A page ends within them, and the next one begins a little later.
_OVERLAP: Final = Decimal("0.001")


class Frigate:
    def __init__(self, *, dialect: str, topic_prefix: str) -> None:
        self._reviews = dialect == "reviews"
        self._topic = f"{topic_prefix}/{dialect}"
        self._available = f"{topic_prefix}/available"

    def presence(self, topic: str, payload: bytes) -> bool | None:
        return payload.strip() == b"online" if topic == self._available else None

    def questions(self, after: float, until: float) -> list[str]:
        if self._reviews:
            return [self._path(after=after), self._path(after=after, reviewed=1)]
        return [self._path(after=after)]

    def read(self, body: bytes, after: float) -> Page:
        rows = as_list(read_json(body))
        found = [row for row in map(_checked, rows) if row is not None]
        items = [item for item in map(self._item, found) if item is not None]
        if self._reviews or len(rows) < PAGE or not found:
            return Page(tuple(items))
        oldest = min(row["start_time"] for row in found)
        return Page(tuple(items), self._path(after=after, before=oldest + _OVERLAP))

    def _path(self, **limits: float | Decimal) -> str:
        if self._reviews:
            return "/api/review?" + urlencode({**limits, "severity": "alert"})
        return "/api/events?" + urlencode({**limits, "limit": PAGE, "include_thumbnails": 0})

    def _item(self, row: Mapping[str, Any]) -> Remembered | None:
        after = row if self._reviews else _as_tracked(row)
        if after is None:
            return None
        ended = row.get("end_time") is not None
        # An update, since a `new` is sent at the time that it names. `before` is not an alert: this may be all of it.
        message = {"type": "end" if ended else "update", "before": {"severity": None}, "after": after}
        return Remembered(row["id"], row["start_time"], ended, self._topic, _json(message).encode())


def _checked(row: Any) -> dict[str, Any] | None:
    """None for what has no identity: nobody could tell whether it was heard."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return None
    start = row.get("start_time")
    if type(start) is int:  # SQLite keeps a whole number without its point, MQTT has it with one
        start = Decimal(f"{start}.0")
    return {**row, "start_time": start} if isinstance(start, Decimal) else None


def _as_tracked(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of Frigate's table of events as its MQTT tells the same object. None: MQTT never tells it."""
    data = row.get("data")
    data = data if isinstance(data, dict) else {}
    if data.get("type", "object") != "object":
        return None  # a sound, or an event that somebody made over the API
    return {
        **row,
        "entered_zones": row.get("zones") or [],
        "false_positive": row.get("false_positive") or False,
        "top_score": data.get("top_score") if row.get("top_score") is None else row["top_score"],
        "score": data.get("score"),
        "stationary": False,
    }


def _json(value: Any) -> str:
    """Like json.dumps, with the digits of a Decimal as they are."""
    match value:
        case dict():
            return "{" + ",".join(f"{json.dumps(key)}:{_json(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_json, value)) + "]"
        case Decimal():
            return str(value)
        case _:
            return json.dumps(value)
