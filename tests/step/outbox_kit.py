"""A real outbox in a folder of the test, and events for it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.model import (
    ClaimedEvent,
    Clock,
    Composed,
    Event,
    EventStatus,
    EventType,
    MediaKind,
    MediaOnDisk,
    MediaWanted,
    NewEvent,
    Slot,
)
from gateway.outbox.store import IntakeGroup, Store
from gateway.retry import Step
from gateway.states import EventState
from tests.fakes.clock import FakeClock

SNAPSHOT = MediaWanted(MediaKind.SNAPSHOT, 0, 0, 0, {"from": "recorder"})
CLIP = MediaWanted(MediaKind.EVENT_MP4, 0, 0, 20_000, {"from": "recorder"})


def alarm(name: str, clock: Clock, where: str = "c1", **changes: Any) -> NewEvent:
    """An alarm that is received now."""
    event = NewEvent(
        event_id=name,
        state=EventState.PENDING,
        event_type=EventType.ALARM,
        event_status=EventStatus.ACTIVE,
        source="nvr",
        camera=f"cam-{where}",
        source_camera=where,
        location_id="L",
        recorder_id="R",
        camera_id=where,
        signal=True,
        event_at=clock.wall_ms(),
        received_at=clock.wall_ms(),
        received_ticks=clock.ticks_ms(),
        topic="nvr/events",
    )
    return event._replace(**changes)


def compose(event: Event, media: Sequence[MediaOnDisk], sent_at: int) -> Composed:
    """Announces everything, and tells its time, so that bytes composed anew can be told apart."""
    body = f"{event.event_id} {sent_at} {event.signal}".encode()
    return Composed(body, f"key-{event.event_id}-{sent_at}", frozenset((m.kind, m.seq) for m in media), event.signal)


def compose_what_is_there(event: Event, media: Sequence[MediaOnDisk], sent_at: int) -> Composed:
    announced = frozenset((m.kind, m.seq) for m in media if m.on_disk)
    return replace(compose(event, media, sent_at), announced=announced)


class Outbox:
    """A store with its clock; `again()` is a new life of the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.store: Store

    async def open(self) -> Store:
        def make_clock(base: int) -> FakeClock:
            self.clock = FakeClock(wall=self.clock.wall, ticks=max(base, 1_000_000))
            return self.clock

        self.store = await Store.open(self.path, make_clock=make_clock, compose=compose)
        return self.store

    async def again(self) -> Store:
        await self.store.close()
        return await self.open()

    async def add(self, *events: NewEvent, **group: Any) -> None:
        group.setdefault("counts", {"received": len(events)})
        added = await self.store.add(IntakeGroup(events=events, **group))
        assert added.new == {event.event_id for event in events}

    def alarm(self, name: str, where: str = "c1", **changes: Any) -> NewEvent:
        return alarm(name, self.clock, where, **changes)

    async def claim(self, limit: int = 100, **wish: Any) -> list[str]:
        return [claimed.event.event_id for claimed in await self.store.claim(limit, **wish)]

    async def claim_one(self) -> ClaimedEvent:
        (claimed,) = await self.store.claim(1)
        return claimed

    async def settle_all(self, limit: int = 100) -> list[str]:
        """Claims, delivers; returns the names in their order."""
        claimed = await self.store.claim(limit)
        for one in claimed:
            await self.store.settle(one.event.seq, delivered())
        return [one.event.event_id for one in claimed]

    def look(self, query: str, *values: Any) -> list[Any]:
        """What is committed, seen from outside; single columns unwrapped."""
        db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        try:
            rows = db.execute(query, values).fetchall()
        finally:
            db.close()
        return [row[0] if len(row) == 1 else row for row in rows]

    def states(self) -> dict[str, str]:
        return dict(self.look("SELECT event_id, state FROM event ORDER BY seq"))


@asynccontextmanager
async def open_outbox(path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(path)
    await outbox.open()
    try:
        yield outbox
    finally:
        await outbox.store.close()


def delivered(*slots: Slot, **changes: Any) -> Step:
    step = Step(EventState.DELIVERED, None, None, chekt_event_id="CE", response_id="RE", slots=slots, http_status=201)
    return replace(step, **changes)


def deferred(ms: int = 1_000, **changes: Any) -> Step:
    return replace(Step(EventState.PENDING, ms, "busy (503)", http_status=503), **changes)


def discarded() -> Step:
    return Step(EventState.DISCARDED, None, "the device is disarmed", http_status=201)


def dead() -> Step:
    return Step(EventState.DEAD, None, "refused for good (400)", http_status=400)


def slot(kind: MediaKind = MediaKind.SNAPSHOT, seq: int = 0, deadline_ticks: int = 9_000_000) -> Slot:
    return Slot(
        kind, seq, "https://storage.example/put?secret=1", "https://api.example/callback?secret=2", deadline_ticks
    )


def in_the_writer(store: Store, action: Callable[[sqlite3.Connection], Any]) -> Any:
    """Runs in the writing thread, within a transaction: for faults that only the real connection can have."""
    return store._writer.submit(lambda transaction, arguments: [action(transaction.db) for _ in arguments])
