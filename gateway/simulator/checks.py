"""What a body of `POST /partner/v1/events` must be: every field of CHeKT Event API v0.8, "Request Body Parameters".

Where the document gives no rule, the shape of its example is the rule (times, ids). Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_SNAPSHOTS: Final = 10


class BadEvent(Exception):
    """The body is not acceptable; the text says why."""


def _constant(expected: str) -> Callable[[Any], str | None]:
    return lambda value: None if value == expected else f"must be {expected!r}"


def _one_of(*words: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, str) and value in words else f"must be one of {', '.join(words)}"


def _name(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not value or value != value.strip() or len(value) > 128 or not value.isprintable():
        return "must be a name of 1 to 128 printable characters"
    return None


def _event_id(value: Any) -> str | None:
    ok = isinstance(value, str) and _EVENT_ID.fullmatch(value)
    return None if ok else "must be 1 to 64 characters of A-Z a-z 0-9 _ -"


def _time(value: Any) -> str | None:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return "must be a time such as 2025-11-20T01:46:25.534Z"
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return "is no date"
    return None


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _count(value: Any) -> str | None:
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SNAPSHOTS
    return None if ok else f"must be a whole number from 0 to {MAX_SNAPSHOTS}"


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


FIELDS: Final[Mapping[str, Callable[[Any], str | None]]] = {
    "version": _constant("1.0"),
    "location_id": _name,
    "recorder_id": _name,
    "camera_id": _name,
    "event_id": _event_id,
    "event_type": _one_of("alarm", "trouble", "arming"),
    "event_status": _one_of("active", "inactive"),
    "event_time": _time,
    "sent_at": _time,
    "should_signal_to_monitoring_center": _flag,
    "upload_snapshot_count": _count,
    "upload_short_mp4": _flag,
    "upload_event_mp4": _flag,
    "payload": _object,
}
OPTIONAL: Final = frozenset({"recorder_id"})


def read_event(body: bytes, *, strict: bool) -> dict[str, Any]:
    """The request as a dict. Raises BadEvent, naming every field that is wrong."""
    try:
        said = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError as problem:
        raise BadEvent(f"not JSON: {problem}") from None
    if not isinstance(said, dict):
        raise BadEvent("not a JSON object")
    faults = [f"{name}: is missing" for name in FIELDS if name not in said and name not in OPTIONAL]
    if strict:
        faults += [f"{name}: is unknown" for name in said if name not in FIELDS]
    for name, judge in FIELDS.items():
        if name in said and (fault := judge(said[name])):
            faults.append(f"{name}: {fault}")
    if faults:
        raise BadEvent("; ".join(faults))
    return said


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
