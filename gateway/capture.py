"""Step 2: recorder -> file, at once, whether or not the cloud is there.

Promises: a picture is of the moment of its alarm; a clip that is too short is asked for again until it is whole, has
stopped growing, or time is up, and then the longest that exists goes; what is in the folder is whole and durable before
the row says so; a picture that will not come ends as `lost` with the reason and never touches its event; a slow camera
holds up no other, a clip no snapshot. A recorder that is away for an hour costs pictures only where the cloud's slots
do not wait that long. Deadlines are those of the row (`fetch_until_ticks`), and of its slot once the cloud gave one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

import structlog

from gateway.bell import Bell
from gateway.crew import Crew
from gateway.host.repeated import Repeated
from gateway.media import mp4, timing
from gateway.media.files import Draft, Kept, MediaFolder, best_name_of, name_of
from gateway.media.health import Health
from gateway.media.recorder import FetchError, NotThere
from gateway.model import Clock, Media, MediaKind
from gateway.outbox.errors import StoreError
from gateway.retry import half_jitter_ms
from gateway.states import MediaState

IDLE_SECONDS: Final = 2.0  # the table is the truth: looked at this often without being rung
LOOK_AT_ONCE: Final = 500  # rows; more are due only when hundreds of cameras alarm in the same minute
SNAPSHOTS_PER_RECORDER: Final = 4
SNAPSHOTS_PER_CAMERA: Final = 2
CLIPS_PER_RECORDER: Final = 2  # each makes the recorder run ffmpeg
CLIPS_PER_CAMERA: Final = 1
RETRY_FIRST_MS: Final = {MediaKind.SNAPSHOT: 1_000, MediaKind.SHORT_MP4: 4_000, MediaKind.EVENT_MP4: 4_000}
RETRY_MAX_MS: Final = {MediaKind.SNAPSHOT: 5_000, MediaKind.SHORT_MP4: 15_000, MediaKind.EVENT_MP4: 15_000}
STILL_MS: Final = 30_000  # three segments of Frigate: a clip that has not grown meanwhile will not
SLOT_CLOSES_SOON_MS: Final = 31_000  # the greatest of timing.BEFORE_SLOT_END_MS, and a little
STORE_RETRY_MS: Final = 1_000
FAULT_RETRY_MS: Final = 60_000  # where even putting a row off fails
AFTER_RETURN_MS: Final = 60_000  # a recorder that has just started may not know its newest recordings yet

log = structlog.get_logger()


class Outbox(Protocol):
    """What capture needs of the store."""

    async def media_to_fetch(self, limit: int, *, excluding: Collection[int] = ...) -> list[Media]: ...
    async def media_closing(
        self, before_ticks: int, limit: int, *, excluding: Collection[int] = ...
    ) -> list[Media]: ...
    async def media_fetched(self, media_id: int, path: str, size: int, sha256: str) -> bool: ...
    async def media_fetch_later(self, media_id: int, next_at: int, reason: str) -> bool: ...
    async def media_noted(self, media_id: int, state: MediaState, reason: str | None = None) -> bool: ...


class Recorder(Protocol):
    """What fetches for one source; `gateway.media.frigate.Frigate` is one. Raises only FetchError and OSError."""

    @property
    def settle_ms(self) -> int:
        """How long after its end a window is worth asking for."""

    async def snapshot(
        self, recipe: Mapping[str, Any], moment_at: int, *, seq: int, live: bool, draft: Draft
    ) -> None: ...
    async def clip(
        self, recipe: Mapping[str, Any], from_at: int, to_at: int, *, attempt: int, draft: Draft
    ) -> None: ...


class Capture:
    def __init__(
        self,
        *,
        store: Outbox,
        folder: MediaFolder,
        recorders: Mapping[str, Recorder],
        clock: Clock,
        bell: Bell,
        jitter: Callable[[], float],
        reserve_bytes: int,
        on_fetched: Callable[[], None] = lambda: None,
        on_full: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`recorders` by name of their source. `on_full` asks for space: pictures give way before alarms do."""
        self._store = store
        self._folder = folder
        self.recorders = recorders
        self._clock = clock
        self._bell = bell
        self._jitter = jitter
        self._reserve_bytes = reserve_bytes
        self._on_fetched = on_fetched
        self._on_full = on_full
        self._beat = beat
        self._crew = Crew(on_free=bell.ring)
        self._health = Health(clock, jitter)
        self._disk = Repeated("media_disk_refused", "media_disk_back")
        self._disk_reason = ""
        self._grown: dict[int, int] = {}  # clip -> ticks when its best-so-far last grew
        self._next: dict[int, int] = {}  # row that was put off -> ticks of the next try, also while its slot closes
        self._held: dict[int, int] = {}  # row that could not be noted -> ticks of the next try
        self._store_refuses = Repeated("capture_waits_for_the_store", "capture_goes_on")
        self._look_at: int | None = None  # ticks of the earliest row that we put off ourselves

    @property
    def troubles(self) -> dict[str, str]:
        """Source -> why its pictures fail now; for `status`. The key "" is the disk."""
        return self._health.reasons | ({"": self._disk_reason} if self._disk.count else {})

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                self._beat()
                await self._start_due(group)
                await self._bell.wait(stop, self._idle_seconds())
            self._crew.cancel()  # a fetch is safe to repeat: its row still waits

    async def run_once(self) -> bool:
        """Fetches everything that is due; whether there was something."""
        found = False
        async with asyncio.TaskGroup() as group:
            while await self._start_due(group):
                found = True
                await self._crew.finish()
        return found

    async def _start_due(self, group: asyncio.TaskGroup) -> bool:
        self._look_at = None
        now = self._clock.ticks_ms()
        try:
            due = await self._due(now)
        except StoreError as fault:
            self._store_refuses.again(now, reason=str(fault))
            self._look_again_at(now + STORE_RETRY_MS)
            return False
        if not self._held:
            self._store_refuses.over(now)
        started = False
        for media in due:
            not_before = self._not_before(media, now)
            if now < not_before:
                self._look_again_at(not_before)
                continue
            lanes = self._lanes_of(media)
            if self._crew.has_room(lanes):
                self._crew.start(group, media.id, lanes, self._contained(media))
                started = True
        return started

    async def _due(self, now: int) -> list[Media]:
        in_hand = self._crew.rows
        due = await self._store.media_to_fetch(LOOK_AT_ONCE, excluding=in_hand)
        # A slot may close before the window is over or the next try comes.
        closing = await self._store.media_closing(now + SLOT_CLOSES_SOON_MS, LOOK_AT_ONCE, excluding=in_hand)
        known = {media.id for media in due}
        return due + [media for media in closing if media.path is None and media.id not in known]

    def _not_before(self, media: Media, now: int) -> int:
        """Ticks. Waiting needs no write: the row is looked at again, and with it the slot that it may have got."""
        recorder = self.recorders.get(media.source)
        if now < self._held.get(media.id, now):
            return self._held[media.id]
        if recorder is None:
            return now
        again_at = self._next.get(media.id, now)
        if now < again_at and now < (again_at := timing.before_slot_ends(media, again_at)):
            return again_at
        due = timing.due(media, ticks=now, wall=self._clock.wall_ms())
        if media.kind is not MediaKind.SNAPSHOT:
            due += recorder.settle_ms
        due = min(due, timing.before_slot_ends(media, due))
        probe_at = self._health.probe_at(media.source)
        return due if probe_at is None else max(due, min(probe_at, timing.patience_ends(media)))

    def _lanes_of(self, media: Media) -> dict[str, int]:
        if media.kind is MediaKind.SNAPSHOT:
            whole, each, word = SNAPSHOTS_PER_RECORDER, SNAPSHOTS_PER_CAMERA, "snapshot"
        else:
            whole, each, word = CLIPS_PER_RECORDER, CLIPS_PER_CAMERA, "clip"
        if self._health.probe_at(media.source) is not None:
            whole = 1
        return {f"{media.source}/{word}": whole, f"{media.source}/{word}/{media.camera}": each}

    def _idle_seconds(self) -> float:
        if self._look_at is None:
            return IDLE_SECONDS
        return min(max((self._look_at - self._clock.ticks_ms()) / 1000, 0.01), IDLE_SECONDS)

    def _look_again_at(self, ticks: int) -> None:
        self._look_at = ticks if self._look_at is None else min(self._look_at, ticks)

    async def _contained(self, media: Media) -> None:
        """One row. Whatever goes wrong with it puts off this row only."""
        try:
            await self._fetch(media)
            self._held.pop(media.id, None)
        except StoreError as fault:
            self._store_refuses.again(self._clock.ticks_ms(), reason=str(fault))
            self._hold(media, STORE_RETRY_MS)
        except Exception as fault:
            log.exception("media_fetch_failed_inside", **_names(media))
            try:
                reason = f"an error inside the gateway: {type(fault).__name__}"
                await self._later_or_lost(media, reason, until=timing.patience_ends(media))
            except Exception:
                log.exception("media_not_put_off", **_names(media))
                self._hold(media, FAULT_RETRY_MS)

    def _hold(self, media: Media, wait_ms: int) -> None:
        self._held[media.id] = self._clock.ticks_ms() + wait_ms
        self._look_again_at(self._held[media.id])

    async def _fetch(self, media: Media) -> None:
        recorder = self.recorders.get(media.source)
        if recorder is None:
            await self._lose(media, f"the source {media.source!r} has no recorder to ask (url) any more")
        elif media.kind is MediaKind.SNAPSHOT:
            await self._fetch_snapshot(media, recorder)
        else:
            await self._fetch_clip(media, recorder)

    async def _fetch_snapshot(self, media: Media, recorder: Recorder) -> None:
        live = timing.is_live(media, ticks=self._clock.ticks_ms(), wall=self._clock.wall_ms())
        try:
            await self._folder.require_space(self._reserve_bytes)
            async with self._folder.draft() as draft:
                await recorder.snapshot(media.recipe, timing.moment_at(media), seq=media.seq, live=live, draft=draft)
                kept = await draft.keep(_name(media))
        except (FetchError, OSError) as error:
            await self._put_off(media, error)
            return
        await self._note_fetched(media, kept)

    async def _fetch_clip(self, media: Media, recorder: Recorder) -> None:
        now = self._clock.ticks_ms()
        best = await self._best(media)
        if now >= self._absent_after(media) and best is not None:
            await self._take_best(media, best, "time is up")
            return
        try:
            await self._folder.require_space(self._reserve_bytes)
            async with self._folder.draft() as draft:
                async with asyncio.timeout(self._seconds_left(media)):
                    await recorder.clip(
                        media.recipe, media.from_at, media.to_at, attempt=media.fetch_attempts, draft=draft
                    )
                movie = await draft.inspect(mp4.read)
                if movie.whole and timing.is_long_enough(media, movie.duration_ms):
                    await self._note_fetched(media, await draft.keep(_name(media)), movie)
                    await self._forget(media)
                    return
                if movie.playable and (best is None or movie.duration_ms > best.duration_ms):
                    await draft.keep(_best_name(media))
                    best = movie
                    self._grown[media.id] = now
        except TimeoutError:
            await self._put_off(media, NotThere("the recorder did not send it before its slot ends"))
            return
        except (FetchError, OSError) as error:
            await self._put_off(media, error)
            return
        if best is not None and now - self._grown.setdefault(media.id, now) >= STILL_MS:
            await self._take_best(media, best, "it grows no more")
            return
        wanted = (media.to_at - media.from_at) / 1000
        short = f"the recorder has {movie.duration_ms / 1000:.1f} s of {wanted:.1f} s"
        await self._put_off(media, NotThere(short if movie.playable else f"not a whole clip: {movie.missing}"))

    async def _best(self, media: Media) -> mp4.Movie | None:
        """The longest clip so far, from this or an earlier process."""
        best = await self._folder.look(_best_name(media), mp4.read)
        return best if best is not None and best.playable else None

    async def _take_best(self, media: Media, best: mp4.Movie, why: str) -> None:
        await self._note_fetched(media, await self._folder.adopt(_best_name(media), _name(media)), best, short=why)

    async def _put_off(self, media: Media, error: FetchError | OSError) -> None:
        """After a failed attempt: another one if there is time, else the best there is, else nothing."""
        match error:
            case OSError():
                reason = self._disk_reason = f"the disk refuses: {error.strerror or error}"
                self._disk.again(self._clock.ticks_ms(), reason=reason)
                if self._disk.count == 1:
                    self._on_full()
                until = timing.patience_ends(media)
            case NotThere():
                self._health.answered(media.source)
                reason = str(error)
                until = self._absent_after(media)
            case _:
                # The picture is still there when the recorder is back, and may still be of use.
                self._health.failed(media.source, error)
                reason = str(error)
                until = timing.patience_ends(media)
        await self._later_or_lost(media, reason, until=until)

    async def _later_or_lost(self, media: Media, reason: str, *, until: int) -> None:
        now = self._clock.ticks_ms()
        if now < until:
            tries = media.fetch_attempts + 1
            wait = half_jitter_ms(tries, RETRY_FIRST_MS[media.kind], RETRY_MAX_MS[media.kind], self._jitter())
            next_at = min(now + wait, until)
            log.debug("media_put_off", reason=reason, attempt=tries, **_names(media))
            await self._store.media_fetch_later(media.id, next_at, reason)
            self._next[media.id] = next_at
            self._look_again_at(next_at)
            return
        best = None if media.kind is MediaKind.SNAPSHOT else await self._best(media)
        if best is not None:
            await self._take_best(media, best, "time is up")
        else:
            await self._lose(media, reason)

    def _absent_after(self, media: Media) -> int:
        """Ticks at which a recorder that answers without it is not asked again."""
        back = self._health.back_since(media.source)
        after = timing.absent_after(media)
        return after if back is None else max(after, min(back + AFTER_RETURN_MS, timing.patience_ends(media)))

    def _seconds_left(self, media: Media) -> float | None:
        """For one attempt: it must not outlast the slot that it is for."""
        if media.deadline_ticks is None:
            return None
        return max((media.deadline_ticks - self._clock.ticks_ms()) / 1000 - 5.0, 5.0)

    async def _lose(self, media: Media, reason: str) -> None:
        if await self._store.media_noted(media.id, MediaState.LOST, reason):
            log.warning("media_lost", reason=reason, attempts=media.fetch_attempts, **_names(media))
        await self._forget(media)

    async def _forget(self, media: Media) -> None:
        self._grown.pop(media.id, None)
        self._next.pop(media.id, None)
        if media.kind is not MediaKind.SNAPSHOT:
            await self._folder.remove([_best_name(media)])

    async def _note_fetched(
        self, media: Media, kept: Kept, movie: mp4.Movie | None = None, short: str | None = None
    ) -> None:
        self._health.answered(media.source)
        self._disk.over(self._clock.ticks_ms())
        self._grown.pop(media.id, None)
        self._next.pop(media.id, None)
        if not await self._store.media_fetched(media.id, kept.name, kept.bytes, kept.sha256):
            # Its event was discarded meanwhile, or the media limit was reached: nobody wants it any more.
            await self._folder.remove([kept.name])
            return
        log.info(
            "media_fetched",
            bytes=kept.bytes,
            duration_ms=movie.duration_ms if movie else None,
            short=short,
            attempt=media.fetch_attempts + 1,
            waited_seconds=(self._clock.ticks_ms() - media.received_ticks) / 1000,
            **_names(media),
        )
        self._on_fetched()


def _name(media: Media) -> str:
    return name_of(media.event_id, media.kind, media.seq)


def _best_name(media: Media) -> str:
    return best_name_of(media.event_id, media.kind, media.seq)


def _names(media: Media) -> dict[str, Any]:
    return {
        "event_id": media.event_id,
        "camera": media.camera,
        "source": media.source,
        "kind": media.kind.value,
        "seq": media.seq,
    }
