"""What an event is: the words and shapes that every other file speaks in.

A *message* is one MQTT publish as received. A *reading* is what the rules of its equipment's family say about it. An
*event* (`NewEvent`, later `Event`) is what the cloud shall hear, complete as resolved at receipt, so that a changed
configuration never changes or strands what is queued. *Media* are the pictures that belong to an event.

Wall times are integer milliseconds since 1970 UTC and end in `_at`. *Ticks* are integer milliseconds of the gateway's
own monotonic clock (`gateway.host.clock`), which never runs backwards, also not over a restart. Pure: no I/O here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol


class EventType(StrEnum):
    """CHeKT Event API v0.8, "Event Types"."""

    ALARM = "alarm"
    TROUBLE = "trouble"
    ARMING = "arming"


class EventStatus(StrEnum):
    """CHeKT Event API v0.8, request body. `inactive` is the end: a restore, or disarmed."""

    ACTIVE = "active"
    INACTIVE = "inactive"


class MediaKind(StrEnum):
    """CHeKT Event API v0.8, "Upload URLs"; the words are also the `type` of a callback."""

    SNAPSHOT = "snapshot"
    SHORT_MP4 = "short_mp4"
    EVENT_MP4 = "event_mp4"


NOTHING: Final[Mapping[str, Any]] = {}  # shared: never written to

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  in UTC throughout, written with a Z
_FIRST_MS: Final = -62_135_596_800_000  # year 1
_LAST_MS: Final = 253_402_300_799_999  # end of year 9999

# 2026-01-01: no message was received, and no answer given, before the gateway existed. An earlier clock is wrong.
EARLIEST_AT: Final = 1_767_225_600_000
CLOCKS_AGREE_MS: Final = 30_000  # two clocks that differ by less say the same (`gateway.host.clock`)
UNBOUNDED_MS: Final = 100 * 365 * 86_400_000  # an age of which nobody can say how much it is at most: a century

CONTENT_TYPES: Final = {
    MediaKind.SNAPSHOT: "image/jpeg",
    MediaKind.SHORT_MP4: "video/mp4",
    MediaKind.EVENT_MP4: "video/mp4",
}


class Clock(Protocol):
    """Both clocks of the gateway. `gateway.host.clock.SystemClock` in production, a fake in tests."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump."""

    def ticks_ms(self) -> int:
        """Milliseconds of the gateway's own clock; never jumps, never runs backwards."""


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT publish as received.

    `replay` is the broker session's judgement: a retained value that the broker sent because we subscribed, as against
    a live publish (MQTT 5.0, 3.3.1.3; some brokers forward live publishes with the retain flag set).
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    replay: bool
    received_at: int
    received_ticks: int

    def digest(self) -> bytes:
        """Topic and payload, for recognising a redelivery that carries neither id nor time."""
        topic = self.topic.encode("utf-8", "surrogatepass")
        return hashlib.sha256(len(topic).to_bytes(4, "big") + topic + self.payload).digest()


class Reading(NamedTuple):
    """What a family's rules say about one message, without memory.

    `camera` is the equipment's own name for the camera; None for what belongs to the recorder or the site.
    `source_id` is the equipment's id of the event, `started` its start time exactly as sent (part of the identity).
    `kind` is what was seen ("person"); hold-off folds only equal kinds. `opens` is False for a message that continues
    an event (an update): it opens one only when no beginning was seen. `state_key` joins beginning and end.
    `event_at` is None where the message has no time of its own.
    """

    source: str
    event_type: EventType
    event_status: EventStatus
    camera: str | None
    source_id: str | None
    started: str | None
    state_key: str
    kind: str
    event_at: int | None
    topic_kind: str  # "momentary", "alarm_state", "availability", "arming"
    opens: bool = True
    started_at: int | None = None  # the start as a time, where an end tells it too
    sent_at: int | None = None  # the equipment's clock when it sent this, where the message tells it
    pulse_seconds: float | None = None  # no end will come: it closes by itself so long after its last message
    quiet_seconds: float | None = None  # an end may come, but after this silence it is over in any case
    repeats: float | None = None  # an `active` so soon after the last message continues the alarm; None: however late
    clock: str | None = None  # whose clock told the times, where devices of a source have their own
    late: bool = False  # the equipment kept it while it could not send
    twin: str | None = None  # the same for what tells the same alarm on another topic
    of_device: bool = False  # of a trouble: where no camera of that name is configured, it is the recorder's
    away: bool = False  # of a trouble: the camera, or without one the recorder, is gone and cannot be heard
    make_media: Callable[[], dict[str, Any]] = dict
    make_details: Callable[[], dict[str, Any]] = dict

    @property
    def media(self) -> dict[str, Any]:
        """The recipe for pictures, as data. Made when asked for: most messages only continue an alarm."""
        return self.make_media()

    @property
    def details(self) -> dict[str, Any]:
        """What is kept with the event. Made when asked for."""
        return self.make_details()


class MediaWanted(NamedTuple):
    """One picture or clip that an event shall have. Times are wall milliseconds of the window to show.

    `recipe` says where it comes from in words that only `gateway.media` reads; it never holds a secret.
    """

    kind: MediaKind
    seq: int
    from_at: int
    to_at: int
    recipe: Mapping[str, Any]


class NewEvent(NamedTuple):
    """A row as `Store.add` takes it: complete, as resolved at receipt."""

    event_id: str
    state: str  # an EventState that is an entrance: pending, folded, unmapped, unreadable
    event_type: EventType
    event_status: EventStatus
    source: str
    camera: str | None  # the configured name
    source_camera: str | None  # the equipment's name
    location_id: str
    recorder_id: str | None
    camera_id: str | None
    signal: bool
    event_at: int
    received_at: int
    received_ticks: int
    source_id: str | None = None
    state_key: str = ""
    kind: str = ""
    follows: str | None = None  # event_id of the beginning that this restore ends
    reason: str | None = None
    topic: str = ""
    age_unknown_ms: int | None = None  # waited in the broker for at most this long; None: the age is known
    away_since_at: int | None = None  # that bound goes back to this wall time of an earlier process; None: it is exact
    details: Mapping[str, Any] = NOTHING
    media: tuple[MediaWanted, ...] = ()
    raw: bytes | None = None  # unreadable only: the first 64 KiB
    raw_bytes: int | None = None
    raw_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the outbox as the steps see it."""

    seq: int
    event_id: str
    state: str
    event_type: EventType
    event_status: EventStatus
    source: str
    camera: str | None
    source_camera: str | None
    location_id: str
    recorder_id: str | None
    camera_id: str | None
    signal: bool
    event_at: int
    received_at: int
    received_ticks: int
    source_id: str | None
    kind: str
    follows: str | None
    age_unknown_ms: int | None
    details: Mapping[str, Any]
    attempts: int  # including the one in hand
    unclear: int  # attempts that may have reached the cloud without an answer
    refusals: int  # 400-like answers
    first_refused_ticks: int | None
    faults: int  # exceptions of our own
    first_fault_ticks: int | None
    reason: str | None
    signal_anyway: bool = False  # a person wants the station to be signalled however late it is

    @property
    def lane(self) -> str:
        """What may have one request in flight at a time."""
        return lane_of(self.location_id, self.camera_id)


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """An event in hand: its row, and the bytes and key that were fixed in the commit of the claim."""

    event: Event
    body: bytes
    idempotency_key: str
    sent_at: int
    first_use: bool = False  # the bytes were composed in this very claim: no earlier attempt can have shown them


@dataclass(frozen=True, slots=True)
class MediaOnDisk:
    """What of an event's media exists as a file, or is still expected."""

    kind: MediaKind
    seq: int
    on_disk: bool


@dataclass(frozen=True, slots=True)
class Composed:
    """A request as it will go out, and what it announces. Fixed in the commit of a claim."""

    body: bytes
    idempotency_key: str
    announced: frozenset[tuple[MediaKind, int]]
    signal: bool = True  # what the bytes say of `should_signal_to_monitoring_center`


@dataclass(frozen=True, slots=True)
class Slot:
    """The cloud's permission to put one file. Both addresses are bearer secrets: never log them."""

    kind: MediaKind
    seq: int
    put_url: str
    callback_url: str
    deadline_ticks: int


@dataclass(frozen=True, slots=True)
class Media:
    """A row of the media table as `capture` and `uploads` see it, with what they need of its event."""

    id: int
    event_seq: int
    event_id: str
    event_state: str
    source: str
    camera: str | None
    kind: MediaKind
    seq: int
    state: str
    from_at: int
    to_at: int
    recipe: Mapping[str, Any]
    path: str | None  # relative to the media folder
    bytes: int | None
    sha256: str | None
    fetch_attempts: int
    fetch_until_ticks: int
    put_url: str | None
    callback_url: str | None
    deadline_ticks: int | None
    attempts: int
    received_ticks: int


def bound_age(received_at: int, since_at: int) -> int:
    """The longest that something received at the one wall time may have waited, if an earlier process heard the last
    message before it at the other. UNBOUNDED_MS where one of the two clocks was wrong."""
    if min(received_at, since_at) < EARLIEST_AT or since_at - received_at > CLOCKS_AGREE_MS:
        return UNBOUNDED_MS
    return received_at - since_at if since_at <= received_at else CLOCKS_AGREE_MS


def lane_of(location_id: str, camera_id: str | None) -> str:
    return f"{location_id}/{camera_id or ''}"


def derive_event_id(*parts: str) -> str:
    """One id for one occurrence, the same in every process and after every restart.

    32 characters of [0-9a-f]: half of SHA-256. chekt-api: `event_id` is unique, at most 64 of `[A-Za-z0-9_-]`
    (ASSUMED: Q5, the length and the scope of uniqueness are not documented).
    """
    written = ascii(parts)  # with quotes and escapes: no two lists of parts read alike, in no version of Unicode
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def iso_utc(wall_ms: int) -> str:
    """`2025-11-20T01:46:25.534Z`: the shape of the examples in CHeKT Event API v0.8 (ASSUMED: Q20, emit exactly it).

    Never raises: a clock may say anything, and what lies outside of the years 1 to 9999 becomes the nearest of them.
    """
    wall_ms = min(max(wall_ms, _FIRST_MS), _LAST_MS)
    moment = _EPOCH + timedelta(seconds=wall_ms // 1000)
    return f"{moment.isoformat()}.{wall_ms % 1000:03d}Z"
