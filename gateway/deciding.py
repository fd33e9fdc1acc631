"""What a group of messages comes to: rows, memory and counts for one commit, and how to take it back.

Promises: every message ends as exactly one of stored, duplicate, closing, ignored, unmapped, unreadable, whatever its
sources make of it; an exception inside one message concerns that message alone: nothing of it remains but the message
itself as evidence; what a refused commit held is undone in memory. The only writer of the conditions' memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from gateway.model import (
    CLOCKS_AGREE_MS,
    Clock,
    EventStatus,
    EventType,
    Message,
    NewEvent,
    Reading,
    derive_event_id,
)
from gateway.outbox.store import IntakeGroup
from gateway.sources import conditions
from gateway.sources.backlog import BacklogJudge, Waited
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.conditions import Memory, Plan
from gateway.sources.memory import Changes, Entry
from gateway.sources.rules import CompiledSource, OfTopic, Unreadable
from gateway.sources.silence import Silence
from gateway.states import EventState

log = structlog.get_logger()

KEPT_BYTES: Final = 64 << 10  # of an unreadable message
REASON_LENGTH: Final = 500
AWAY: Final = "away"  # the memory's key for `BacklogJudge.since_at`
SERIAL: Final = "serial"
_STRONGEST_FIRST: Final = ("stored", "unmapped", "closing", "duplicate", "ignored")


@dataclass
class Group:
    """What one round has come to so far."""

    events: list[NewEvent] = field(default_factory=list)
    tokens: dict[str, AckToken | None] = field(default_factory=dict)  # event_id -> what acknowledges its message
    uncounted: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    undo: list[Changes] = field(default_factory=list)
    digests: dict[bytes, list[int]] = field(default_factory=dict)  # the connection of each message that left something
    marks: list[tuple[AckToken, bytes]] = field(default_factory=list)  # known by its digest until the broker is told
    recognised: Counter[bytes] = field(default_factory=Counter)  # redeliveries, known by their digest
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def leaves_something(self) -> bool:
        return bool(self.events or self.undo)


class Decider:
    def __init__(
        self,
        *,
        sources: Sequence[CompiledSource],
        find_plan: Callable[[str, str | None], Plan | None],
        location_id: str,
        backlog: BacklogJudge,
        clock: Clock,
        silence: Silence | None = None,
        tables: Collection[str] = (),
    ) -> None:
        """`find_plan(source, camera)` gives what is configured for the equipment's camera name; None: unknown.
        `silence`: of which cameras; None: of none. `tables`: of the configured cameras, whose names are taken."""
        self.memory = Memory()
        self.unacknowledged: Counter[bytes] = Counter()
        """Digests of messages that are safe, but of which the broker may not know it: it sends them again."""
        self._sources = OfTopic(lambda topic: [source for source in sources if source.covers(topic)])
        self._find_plan = find_plan
        self._location_id = location_id
        self._tables = tables
        self._backlog = backlog
        self._clock = clock
        self._silence = silence or Silence((), (), find_plan=find_plan, location_id=location_id)

    def load(self, memory: Mapping[str, str], unacknowledged: Counter[bytes]) -> None:
        """What the last process knew."""
        self.memory = Memory({key: json.loads(text) for key, text in memory.items()})
        self.unacknowledged = unacknowledged
        self._backlog.resume(self.memory.get(AWAY, {"since": None})["since"])
        self._silence.load(self.memory, ticks=self._clock.ticks_ms(), wall=self._clock.wall_ms())

    def as_rows(self, group: Group) -> IntakeGroup:
        changed = {key: self.memory.get(key) for changes in group.undo for key in changes}
        return IntakeGroup(
            tuple(group.events),
            dict(group.counts),
            {key: _as_text(entry) for key, entry in changed.items()},
            tuple(digest for digest, connections in group.digests.items() for _ in connections),
            group.seen,
            frozenset(group.uncounted),
        )

    def undo(self, group: Group) -> None:
        """The group was not committed."""
        self._undo(group, 0)

    def session_lost(self, group: Group) -> None:
        """The broker has forgotten us: whatever was open may have ended and begun anew unheard."""
        self._remember(conditions.forget_edges(self.memory), group)

    def reconnected(self, group: Group) -> None:
        """What was a trouble before the silence may be over: its delay begins anew."""
        self._silence.reconnected()
        self._remember(conditions.postponed(self.memory, self._clock.ticks_ms()), group)

    def pass_time(self, group: Group, *, connected: bool) -> None:
        """Pulses, max_open, delays of troubles, the end of a backlog, and what may be forgotten."""
        ticks = self._clock.ticks_ms()
        for decision in conditions.due(
            self.memory, ticks, now_wall=self._clock.wall_ms(), location_id=self._location_id, connected=connected
        ):
            if decision.outcome == "fault":
                log.error("condition_failed_inside", reason=decision.reason)
            self._remember(decision.memory, group)
            for event in decision.events:
                self._add(event, None, group, counted=False)
        silent = self._silence.look(
            self.memory,
            ticks=ticks,
            wall=self._clock.wall_ms(),
            hearing=connected,
            in_company=group.leaves_something,
        )
        for decision in silent:
            self._remember(decision.memory, group)
            for event in decision.events:
                self._add(event, None, group, counted=False)
        if connected:
            self._backlog.pass_time(ticks)
        known, since = self.memory.get(AWAY, {"since": None})["since"], self._backlog.since_at(self._clock)
        if known != since and (known is None or since is None or abs(known - since) > CLOCKS_AGREE_MS):
            self._remember({AWAY: None if since is None else {"what": "away", "since": since}}, group)

    def decide(self, one: Received, group: Group) -> None:
        """One message."""
        group.counts["received"] += 1
        message = self._dated(one.message)
        if message is not one.message:
            one = replace(one, message=message)
        # What was asked of a recorder afterwards may be as old as the silence before it.
        missed = one.missed_since
        waited = self._backlog.waited(message) if missed is None else Waited.since(missed, message.received_at)
        if one.again:
            group.counts["duplicate"] += 1
            return
        digest = _digest(one) if message.qos else b""
        if digest and message.dup and self._known(digest, one.token, group):
            # Committed before, but the broker was not told in time: the same message, once for each that is known.
            group.counts["duplicate"] += 1
            group.recognised[digest] += 1
            group.marks.append((one.token, digest))
            return
        rows, changes = len(group.events), len(group.undo)
        try:
            outcome = self._outcome(one, waited, group)
            if len(group.events) == rows:  # else the commit counts, which shows whether the row is new
                group.counts[outcome] += 1
        except Exception as fault:
            log.exception("message_failed_inside", topic=message.topic, bytes=len(message.payload))
            self._take_back(group, rows, changes)
            self._keep_unreadable(one, f"an error inside the gateway: {type(fault).__name__}: {fault}", group)
        if digest and (len(group.events), len(group.undo)) != (rows, changes):
            # What has left nothing may come again: it will leave nothing again.
            group.digests.setdefault(digest, []).append(one.token.generation)
            group.marks.append((one.token, digest))

    # Inside

    def _dated(self, message: Message) -> Message:
        """Its receipt by the clock as it is now: while it waited here, the right time may have become known."""
        received_at = self._clock.wall_ms() - (self._clock.ticks_ms() - message.received_ticks)
        if abs(received_at - message.received_at) <= CLOCKS_AGREE_MS:
            return message
        return replace(message, received_at=received_at)

    def _known(self, digest: bytes, token: AckToken, group: Group) -> bool:
        """Whether a message of an older connection, this group's included, had these bytes."""
        here = sum(connection < token.generation for connection in group.digests.get(digest, ()))
        return self.unacknowledged[digest] + here > group.recognised[digest]

    def _outcome(self, one: Received, waited: Waited | None, group: Group) -> str:
        """What the message came to; its rows, if any, are in the group."""
        message = one.message
        if one.oversize is not None:
            self._keep_unreadable(one, f"larger than max_message: {one.oversize} bytes", group)
            return "unreadable"
        rows, words = len(group.events), list[str]()
        unreadable: Unreadable | None = None
        for source in self._sources[message.topic]:  # two sources may share a topic; the message counts once
            if one.missed_since is None:
                group.seen[source.table] = message.received_at
            heard: list[str] = []
            readings = source.read(message, heard)
            if heard and not message.replay and one.missed_since is None:
                self._hear(source.table, heard, message, group)
            if isinstance(readings, Unreadable):
                unreadable = readings
            elif isinstance(readings, list):
                words += [self._judge(reading, one, waited, group, counted=rows) for reading in readings]
            else:
                log.debug("message_ignored", topic=message.topic, reason=readings.reason)
        strongest = next((word for word in _STRONGEST_FIRST if word in words), "ignored")
        if len(group.events) > rows:
            return strongest
        if unreadable is not None and strongest not in _STRONGEST_FIRST[:2]:
            self._keep_unreadable(one, unreadable.reason, group)
            return "unreadable"
        # "stored" without a row: it is one that this group holds already.
        return "duplicate" if strongest in _STRONGEST_FIRST[:2] else strongest

    def _judge(self, reading: Reading, one: Received, waited: Waited | None, group: Group, *, counted: int) -> str:
        """`counted`: the number of rows before this message; only the first row of a message is counted."""
        message = one.message
        plan = self._find_plan(reading.source, reading.camera)
        if plan is None and reading.of_device:
            plan = self._find_plan(reading.source, None)
        if one.missed_since is not None:
            said = reading
            reading = reading._replace(make_details=lambda: {**said.details, "caught_up": True})
        at_most = None if waited is None else waited.at_most_ms
        decision = conditions.decide(
            reading,
            message,
            plan,
            self.memory,
            location_id=self._location_id,
            waited_ms=at_most,
            tables=self._tables,
        )
        self._remember(decision.memory, group)
        for event in decision.events:
            if waited is not None and event.age_unknown_ms is not None:
                event = event._replace(away_since_at=waited.since_at)
            self._add(event, one.token, group, counted=len(group.events) == counted)
        if not decision.events:
            log.debug("message_led_to_nothing", topic=message.topic, outcome=decision.outcome, reason=decision.reason)
        return decision.outcome

    def _hear(self, source: str, names: Sequence[str], message: Message, group: Group) -> None:
        """Signs of life, also of a message that comes to nothing."""
        for name in names:
            plan = self._find_plan(source, name)
            if plan is not None and plan.table is not None:
                group.seen[plan.table] = message.received_at
            if self._silence.watches:
                self._silence.hear(source, name, message.received_ticks)

    def _remember(self, changes: Mapping[str, Entry | None], group: Group) -> None:
        if changes:
            group.undo.append(self.memory.apply(changes))

    @staticmethod
    def _add(event: NewEvent, token: AckToken | None, group: Group, *, counted: bool) -> None:
        if event.event_id in group.tokens:
            return
        group.tokens[event.event_id] = token
        group.events.append(event)
        if not counted:
            group.uncounted.add(event.event_id)

    def _take_back(self, group: Group, rows: int, changes: int) -> None:
        for event in group.events[rows:]:
            del group.tokens[event.event_id]
            group.uncounted.discard(event.event_id)
        del group.events[rows:]
        self._undo(group, changes)

    def _undo(self, group: Group, changes: int) -> None:
        for undo in reversed(group.undo[changes:]):
            self.memory.apply(undo)
        del group.undo[changes:]

    def _keep_unreadable(self, one: Received, reason: str, group: Group) -> None:
        """Kept as evidence: the first 64 KiB, the whole length, the digest of the whole."""
        message = one.message
        size = len(message.payload) if one.oversize is None else one.oversize
        sha256 = one.oversize_sha256 or hashlib.sha256(message.payload).hexdigest()
        serial = self.memory.get(SERIAL, {"n": 0})["n"] + 1
        self._remember({SERIAL: {"what": "serial", "n": serial}}, group)
        identity = ("unreadable", str(message.received_at), sha256, str(serial))
        event = NewEvent(
            event_id=derive_event_id(self._location_id, *identity),
            state=EventState.UNREADABLE,
            event_type=EventType.ALARM,
            event_status=EventStatus.ACTIVE,
            source=next((source.table for source in self._sources[message.topic]), ""),
            camera=None,
            source_camera=None,
            location_id=self._location_id,
            recorder_id=None,
            camera_id=None,
            signal=False,
            event_at=message.received_at,
            received_at=message.received_at,
            received_ticks=message.received_ticks,
            reason=reason[:REASON_LENGTH],
            topic=message.topic,
            raw=message.payload[:KEPT_BYTES],
            raw_bytes=size,
            raw_sha256=sha256,
        )
        self._add(event, one.token, group, counted=True)


def _digest(one: Received) -> bytes:
    """What a redelivery is known by. It comes under its own packet id (MQTT 5.0, 4.4), another alarm like it does not:
    the power may have failed between that one's receipt and the note that the first had been acknowledged."""
    return hashlib.sha256(one.token.mid.to_bytes(4, "big") + one.message.digest()).digest()


def _as_text(entry: Entry | None) -> str | None:
    return None if entry is None else json.dumps(entry, separators=(",", ":"))
