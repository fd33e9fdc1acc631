"""The outbox: the durable table of everything that the cloud shall hear. The one door to it for the steps.

Promises: what a method returns from is on the disk (WAL, `synchronous=FULL`), with everything of the same moment in
one commit; a StoreError means that nothing of it is there; cancelling a caller never half-does anything, though it may
be done; every move of an event or a picture is one of `gateway.states`. All SQL is in this folder: `writer` owns the
connection, `adding`, `claims`, `settling`, `pictures` and `keeping` are what it does, `ledger` is what people read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import structlog

from gateway.model import ClaimedEvent, Clock, Media, MediaKind
from gateway.outbox import adding, claims, correcting, keeping, pictures, settling
from gateway.outbox.choosing import Wish
from gateway.outbox.correcting import Correction
from gateway.outbox.errors import SchemaTooNew, StoreDamaged, StoreError, StoreForeign, StoreInUse
from gateway.outbox.keeping import FindCamera, Revival
from gateway.outbox.opening import open_database
from gateway.outbox.pictures import Fetched, Later, MediaFile, Noted, Search
from gateway.outbox.progress import Tell
from gateway.outbox.reserve import Reserve
from gateway.outbox.rows import NEVER, Added, Compose, IntakeGroup, Mapped, Revived, chunks
from gateway.outbox.settling import Settlement
from gateway.outbox.writer import Transaction, Writer
from gateway.retry import Step
from gateway.states import MediaState

__all__ = [
    "NEVER",
    "Added",
    "Compose",
    "Correction",
    "IntakeGroup",
    "Mapped",
    "MediaFile",
    "Revived",
    "SchemaTooNew",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreForeign",
    "StoreInUse",
]

log = structlog.get_logger()

_REVIVED_AT_ONCE: Final = 256
_A = TypeVar("_A")
_R = TypeVar("_R")


class Store:
    """Made by `Store.open`, in the loop that uses it."""

    def __init__(self, writer: Writer, clock: Clock, path: Path, reserve: Reserve, salvaged: str | None) -> None:
        self._writer = writer
        self._reserve = reserve
        self.salvaged = salvaged  # what was lost and saved, where the file was damaged at this start
        self._claims = claims.Claims()
        self.clock = clock
        self.path = path

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        make_clock: Callable[[int], Clock],
        compose: Compose | None = None,
        reserve_bytes: int = 0,
        tell: Tell | None = None,
    ) -> Store:
        """Takes the lock, brings the tables to this version, goes on with the clock where the last run stopped.

        `tell`: see `gateway.outbox.progress`; called in another thread.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(open_database, path, tell=tell))
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else done.result().close()
            )
            raise
        clock = make_clock(opened.base_ticks)
        reserve = Reserve(path, reserve_bytes)
        salvaged = None if opened.salvaged is None else str(opened.salvaged)
        store = cls(Writer(opened, clock, path, reserve), clock, path, reserve, salvaged)
        store.compose = compose
        await store.hold_reserve()
        return store

    async def close(self) -> None:
        """Commits what waits, closes the file, gives the lock back. May be called twice."""
        await self._writer.close()

    @property
    def compose(self) -> Compose | None:
        """Makes a request's bytes; pure, since it runs in the writing thread within the commit of a claim."""
        return self._claims.compose

    @compose.setter
    def compose(self, compose: Compose | None) -> None:
        self._claims.compose = compose

    @property
    def refusal(self) -> str | None:
        """What the store said when it refused the last commit; None while it works."""
        return self._writer.refusal

    @property
    def running(self) -> bool:
        """Whether the writing thread lives; without it nothing will be written any more."""
        return self._writer.running

    @property
    def commits(self) -> int:
        """How many transactions have changed something since the start: its progress, for the watchdog."""
        return self._writer.commits

    # 1  intake

    async def add(self, group: IntakeGroup) -> Added:
        """Rows, memory, digests and counts of one group, all of them or nothing."""
        if not (group.events or group.memory or group.digests):
            # Counts alone are not worth a flush: if they are lost, `received` is lost with its ends.
            self._writer.submit_lazily(adding.add, group)
            return Added(frozenset(), frozenset())
        return await self._do(adding.add, group)

    def acknowledged(self, event_ids: Sequence[str], digests: Sequence[bytes], at: int) -> None:
        """Lazy: the broker has been told, at this wall time."""
        now = self.clock.ticks_ms()
        self._writer.submit_lazily(adding.acknowledged, (tuple(event_ids), tuple(digests), at, now))

    async def unacknowledged(self) -> Counter[bytes]:
        """Digests of messages that are safe here, but of which the broker may not have been told."""
        return await self._do(adding.unacknowledged, None)

    async def memory(self) -> dict[str, str]:
        return await self._do(adding.memory, None)

    # 3  delivery

    async def recover(self) -> int:
        """At start: what was being sent is pending again, with the same bytes, counted as unclear."""
        return await self._do(keeping.recover, None)

    async def claim(
        self,
        limit: int,
        *,
        busy_lanes: Collection[str] = frozenset(),
        held: Collection[str] = frozenset(),
        held_locations: Collection[str] = frozenset(),
        fresh_only: bool = False,
    ) -> list[ClaimedEvent]:
        """At most `limit` events, at most one of a lane, none of busy or held lanes or held locations; bytes fixed."""
        wish = Wish(limit, frozenset(busy_lanes), frozenset(held), frozenset(held_locations), fresh_only)
        waiting = self._writer.submit(self._claims.claim, wish, abandoned=self._give_back, skip_if_cancelled=True)
        try:
            return cast("list[ClaimedEvent]", await waiting)
        except asyncio.CancelledError:
            # The result had come, but this task was cancelled before it could take it.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give_back(waiting.result())
            raise

    async def settle(self, seq: int, step: Step, *, answer: Mapping[str, Any] | None = None) -> None:
        """After an attempt. `answer` is for the ledger: plain values, no secrets. The event must be in `sending`."""
        await self._do(settling.settle, Settlement(seq, step, answer))

    async def next_due(self) -> int | None:
        """Ticks at which the next deferred event becomes due (it may have, already); None where none is deferred.

        What is due and was not claimed waits for a lane or a hold, not for a time.
        """
        return await self._do(claims.next_due, None)

    async def wake(self, *, held: Collection[str] = frozenset(), held_locations: Collection[str] = frozenset()) -> int:
        """All deferred events are due now, except those of held lanes and locations; returns how many."""
        woken = 0
        while True:
            now = await self._do(keeping.wake, (frozenset(held), frozenset(held_locations)))
            woken += now
            if now < keeping.WOKEN_ROWS:
                return woken

    # 2 and 4  capture and uploads

    async def media_to_fetch(self, limit: int, *, excluding: Collection[int] = frozenset()) -> list[Media]:
        """Without a file, due, the longest due first. `excluding`: ids in hand."""
        return await self._search(pictures.TO_FETCH, limit, excluding)

    async def media_to_put(self, limit: int, *, excluding: Collection[int] = frozenset()) -> list[Media]:
        """File and slot are both there, due."""
        return await self._search(pictures.TO_PUT, limit, excluding)

    async def media_to_confirm(self, limit: int, *, excluding: Collection[int] = frozenset()) -> list[Media]:
        """The file is in the cloud's storage, the callback is due."""
        return await self._search(pictures.TO_CONFIRM, limit, excluding)

    async def media_closing(
        self, before_ticks: int, limit: int, *, excluding: Collection[int] = frozenset()
    ) -> list[Media]:
        """Waiting ones whose slot closes before this time, with or without a file."""
        return await self._search(pictures.CLOSING, limit, excluding, before_ticks)

    async def next_fetch_due(self) -> int | None:
        return await self._do(pictures.next_due, pictures.TO_FETCH)

    async def next_upload_due(self) -> int | None:
        """Ticks at which the next file is due to be put or confirmed; what is in hand counts, too."""
        puts, confirms = await asyncio.gather(
            self._do(pictures.next_due, pictures.TO_PUT), self._do(pictures.next_due, pictures.TO_CONFIRM)
        )
        return min((ticks for ticks in (puts, confirms) if ticks is not None), default=None)

    async def next_slot_closing(self) -> int | None:
        return await self._do(pictures.next_due, pictures.CLOSING)

    async def media_of(self, event_seq: int) -> list[Media]:
        return await self._do(pictures.of_event, event_seq)

    async def media_fetched(self, media_id: int, path: str, size: int, sha256: str) -> bool:
        """The file is complete and flushed. False: it is not wanted any more (delete it)."""
        return await self._do(pictures.fetched, Fetched(media_id, path, size, sha256))

    async def media_fetch_later(self, media_id: int, next_at: int, reason: str) -> bool:
        return await self._do(pictures.later, Later(media_id, next_at, reason, fetching=True))

    async def media_later(self, media_id: int, next_at: int, reason: str) -> bool:
        """PUT or callback failed and is tried again."""
        return await self._do(pictures.later, Later(media_id, next_at, reason, fetching=False))

    async def media_noted(self, media_id: int, state: MediaState, reason: str | None = None) -> bool:
        """uploaded, done, or lost. False: it was so already, or lost meanwhile. Only as `gateway.states` allows."""
        return cast(bool, await self._do(pictures.noted, Noted(media_id, state, reason)))

    # 5  upkeep

    async def expire(self, before_ticks: int) -> int:
        """Pending since before this time -> dead, `expired`; returns how many."""
        expired = 0
        while True:
            now = await self._do(keeping.expire, before_ticks)
            expired += now
            if now < keeping.EXPIRED_ROWS:
                return expired

    async def prune(self, before_ticks: int) -> list[str]:
        """Forgets what was closed before this time, and unmapped events beyond the newest; returns the files to delete.

        The rows are gone when a path is returned: a file that is left by a crash is found by `media_known`.
        """
        paths: list[str] = []
        while True:
            pruned = await self._do(keeping.prune, before_ticks)
            paths += pruned.paths
            if pruned.events < keeping.PRUNED_ROWS:
                return paths

    async def give_space_back(self, *, keep_pages: int = 1_024) -> None:
        """Returns empty pages to the file system, some in each commit; a few stay for what comes next."""
        left = None
        while True:
            now = await self._do(keeping.give_space_back, None)
            if now <= keep_pages or now == left:
                break
            left = now
        await self._do(keeping.carry_over, None)

    async def hold_reserve(self) -> None:
        """Takes the reserve for alarms again where it was given up and there is room for it."""
        missed = self._reserve.missing
        if await asyncio.to_thread(self._reserve.hold) and missed:
            log.info("reserve_held")

    @property
    def reserve_missing(self) -> bool:
        """Alarms live on the reserve, or it could not be taken: the disk is as good as full."""
        return self._reserve.missing

    async def media_files_oldest_first(self, kind: MediaKind, *, waiting: bool, limit: int = 100) -> list[MediaFile]:
        """Files of a kind: those that the cloud still waits for, or those that it does not."""
        return await self._do(pictures.files, (kind, waiting, limit))

    async def media_remove(self, media_ids: Sequence[int], reason: str) -> list[str]:
        """These rows have no file any more; returns the paths to delete. What still waited is lost for this reason."""
        return await self._do(pictures.remove_files, (tuple(media_ids), reason))

    async def media_known(self, paths: Collection[str]) -> set[str]:
        """Which of these files belong to a row."""
        return await self._do(pictures.known_paths, frozenset(paths))

    async def correct_times(self, correction: Correction) -> int:
        """The right time is known: what was received under a wrong clock is dated anew; returns how many rows."""
        corrected = 0
        while True:
            now = await self._do(correcting.correct, correction)
            corrected += now
            if now < correcting.CORRECTED_ROWS:
                return corrected

    # 6  people

    async def revive(
        self, event_ids: Iterable[str] | None, *, signal: bool | None = None, find_camera: FindCamera | None = None
    ) -> Revived:
        """Dead and unmapped events are pending again; None: all dead ones. `signal`: see `gateway.outbox.keeping`."""
        total = Revived()
        if event_ids is None:
            event_ids = await self._do(keeping.dead_ids, None)
        for part in chunks(list(dict.fromkeys(event_ids)), _REVIVED_AT_ONCE):
            total = total.plus(await self._do(keeping.revive, Revival(tuple(part), signal, find_camera)))
        return total

    async def looked_at(self, event_ids: Iterable[str]) -> int:
        """A person has seen these dead events."""
        return await self._do(keeping.look_at, tuple(event_ids))

    def note(self, event_id: str, what: str, detail: Mapping[str, Any] | None = None) -> None:
        """Lazy: one more line in the ledger of an event."""
        now = (self.clock.wall_ms(), self.clock.ticks_ms())
        self._writer.submit_lazily(keeping.note, (event_id, *now, what, dict(detail or {})))

    async def counters(self) -> dict[str, int]:
        """See `gateway.outbox.ledger.Counts`."""
        return await self._do(keeping.counters, None)

    async def get_meta(self, key: str) -> str | None:
        return await self._do(keeping.get_meta, key)

    async def set_meta(self, key: str, value: str | None) -> None:
        await self._do(keeping.set_meta, (key, value))

    def set_meta_lazily(self, key: str, value: str | None) -> None:
        """As `set_meta`, with the next commit."""
        self._writer.submit_lazily(keeping.set_meta, (key, value))

    async def last_heard_at(self, name: str | None = None) -> int | None:
        """Wall ms of the last message that anything on the site was heard to say; None: nothing ever was."""
        return cast("int | None", await self._do(keeping.last_heard_at, name))

    async def flush(self) -> None:
        """Returns when everything that was asked for before, notes included, has been committed."""
        await self._do(_flush, None)

    async def _do(self, handler: Callable[[Transaction, Sequence[_A]], Sequence[_R]], argument: _A) -> _R:
        return cast(_R, await self._writer.submit(handler, argument))

    async def _search(
        self, query: str, limit: int, excluding: Collection[int], until: int | None = None
    ) -> list[Media]:
        return await self._do(pictures.search, Search(query, limit, frozenset(excluding), until))

    def _give_back(self, claimed: list[ClaimedEvent]) -> None:
        """Nobody has these: the caller was cancelled between the commit and its result."""
        if claimed:
            pairs = [(one.event.seq, one.first_use) for one in claimed]
            self._writer.submit_lazily(claims.give_back, pairs)


def _flush(transaction: Transaction, arguments: Sequence[None]) -> Sequence[None]:
    return arguments
