"""Reading -> event: which message begins an alarm, which continues or ends it, and which says nothing new.

    active    nothing open, id not ended  -> an alarm; inside the hold-off a folded one
              already open                -> its time is prolonged, nothing else
    inactive  open                        -> closed, with a restore if one is wanted
              id never seen               -> the beginning was missed: the alarm is raised now, unless it is too old
    nothing   for max_open, or a pulse    -> closed as if it had ended

Everything that must be remembered is in `memory` and changes only through the returned Decision, so that it commits
together with the rows. A recorder that goes away does not close its alarms: it may come back and end them itself;
`max_open` covers those that it forgets. Troubles: `gateway.sources.troubles`. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from gateway.model import EventStatus, EventType, Message, NewEvent, Reading, iso_utc
from gateway.sources.arming import decide_arming, told_again
from gateway.sources.memory import Changes, Entry, Memory
from gateway.sources.rows import (
    Decision,
    Plan,
    begin_row,
    identify,
    milliseconds,
    remembered,
    restore_row,
    unmapped_reason,
)
from gateway.sources.times import Judged, judge_time
from gateway.sources.troubles import decide_trouble, postponed, trouble_due
from gateway.states import EventState

__all__ = ["Decision", "Memory", "Plan", "decide", "due", "forget_edges", "postponed"]

# An end without its beginning is an alarm that was missed. Older ones are of no use to anybody at the station.
MISSED_LIMIT_MS: Final = 60 * 60 * 1000

# Each of these is its own emergency, however soon after another.
NEVER_FOLDED: Final = frozenset({"fire", "smoke", "heat", "co", "gas", "panic", "duress", "medical", "tamper", "panel"})

# A clock that is wrong drifts; only a change of this size is worth remembering anew.
_OFFSET_STEP_MS: Final = 60_000

# Hold-off counts in event time, its memory in ticks: this much longer covers what waited in a broker for a while.
_HELD_FOR_MS: Final = 15 * 60 * 1000

# For cameras that are not configured: there is no plan, and the row keeps what is needed to make one later.
_UNMAPPED_OPEN_MS: Final = 15 * 60 * 1000
# The same alarm on another topic comes within moments; this covers what waited in the broker.
_TWIN_MS: Final = 15 * 60 * 1000
_UNMAPPED_WINDOW_MS: Final = 24 * 60 * 60 * 1000

# An entry that cannot be handled (a bug, or one of another version) is looked at again after this.
_FAULTY_FOR_MS: Final = 60 * 60 * 1000


def decide(
    reading: Reading,
    message: Message,
    plan: Plan | None,
    memory: Mapping[str, Entry],
    *,
    location_id: str,
    waited_ms: int | None = None,
    tables: Collection[str] = (),
) -> Decision:
    """What one reading comes to.

    `plan` None: the camera is not configured; `tables` are the names of those that are. `waited_ms`: the message waited
    in the broker, for at most so long; None: it is live.
    """
    entry, is_alarm = None, reading.event_type is EventType.ALARM
    if is_alarm:
        entry = memory.get(_open_key(reading))
        if entry is not None and reading.event_status is EventStatus.ACTIVE and _continues(entry, reading, message):
            return _prolonged(entry, reading, message)
    if reading.late:
        kept_for = message.received_at - (reading.event_at or 0)
        if kept_for > MISSED_LIMIT_MS:
            return Decision("ignored", "the equipment kept it for more than an hour")
        waited_ms = max(kept_for, 0) if waited_ms is None else waited_ms
    clock_key = f"clock/{reading.source}/{reading.clock}" if reading.clock else f"clock/{reading.source}"
    clock = memory.get(clock_key)
    offset = None if clock is None else clock["offset"]
    sent_at = None if message.replay else reading.sent_at  # a retained value was sent whenever it was
    judged = judge_time(reading.event_at, sent_at, received_at=message.received_at, waited_ms=waited_ms, offset=offset)
    changes: Changes = {}
    if judged.offset is not None and (offset is None or abs(judged.offset - offset) > _OFFSET_STEP_MS):
        offset = judged.offset
        changes[clock_key] = {"what": "clock", "offset": offset}
    if reading.camera is None and plan is None:
        return Decision("ignored", f"no source of the configuration is called {reading.source!r}")
    if is_alarm:
        decision = _Alarm(reading, message, plan, memory, entry, judged, location_id, offset, tables).decide()
    elif reading.event_type is EventType.ARMING:
        decision = decide_arming(reading, message, plan, memory, judged, location_id=location_id)
    else:
        decision = decide_trouble(reading, message, plan, memory, judged, location_id=location_id)
        if reading.topic_kind == "availability" and reading.event_status is EventStatus.ACTIVE:
            # The publisher is away, and with it the end of whatever it said: its next word is an edge.
            changes |= forget_edges(memory, reading.source, reading.camera)
    if changes:
        return Decision(decision.outcome, decision.reason, decision.events, {**changes, **decision.memory})
    return decision


def due(memory: Memory, now_ticks: int, *, now_wall: int, location_id: str, connected: bool = True) -> list[Decision]:
    """What the passing of time comes to, one Decision for each entry; apply each before asking for more.

    `connected`: without a connection nothing is heard, and no trouble is concluded from that; it waits. An entry that
    cannot be handled has the outcome `fault` and is put off: it would end this process, and each that follows.
    """
    decisions = []
    for key in memory.due_keys(now_ticks):
        entry = memory[key]
        try:
            if entry["what"] == "open":
                decided = _timed_out(key, entry, now_ticks, now_wall, location_id)
            elif entry["what"] == "trouble":
                decided = trouble_due(key, entry, memory, now_ticks, location_id=location_id, connected=connected)
            else:
                decided = Decision("ignored", memory={key: None})
        except Exception as fault:
            later = {**entry, "due": now_ticks + _FAULTY_FOR_MS}
            decided = Decision("fault", f"{key}: {type(fault).__name__}: {fault}", memory={key: later})
        decisions.append(decided)
    forgotten = memory.excess()
    if forgotten:
        decisions.append(Decision("ignored", "too much to remember", memory=dict.fromkeys(forgotten)))
    return decisions


def forget_edges(memory: Mapping[str, Entry], source: str | None = None, camera: str | None = None) -> Changes:
    """After a lost session, or a publisher that went away: the next live `active` without an id is an edge again.

    Without a source, of all, and the arming of panels is told again.
    """
    edges: Changes = {
        key: {**entry, "seed": True}
        for key, entry in memory.items()
        if entry["what"] == "open"
        and entry["id"] is None
        and source in (None, entry["source"])
        and camera in (None, entry["source_camera"])
    }
    return edges if source is not None else {**edges, **told_again(memory)}


def _open_key(reading: Reading) -> str:
    return f"open/{reading.source}/{reading.state_key}"


def _continues(entry: Entry, reading: Reading, message: Message) -> bool:
    if entry.get("seed"):
        return False
    with_id = reading.source_id is not None and reading.source_id == entry["id"]
    quiet = message.received_at - entry["last_at"]
    if reading.repeats is not None and not with_id and quiet >= reading.repeats * 1000:
        return False  # its end was lost: repeats come sooner, and what speaks only on change never repeats
    return _same_start(entry, reading)


def _same_start(entry: Entry, reading: Reading) -> bool:
    """An id may be used again; its start as sent then differs. Without an id, every message has another time."""
    if reading.source_id is None or reading.started is None or entry["started"] is None:
        return True
    return bool(entry["started"] == reading.started)


def _prolonged(entry: Entry, reading: Reading, message: Message) -> Decision:
    later = {**entry, "due": message.received_ticks + entry["open_ms"], "last_at": message.received_at}
    changes: Changes = {_open_key(reading): later}
    if reading.opens and reading.source_id is not None:
        return Decision("duplicate", "this alarm is open already", memory=changes)
    return Decision("ignored", "continues an alarm that is open", memory=changes)


def _ended(entry: Entry, now_ticks: int) -> Changes:
    """An id is remembered after its end, so that a straggler does not open it again."""
    if entry["id"] is None:
        return {}
    key = f"ended/{entry['source']}/{entry['state_key']}"
    due = now_ticks + entry["window_ms"]
    return {key: {"what": "ended", "due": due, "id": entry["id"], "started": entry["started"]}}


def _timed_out(key: str, entry: Entry, now_ticks: int, now_wall: int, location_id: str) -> Decision:
    changes: Changes = {key: None, **_ended(entry, now_ticks)}
    if not entry["restore"]:
        return Decision("closing", "nothing more was heard of it", memory=changes)
    # A pulse ends a known time after its last message; of an alarm without an end it is known only that it is over.
    end = entry["last_at"] + entry["open_ms"] if entry["pulse"] else now_wall
    restore = restore_row(
        entry,
        location_id=location_id,
        event_at=end,
        received_at=now_wall,
        received_ticks=now_ticks,
        details={"ended_by": "pulse" if entry["pulse"] else "max_open"},
    )
    return Decision("stored", None, (restore,), changes)


class _Alarm:
    """One alarm reading on its way to a Decision."""

    __slots__ = (
        "clock_offset",
        "entry",
        "judged",
        "location_id",
        "memory",
        "message",
        "plan",
        "reading",
        "tables",
        "window_ms",
    )

    def __init__(
        self,
        reading: Reading,
        message: Message,
        plan: Plan | None,
        memory: Mapping[str, Entry],
        entry: Entry | None,
        judged: Judged,
        location_id: str,
        clock_offset: int | None,
        tables: Collection[str],
    ) -> None:
        self.reading, self.message, self.plan, self.memory, self.entry = reading, message, plan, memory, entry
        self.judged, self.location_id, self.clock_offset, self.tables = judged, location_id, clock_offset, tables
        self.window_ms = _UNMAPPED_WINDOW_MS if plan is None else milliseconds(plan.dedupe_window)

    def decide(self) -> Decision:
        reading, entry = self.reading, self.entry
        if self.plan is not None and self.plan.camera_id is None:
            return Decision("ignored", f"local only: no camera_id configured for {reading.source}")
        if reading.event_status is EventStatus.ACTIVE:
            if self._has_ended():
                return Decision("duplicate", "this alarm has ended already")
            if reading.twin is not None:
                twin = self.memory.get(self._twin_key())
                if twin is not None and twin["state_key"] != reading.state_key:
                    return Decision("duplicate", "this alarm was told on another topic")
            return self._begin(self.judged, reading.details)
        if entry is not None and _same_start(entry, reading):
            return self._end(entry)
        if self._has_ended():
            return Decision("duplicate", "this alarm has ended already")
        if reading.source_id is None:
            return Decision("ignored", "nothing is open")
        return self._missed()

    def _has_ended(self) -> bool:
        reading = self.reading
        if reading.source_id is None:
            return False
        known = self.memory.get(f"ended/{reading.source}/{reading.state_key}")
        return (
            known is not None
            and known.get("id", reading.source_id) == reading.source_id
            and _same_start(known, reading)
        )

    def _begin(self, judged: Judged, details: Mapping[str, Any]) -> Decision:
        reading, message, plan, entry = self.reading, self.message, self.plan, self.entry
        event_id, changes = identify(reading, message, self.window_ms, self.memory, self.location_id)
        if judged.device_time is not None:
            details = {"device_time": iso_utc(judged.device_time), **details}
        state, reason = EventState.PENDING, None
        if plan is None:
            state, reason = EventState.UNMAPPED, unmapped_reason(reading, self.tables)
        elif plan.hold_off is not None and reading.kind not in NEVER_FOLDED:
            reason = self._hold_off(plan, milliseconds(plan.hold_off), judged.event_at, changes)
            if reason is not None:
                state = EventState.FOLDED
        row = begin_row(
            reading,
            message,
            plan,
            judged,
            event_id=event_id,
            state=state,
            reason=reason,
            location_id=self.location_id,
            details=details,
            clock_offset=self.clock_offset,
        )
        changes[_open_key(reading)] = self._opened(row)
        if reading.twin is not None:
            due = message.received_ticks + _TWIN_MS
            changes[self._twin_key()] = {"what": "twin", "due": due, "state_key": reading.state_key}
        events: tuple[NewEvent, ...] = (row,)
        if entry is not None and entry["restore"]:  # the id is used again, or an edge after a silence
            events = (self._restore(entry, judged.event_at), row)
        return Decision("unmapped" if state is EventState.UNMAPPED else "stored", reason, events, changes)

    def _twin_key(self) -> str:
        return f"twin/{self.reading.source}/{self.reading.twin}"

    def _end(self, entry: Entry) -> Decision:
        changes: Changes = {_open_key(self.reading): None, **_ended(entry, self.message.received_ticks)}
        if not entry["restore"]:
            return Decision("closing", None, memory=changes)
        return Decision("stored", None, (self._restore(entry, self.judged.event_at),), changes)

    def _missed(self) -> Decision:
        reading, judged = self.reading, self.judged
        if not reading.opens:
            return Decision("ignored", "ends what never was an alarm of ours")
        begun = judged.event_at if reading.started_at is None else reading.started_at + judged.shift
        begun = min(begun, judged.event_at)
        if self.message.received_at - begun > MISSED_LIMIT_MS:
            return Decision("ignored", "its beginning was missed, more than an hour ago")
        then = Judged(begun, judged.shift, judged.device_time, None, judged.age_unknown_ms)
        opened = self._begin(then, {**reading.details, "begun_unseen": True})
        ended = self._end(opened.memory[_open_key(reading)] or {})
        events = (*opened.events, *ended.events)
        return Decision(opened.outcome, opened.reason, events, {**opened.memory, **ended.memory})

    def _hold_off(self, plan: Plan, hold_off: int, event_at: int, changes: Changes) -> str | None:
        """The reason for folding, or what the next alarm is measured by. A folded one prolongs nothing."""
        key = f"held/{plan.table or self.reading.source}/{self.reading.kind}"
        last = self.memory.get(key)
        at = event_at
        if last is not None:
            if abs(event_at - last["at"]) < hold_off:
                return f"within the hold-off ({plan.hold_off:g} s) of the alarm of {iso_utc(last['at'])}"
            # Far behind the last one: the clock was set back. Its old time must not fold what comes when it is reached.
            if last["at"] - event_at <= _HELD_FOR_MS:
                at = max(event_at, last["at"])
        until = self.message.received_ticks + hold_off + _HELD_FOR_MS
        changes[key] = {"what": "held", "due": until, "at": at}
        return None

    def _opened(self, row: NewEvent) -> Entry:
        plan, pulse = self.plan, self.reading.pulse_seconds
        open_ms = _UNMAPPED_OPEN_MS if plan is None else milliseconds(plan.max_open)
        if pulse is not None:
            open_ms = milliseconds(pulse)
        elif self.reading.quiet_seconds is not None:
            open_ms = min(open_ms, milliseconds(self.reading.quiet_seconds))
        restore = plan is not None and plan.send_restore and row.state is EventState.PENDING
        entry = {
            "what": "open",
            "due": self.message.received_ticks + open_ms,
            "source": row.source,
            "source_camera": row.source_camera,
            "state_key": row.state_key,
            "id": row.source_id,
            "started": self.reading.started,
            "open_ms": open_ms,
            "pulse": pulse is not None,
            "last_at": self.message.received_at,
            "window_ms": self.window_ms,
            "restore": restore,
        }
        return {**remembered(row), **entry} if restore else entry

    def _restore(self, entry: Entry, event_at: int) -> NewEvent:
        return restore_row(
            entry,
            location_id=self.location_id,
            event_at=event_at,
            received_at=self.message.received_at,
            received_ticks=self.message.received_ticks,
            details={},
            age_unknown_ms=self.judged.age_unknown_ms,
        )
