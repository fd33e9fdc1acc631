"""The sender with everything that belongs to it, towards the strict practice cloud, on one clock that a test moves.

Real: outbox, `Delivery`, `Gate`, `TokenSource`, `Client` over loopback. A day passes in seconds:
`pass_time` looks at what may be sent, as the daemon would, and moves the clock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.bell import Bell
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.keys import Secrets, parse_key
from gateway.chekt.token import TokenSource
from gateway.config import Cloud as CloudTable
from gateway.delivery import Delivery
from gateway.gate import Gate
from gateway.model import EventStatus, EventType, MediaWanted, NewEvent
from gateway.outbox.store import IntakeGroup, Store, StoreError
from gateway.retry import Policy
from gateway.simulator.cloud import Cloud
from gateway.simulator.terms import Terms
from gateway.states import EventState
from tests.fakes.clock import FakeClock


@dataclass
class Sender:
    store: Store
    cloud: Cloud
    clock: FakeClock
    client: Client
    tokens: TokenSource
    delivery: Delivery
    options: wire.Options = field(default_factory=wire.Options)
    _alarms: int = 0

    async def alarm(self, camera: str = "door", *, happened_ago: float = 0.0, **changes: Any) -> str:
        """An alarm that is received now; its id."""
        self._alarms += 1
        event_id = f"{camera}-{self._alarms}"
        media: tuple[MediaWanted, ...] = changes.pop("media", ())
        row = NewEvent(
            event_id=event_id,
            state=EventState.PENDING,
            event_type=changes.pop("event_type", EventType.ALARM),
            event_status=EventStatus.ACTIVE,
            source="nvr",
            camera=camera,
            source_camera=camera,
            location_id="L",
            recorder_id="R",
            camera_id=f"id-{camera}",
            signal=True,
            event_at=self.clock.wall_ms() - round(happened_ago * 1000),
            received_at=self.clock.wall_ms(),
            received_ticks=self.clock.ticks_ms(),
            topic="frigate/reviews",
            media=media,
            **changes,
        )
        added = await self.store.add(IntakeGroup((row,), {"received": 1}, {}, (), {}))
        assert added.new == {event_id}
        return event_id

    async def send(self) -> None:
        """Everything that may go now, until nothing is left that may."""
        while await self.delivery.run_once():
            pass

    async def pass_time(self, seconds: float, *, step: float = 1.0) -> None:
        """Looks at what may be sent every `step` seconds, as the daemon would."""
        until = self.clock.ticks + round(seconds * 1000)
        while self.clock.ticks < until:
            await self.send()
            self.clock.advance(min(step, (until - self.clock.ticks) / 1000))
        await self.send()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(f"{self.store.path.as_uri()}?mode=ro", uri=True)
        try:
            return db.execute(query, values).fetchall()
        finally:
            db.close()

    def state(self, event_id: str) -> str:
        [(state,)] = self.rows("SELECT state FROM event WHERE event_id = ?", event_id)
        return str(state)

    def reason(self, event_id: str) -> str:
        [(reason,)] = self.rows("SELECT reason FROM event WHERE event_id = ?", event_id)
        return str(reason)

    @property
    def states(self) -> dict[str, str]:
        return dict(self.rows("SELECT event_id, state FROM event ORDER BY seq"))

    @property
    def levels(self) -> list[str]:
        """Of what `status` says now."""
        return [condition.level for condition in self.delivery.gate.conditions()]

    @property
    def sentences(self) -> str:
        return "; ".join(condition.sentence for condition in self.delivery.gate.conditions())

    def asked(self, kind: str) -> int:
        return len([request for request in self.cloud.requests if request.kind == kind])

    def posts_of(self, event_id: str) -> int:
        """Attempts, whatever became of them."""
        [(attempts,)] = self.rows("SELECT attempts FROM event WHERE event_id = ?", event_id)
        return int(attempts)


@asynccontextmanager
async def open_sender(
    tmp_path: Path,
    terms: Terms | None = None,
    *,
    policy: Policy | None = None,
    options: wire.Options | None = None,
    url: str | None = None,
    **table: Any,
) -> AsyncIterator[Sender]:
    """`url`: another place than the practice cloud's, for what is between us and it."""
    clock = FakeClock()
    cloud = Cloud(terms or Terms(), now=lambda: clock.wall_ms() / 1000)
    await cloud.start()
    config = CloudTable(
        url=url or cloud.url,
        token_url=(url or cloud.url) + "/oauth/token",
        client_id=cloud.terms.client_id,
        audience=cloud.terms.audience,
        assertion_audience=cloud.url + "/",
        key_id="practice-key",
        **table,
    )
    store = await Store.open(tmp_path / "outbox.db", make_clock=lambda base: clock)
    used = options or wire.Options()
    store.compose = lambda event, media, sent_at: wire.compose(
        event, media, sent_at=sent_at, ticks=clock.ticks_ms(), options=used
    )
    client = Client(config, version="test")
    secrets = Secrets(signing_key=parse_key(cloud.practice_key, "RS256"))
    tokens = TokenSource(config, secrets, client.post_form, clock, jitter=lambda: 0.5)
    client.on_date = tokens.learn_date
    rules = policy or Policy(drain_jitter_ms=0)
    delivery = Delivery(
        store=store,
        client=client,
        tokens=tokens,
        gate=Gate(rules, ticks=clock.ticks_ms(), jitter=0.0),
        policy=rules,
        cloud_url=config.url,
        jitter=lambda: 0.5,
        bell=Bell(),
        delivered=lambda: None,
        refused=(StoreError,),
    )
    try:
        yield Sender(store, cloud, clock, client, tokens, delivery, used)
    finally:
        await tokens.close()
        await client.close()
        await store.close()
        await cloud.stop()
