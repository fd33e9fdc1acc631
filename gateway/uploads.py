"""The step that brings files to the cloud: file + slot -> PUT -> note -> callback -> note -> done.

Promises: each hop is durable before the next, so that a crash repeats at most one PUT of the same bytes or one
callback; a snapshot never waits behind a clip where two may go at once, and goes first where not; an expired or refused
slot costs the picture and never the event; a file goes only if it is still, byte by byte, what was fetched, and is
removed as soon as nobody needs it. Addresses of slots are secrets and appear in no log and no reason.
Follows CHeKT Event API v0.8, "Upload Workflow" and "Upload Best Practices".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from gateway.bell import Bell
from gateway.chekt.token import TokenRefused, TokenUnreachable
from gateway.chekt.upload_wire import UploadAnswer, UploadVerdict, read_callback_answer, read_put_answer
from gateway.chekt.wire import Reply
from gateway.crew import Crew
from gateway.host.repeated import Repeated
from gateway.media.files import FileFault, MediaFolder
from gateway.model import CONTENT_TYPES, Clock, Media, MediaKind
from gateway.outbox.errors import StoreError
from gateway.retry import backoff_ms
from gateway.states import MediaState

log = structlog.get_logger()

IDLE_SECONDS: Final = 2.0  # the table is the truth: looked at this often without being rung
STORE_RETRY_MS: Final = 1_000
FAULT_RETRY_MS: Final = 60_000  # where even putting a row off fails
LOOK_AT_ONCE: Final = 200  # rows
RETRY_FIRST_MS: Final = 1_000
RETRY_MAX_MS: Final = 30_000
LEAST_WAIT_MS: Final = 50  # full jitter may say "at once"; a refusing network answers at once too
DOUBTS: Final = 2  # a storage whose ETag never is what we expect has its own idea of an ETag
CONFIRMS: Final = 4  # callbacks that wait for a further try, at once: they are a few bytes
_ORDER: Final = {MediaKind.SNAPSHOT: 0, MediaKind.SHORT_MP4: 1, MediaKind.EVENT_MP4: 2}


class Outbox(Protocol):
    """What uploads need of the store."""

    async def media_to_put(self, limit: int, *, excluding: Collection[int] = ...) -> list[Media]: ...
    async def media_to_confirm(self, limit: int, *, excluding: Collection[int] = ...) -> list[Media]: ...
    async def media_noted(self, media_id: int, state: MediaState, reason: str | None = None) -> bool: ...
    async def media_later(self, media_id: int, next_at: int, reason: str) -> bool: ...
    async def media_remove(self, media_ids: Sequence[int], reason: str) -> list[str]: ...


class Cloud(Protocol):
    """What uploads need of `gateway.chekt.client.Client`."""

    async def put_file(
        self, url: str, path: Path, *, content_type: str, always_type: bool = False, seconds_left: float
    ) -> Reply: ...
    async def confirm(self, callback_url: str, token: str | None = None) -> Reply: ...


class Uploads:
    def __init__(
        self,
        *,
        store: Outbox,
        client: Cloud,
        folder: MediaFolder,
        clock: Clock,
        bell: Bell,
        jitter: Callable[[], float],
        parallel: int,
        callback_token: Callable[[], Awaitable[str]] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`callback_token` only where the callback wants more than the token in its own address (`callback_auth`)."""
        self._store = store
        self._client = client
        self._folder = folder
        self._clock = clock
        self._bell = bell
        self._jitter = jitter
        self._parallel = parallel
        self._callback_token = callback_token
        self._beat = beat
        self._crew = Crew(on_free=bell.ring)
        self._look_at: int | None = None  # ticks of the earliest row that we put off ourselves
        self._held: dict[int, int] = {}  # row that could not be noted -> ticks of the next try
        self._never_arrived: set[int] = set()  # rows whose callbacks, all of this process, have not reached the cloud
        self._failing = Repeated("uploads_failing", "uploads_back")
        self._store_refuses = Repeated("uploads_wait_for_the_store", "uploads_go_on")

    @property
    def failing(self) -> int:
        """How many tries in a row brought nothing to the cloud."""
        return self._failing.count

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                self._beat()
                await self._start_due(group)
                await self._bell.wait(stop, self._idle_seconds())
            self._crew.cancel()  # safe to repeat: nothing counts before it is noted

    async def run_once(self) -> bool:
        """Brings everything that is due; whether there was something."""
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
            due = await self._store.media_to_put(LOOK_AT_ONCE, excluding=self._crew.rows)
            due += await self._store.media_to_confirm(LOOK_AT_ONCE, excluding=self._crew.rows)
        except StoreError as fault:
            self._store_refuses.again(now, reason=str(fault))
            self._look_again_at(now + STORE_RETRY_MS)
            return False
        if not self._held:
            self._store_refuses.over(now)
        started = False
        # Snapshots first, then what ends first: the remaining life of a slot is looked at when its turn comes.
        due.sort(key=lambda media: (_ORDER[media.kind], media.deadline_ticks or 0, media.id))
        for media in due:
            if now < self._held.get(media.id, now):
                self._look_again_at(self._held[media.id])
                continue
            lanes = self._lanes_of(media)
            if self._crew.has_room(lanes):
                self._crew.start(group, media.id, lanes, self._contained(media))
                started = True
        return started

    def _lanes_of(self, media: Media) -> dict[str, int]:
        if media.state == MediaState.UPLOADED:
            return {"confirm": CONFIRMS}
        if media.kind is MediaKind.SNAPSHOT:
            return {"put": self._parallel}
        # One place is kept free for the snapshot of an alarm that is still to come.
        return {"put": self._parallel, "clip": max(1, self._parallel - 1)}

    def _idle_seconds(self) -> float:
        if self._look_at is None:
            return IDLE_SECONDS
        return min(max((self._look_at - self._clock.ticks_ms()) / 1000, 0.01), IDLE_SECONDS)

    def _look_again_at(self, ticks: int) -> None:
        self._look_at = ticks if self._look_at is None else min(self._look_at, ticks)

    async def _contained(self, media: Media) -> None:
        """One row. Whatever goes wrong with it puts off this row only."""
        try:
            await self._bring(media)
            self._held.pop(media.id, None)
        except StoreError as fault:
            self._store_refuses.again(self._clock.ticks_ms(), reason=str(fault))
            self._hold(media, STORE_RETRY_MS)
        except Exception as fault:
            log.exception("upload_failed_inside", **_names(media))
            try:
                await self._again(media, UploadAnswer(UploadVerdict.AGAIN, text=f"{type(fault).__name__} inside"))
            except Exception:
                log.exception("upload_not_put_off", **_names(media))
                self._hold(media, FAULT_RETRY_MS)

    def _hold(self, media: Media, wait_ms: int) -> None:
        self._held[media.id] = self._clock.ticks_ms() + wait_ms
        self._look_again_at(self._held[media.id])

    async def _bring(self, media: Media) -> None:
        left_ms = (media.deadline_ticks or 0) - self._clock.ticks_ms()
        if left_ms <= 0:
            await self._lose(media, f"its slot ended after {media.attempts} tries")
            return
        unclear_before = False
        if media.state == MediaState.WAITING:
            if not await self._put(media, left_ms / 1000):
                return
        else:
            # Noted as uploaded by an earlier try or an earlier process: its callback may have arrived.
            unclear_before = media.id not in self._never_arrived
        await self._confirm(media, unclear_before)

    async def _put(self, media: Media, seconds_left: float) -> bool:
        """Whether the file is in the cloud's storage, and noted."""
        if media.path is None or media.bytes is None or media.sha256 is None or media.put_url is None:
            raise ValueError("a row without a file or a slot is not to be put")
        try:
            path = await self._folder.require(media.path, media.bytes, media.sha256)
            md5 = await asyncio.to_thread(_md5, path) if media.attempts < DOUBTS else None
        except FileFault as fault:
            await self._lose(media, str(fault))
            return False
        except OSError as fault:
            await self._again(
                media, UploadAnswer(UploadVerdict.AGAIN, text=f"its file cannot be read: {fault.strerror}")
            )
            return False
        answer = await self._put_once(media.put_url, path, media.kind, seconds_left, md5, with_type=False)
        if answer.verdict is UploadVerdict.AGAIN_WITH_TYPE:
            answer = await self._put_once(media.put_url, path, media.kind, seconds_left, md5, with_type=True)
        match answer.verdict:
            case UploadVerdict.DONE:
                self._failing.over(self._clock.ticks_ms())
                return await self._store.media_noted(media.id, MediaState.UPLOADED)
            case UploadVerdict.AGAIN:
                await self._again(media, answer)
            case _:
                await self._lose(media, _words("the storage refused it", answer), answer)
        return False

    async def _put_once(
        self, url: str, path: Path, kind: MediaKind, seconds_left: float, md5: str | None, *, with_type: bool
    ) -> UploadAnswer:
        reply = await self._client.put_file(
            url, path, content_type=CONTENT_TYPES[kind], always_type=with_type, seconds_left=seconds_left
        )
        return read_put_answer(reply, wall=self._clock.wall_ms(), sent_content_type=with_type, md5=md5)

    async def _confirm(self, media: Media, unclear_before: bool) -> None:
        if media.callback_url is None:
            raise ValueError("a row without a callback is not to be confirmed")
        try:
            token = None if self._callback_token is None else await self._callback_token()
        except (TokenRefused, TokenUnreachable) as fault:
            answer = UploadAnswer(UploadVerdict.AGAIN, text=str(fault))
        else:
            reply = await self._client.confirm(media.callback_url, token)
            answer = read_callback_answer(reply, wall=self._clock.wall_ms(), unclear_before=unclear_before)
        match answer.verdict:
            case UploadVerdict.DONE:
                self._failing.over(self._clock.ticks_ms())
                await self._store.media_noted(media.id, MediaState.DONE)
                self._never_arrived.discard(media.id)
                log.info(
                    "upload_done",
                    bytes=media.bytes,
                    attempt=media.attempts + 1,
                    waited_seconds=(self._clock.ticks_ms() - media.received_ticks) / 1000,
                    **_names(media),
                )
                await self._remove_file(media)
            case UploadVerdict.AGAIN:
                if not answer.unclear and not unclear_before:
                    self._never_arrived.add(media.id)
                else:
                    self._never_arrived.discard(media.id)
                await self._again(media, answer)
            case _:
                await self._lose(media, _words("the callback was refused", answer), answer)

    async def _again(self, media: Media, answer: UploadAnswer) -> None:
        now = self._clock.ticks_ms()
        reason = _words("not brought yet", answer)
        if answer.http_status is None:
            self._failing.again(now, reason=answer.text)
        wait = max(backoff_ms(media.attempts + 1, RETRY_FIRST_MS, RETRY_MAX_MS, self._jitter()), LEAST_WAIT_MS)
        next_at = now + max(wait, answer.retry_after_ms or 0)
        if media.deadline_ticks is None or next_at >= media.deadline_ticks:
            await self._lose(media, f"its slot ends before the next try; {reason}", answer)
            return
        await self._store.media_later(media.id, next_at, reason)
        self._look_again_at(next_at)
        log.debug("upload_put_off", reason=reason, attempt=media.attempts + 1, **_names(media))

    async def _lose(self, media: Media, reason: str, answer: UploadAnswer | None = None) -> None:
        self._never_arrived.discard(media.id)
        if not await self._store.media_noted(media.id, MediaState.LOST, reason):
            return  # somebody else ended the row meanwhile, for instance upkeep at the media limit
        status = answer.http_status if answer is not None else None
        log.warning("upload_lost", reason=reason, http_status=status, attempt=media.attempts + 1, **_names(media))
        await self._remove_file(media)

    async def _remove_file(self, media: Media) -> None:
        """The row first: a file that a crash leaves without a row is found by upkeep, a row without its file is not."""
        paths = await self._store.media_remove([media.id], "it was brought")
        try:
            await self._folder.remove(paths)
        except OSError as fault:
            log.debug("media_file_left", reason=fault.strerror, **_names(media))


def _md5(path: Path) -> str:
    """As the storage computes it for its ETag."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _words(what: str, answer: UploadAnswer) -> str:
    status = "" if answer.http_status is None else f" ({answer.http_status})"
    return f"{what}{status}: {answer.text}" if answer.text else f"{what}{status}"


def _names(media: Media) -> dict[str, Any]:
    return {"event_id": media.event_id, "camera": media.camera, "kind": media.kind.value, "seq": media.seq}
