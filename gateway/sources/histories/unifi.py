"""What a UniFi Protect console remembers of its smart detections -> the messages of pakerfeldt/unifi-protect-mqtt.

Camera, id and start are the console's own in both. What has ended is told as an end: the conditions raise its beginning
where that was missed. The bridge speaks of persons and animals only, so that nothing else is told here. Pure.

Follows the bridge, `internal/protect/client.go` (which asks `/proxy/protect/api/events` itself when it starts) and
`types.go`; `hjdhjd/unifi-protect`, and `uilibs/uiprotect`, `get_events_raw`: times in milliseconds, `end` null while
it lasts, `orderDirection`, `limit`, `types`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

from gateway.sources.histories.shape import Page, Remembered, as_list, read_json
from gateway.sources.values import number, text

PAGE: Final = 100
SEEN: Final = ("person", "animal")
_LATEST_MS: Final = 4_102_444_800_000  # 2100-01-01
_EVENTS: Final = ("smartDetectZone", "smartDetectLine")


class UnifiProtect:
    def __init__(self, *, topic_prefix: str) -> None:
        self._prefix = topic_prefix

    def presence(self, topic: str, payload: bytes) -> bool | None:
        return None

    def questions(self, after: float, until: float) -> list[str]:
        return [_page(what, after, round(until * 1000)) for what in _EVENTS]

    def read(self, body: bytes, after: float) -> Page:
        rows = as_list(read_json(body))
        found = [row for row in map(_checked, rows) if row is not None]
        items = tuple(item for row in found for item in self._items(row))
        if len(rows) < PAGE or not found:
            return Page(items)
        # What began in the same millisecond may be on both pages.
        return Page(items, _page(found[0]["type"], after, min(row["start"] for row in found) + 1))

    def _items(self, row: Mapping[str, Any]) -> list[Remembered]:
        seen = row["smartDetectTypes"]
        started = Decimal(row["start"]) / 1000
        camera = row["camera"]
        return [
            # The last level is the camera's name over MQTT, which this list does not tell; nothing is read from it.
            Remembered(
                f"{row['id']}/{what}",
                started,
                row["end"] > 0,
                f"{self._prefix}/events/{what}/{camera}",
                _message(row, what),
            )
            for what in SEEN
            if what in seen
        ]


def _page(what: str, after: float, until_ms: int) -> str:
    asked = {"start": int(after * 1000), "end": until_ms, "types": what, "orderDirection": "DESC", "limit": PAGE}
    return "/proxy/protect/api/events?" + urlencode(asked)


def _checked(row: Any) -> dict[str, Any] | None:
    """None for what has no identity: nobody could tell whether it was heard."""
    if not isinstance(row, dict):
        return None
    name, camera, start = text(row.get("id")), text(row.get("camera")), row.get("start")
    if name is None or camera is None or not camera.isalnum() or type(start) is not int:
        return None
    if row.get("type") not in _EVENTS or not 0 < start < _LATEST_MS:
        return None
    end, seen = row.get("end"), row.get("smartDetectTypes")
    return {
        "id": name,
        "camera": camera,
        "start": start,
        "type": row["type"],
        "end": end if type(end) is int else 0,
        "score": number(row.get("score")),
        "smartDetectTypes": seen if isinstance(seen, list) else [],
    }


def _message(row: Mapping[str, Any], what: str) -> bytes:
    said = {
        "event_id": row["id"],
        "type": what,
        "camera_id": row["camera"],
        "score": row["score"] if type(row["score"]) is int else None,
        "start": row["start"],
        "end": row["end"],
    }
    return json.dumps(said).encode()
