"""Between rows and shapes: how the tables and `gateway.model` say the same thing, and small helpers for statements."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from gateway.model import Composed, Event, EventStatus, EventType, Media, MediaKind, MediaOnDisk, NewEvent

NEVER: Final = 1 << 62  # ticks that do not come; far from the end of 64 bits, so that sums stay inside
MAX_ROWS: Final = 256  # in one statement: with up to 40 values each below SQLite's 32,766 (SQLITE_MAX_VARIABLE_NUMBER)

Compose = Callable[[Event, Sequence[MediaOnDisk], int], Composed]  # pure: event, its media, sent_at

# In the order of the fields of Event.
EVENT_COLUMNS: Final = (
    "event.seq, event.event_id, event.state, event.event_type, event.event_status, event.source, event.camera, "
    "event.source_camera, event.location_id, event.recorder_id, event.camera_id, event.signal, event.event_at, "
    "event.received_at, event.received_ticks, event.source_id, event.kind, event.follows, event.age_unknown_ms, "
    "event.details, event.attempts, event.unclear, event.refusals, event.first_refused_ticks, event.faults, "
    "event.first_fault_ticks, event.reason, event.signal_anyway"
)

# In the order of the fields of Media; from media JOIN event.
MEDIA_COLUMNS: Final = (
    "media.id, media.event_seq, event.event_id, event.state, event.source, event.camera, media.kind, "
    "media.seq, media.state, "
    "media.from_at, media.to_at, media.recipe, media.path, media.bytes, media.sha256, media.fetch_attempts, "
    "media.fetch_until_ticks, media.put_url, media.callback_url, media.deadline_ticks, "
    "media.attempts, event.received_ticks"
)

Row = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IntakeGroup:
    """What one round of `intake` wants to be remembered, all of it or nothing."""

    events: tuple[NewEvent, ...] = ()  # those whose event_id is known are skipped and counted
    counts: dict[str, int] = field(
        default_factory=dict
    )  # received, closing, ignored, duplicate: messages without a row
    memory: dict[str, str | None] = field(default_factory=dict)  # key -> JSON text; None deletes
    digests: tuple[bytes, ...] = ()  # of messages of this group that the broker has not been told of
    seen_cameras: dict[str, int] = field(default_factory=dict)  # camera or source -> wall ms of its last message
    # Events that are not the first of a message (its second, a supervision's, a timer's): no message ends in them.
    uncounted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Added:
    new: frozenset[str]
    duplicates: frozenset[str]


@dataclass(frozen=True, slots=True)
class Mapped:
    """The camera that a person has configured since an unmapped event came."""

    camera: str
    camera_id: str
    recorder_id: str | None
    signal: bool


@dataclass(frozen=True, slots=True)
class Revived:
    """What became of the events that a person wanted back."""

    revived: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()  # of these: will not signal the station, being older than 15 minutes
    unchanged: tuple[str, ...] = ()  # of these: go out with the same bytes, since an attempt was unclear
    unmapped: tuple[str, ...] = ()  # their camera is still not configured
    unknown: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # event_id -> its state, from which nothing comes back

    def plus(self, more: Revived) -> Revived:
        return Revived(
            self.revived + more.revived,
            self.silent + more.silent,
            self.unchanged + more.unchanged,
            self.unmapped + more.unmapped,
            self.unknown + more.unknown,
            self.refused | more.refused,
        )

    def as_answer(self) -> dict[str, Any]:
        """As `retry` prints it, and as the control channel carries it."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def event_of(row: Row) -> Event:
    values = list(row[:28])
    values[3], values[4] = EventType(values[3]), EventStatus(values[4])
    values[11], values[19], values[27] = bool(values[11]), json.loads(values[19]), bool(values[27])
    return Event(*values)


def media_of(row: Row) -> Media:
    values = list(row)
    values[6], values[11] = MediaKind(values[6]), json.loads(values[11])
    return Media(*values)


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def chunks(values: Sequence[T], largest: int = MAX_ROWS) -> Iterator[Sequence[T]]:
    """Slices of 256, 128, … 1: few different statements, so that SQLite finds them prepared."""
    start = 0
    while start < len(values):
        size = largest
        while size > len(values) - start:
            size //= 2
        yield values[start : start + size]
        start += size


def flat(rows: Iterable[Sequence[Any]]) -> list[Any]:
    return [value for row in rows for value in row]


def marks(rows: int, columns: int) -> str:
    """`(?,?),(?,?)`"""
    return ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


def places(values: Collection[Any]) -> str:
    """`?,?,?`"""
    return ",".join("?" * len(values))
