"""From a reading to the rows that the outbox takes: identity, pictures wanted, restores. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from gateway.model import (
    EARLIEST_AT,
    NOTHING,
    EventStatus,
    EventType,
    MediaKind,
    MediaWanted,
    Message,
    NewEvent,
    Reading,
    derive_event_id,
)
from gateway.sources.memory import Changes, Entry
from gateway.sources.table_names import free_table
from gateway.sources.times import Judged
from gateway.states import EventState

# Between the snapshots of one alarm: near enough to show the same person, far enough to show another picture.
SNAPSHOT_STEP_MS: Final = 2000
_LIFE_MS: Final = 60_000  # wall time less ticks stays the same in one life, and differs from the one of any other
# A beginning this far in the future was dated by a clock that was wrong.
_AHEAD_MS: Final = 5 * 60_000


class Plan(Protocol):
    """What is configured for a camera (`gateway.config.ResolvedCamera`), or for what has none (`plans.SitePlan`)."""

    @property
    def table(self) -> str | None: ...
    @property
    def camera_id(self) -> str | None: ...
    @property
    def recorder_id(self) -> str | None: ...
    @property
    def signal(self) -> bool: ...
    @property
    def snapshots(self) -> int: ...
    @property
    def short_mp4(self) -> bool: ...
    @property
    def event_mp4(self) -> bool: ...
    @property
    def hold_off(self) -> float | None: ...
    @property
    def send_restore(self) -> bool: ...
    @property
    def short_before(self) -> float: ...
    @property
    def short_after(self) -> float: ...
    @property
    def clip_before(self) -> float: ...
    @property
    def clip_after(self) -> float: ...
    @property
    def max_open(self) -> float: ...
    @property
    def trouble_delay(self) -> float: ...
    @property
    def dedupe_window(self) -> float: ...


class Decision(NamedTuple):
    """What one message, or the passing of time, comes to: rows and changes of memory, for one commit."""

    outcome: str  # stored, closing, ignored, duplicate, unmapped
    reason: str | None = None
    events: tuple[NewEvent, ...] = ()
    memory: Mapping[str, Entry | None] = NOTHING


@lru_cache(maxsize=256)  # of settings, a few for each camera
def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def identify(
    reading: Reading, message: Message, window_ms: int, memory: Mapping[str, Entry], location_id: str
) -> tuple[str, Changes]:
    """The event id of a beginning, and what has to be remembered for it to be the only one.

    The equipment's id with its start as sent says it all. An id alone counts for `dedupe_window`. A time alone
    belongs to what it is the time of. With neither, every occurrence is its own: equal bytes are not the same alarm.
    """
    source_id, started = reading.source_id, reading.started
    parts = (location_id, reading.source, reading.camera or "")
    if source_id is not None and started is not None:
        return derive_event_id(*parts, "id", source_id, started), {}
    if reading.source_id is not None:
        window = str(message.received_at // max(window_ms, 1))
        if message.received_at < EARLIEST_AT:
            # A clock that begins anew in 1970 with each power cut, like the ids of some equipment: two lives of the
            # gateway must not be one window, or the first alarm after the cut would pass for one from before it.
            window += f" {(message.received_at - message.received_ticks) // _LIFE_MS}"
        return derive_event_id(*parts, "id in", reading.source_id, window), {}
    if reading.started is not None:
        return derive_event_id(*parts, "time", reading.state_key, reading.started), {}
    serial = memory.get("serial", {"n": 0})["n"] + 1
    receipt = (str(message.received_at), message.digest().hex(), str(serial))
    return derive_event_id(*parts, "receipt", reading.state_key, *receipt), {"serial": {"what": "serial", "n": serial}}


def restore_id(begin: str) -> str:
    """An end has its own id, and there is one end to a beginning."""
    return derive_event_id(begin, EventStatus.INACTIVE)


def unmapped_reason(reading: Reading, tables: Collection[str]) -> str:
    """With the stanza to add. `tables`: the cameras' tables that there are already."""
    camera = reading.camera or ""
    table = free_table(camera, tables, otherwise=f"{reading.source}_{camera}")
    stanza = f'[cameras.{table}]\ncamera_id = "…"'
    if table != camera:
        stanza += f"\nname = {json.dumps(camera, ensure_ascii=False)}"
    stanza += f'\nsource = "{reading.source}"'
    return f"no camera of the configuration is called {reading.camera!r}; to receive its alarms, add\n{stanza}"


def begin_row(
    reading: Reading,
    message: Message,
    plan: Plan | None,
    judged: Judged,
    *,
    event_id: str,
    state: EventState,
    reason: str | None,
    location_id: str,
    details: Mapping[str, Any],
    clock_offset: int | None,
) -> NewEvent:
    wanted: tuple[MediaWanted, ...] = ()
    if plan is not None and state is EventState.PENDING and reading.event_type is EventType.ALARM:
        wanted = media_wanted(plan, reading.media, judged.event_at, clock_offset)
    return NewEvent(  # in the order of the fields, as in `CompiledRule`
        event_id,
        state,
        reading.event_type,
        EventStatus.ACTIVE,
        reading.source,
        None if plan is None else plan.table,
        reading.camera,
        location_id,
        None if plan is None else plan.recorder_id,
        None if plan is None else plan.camera_id,
        True if plan is None else plan.signal,
        judged.event_at,
        message.received_at,
        message.received_ticks,
        reading.source_id,
        reading.state_key,
        reading.kind,
        None,  # follows: it is a beginning
        reason,
        message.topic,
        judged.age_unknown_ms,
        None,  # away_since_at
        details,
        wanted,
    )


def media_wanted(
    plan: Plan, recipe: Mapping[str, Any], event_at: int, clock_offset: int | None
) -> tuple[MediaWanted, ...]:
    if not recipe:
        return ()
    if clock_offset:
        # The equipment's clock is known to be wrong by so much: where pictures go by time, its time is ours less this.
        recipe = {**recipe, "clock_offset_ms": clock_offset}
    moments = range(event_at, event_at + plan.snapshots * SNAPSHOT_STEP_MS, SNAPSHOT_STEP_MS)
    wanted = [MediaWanted(MediaKind.SNAPSHOT, seq, at, at, recipe) for seq, at in enumerate(moments)]
    if plan.short_mp4:
        window = event_at - milliseconds(plan.short_before), event_at + milliseconds(plan.short_after)
        wanted.append(MediaWanted(MediaKind.SHORT_MP4, 0, *window, recipe))
    if plan.event_mp4:
        window = event_at - milliseconds(plan.clip_before), event_at + milliseconds(plan.clip_after)
        wanted.append(MediaWanted(MediaKind.EVENT_MP4, 0, *window, recipe))
    return tuple(wanted)


def remembered(row: NewEvent) -> dict[str, Any]:
    """What an end needs of its beginning: complete as resolved at receipt, whatever is configured by then."""
    return {
        "event_id": row.event_id,
        "state": str(row.state),
        "type": str(row.event_type),
        "source": row.source,
        "camera": row.camera,
        "source_camera": row.source_camera,
        "recorder_id": row.recorder_id,
        "camera_id": row.camera_id,
        "signal": row.signal,
        "at": row.event_at,
        "id": row.source_id,
        "state_key": row.state_key,
        "kind": row.kind,
        "topic": row.topic,
    }


def restore_row(
    begin: Entry,
    *,
    location_id: str,
    event_at: int,
    received_at: int,
    received_ticks: int,
    details: Mapping[str, Any],
    age_unknown_ms: int | None = None,
) -> NewEvent:
    return NewEvent(
        event_id=restore_id(begin["event_id"]),
        state=EventState.PENDING,
        event_type=EventType(begin["type"]),
        event_status=EventStatus.INACTIVE,
        source=begin["source"],
        camera=begin["camera"],
        source_camera=begin["source_camera"],
        location_id=location_id,
        recorder_id=begin["recorder_id"],
        camera_id=begin["camera_id"],
        signal=begin["signal"],
        event_at=event_at if begin["at"] > received_at + _AHEAD_MS else max(event_at, begin["at"]),
        received_at=received_at,
        received_ticks=received_ticks,
        source_id=begin["id"],
        state_key=begin["state_key"],
        kind=begin["kind"],
        follows=begin["event_id"],
        topic=begin["topic"],
        age_unknown_ms=age_unknown_ms,
        details=details,
    )
