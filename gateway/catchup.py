"""What nobody heard, asked of the recorder afterwards, and told to intake through the same door.

Recorders speak with QoS 0: what they say while the gateway, the broker or the network between them is away is gone.
But they remember it. A *gap* is a time in which a recorder may have spoken unheard: it opens at a start, with a lost
connection, when the recorder itself goes away or comes back; while it lasts the recorder is asked again and again, so
that alarms arrive even while the broker is dead; it closes when everything has been asked for that was said until we
could hear again. A gap is on disk until what it came to is committed, so that a crash in it does not lose it.

Promises: nothing doubles (same ids as over MQTT); nothing is asked for from before the source was first heard, nor
from more than an hour ago; a recorder that does not answer is asked less and less often, and said once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from gateway.media.recorder import FetchError, Unanswered, Unreachable
from gateway.model import Clock, Message, iso_utc
from gateway.retry import half_jitter_ms
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.histories.shape import History, NotAList, Remembered, in_order

log = structlog.get_logger()

LONGEST_MS: Final = 60 * 60_000  # what began earlier is no alarm any more (conditions.MISSED_LIMIT_MS)
MARGIN_MS: Final = 5 * 60_000  # before what was heard last: two clocks may differ so far unnoticed (SKEW_LIMIT_MS)
BATCH: Final = 100  # handed to intake at once
PAGES: Final = 40  # of one answer: a recorder that repeats itself shall not hold us up for ever
GAPS: Final = "gaps"  # the store's meta: source -> wall ms


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Tests make them short."""

    look: float = 5.0  # how soon it is noticed that nothing can be heard; a start gives the broker as long
    away: float = 15.0  # the pace while nothing can be heard: alarms come by this way only
    again: float = 60.0  # what is being written while we ask is there by then
    retry_first: float = 2.0
    retry_max: float = 60.0
    refused_max: float = 600.0  # where a person must act first


class Session(Protocol):
    """What is needed of `gateway.sources.broker.Session`."""

    @property
    def connected(self) -> bool: ...
    @property
    def is_subscribed(self) -> bool: ...
    async def receive(self, limit: int) -> list[Received]: ...
    def hand_in(self, messages: Sequence[Received]) -> None: ...
    def acknowledge(self, tokens: Sequence[AckToken]) -> None: ...
    def drop(self, reason: str) -> None: ...
    def is_current(self, token: AckToken) -> bool: ...


class Outbox(Protocol):
    """What is needed of the store."""

    async def last_heard_at(self, name: str | None = ...) -> int | None: ...
    async def get_meta(self, key: str) -> str | None: ...
    def set_meta_lazily(self, key: str, value: str | None) -> None: ...


class Recorder(Protocol):
    """`gateway.media.recorder.Recorder` is one. Raises FetchError."""

    async def read(self, path: str) -> bytes: ...


@dataclass(frozen=True)
class Asked:
    """One recorder that can be asked. `covers` tells its topics; `find_offset` how far our clock is ahead of its."""

    history: History
    recorder: Recorder
    covers: Callable[[str], bool]
    find_offset: Callable[[], int] = lambda: 0


@dataclass
class _Gap:
    since: int
    told: set[tuple[str, Hashable]] = field(default_factory=set)  # what was handed in and is still being answered
    count: int = 0  # handed in
    whole_rounds: int = 0  # answers since we can hear again
    failures: int = 0  # in a row
    reason: str | None = None


@dataclass
class _Batch:
    """Messages that were handed in and are not all committed yet."""

    left: int
    safe: asyncio.Event = field(default_factory=asyncio.Event)


class CatchUp:
    """`run` asks; for intake it stands in the place of the session, so that it sees what is heard and what is safe."""

    def __init__(
        self,
        *,
        session: Session,
        store: Outbox,
        clock: Clock,
        sources: Mapping[str, Asked],
        jitter: Callable[[], float],
        timing: Timing = Timing(),
    ) -> None:
        self._session = session
        self._store = store
        self._clock = clock
        self._sources = sources
        self._jitter = jitter
        self._timing = timing
        self._gaps: dict[str, _Gap] = {}
        self._heard: dict[str, int] = {}  # source -> wall ms of its last message
        self._away: set[str] = set()  # recorders whose own connection to the broker is gone
        self._bells = {table: asyncio.Event() for table in sources}
        self._unsafe: dict[AckToken, _Batch] = {}
        self._serial = itertools.count(1)

    async def load(self) -> None:
        """To be awaited once before the session connects: every start is the end of a gap."""
        kept: dict[str, int] = json.loads(await self._store.get_meta(GAPS) or "{}")
        for table in self._sources:
            heard = await self._store.last_heard_at(table)
            if heard is not None:
                self._heard[table] = heard
                self._gaps[table] = _Gap(min(heard, kept.get(table, heard)))
        self._save()

    # In the session's place

    @property
    def connected(self) -> bool:
        return self._session.connected

    async def receive(self, limit: int) -> list[Received]:
        received = await self._session.receive(limit)
        for one in received:
            if one.missed_since is None:
                self._note(one.message)
        return received

    def acknowledge(self, tokens: Sequence[AckToken]) -> None:
        for token in tokens:
            if (batch := self._unsafe.get(token)) is not None:
                batch.left -= 1
                if not batch.left:
                    batch.safe.set()
        self._session.acknowledge(tokens)

    def drop(self, reason: str) -> None:
        self._session.drop(reason)

    def is_current(self, token: AckToken) -> bool:
        return self._session.is_current(token)

    # What opens and ends a gap

    def connection_began(self) -> None:
        """Before its first message. Nothing was heard since the last one of the connection before."""
        for table in self._sources:
            self._open(table)

    def subscribed(self) -> None:
        """From here on we hear again."""
        for bell in self._bells.values():
            bell.set()

    def facts(self) -> dict[str, Any]:
        """For `status`: which sources are being asked, since when, and why it takes so long."""
        return {table: {"since_at": gap.since, "reason": gap.reason} for table, gap in self._gaps.items()}

    def _note(self, message: Message) -> None:
        for table, asked in self._sources.items():
            if not asked.covers(message.topic):
                continue
            here = asked.history.presence(message.topic, message.payload)
            if here is not None and (here != (table not in self._away) or not message.replay):
                self._open(table)
                (self._away.discard if here else self._away.add)(table)
                self._bells[table].set()
            if not message.replay:
                self._heard[table] = message.received_at

    def _open(self, table: str) -> None:
        """The gap of this source begins, or has not ended yet."""
        if table in self._gaps:
            self._gaps[table].whole_rounds = 0
        elif table in self._heard:
            self._gaps[table] = _Gap(self._heard[table])
            self._save()

    def _is_heard(self, table: str) -> bool:
        return self._session.is_subscribed and table not in self._away

    def _save(self) -> None:
        # With the next commit, which is not later than that of any message which would move `last_heard_at`.
        known = {table: gap.since for table, gap in self._gaps.items()}
        self._store.set_meta_lazily(GAPS, json.dumps(known) if known else None)

    # Asking

    async def run(self, stop: asyncio.Event) -> None:
        watches = [asyncio.create_task(self._watch(table), name=f"catch-up {table}") for table in self._sources]
        stopped = asyncio.create_task(stop.wait(), name="catch-up stop")
        try:
            done, _ = await asyncio.wait({stopped, *watches}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # a watch ends only with what went wrong in it
        finally:
            for task in (stopped, *watches):
                task.cancel()
            await asyncio.gather(stopped, *watches, return_exceptions=True)

    async def _watch(self, table: str) -> None:
        await self._pause(table, self._timing.look)  # the broker first: what it has kept needs no asking
        while True:
            if not self._is_heard(table):
                self._open(table)
            gap = self._gaps.get(table)
            await self._rest(table, self._timing.look if gap is None else await self._ask(table, gap))

    async def _ask(self, table: str, gap: _Gap) -> float:
        """One round. Returns the seconds until the next one."""
        asked = self._sources[table]
        heard_before = self._is_heard(table)
        rounds = gap.whole_rounds
        try:
            items = await self._fetch(asked, gap)
        except (FetchError, NotAList) as fault:
            return self._failed(table, gap, fault)
        gap.failures, gap.reason = 0, None
        await self._tell(table, gap, [item for item in items if item.key not in gap.told])
        gap.told = {item.key for item in items}
        if not heard_before or gap.whole_rounds != rounds:
            return self._timing.away
        gap.whole_rounds += 1
        if gap.whole_rounds < 2:
            return self._timing.again
        del self._gaps[table]
        self._save()
        log.info("caught_up", source=table, since=iso_utc(gap.since), told=gap.count)
        return self._timing.look

    async def _fetch(self, asked: Asked, gap: _Gap) -> list[Remembered]:
        now, offset = self._clock.wall_ms(), asked.find_offset()
        after = max(gap.since - MARGIN_MS, now - LONGEST_MS) - offset
        seconds = max(after, 0) / 1000
        found: list[Remembered] = []
        for question in asked.history.questions(seconds, (now - offset + MARGIN_MS) / 1000):
            path: str | None = question
            for _ in range(PAGES):
                if path is None:
                    break
                page = asked.history.read(await asked.recorder.read(path), seconds)
                found += page.items
                path = page.earlier
        return in_order(found)

    async def _tell(self, table: str, gap: _Gap, items: Sequence[Remembered]) -> None:
        """Returns when intake has committed all of it."""
        for position in range(0, len(items), BATCH):
            batch = items[position : position + BATCH]
            token = AckToken(-next(self._serial), 0)
            unsafe = self._unsafe[token] = _Batch(len(batch))
            now, ticks = self._clock.wall_ms(), self._clock.ticks_ms()
            messages = [Message(item.topic, item.payload, 0, False, False, False, now, ticks) for item in batch]
            self._session.hand_in([Received(message, token, missed_since=gap.since) for message in messages])
            gap.count += len(batch)
            await unsafe.safe.wait()
            del self._unsafe[token]

    def _failed(self, table: str, gap: _Gap, fault: Exception) -> float:
        gap.failures += 1
        gap.reason = str(fault)
        if gap.failures == 1:
            log.warning("catch_up_waits", source=table, since=iso_utc(gap.since), reason=gap.reason)
        timing = self._timing
        most = timing.retry_max if isinstance(fault, (Unanswered, Unreachable)) else timing.refused_max
        wait = half_jitter_ms(gap.failures, round(timing.retry_first * 1000), round(most * 1000), self._jitter())
        return wait / 1000

    async def _rest(self, table: str, seconds: float) -> None:
        """Shorter if nothing can be heard any more meanwhile: from then on alarms come by asking only."""
        heard = self._is_heard(table)
        while seconds > 0 and not await self._pause(table, min(seconds, self._timing.look)):
            seconds -= self._timing.look
            if heard and not self._is_heard(table):
                return

    async def _pause(self, table: str, seconds: float) -> bool:
        """Whether somebody rang."""
        bell = self._bells[table]
        try:
            async with asyncio.timeout(seconds):
                await bell.wait()
        except TimeoutError:
            return False
        bell.clear()
        return True
