"""What arrived: all that the practice cloud remembers, for tests, the page and the demo. Times are wall milliseconds.

Everything is kept as long as the process lives; only pictures beyond a sum of bytes are forgotten (`Terms.keep_bytes`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RequestRecord:
    """One HTTP request, whatever became of it. `status` is None where no answer was given."""

    kind: str  # event, token, put, callback, other
    method: str
    target: str  # the request line's target, byte for byte
    headers: Mapping[str, str]  # names in lower case
    received_at: int
    status: int | None = None
    refusal: str | None = None  # why it was refused for cause, as against by a fault on request


@dataclass
class TokenRecord:
    """One token request. `header` and `claims` are the assertion's, unverified when it was refused."""

    received_at: int
    fields: Mapping[str, str]
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    refusal: str | None = None


@dataclass
class UploadRecord:
    """One slot that was handed out, and what came of it."""

    chekt_event_id: str
    event_id: str
    camera_id: str
    kind: str  # snapshot, short_mp4, event_mp4
    seq: int
    put_url: str
    callback_url: str
    issued_at: int
    expires_at: int
    put_at: int | None = None
    puts: int = 0
    content_type: str | None = None
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None
    path: Path | None = None
    looks_wrong: str | None = None  # why the bytes are not what the slot is for
    confirmed_at: int | None = None
    callbacks: int = 0

    @property
    def content(self) -> bytes:
        """The bytes as received. Raises LookupError where nothing came, or where it was forgotten for space."""
        if self.path is None:
            raise LookupError(f"{self.kind} {self.seq} of {self.chekt_event_id} is not kept")
        return self.path.read_bytes()


@dataclass
class EventRecord:
    """One event that the cloud took. A repeat that was answered from the stored answer is counted here."""

    chekt_event_id: str
    response_id: str
    request: Mapping[str, Any]
    body: bytes
    headers: Mapping[str, str]
    received_at: int
    status: str  # accepted, discarded
    reason: str | None
    idempotency_key: str | None
    repeats: int = 0
    repeated_at: list[int] = field(default_factory=list)
    double: bool = False  # the event_id was known and this was executed again: a second alarm at the station
    uploads: list[UploadRecord] = field(default_factory=list)

    @property
    def event_id(self) -> str:
        return str(self.request["event_id"])

    @property
    def camera_id(self) -> str:
        return str(self.request["camera_id"])

    @property
    def confirmed(self) -> bool:
        """Every slot that was handed out was filled and confirmed."""
        return all(upload.confirmed_at is not None for upload in self.uploads)


class Ledger:
    """All records, and waiting for them without polling."""

    def __init__(self) -> None:
        self.events: list[EventRecord] = []
        self.slots: list[UploadRecord] = []
        self.token_requests: list[TokenRecord] = []
        self.requests: list[RequestRecord] = []
        self.version = 0  # grows with everything that happens
        self._by_event_id: dict[str, EventRecord] = {}
        self._news = asyncio.Condition()

    def add_event(self, event: EventRecord) -> None:
        event.double = event.event_id in self._by_event_id
        self.events.append(event)
        self._by_event_id.setdefault(event.event_id, event)

    @property
    def uploads(self) -> list[UploadRecord]:
        """Slots whose picture arrived."""
        return [slot for slot in self.slots if slot.put_at is not None]

    @property
    def done(self) -> list[UploadRecord]:
        """Slots whose picture arrived and was confirmed by the callback."""
        return [slot for slot in self.slots if slot.confirmed_at is not None]

    @property
    def duplicates(self) -> int:
        """Events that were executed again although their event_id was known: second alarms at the station."""
        return sum(event.double for event in self.events)

    @property
    def repeats(self) -> int:
        """Posts that were answered from the stored answer: harmless."""
        return sum(event.repeats for event in self.events)

    @property
    def refusals(self) -> list[RequestRecord]:
        """Requests that were refused for cause, not by a fault on request."""
        return [request for request in self.requests if request.refusal is not None]

    def event(self, event_id: str) -> EventRecord:
        """The first event with the sender's id. Raises KeyError."""
        return self._by_event_id[event_id]

    def chekt_event(self, chekt_event_id: str) -> EventRecord | None:
        """The event with our id, such as `eve-56`."""
        number = chekt_event_id.removeprefix("eve-")
        known = number.isdecimal() and 1 <= int(number) <= len(self.events)
        return self.events[int(number) - 1] if known else None

    async def wait_for(
        self,
        *,
        events: int = 0,
        uploads: int = 0,
        done: int = 0,
        repeats: int = 0,
        tokens: int = 0,
        requests: int = 0,
        fact: Callable[[], object] | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Until so much has arrived and `fact()` is true (looked at after every request).

        Raises TimeoutError, saying what there is instead.
        """

        def reached() -> bool:
            return (
                len(self.events) >= events
                and len(self.uploads) >= uploads
                and len(self.done) >= done
                and self.repeats >= repeats
                and len(self.token_requests) >= tokens
                and len(self.requests) >= requests
                and (fact is None or bool(fact()))
            )

        async with self._news:
            try:
                async with asyncio.timeout(timeout):
                    await self._news.wait_for(reached)
            except TimeoutError:
                raise TimeoutError(f"after {timeout} s: {self.summary()}") from None

    async def changed(self, since: int, timeout: float | None = None) -> int:
        """The present `version`, as soon as it is another than `since`; the same one after `timeout` seconds."""
        async with self._news:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait_for(lambda: self.version != since)
            return self.version

    async def tell(self) -> None:
        """Wakes everybody who waits."""
        async with self._news:
            self.version += 1
            self._news.notify_all()

    def summary(self) -> str:
        """One line for the message of a failed wait."""
        last = "; ".join(
            f"{r.method} {r.target.partition('?')[0]} {r.status or 'no answer'} {r.refusal or ''}".strip()
            for r in self.requests[-5:]
        )
        return (
            f"{len(self.events)} events, {len(self.uploads)} of {len(self.slots)} uploads, {len(self.done)} confirmed, "
            f"{self.repeats} repeats, {len(self.token_requests)} token requests; last requests: {last or 'none'}"
        )
