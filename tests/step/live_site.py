"""A configured site on a real store: rules, conditions, silence and intake, with a broker that a test leads."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.config import Settings
from gateway.deciding import Decider
from gateway.intake import Intake
from gateway.model import Message
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.plans import Plans, compile_sources, filters_of, watched_cameras
from gateway.sources.silence import Silence
from gateway.sources.troubles import open_troubles
from tests.fakes.clock import FakeClock
from tests.fakes.frigate import encode
from tests.step.outbox_kit import Outbox, open_outbox

LOOK_SECONDS = 5.0  # as often as intake goes round by itself
SITE = """
[site]
location_id = "L"
camera_id = "id-site"
timezone = "UTC"
[cloud]
url = "https://api.chektdev.com"
"""


class Line:
    """The session with the broker, as far as intake asks it."""

    def __init__(self) -> None:
        self.connected = True

    async def receive(self, limit: int) -> list[Received]:
        raise NotImplementedError("the test hands everything over")

    def acknowledge(self, tokens: Any) -> None:
        pass

    def drop(self, reason: str) -> None:
        pass

    def is_current(self, token: AckToken) -> bool:
        return True


class LiveSite:
    def __init__(self, outbox: Outbox, text: str) -> None:
        self.outbox = outbox
        self.line = Line()
        self.configure(text)

    def configure(self, text: str) -> None:
        self.settings = Settings(**tomllib.loads(text if "[site]" in text else SITE + text))

    @property
    def clock(self) -> FakeClock:
        return self.outbox.clock

    @property
    def filters(self) -> list[str]:
        return [topic for topic, _ in filters_of(self.settings)]

    async def begin(self) -> None:
        """A process starts, on what is on disk."""
        store, plans = self.outbox.store, Plans(self.settings)
        backlog = BacklogJudge(await store.last_heard_at())
        silence = Silence(
            watched_cameras(self.settings), tuple(self.settings.sources), find_plan=plans.find, location_id="L"
        )
        decider = Decider(
            sources=list(compile_sources(self.settings).values()),
            find_plan=plans.find,
            location_id="L",
            backlog=backlog,
            clock=self.clock,
            silence=silence,
        )
        self.intake = Intake(session=self.line, store=store, decider=decider, backlog=backlog, on_stored=lambda: None)
        await self.intake.load()
        await self.intake.take([])

    async def crash(self, *, down: float = 0.0) -> None:
        """The process ends as by a power cut, and starts again after so many seconds."""
        at = self.clock.wall
        await self.outbox.again()
        self.clock.wall = at + round(down * 1000)
        await self.begin()

    async def connection(self, connected: bool, *, session_present: bool = True) -> None:
        self.line.connected = connected
        if connected:
            self.intake.reconnected(session_present=session_present)
        await self.intake.take([])

    async def hear(self, topic: str, payload: Any, *, qos: int = 0, replay: bool = False) -> None:
        data = payload.encode() if isinstance(payload, str) else encode(payload)
        clock = self.clock
        message = Message(topic, data, qos, replay, False, replay, clock.wall_ms(), clock.ticks_ms())
        assert await self.intake.take([Received(message, AckToken(1, 0))])

    async def passes(self, seconds: float, *, every: float = LOOK_SECONDS) -> None:
        """Time, with intake going round."""
        left = seconds
        while left > 0:
            self.clock.advance(min(every, left))
            left -= every
            await self.intake.take([])

    def events(self) -> list[tuple[str, str, str]]:
        """Of whom, what, and whether it begins: camera's table, or the camera_id it is told under."""
        rows = self.outbox.look("SELECT coalesce(camera, camera_id), kind, event_status FROM event ORDER BY seq")
        return [(row[0], row[1], row[2]) for row in rows]

    def open(self) -> list[tuple[str, str]]:
        """What `status` shows: camera or source, and the kind."""
        troubles = open_troubles(self.intake.memory)
        return sorted((trouble["camera"] or trouble["source"], trouble["kind"]) for trouble in troubles)

    def correlated(self) -> bool:
        """Every end belongs to a beginning that was sent, none has two, and no two rows share an id."""
        rows = self.outbox.look("SELECT event_id, event_status, follows FROM event")
        begun = {event_id for event_id, status, _ in rows if status == "active"}
        ended = [follows for _, status, follows in rows if status == "inactive"]
        return set(ended) <= begun and len(set(ended)) == len(ended)


@asynccontextmanager
async def live_site(path: Path, text: str) -> AsyncIterator[LiveSite]:
    async with open_outbox(path / "outbox.db") as outbox:
        site = LiveSite(outbox, text)
        await site.begin()
        yield site
        assert site.correlated()
