"""Troubles: availability of recorders and cameras -> events, with a delay, and with a restore for every trouble sent.

A trouble is sent after it has lasted for `trouble_delay` without a word to the contrary: bridges say `offline` at each
start, cameras reboot. While a recorder itself is away, the troubles of its cameras are not news; they wait until it is
back and has had the delay to speak for them. A trouble that was sent is restored when the equipment says so, never by
a timer, whatever `send_restore` says; only what never says it (a tampering that is told once, a video loss that is
repeated while it lasts) is over after a silence. Without a camera_id to report it under, a trouble stays local:
remembered, for `status` to show. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.model import EventStatus, EventType, Message, NewEvent, Reading
from gateway.sources.memory import Changes, Entry, Memory
from gateway.sources.rows import Decision, Plan, begin_row, identify, milliseconds, remembered, restore_row
from gateway.sources.times import Judged
from gateway.states import EventState


def trouble_key(reading: Reading) -> str:
    return f"trouble/{reading.source}/{reading.state_key}"


def silence_key(source: str, camera: str | None) -> str:
    """Of the silence of a camera, by its configured name, or of a whole source (`gateway.sources.silence`)."""
    return f"silence/source/{source}" if camera is None else f"silence/camera/{camera}"


def decide_trouble(
    reading: Reading,
    message: Message,
    plan: Plan | None,
    memory: Mapping[str, Entry],
    judged: Judged,
    *,
    location_id: str,
) -> Decision:
    key = trouble_key(reading)
    entry = memory.get(key)
    if reading.event_status is EventStatus.INACTIVE:
        if entry is None:
            return Decision("ignored", "no trouble is open")
        return _good(key, entry, message, memory, judged, location_id)
    if entry is not None:
        return Decision("ignored", "this trouble is known", memory=_heard_again(key, entry, message))
    if not reading.opens:
        return Decision("ignored", "no trouble is open")
    if plan is None:
        return Decision("ignored", f"camera {reading.camera!r} is not configured: its troubles are not reported")
    event_id, changes = identify(reading, message, milliseconds(plan.dedupe_window), memory, location_id)
    row = begin_row(
        reading,
        message,
        plan,
        judged,
        event_id=event_id,
        state=EventState.PENDING,
        reason=None,
        location_id=location_id,
        details=reading.details,
        clock_offset=None,
    )
    # What is told once and never taken back cannot be waited for.
    delay = 0 if reading.pulse_seconds is not None else milliseconds(plan.trouble_delay)
    silence = reading.pulse_seconds if reading.pulse_seconds is not None else reading.quiet_seconds
    entry = {
        **remembered(row),
        "what": "trouble",
        "delay": delay,
        "open": False,
        "silence_ms": None if silence is None else milliseconds(silence),
        "last_at": message.received_at,
        "last_ticks": message.received_ticks,
        "received_at": message.received_at,
        "age_unknown_ms": row.age_unknown_ms,
        "details": dict(row.details),
        "away": reading.away,
    }
    changes[key] = _timed(entry, message.received_ticks + delay)
    waiting = f"becomes a trouble if it lasts for {plan.trouble_delay:g} s"
    if row.camera_id is None:
        waiting = f"local only: no camera_id configured for {reading.camera or reading.source}"
    if delay == 0:
        opened = open_due(key, changes[key] or {}, memory, message.received_ticks, location_id)
        return opened._replace(memory={**changes, **opened.memory})
    return Decision("ignored", waiting, memory=changes)


def _good(
    key: str, entry: Entry, message: Message, memory: Mapping[str, Entry], judged: Judged, location_id: str
) -> Decision:
    changes: Changes = {key: None}
    if entry["source_camera"] is None and entry.get("away"):
        changes |= postponed(memory, message.received_ticks, entry["source"])
        changes[key] = None
    if not entry["open"]:
        return Decision("closing", "over before it became a trouble", memory=changes)
    if entry["camera_id"] is None:
        return Decision("closing", "a local trouble is over", memory=changes)
    restore = restore_row(
        entry,
        location_id=location_id,
        event_at=judged.event_at,
        received_at=message.received_at,
        received_ticks=message.received_ticks,
        details={},
        age_unknown_ms=judged.age_unknown_ms,
    )
    return Decision("stored", None, (restore,), changes)


def _timed(entry: Entry, opens_at: int | None) -> dict[str, Any]:
    """With the next moment that wants attention: when the trouble is sent, or when its silence has lasted."""
    silence = entry.get("silence_ms")
    closes_at = None if silence is None else entry["last_ticks"] + silence
    moments = [moment for moment in (opens_at, closes_at) if moment is not None]
    return {**entry, "opens_at": opens_at, "due": min(moments, default=None)}


def _heard_again(key: str, entry: Entry, message: Message) -> Changes:
    if entry.get("silence_ms") is None:
        return {}
    again = {**entry, "last_ticks": message.received_ticks, "last_at": message.received_at}
    return {key: _timed(again, entry["opens_at"])}


def trouble_due(
    key: str, entry: Entry, memory: Mapping[str, Entry], now_ticks: int, *, location_id: str, connected: bool
) -> Decision:
    """What the passing of time comes to. Without a connection nothing is heard, and nothing is concluded from that."""
    if not connected:
        opens_at = None if entry["open"] else now_ticks + max(entry["delay"], 1000)
        later = _timed({**entry, "last_ticks": now_ticks}, opens_at)
        return Decision("ignored", "nothing is heard", memory={key: later})
    silence = entry.get("silence_ms")
    if silence is None or entry["last_ticks"] + silence > now_ticks:
        return open_due(key, entry, memory, now_ticks, location_id)
    if not entry["open"] or entry["camera_id"] is None:
        return Decision("closing", "over before it became a trouble", memory={key: None})
    restore = restore_row(
        entry,
        location_id=location_id,
        event_at=entry["last_at"] + silence,
        received_at=entry["last_at"] + silence,
        received_ticks=now_ticks,
        details={"ended_by": "silence"},
    )
    return Decision("stored", None, (restore,), {key: None})


def open_due(key: str, entry: Entry, memory: Mapping[str, Entry], now_ticks: int, location_id: str) -> Decision:
    """The trouble has lasted for its delay: it is sent, unless one that is known explains it."""
    if (known := _explained(entry, memory)) is not None:
        later = _timed(entry, now_ticks + max(entry["delay"], 1000))
        return Decision("ignored", known, memory={key: later})
    changes: Changes = {key: _timed({**entry, "open": True}, None)}
    if entry["camera_id"] is None:
        reason = f"local only: no camera_id configured for {entry['source_camera'] or entry['source']}"
        return Decision("ignored", reason, memory=changes)
    row = NewEvent(
        event_id=entry["event_id"],
        state=EventState.PENDING,
        event_type=EventType.TROUBLE,
        event_status=EventStatus.ACTIVE,
        source=entry["source"],
        camera=entry["camera"],
        source_camera=entry["source_camera"],
        location_id=location_id,
        recorder_id=entry["recorder_id"],
        camera_id=entry["camera_id"],
        signal=entry["signal"],
        event_at=entry["at"],
        received_at=entry["received_at"],
        received_ticks=now_ticks,
        source_id=entry["id"],
        state_key=entry["state_key"],
        kind=entry["kind"],
        topic=entry["topic"],
        age_unknown_ms=entry["age_unknown_ms"],
        details=entry["details"],
    )
    return Decision("stored", None, (row,), changes)


def _explained(entry: Entry, memory: Mapping[str, Entry]) -> str | None:
    """One cause is one trouble."""
    source = entry["source"]
    if entry.get("away") and silence_key(source, entry["camera"]) in memory:
        return "its silence is told already"
    if entry["source_camera"] is None:
        return None
    if any(is_recorder_gone(e) and e["source"] == source for e in memory.values()):
        return "the recorder itself is away"
    return None


def is_recorder_gone(entry: Entry) -> bool:
    """Not whatever a recorder reports of itself: with a full disk or without mains it still speaks for its cameras."""
    if entry["what"] == "trouble":
        return entry["source_camera"] is None and bool(entry.get("away"))
    return entry["what"] == "silence" and entry["camera"] is None


def postponed(memory: Mapping[str, Entry], now_ticks: int, source: str | None = None) -> Changes:
    """Troubles that have not been sent start their delay anew.

    For the times after a silence: a start of the gateway, a new connection, a recorder that is back. What was heard
    before may be over by now, and the equipment has not been heard yet.
    """
    return {
        key: _timed({**entry, "last_ticks": now_ticks}, None if entry["open"] else now_ticks + entry["delay"])
        for key, entry in memory.items()
        if entry["what"] == "trouble"
        and source in (None, entry["source"])
        and not (entry["open"] and entry.get("silence_ms") is None)
    }


def open_troubles(memory: Memory) -> list[dict[str, Any]]:
    """For `status`: what is wrong now, also what stays local."""
    return [
        {
            "source": e["source"],
            "camera": e["camera"],
            "kind": e["kind"],
            "since_at": e.get("since_at", e["at"]),
            "local": e["camera_id"] is None,
        }
        for e in memory.values()
        if e["what"] in ("trouble", "silence") and e["open"]
    ]
