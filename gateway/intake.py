"""Step 1: message -> row, then the acknowledgement.

Promises: the broker is told that a message is safe only after the commit that holds what it came to; a store that
refuses means no acknowledgement and a deliberate reconnect, so that the broker sends again. What never comes again
(QoS 0, and what an older connection left here) is kept in memory and tried again, the oldest AGAIN_BYTES of it; it is
not safe there, and nobody is told that it is. What messages come to is decided in `deciding.py`. One task.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from gateway.deciding import Decider, Group
from gateway.model import Clock, NewEvent
from gateway.outbox.store import Added, IntakeGroup, StoreError
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.conditions import Memory
from gateway.states import EventState

log = structlog.get_logger()

GROUP_LIMIT: Final = 500  # messages in one commit: bounds how long the first of them waits
AGAIN_BYTES: Final = 8 << 20  # of what will not come again, while the store refuses
MESSAGE_COST: Final = 1_024  # what a message takes beside its payload
STORE_RETRY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
BACKLOG_SECONDS: Final = 1.5  # how soon a pause after a backlog is noticed
LAST_ROUNDS: Final = 20  # after `stop`: what is here already is taken along, what still comes is not waited for


class Session(Protocol):
    """What intake needs of `gateway.sources.broker.Session`; `gateway.catchup.CatchUp` stands in its place."""

    @property
    def connected(self) -> bool: ...
    async def receive(self, limit: int) -> list[Received]: ...
    def acknowledge(self, tokens: Sequence[AckToken]) -> None: ...
    def drop(self, reason: str) -> None: ...
    def is_current(self, token: AckToken) -> bool: ...


class Outbox(Protocol):
    """What intake needs of the store."""

    clock: Clock

    @property
    def refusal(self) -> str | None: ...
    async def add(self, group: IntakeGroup) -> Added: ...
    def acknowledged(self, event_ids: Sequence[str], digests: Sequence[bytes], at: int) -> None: ...
    async def unacknowledged(self) -> Counter[bytes]: ...
    async def memory(self) -> dict[str, str]: ...


class Intake:
    def __init__(
        self,
        *,
        session: Session,
        store: Outbox,
        decider: Decider,
        backlog: BacklogJudge,
        on_stored: Callable[[], None],
        on_store_back: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._store = store
        self._decider = decider
        self._backlog = backlog
        self._on_stored = on_stored
        self._on_store_back = on_store_back
        self._beat = beat
        self._again: list[Received] = []
        self._given_up = 0
        self._refusing = False
        self._reconnected = self._session_lost = False  # since the last commit
        self._heard: asyncio.Task[list[Received]] | None = None
        self._nudge: asyncio.Future[None] | None = None

    @property
    def memory(self) -> Memory:
        return self._decider.memory

    async def load(self) -> None:
        """To be awaited once before the session connects."""
        self._decider.load(await self._store.memory(), await self._store.unacknowledged())
        self._reconnected = True

    def session_lost(self) -> None:
        """The broker has forgotten us. Takes effect, and is committed, with the next group: now."""
        self._session_lost = True
        self._wake()

    def reconnected(self, *, session_present: bool) -> None:
        """A connection begins."""
        self._backlog.connected(session_present=session_present, ticks=self._store.clock.ticks_ms())
        self._reconnected = True
        self._wake()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what has been taken from the session is committed and acknowledged."""
        stopped = asyncio.create_task(stop.wait(), name="intake-stop")
        try:
            while not stop.is_set():
                self._beat()
                await self._round(stopped)
            for _ in range(LAST_ROUNDS):
                self._listen()
                await asyncio.sleep(0)  # a receiving task that has something ends in one turn of the loop
                received = self._received()
                if not (received or self._again) or not await self.take(received):
                    break
        finally:
            stopped.cancel()
            if self._heard is not None:
                self._heard.cancel()

    async def run_once(self) -> bool:
        """One group, waiting for at least one message."""
        return await self.take(await self._session.receive(GROUP_LIMIT))

    async def _round(self, stopped: asyncio.Task[bool]) -> None:
        heard = self._listen()
        if self._nudge is None or self._nudge.done():
            self._nudge = asyncio.get_running_loop().create_future()
        if not (self._reconnected or self._session_lost):
            waits: set[asyncio.Future[object]] = {heard, stopped, self._nudge}  # type: ignore[arg-type]
            await asyncio.wait(waits, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
        if not await self.take(self._received()):
            await asyncio.wait({stopped}, timeout=STORE_RETRY_SECONDS)
        if self._refusing and self._store.refusal is None:
            self._on_store_back()  # it has tried by itself; the broker need not wait to send again

    def _listen(self) -> asyncio.Task[list[Received]]:
        # The receiving task lives over the rounds: cancelled half-way it might have taken messages along.
        if self._heard is None:
            self._heard = asyncio.create_task(self._session.receive(GROUP_LIMIT), name="intake-receive")
        return self._heard

    def _received(self) -> list[Received]:
        if self._heard is None or not self._heard.done():
            return []
        received, self._heard = self._heard.result(), None
        return received

    def _wake(self) -> None:
        if self._nudge is not None and not self._nudge.done():
            self._nudge.set_result(None)

    def _patience(self) -> float:
        if self._again:
            return 0.0
        due = self.memory.next_due()
        if self._refusing:
            return STORE_RETRY_SECONDS
        longest = BACKLOG_SECONDS if self._backlog.in_run else IDLE_SECONDS
        if due is None:
            return longest
        return min(max((due - self._store.clock.ticks_ms()) / 1000, 0.0), longest)

    async def take(self, received: Sequence[Received]) -> bool:
        """Decides, commits and acknowledges these, in groups. False: the store has refused one."""
        waiting = [*self._again, *received]
        while True:
            try:
                await self._take_group(waiting[:GROUP_LIMIT])
            except StoreError as fault:
                self._refused(waiting, fault)
                return False
            waiting = self._again = waiting[GROUP_LIMIT:]
            if not waiting:
                return True

    async def _take_group(self, received: Sequence[Received]) -> None:
        group = Group()
        lost, reconnected = self._session_lost, self._reconnected
        self._session_lost = self._reconnected = False
        if lost:
            self._decider.session_lost(group)
        if reconnected:
            self._decider.reconnected(group)
        for one in received:
            self._decider.decide(one, group)
        self._decider.pass_time(group, connected=self._session.connected)
        if received or group.leaves_something:
            try:
                added = await self._store.add(self._decider.as_rows(group))
            except StoreError:
                self._decider.undo(group)
                self._session_lost |= lost
                self._reconnected |= reconnected
                raise
            self._accepted()
            self._committed(received, group, added)
        if lost:
            self._forget_the_unacknowledged()

    def _committed(self, received: Sequence[Received], group: Group, added: Added) -> None:
        clock = self._store.clock
        tokens = [one.token for one in received if self._session.is_current(one.token)]
        self._session.acknowledge(tokens)
        # "Told" ends the story: from here on an equal message with DUP is another one. Of an older connection, the
        # broker was not told; what it sends again will be recognised.
        told = [digest for token, digest in group.marks if self._session.is_current(token)]
        known = self._decider.unacknowledged
        known.update(digest for digest, connections in group.digests.items() for _ in connections)
        known.subtract(told)
        self._decider.unacknowledged = +known
        safe = [event_id for event_id, token in group.tokens.items() if token and self._session.is_current(token)]
        if safe or told:
            self._store.acknowledged(safe, told, clock.wall_ms())
        if heard := [one.message.received_ticks for one in received if one.missed_since is None]:
            self._backlog.committed(max(heard), clock.ticks_ms())
        if any(one.message.qos and not one.message.dup and self._session.is_current(one.token) for one in received):
            # MQTT 5.0, 4.4: what was unacknowledged is sent again before anything new.
            self._forget_the_unacknowledged()
        for event in group.events:
            if event.event_id in added.new:
                _say(event)
        if added.new:
            self._on_stored()

    def _forget_the_unacknowledged(self) -> None:
        """None of it will come again: an equal message with DUP would be another alarm."""
        known = self._decider.unacknowledged
        if known:
            self._store.acknowledged((), list(known.elements()), self._store.clock.wall_ms())
            known.clear()

    # While the store refuses

    def _refused(self, waiting: Sequence[Received], fault: StoreError) -> None:
        if not self._refusing:
            self._refusing = True
            log.error("store_refused", why=str(fault), remedy="nothing is acknowledged until it accepts again")
        # Of an older connection, the broker may have forgotten it; what it does send again is recognised.
        stays = [one for one in waiting if not (one.message.qos and self._session.is_current(one.token))]
        kept, size = [], 0
        for one in stays:
            size += len(one.message.payload) + MESSAGE_COST
            if size <= AGAIN_BYTES:
                kept.append(one)
            else:
                self._given_up += 1
        self._again = kept
        if len(stays) < len(waiting):
            self._session.drop(f"the store refused: {fault}")

    def _accepted(self) -> None:
        if self._refusing:
            self._refusing = False
            log.info("store_accepts_again")
        if self._given_up:
            log.error("messages_given_up", count=self._given_up, why="the store refused for too long; they had QoS 0")
            self._given_up = 0


def _say(event: NewEvent) -> None:
    facts = {"event_id": event.event_id, "camera": event.camera or event.source_camera, "state": event.state}
    match event.state:
        case EventState.UNREADABLE:
            log.warning("message_unreadable", topic=event.topic, bytes=event.raw_bytes, reason=event.reason, **facts)
        case EventState.UNMAPPED:
            log.warning("event_unmapped", reason=event.reason, **facts)
        case EventState.FOLDED:
            log.info("event_folded", reason=event.reason, **facts)
        case _:
            log.info("event_stored", event_type=str(event.event_type), event_status=str(event.event_status), **facts)
