"""Step 1: message -> row, then the acknowledgement.

Promises: the broker is told that a message is safe only after the commit that holds what it came to; a store that
refuses means no acknowledgement and a deliberate reconnect, so that the broker sends again; every message ends as
exactly one of stored, duplicate, closing, ignored, unmapped, unreadable, counted in that same commit. What was
published with QoS 0 never comes again: those are kept and tried again with the next group. One task; the only one
that decides conditions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from gateway.model import Clock, EventStatus, EventType, Message, NewEvent, Reading, derive_event_id
from gateway.outbox.store import Added, IntakeGroup, StoreError
from gateway.sources import conditions
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.conditions import Decision, Memory, Plan
from gateway.sources.memory import Changes, Entry
from gateway.sources.rules import CompiledSource, Unreadable
from gateway.states import EventState

log = structlog.get_logger()

GROUP_LIMIT: Final = 500  # messages in one commit: bounds how long the first of them waits
KEPT_BYTES: Final = 64 << 10  # of an unreadable message
STORE_RETRY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
REASON_LENGTH: Final = 500


class Session(Protocol):
    """What intake needs of `gateway.sources.broker.Session`."""

    connected: bool

    async def receive(self, limit: int) -> list[Received]: ...
    def acknowledge(self, tokens: Sequence[AckToken]) -> None: ...
    def drop(self, reason: str) -> None: ...
    def is_current(self, token: AckToken) -> bool: ...


class Outbox(Protocol):
    """What intake needs of the store."""

    clock: Clock

    async def add(self, group: IntakeGroup) -> Added: ...
    def acknowledged(self, event_ids: Sequence[str], digests: Sequence[bytes], at: int) -> None: ...
    async def unacknowledged(self) -> Counter[bytes]: ...
    async def memory(self) -> dict[str, str]: ...


@dataclass
class _Group:
    """What one round has come to so far."""

    events: list[NewEvent] = field(default_factory=list)
    uncounted: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    memory: dict[str, str | None] = field(default_factory=dict)
    undo: list[Changes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    recognised: list[bytes] = field(default_factory=list)  # redeliveries, known by their digest
    seen: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, AckToken] = field(default_factory=dict)  # event_id -> what acknowledges its message

    def as_rows(self) -> IntakeGroup:
        return IntakeGroup(
            tuple(self.events),
            dict(self.counts),
            self.memory,
            tuple(self.digests),
            self.seen,
            frozenset(self.uncounted),
        )


class Intake:
    def __init__(
        self,
        *,
        session: Session,
        store: Outbox,
        sources: Sequence[CompiledSource],
        find_plan: Callable[[str, str | None], Plan | None],
        location_id: str,
        backlog: BacklogJudge,
        on_stored: Callable[[], None],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`find_plan(source, camera)` gives what is configured for the equipment's camera name; None: unknown."""
        self._session = session
        self._store = store
        self._sources = sources
        self._find_plan = find_plan
        self._location_id = location_id
        self._backlog = backlog
        self._on_stored = on_stored
        self._beat = beat
        self._memory = Memory()
        self._unacknowledged: Counter[bytes] = Counter()
        self._again: list[Received] = []  # QoS 0 of a group that was not committed
        self._refusing = False
        self._heard: asyncio.Task[list[Received]] | None = None

    @property
    def memory(self) -> Memory:
        return self._memory

    async def load(self) -> None:
        """To be awaited once before the session connects."""
        texts = await self._store.memory()
        self._memory = Memory({key: json.loads(text) for key, text in texts.items()})
        self._memory.apply(conditions.postponed(self._memory, self._store.clock.ticks_ms()))
        self._unacknowledged = await self._store.unacknowledged()

    def session_lost(self) -> None:
        """The broker has forgotten us: whatever was open may have ended and begun anew unheard."""
        self._memory.apply(conditions.forget_edges(self._memory))

    def reconnected(self) -> None:
        """What was a trouble before the silence may be over: its delay begins anew."""
        self._memory.apply(conditions.postponed(self._memory, self._store.clock.ticks_ms()))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what has been taken from the session is committed and acknowledged."""
        stopped = asyncio.create_task(stop.wait(), name="intake-stop")
        try:
            while not stop.is_set():
                self._beat()
                await self._round(stopped)
        finally:
            stopped.cancel()
            if self._heard is not None:
                self._heard.cancel()

    async def run_once(self) -> bool:
        """One group, waiting for at least one message."""
        return await self.take(await self._session.receive(GROUP_LIMIT))

    async def _round(self, stopped: asyncio.Task[bool]) -> None:
        # The receiving task lives over the rounds: cancelled half-way it might have taken messages along.
        if self._heard is None:
            self._heard = asyncio.create_task(self._session.receive(GROUP_LIMIT), name="intake-receive")
        await asyncio.wait({self._heard, stopped}, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
        received: list[Received] = []
        if self._heard.done():
            received, self._heard = self._heard.result(), None
        if not await self.take(received):
            await asyncio.wait({stopped}, timeout=STORE_RETRY_SECONDS)

    def _patience(self) -> float:
        if self._again:
            return 0.0
        due = self._memory.next_due()
        if due is None:
            return IDLE_SECONDS
        return min(max((due - self._store.clock.ticks_ms()) / 1000, 0.0), IDLE_SECONDS)

    async def take(self, received: Sequence[Received]) -> bool:
        """Decides and commits one group, then acknowledges it. False: the store has refused it."""
        received = [*self._again, *received]
        group = _Group()
        for one in received:
            before = len(group.events)
            self._decide(one, group)
            group.tokens |= {event.event_id: one.token for event in group.events[before:]}
        self._pass_time(group)
        if not received and not group.events and not group.memory:
            return True
        try:
            added = await self._store.add(group.as_rows())
        except StoreError as fault:
            self._refused(received, group, fault)
            return False
        self._again = []
        if self._refusing:
            self._refusing = False
            log.info("store_accepts_again")
        self._committed(received, group, added)
        return True

    # Deciding

    def _decide(self, one: Received, group: _Group) -> None:
        message = one.message
        group.counts["received"] += 1
        digest = message.digest() if message.qos else None
        if digest is not None:
            known = self._unacknowledged[digest] - group.recognised.count(digest)
            if message.dup and known > 0:
                # Committed before, but the broker was not told in time: the same message, once for each that is known.
                group.counts["duplicate"] += 1
                group.recognised.append(digest)
                return
            group.digests.append(digest)
        if one.oversize is not None:
            reason = f"larger than max_message: {one.oversize} bytes"
            self._keep_unreadable(one, reason, group)
            return
        try:
            outcomes = [self._read(source, message, group) for source in self._sources if source.covers(message.topic)]
        except Exception as fault:
            log.exception("message_failed_inside", topic=message.topic, bytes=len(message.payload))
            self._keep_unreadable(one, f"an error inside the gateway: {type(fault).__name__}: {fault}", group)
            return
        # Two sources may share a topic; the message counts once, as the strongest thing that it came to.
        unreadable = next((outcome for outcome in outcomes if isinstance(outcome, Unreadable)), None)
        decided = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if any(word in ("stored", "unmapped") for word in decided):
            return
        if unreadable is not None:
            self._keep_unreadable(one, unreadable.reason, group)
            return
        group.counts[next((word for word in ("closing", "duplicate") if word in decided), "ignored")] += 1

    def _read(self, source: CompiledSource, message: Message, group: _Group) -> str | Unreadable:
        """What the message came to for this source; rows and memory go into the group."""
        group.seen[source.table] = message.received_at
        readings = source.read(message)
        if isinstance(readings, Unreadable):
            return readings
        if not isinstance(readings, list):
            log.debug("message_ignored", topic=message.topic, reason=readings.reason)
            return "ignored"
        words = [self._judge(reading, message, group) for reading in readings]
        return next((word for word in ("stored", "unmapped", "closing", "duplicate") if word in words), "ignored")

    def _judge(self, reading: Reading, message: Message, group: _Group) -> str:
        plan = self._find_plan(reading.source, reading.camera)
        if plan is not None and plan.table is not None:
            group.seen[plan.table] = message.received_at
        decision = conditions.decide(
            reading,
            message,
            plan,
            self._memory,
            location_id=self._location_id,
            waited_ms=self._backlog.waited_ms(message),
        )
        self._apply(decision, group, counted=True)
        if not decision.events:
            log.debug("message_led_to_nothing", topic=message.topic, outcome=decision.outcome, reason=decision.reason)
        return decision.outcome

    def _pass_time(self, group: _Group) -> None:
        """Pulses, max_open, delays of troubles, and what may be forgotten."""
        clock = self._store.clock
        for decision in conditions.due(
            self._memory,
            clock.ticks_ms(),
            now_wall=clock.wall_ms(),
            location_id=self._location_id,
            connected=self._session.connected,
        ):
            self._apply(decision, group, counted=False)

    def _apply(self, decision: Decision, group: _Group, *, counted: bool) -> None:
        group.undo.append(self._memory.apply(decision.memory))
        for key, entry in decision.memory.items():
            group.memory[key] = None if entry is None else json.dumps(entry, separators=(",", ":"))
        for position, event in enumerate(decision.events):
            if position or not counted:
                group.uncounted.add(event.event_id)
            group.events.append(event)

    def _keep_unreadable(self, one: Received, reason: str, group: _Group) -> None:
        """Kept as evidence: the first 64 KiB, the whole length, the digest of the whole."""
        message = one.message
        size = len(message.payload) if one.oversize is None else one.oversize
        sha256 = one.oversize_sha256 or hashlib.sha256(message.payload).hexdigest()
        serial = self._memory.get("serial", {"n": 0})["n"] + 1
        remembered: Mapping[str, Entry | None] = {"serial": {"what": "serial", "n": serial}}
        self._apply(Decision("unreadable", memory=dict(remembered)), group, counted=True)
        source = next((source.table for source in self._sources if source.covers(message.topic)), "")
        group.events.append(
            NewEvent(
                event_id=derive_event_id(
                    self._location_id, "unreadable", str(message.received_at), sha256, str(serial)
                ),
                state=EventState.UNREADABLE,
                event_type=EventType.ALARM,
                event_status=EventStatus.ACTIVE,
                source=source,
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
        )
        log.warning("message_unreadable", topic=message.topic, bytes=size, reason=reason[:REASON_LENGTH])

    # After the commit, or after its failure

    def _committed(self, received: Sequence[Received], group: _Group, added: Added) -> None:
        told = [one for one in received if self._session.is_current(one.token)]
        self._session.acknowledge([one.token for one in told])
        # "Told" ends the story: from here on an equal message with DUP is another one. Of an older connection, the
        # broker was not told; what it sends again will be recognised.
        done = [one.message.digest() for one in told if one.message.qos]
        self._unacknowledged.update(group.digests)
        self._unacknowledged.subtract(done)
        self._unacknowledged = +self._unacknowledged
        safe = [event_id for event_id, token in group.tokens.items() if self._session.is_current(token)]
        self._store.acknowledged(safe, done, self._store.clock.wall_ms())
        for event in group.events:
            if event.event_id in added.new:
                self._say(event)
        if added.new:
            self._on_stored()

    def _say(self, event: NewEvent) -> None:
        facts = {"event_id": event.event_id, "camera": event.camera or event.source_camera, "state": event.state}
        match event.state:
            case EventState.UNREADABLE:
                pass  # said when it was kept, with its topic
            case EventState.UNMAPPED:
                log.warning("event_unmapped", reason=event.reason, **facts)
            case EventState.FOLDED:
                log.info("event_folded", reason=event.reason, **facts)
            case _:
                log.info(
                    "event_stored", event_type=str(event.event_type), event_status=str(event.event_status), **facts
                )

    def _refused(self, received: Sequence[Received], group: _Group, fault: StoreError) -> None:
        for undo in reversed(group.undo):
            self._memory.apply(undo)
        self._again = [one for one in received if one.token.mid == 0]
        if not self._refusing:
            self._refusing = True
            log.error("store_refused", why=str(fault), remedy="nothing is acknowledged until it accepts again")
        self._session.drop(f"the store refused: {fault}")
