"""Old rows away, limits kept, space given back.

Promises: pictures give way before alarms do: when the media folder is full, or the disk almost, first the oldest event
clips go, then short clips, then snapshots, each with its reason in its row, at last closed events before their time;
alarms that are on their way never. A file whose row nobody knows is removed, but never one that is just being noted.
Runs in the background: nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import structlog

from gateway.bell import Bell
from gateway.host.repeated import Repeated
from gateway.media.files import Entry, MediaFolder, is_best
from gateway.model import Clock, MediaKind
from gateway.outbox.errors import StoreError
from gateway.states import MediaState

EVERY_SECONDS: Final = 600.0
AGAIN_SOON_SECONDS: Final = 90.0  # after the start: what a crash left is known by then
STORE_RETRY_SECONDS: Final = 60.0
BEAT_SECONDS: Final = 10.0  # waiting is progress, too: the watchdog must hear of it
BATCH: Final = 100  # files, in one commit
# A file is durable before its row says so. What has no row for so long, unchanged, was left by a crash.
STRANGE_MS: Final = 60_000
STRANGE_BEST_MS: Final = 90 * 60_000  # the best clip so far waits for a recorder that is away, at most an hour
GIVE_WAY: Final = (MediaKind.EVENT_MP4, MediaKind.SHORT_MP4, MediaKind.SNAPSHOT)

log = structlog.get_logger()


class MediaFile(Protocol):
    """`gateway.outbox.store.MediaFile`."""

    @property
    def id(self) -> int: ...
    @property
    def event_id(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def state(self) -> MediaState: ...


class Outbox(Protocol):
    """What upkeep needs of the store."""

    async def prune(self, before_ticks: int) -> list[str]: ...
    async def give_space_back(self) -> None: ...
    async def hold_reserve(self) -> None: ...
    @property
    def reserve_missing(self) -> bool: ...
    async def media_files_oldest_first(
        self, kind: MediaKind, *, waiting: bool, limit: int = ...
    ) -> Sequence[MediaFile]: ...
    async def media_remove(self, media_ids: Sequence[int], reason: str) -> list[str]: ...
    async def media_known(self, paths: Collection[str]) -> set[str]: ...


class Upkeep:
    def __init__(
        self,
        *,
        store: Outbox,
        folder: MediaFolder,
        clock: Clock,
        bell: Bell,
        keep_closed_ms: int,
        media_limit_bytes: int,
        reserve_bytes: int,
        least_keep_ms: int = 0,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Ring `bell` when the disk is full; else it looks by itself.

        `least_keep_ms`: as long as closed events are needed to recognise repetitions; under pressure no longer.
        """
        self._store = store
        self._folder = folder
        self._clock = clock
        self._bell = bell
        self._keep_closed_ms = keep_closed_ms
        self._media_limit_bytes = media_limit_bytes
        self._reserve_bytes = reserve_bytes
        self._least_keep_ms = least_keep_ms
        self._beat = beat
        self._strange: dict[Entry, int] = {}  # file without a row -> ticks when it was first seen so
        self._refused = Repeated("upkeep_refused", "upkeep_goes_on")
        self.media_bytes = 0  # as last counted, for `status`

    async def run(self, stop: asyncio.Event) -> None:
        pause = AGAIN_SOON_SECONDS
        while not stop.is_set():
            self._beat()
            try:
                await self.run_once()
            except (StoreError, OSError) as fault:
                # A store or a disk that refuses is told by those who need it for alarms; upkeep can wait.
                self._refused.again(self._clock.ticks_ms(), reason=str(fault))
                await self._rest(stop, STORE_RETRY_SECONDS)
                continue
            self._refused.over(self._clock.ticks_ms())
            await self._rest(stop, pause)
            pause = EVERY_SECONDS

    async def _rest(self, stop: asyncio.Event, seconds: float) -> None:
        while seconds > 0 and not stop.is_set():
            if await self._bell.wait(stop, min(seconds, BEAT_SECONDS)):
                return
            self._beat()
            seconds -= BEAT_SECONDS

    async def run_once(self) -> bool:
        """Whether anything was removed."""
        removed = await self._make_room()
        removed += await self._forget_the_old()
        removed += await self._remove_strangers()
        await self._store.give_space_back()
        await self._store.hold_reserve()
        return removed > 0

    async def _forget_the_old(self) -> int:
        keep_ms = self._keep_closed_ms
        if await self._excess() > 0:  # and no picture is left that could give way
            keep_ms = min(keep_ms, self._least_keep_ms)
        paths = await self._store.prune(self._clock.ticks_ms() - keep_ms)
        await self._folder.remove(paths)
        return len(paths)

    async def _make_room(self) -> int:
        """First what nobody needs any more, then what must give way."""
        removed = 0
        for kind in GIVE_WAY:
            while files := await self._store.media_files_oldest_first(kind, waiting=False, limit=BATCH):
                await self._folder.remove(await self._store.media_remove([f.id for f in files], "not needed any more"))
                removed += len(files)
        entries = await self._folder.entries()
        self.media_bytes = sum(entry.bytes for entry in entries)
        for kind in GIVE_WAY:
            removed += await self._shed(kind)
        return removed

    async def _shed(self, kind: MediaKind) -> int:
        """Removes the oldest files of a kind until the limits are kept or none is left."""
        shed = 0
        while (excess := await self._excess()) > 0:
            files = await self._store.media_files_oldest_first(kind, waiting=True, limit=BATCH)
            if not files:
                break
            victims: list[MediaFile] = []
            for file in files:
                if excess <= 0:
                    break
                victims.append(file)
                excess -= file.bytes
            paths = await self._store.media_remove([file.id for file in victims], "it had to make room (media limit)")
            await self._folder.remove(paths)
            self.media_bytes -= sum(file.bytes for file in victims)
            shed += len(victims)
            self._beat()
        if shed:
            log.warning("media_shed", kind=kind.value, count=shed, media_bytes=self.media_bytes)
        return shed

    async def _excess(self) -> int:
        """Bytes that have to go."""
        wanted = self._reserve_bytes * (2 if self._store.reserve_missing else 1)  # one half is taken again
        missing = wanted - await self._folder.free_bytes()
        return max(self.media_bytes - self._media_limit_bytes, missing)

    async def _remove_strangers(self) -> int:
        """Files that no row knows. Entries count as the same only while they are unchanged."""
        # The files first: a file that is noted between the two looks is then known.
        entries = await self._folder.entries()
        known = await self._store.media_known([entry.name for entry in entries])
        now = self._clock.ticks_ms()
        self._strange = {entry: self._strange.get(entry, now) for entry in entries if entry.name not in known}
        old = [
            entry
            for entry, since in self._strange.items()
            if now - since >= (STRANGE_BEST_MS if is_best(entry.name) else STRANGE_MS)
        ]
        if old:
            await self._folder.remove(entry.name for entry in old)
            log.info("media_strangers_removed", count=len(old), bytes=sum(entry.bytes for entry in old))
        return len(old)
