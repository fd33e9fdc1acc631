"""A store, a media folder, a recorder and a practice cloud with one clock, for the tests of the picture steps."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.bell import Bell
from gateway.capture import Capture
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.config import Cloud as CloudTable
from gateway.media.files import MediaFolder
from gateway.media.frigate import Frigate
from gateway.model import EventStatus, EventType, MediaKind, MediaWanted, NewEvent
from gateway.outbox.store import IntakeGroup, Store
from gateway.retry import Policy, Verdict, next_step
from gateway.simulator.cloud import Cloud
from gateway.simulator.terms import Terms
from gateway.states import EventState
from gateway.uploads import Uploads
from tests.fakes.clock import FakeClock
from tests.fakes.recorder import Recorder

CLIP_BEFORE_MS = 10_000
CLIP_AFTER_MS = 20_000


@dataclass
class World:
    store: Store
    folder: MediaFolder
    recorder: Recorder
    cloud: Cloud
    client: Client
    frigate: Frigate
    clock: FakeClock
    bell: Bell = field(default_factory=Bell)
    fetched: int = 0
    full: int = 0
    _alarms: int = 0

    def capture(self, **changed: Any) -> Capture:
        def count_fetched() -> None:
            self.fetched += 1

        def count_full() -> None:
            self.full += 1

        arguments: dict[str, Any] = {
            "store": self.store,
            "folder": self.folder,
            "recorders": {"nvr": self.frigate},
            "clock": self.clock,
            "bell": self.bell,
            "jitter": lambda: 1.0,
            "reserve_bytes": 0,
            "on_fetched": count_fetched,
            "on_full": count_full,
        }
        return Capture(**(arguments | changed))

    def uploads(self, **changed: Any) -> Uploads:
        arguments: dict[str, Any] = {
            "store": self.store,
            "client": self.client,
            "folder": self.folder,
            "clock": self.clock,
            "bell": self.bell,
            "jitter": lambda: 1.0,
            "parallel": 2,
        }
        return Uploads(**(arguments | changed))

    async def alarm(
        self,
        *,
        camera: str = "front_door",
        snapshots: int = 1,
        short: bool = False,
        event: bool = False,
        happened_ago: float = 0.0,
        source: str = "nvr",
        detections: tuple[str, ...] = ("1772366400.1-abc",),
    ) -> str:
        """Adds an alarm that reaches us now; its id."""
        self._alarms += 1
        now = self.clock.wall_ms()
        event_at = now - round(happened_ago * 1000)
        recipe = {"strategy": "frigate", "camera": camera, "detections": list(detections)}
        wanted = [
            MediaWanted(MediaKind.SNAPSHOT, seq, event_at + 2000 * seq, event_at + 2000 * seq, recipe)
            for seq in range(snapshots)
        ]
        if short:
            wanted.append(MediaWanted(MediaKind.SHORT_MP4, 0, event_at - 2_000, event_at + 4_000, recipe))
        if event:
            window = event_at - CLIP_BEFORE_MS, event_at + CLIP_AFTER_MS
            wanted.append(MediaWanted(MediaKind.EVENT_MP4, 0, *window, recipe))
        event_id = f"alarm-{self._alarms}"
        row = NewEvent(
            event_id=event_id,
            state=EventState.PENDING,
            event_type=EventType.ALARM,
            event_status=EventStatus.ACTIVE,
            source=source,
            camera=camera,
            source_camera=camera,
            location_id="Z6RSOG",
            recorder_id="Z6RANV",
            camera_id=f"id-of-{camera}",
            signal=True,
            event_at=event_at,
            received_at=now,
            received_ticks=self.clock.ticks_ms(),
            topic="frigate/reviews",
            media=tuple(wanted),
        )
        await self.store.add(IntakeGroup((row,), {}, {}, (), {}))
        return event_id

    async def deliver(self) -> None:
        """Everything pending goes to the practice cloud, as `delivery` does it."""
        for claimed in await self.store.claim(100):
            reply = await self.client.post_event(claimed.body, claimed.idempotency_key, "unused")
            answer = wire.read_answer(
                reply, ticks=self.clock.ticks_ms(), wall=self.clock.wall_ms(), cloud_url=self.cloud.url
            )
            assert answer.verdict in (Verdict.ACCEPTED, Verdict.DISCARDED), answer
            step = next_step(
                claimed.event,
                answer,
                ticks=self.clock.ticks_ms(),
                jitter=0.0,
                policy=Policy(),
                first_use=True,
                another_accepted=True,
            )
            await self.store.settle(claimed.event.seq, step)

    async def rows(self, columns: str = "state, reason") -> list[tuple[Any, ...]]:
        """Of the media table, as another process sees it."""
        await self.store.flush()
        with sqlite3.connect(f"file:{self.store.path}?mode=ro", uri=True) as db:
            found = db.execute(f"SELECT {columns} FROM media ORDER BY id").fetchall()  # noqa: S608  our own words
        db.close()
        return found

    async def states(self) -> list[str]:
        return [state for (state,) in await self.rows("state")]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.root.iterdir())


@asynccontextmanager
async def open_world(tmp_path: Path, terms: Terms | None = None, **client: Any) -> AsyncIterator[World]:
    clock = FakeClock()
    cloud = Cloud(terms or Terms(auth="api_key", event_header="x-api-key"), now=lambda: clock.wall_ms() / 1000)
    await cloud.start()
    recorder = Recorder()
    await recorder.start()
    table = CloudTable(url=cloud.url, auth="api_key", event_header="x-api-key", api_key_file="unused")
    store = await Store.open(tmp_path / "outbox.db", make_clock=lambda base: clock)
    store.compose = lambda event, media, sent_at: wire.compose(
        event, media, sent_at=sent_at, ticks=clock.ticks_ms(), options=wire.Options()
    )
    folder = MediaFolder(tmp_path / "media")
    folder.prepare()
    frigate = Frigate(recorder.url, clock=clock)
    async with Client(table, version="test", api_key=cloud.terms.api_key, **client) as http:
        try:
            yield World(store, folder, recorder, cloud, http, frigate, clock)
        finally:
            await frigate.close()
            await store.close()
            folder.close()
            await recorder.stop()
            await cloud.stop()
