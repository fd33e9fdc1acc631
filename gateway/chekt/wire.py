"""The Event API's words: an event into the bytes of a request, an answer into what it means.

Everything that is particular to CHeKT Event API v0.8 (a draft that may change at any time) is in this file, and nothing
else is: a new version of the document is a change here. What to do about an answer is decided in `gateway.retry` and
`gateway.gate`. Lenient in what it reads, exact in what it writes. Texts for people never hold a token or the query of
an address. Sources: CHeKT Event API v0.8; CHeKT portal, "Errors", "Idempotency", "Rate limits"; AWS S3 user guide,
"Presigned URLs"; RFC 9110. `ASSUMED: Qn` marks a guess. Pure: no I/O, no clocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from gateway.chekt.addresses import callback_fault, put_url_fault, signed_lifetime_ms
from gateway.chekt.words import MAX_TEXT, error_text, excerpt, scrub
from gateway.model import Composed, Event, EventStatus, EventType, MediaKind, MediaOnDisk, Slot, iso_utc
from gateway.retry import LONGEST_WAIT_MS, Answer, Rate, Verdict

API_VERSION: Final = "1.0"
FRESH_MS: Final = 10_000  # a first attempt this soon announces what is configured: the pictures are on their way
ASSUMED_SLOT_MS: Final = 15 * 60_000  # ASSUMED: Q8, where the address does not tell how long it lives
MAX_DETAILS_BYTES: Final = 2_048  # ASSUMED: Q19, "additional event data" of unknown size: keep it small


@dataclass(frozen=True, slots=True)
class Options:
    """What `compose` needs of the configuration."""

    never_signal: bool = False
    stale_after_ms: int | None = None
    send_details: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one request, or why nothing did. `headers` have lower-case names."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False  # the whole body arrived
    written: bool = False  # a byte of the request may have left
    error: str | None = None  # in plain words, where something broke
    elapsed_ms: int = 0


def compose(event: Event, media: Sequence[MediaOnDisk], *, sent_at: int, ticks: int, options: Options) -> Composed:
    """The request for an event, made once before the first attempt that may reach the cloud.

    Fresh (received less than 10 s ago by both clocks, the worse counts) it announces what is configured, later exactly
    what is on disk. The cloud numbers the snapshots of a request from 0, so it is asked for as many as the highest
    one that we announce needs: where snapshot 0 failed and 1 is there, for two, of which one stays empty. Renumbering
    would show the picture of another moment under the first one's number after a restart.
    """
    waited = max(ticks - event.received_ticks, sent_at - event.received_at)
    announced = frozenset((item.kind, item.seq) for item in media if item.on_disk or waited < FRESH_MS)
    age = max(sent_at - event.event_at, waited)
    if event.age_unknown_ms is not None:
        age = max(age, waited + event.age_unknown_ms)
    stale = options.stale_after_ms is not None and age > options.stale_after_ms and not event.signal_anyway
    signal = event.signal and not options.never_signal and not stale

    # CHeKT Event API v0.8, "Request Body Parameters": the order of the table.
    request: dict[str, Any] = {"version": API_VERSION, "location_id": event.location_id}
    if event.recorder_id is not None:  # optional since v0.8; neither null nor "" is documented
        request["recorder_id"] = event.recorder_id
    if event.camera_id is not None:
        request["camera_id"] = event.camera_id
    request |= {
        "event_id": event.event_id,
        "event_type": str(event.event_type),
        "event_status": str(event.event_status),
        "event_time": iso_utc(event.event_at),
        "sent_at": iso_utc(sent_at),
        "should_signal_to_monitoring_center": signal,
        "upload_snapshot_count": max((seq + 1 for kind, seq in announced if kind is MediaKind.SNAPSHOT), default=0),
        "upload_short_mp4": any(kind is MediaKind.SHORT_MP4 for kind, _ in announced),
        "upload_event_mp4": any(kind is MediaKind.EVENT_MP4 for kind, _ in announced),
        "payload": _payload(event, options),
    }
    # The key is the event's id, the same for all attempts (CHeKT portal, "Idempotency"; ASSUMED: Q5, Q10).
    return Composed(_encode(request), event.event_id, announced, signal)


def _payload(event: Event, options: Options) -> dict[str, Any]:
    details = _details(event) if options.send_details else {}
    if event.event_type is not EventType.ARMING:
        return details
    # ASSUMED: Q15. CHeKT Event API v0.8 has arming events, but names no field for the state.
    return {**details, "arming_status": "armed" if event.event_status is EventStatus.ACTIVE else "disarmed"}


def _details(event: Event) -> dict[str, Any]:
    """ASSUMED: Q19. Flat, small, without secrets; `follows` joins a restore to its beginning."""
    kept: dict[str, Any] = {}
    candidates: dict[str, Any] = {"follows": event.follows} if event.follows is not None else {}
    candidates |= event.details
    for name, value in candidates.items():
        if isinstance(value, str):
            value = scrub(value)[:MAX_TEXT]
        elif not isinstance(value, (bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if len(_encode(kept | {name: value})) > MAX_DETAILS_BYTES:
            break
        kept[name] = value
    return kept


def _encode(document: Mapping[str, Any]) -> bytes:
    # A lone surrogate (JSON of a device can hold one) has no UTF-8: "?" rather than an event that can never be sent.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def no_token(*, refused: bool, text: str, retry_after_ms: int | None) -> Answer:
    """There was no token to send with: nothing was written."""
    verdict = Verdict.TOKEN_REFUSED if refused else Verdict.NO_TOKEN
    return Answer(verdict, text=excerpt(text), written=False, retry_after_ms=retry_after_ms)


def own_fault(text: str, *, written: bool) -> Answer:
    """An exception of our own inside one attempt."""
    return Answer(Verdict.FAULT, text=excerpt(text), written=written)


def read_answer(reply: Reply, *, ticks: int, wall: int, cloud_url: str) -> Answer:
    """What the answer to an event means. `ticks` and `wall`: when it arrived; `cloud_url`: the configured one."""
    if reply.status is None:
        verdict = Verdict.UNANSWERED if reply.written else Verdict.UNREACHABLE
        text = excerpt(reply.error or "no answer")
        return Answer(verdict, text=text, written=reply.written, elapsed_ms=reply.elapsed_ms)
    document = _document(reply)
    own_error, text = error_text(document)
    if not text and not 200 <= reply.status < 300:
        text = _shown(reply)
    server_date = http_date(reply.headers.get("date"))
    base = Answer(
        _verdict_of(reply.status),
        http_status=reply.status,
        text=text,
        own_error=own_error,
        retry_after_ms=retry_after(reply.headers, wall),
        rate=_rate(reply.headers, wall),
        server_date_at=server_date,
        elapsed_ms=reply.elapsed_ms,
    )
    if 200 <= reply.status < 300:
        return _success(base, reply, document, ticks, server_date if server_date is not None else wall, cloud_url)
    if 300 <= reply.status < 400:
        return replace(base, text=excerpt("redirected to " + reply.headers.get("location", "nowhere")))
    return base


def _shown(reply: Reply) -> str:
    """What people see of a body that is not the API's."""
    return excerpt(reply.error or reply.body.decode("utf-8", "replace"))


def _verdict_of(status: int) -> Verdict:
    match status:
        case 401:
            return Verdict.UNAUTHORISED
        case 403:
            return Verdict.FORBIDDEN
        case 404:
            return Verdict.UNKNOWN
        case 409:
            return Verdict.CONFLICT
        case 429:
            return Verdict.THROTTLED
        case 408 | 425:
            return Verdict.BUSY
        case 407 | 511:  # RFC 9110, 15.5.8: a proxy; RFC 6585, 6: a captive portal
            return Verdict.NOT_THE_API
        case _ if 400 <= status < 500:
            return Verdict.REFUSED  # 400, 413, 415, 422; others are not documented and are the same kind of "no"
        case _ if 500 <= status < 600:
            return Verdict.BUSY
        case _:
            return Verdict.NOT_THE_API


def _success(base: Answer, reply: Reply, document: Any, ticks: int, server_now: int, cloud_url: str) -> Answer:
    if not reply.complete:
        return replace(base, verdict=Verdict.CUT_OFF, text=excerpt(reply.error or "the answer was cut off"))
    status = document.get("status") if isinstance(document, dict) else None
    known = status in ("accepted", "discarded")
    if not isinstance(document, dict) or not (known or _id(document, "event_id") or _id(document, "response_id")):
        return replace(base, text=excerpt(f"a success that is no answer of the API: {_shown(reply)}"))
    warnings: list[str] = []
    if not known:
        # ASSUMED: Q6. A success with the API's ids and a word that v0.8 does not know.
        warnings.append(excerpt(f"unknown status {status!r}, taken as accepted"))
    reason = document.get("reason")
    if reason is not None and not isinstance(reason, str):
        warnings.append(f"reason is a {type(reason).__name__}, not a string")
        reason = None
    discarded = status == "discarded"
    slots: tuple[Slot, ...] = ()
    if not discarded:  # also where slots are offered: nobody will look at these pictures
        slots = _slots(document.get("uploads"), ticks, server_now, cloud_url, warnings)
    return replace(
        base,
        verdict=Verdict.DISCARDED if discarded else Verdict.ACCEPTED,
        text="",
        reason=None if reason is None else excerpt(reason),
        chekt_event_id=_id(document, "event_id"),
        response_id=_id(document, "response_id"),
        slots=slots,
        warnings=tuple(warnings),
    )


def _slots(uploads: Any, ticks: int, server_now: int, cloud_url: str, warnings: list[str]) -> tuple[Slot, ...]:
    """CHeKT Event API v0.8, "Upload URLs". What is offered decides, not what was asked for; each part may be absent."""
    if uploads is None:
        return ()
    if not isinstance(uploads, dict):
        warnings.append(f"uploads is a {type(uploads).__name__}, not an object")
        return ()
    offers: list[tuple[MediaKind, int, Any]] = []
    snapshots = uploads.get("snapshots")
    if isinstance(snapshots, list):
        for position, offer in enumerate(snapshots):
            seq = offer.get("seq", position) if isinstance(offer, dict) else position
            if isinstance(seq, int) and not isinstance(seq, bool) and seq >= 0:
                offers.append((MediaKind.SNAPSHOT, seq, offer))
            else:
                warnings.append("uploads.snapshots: seq is not a number from 0")
    elif snapshots is not None:
        warnings.append(f"uploads.snapshots is a {type(snapshots).__name__}, not a list")
    clips = (MediaKind.SHORT_MP4, MediaKind.EVENT_MP4)
    offers.extend((kind, 0, uploads[str(kind)]) for kind in clips if uploads.get(str(kind)))

    slots: dict[tuple[MediaKind, int], Slot] = {}
    for kind, seq, offer in offers:
        where = f"uploads.{kind} {seq}"
        put_url = offer.get("upload_put_url") if isinstance(offer, dict) else None
        callback_url = offer.get("callback_put_url") if isinstance(offer, dict) else None
        if not isinstance(put_url, str) or not isinstance(callback_url, str):
            warnings.append(f"{where}: one of its two addresses is missing")
            continue
        fault = put_url_fault(put_url, cloud_url) or callback_fault(callback_url, cloud_url)
        if fault is not None:
            warnings.append(f"{where}: {fault}")
            continue
        if (kind, seq) in slots:
            warnings.append(f"{where}: offered twice, the first counts")
            continue
        # On our own clock: the cloud's wall clock appears only as a difference of two of its own times. The
        # callback's token may have an end of its own; it is not read, for a callback that comes too late is told so.
        lifetime = signed_lifetime_ms(put_url, server_now)
        deadline = ticks + (ASSUMED_SLOT_MS if lifetime is None else lifetime)
        slots[kind, seq] = Slot(kind, seq, put_url, callback_url, deadline)
    return tuple(slots.values())


def _document(reply: Reply) -> Any:
    """The body as JSON; None if it is not, or if its end is missing: nothing is half understood."""
    if not reply.complete:
        return None
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return None


def _id(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return excerpt(value)[:256] or None if isinstance(value, str) else None


def http_date(text: str | None) -> int | None:
    """A `Date` header as wall milliseconds; None if there is none or it is garbage."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:  # RFC 9110, 5.6.7: always GMT, also where it says -0000
        moment = moment.replace(tzinfo=UTC)
    try:
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str], wall: int) -> int | None:
    """`Retry-After` in milliseconds, at most 15 minutes (RFC 9110, 10.2.3). A date counts from the server's `Date`."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = http_date(text)
        if until is None:
            return None
        now = http_date(headers.get("date"))
        wait = float(until - (wall if now is None else now))
    else:
        if math.isnan(seconds):
            return None
        wait = seconds * 1000
    return int(min(max(wait, 0.0), LONGEST_WAIT_MS))


def _rate(headers: Mapping[str, str], wall: int) -> Rate | None:
    limit = _count(headers.get("x-ratelimit-limit"))
    remaining = _count(headers.get("x-ratelimit-remaining"))
    reset = _count(headers.get("x-ratelimit-reset"))
    if limit is None and remaining is None:
        return None
    reset_in_ms = None
    if reset is not None:
        now = http_date(headers.get("date"))
        reset_in_ms = min(max(reset * 1000 - (wall if now is None else now), 0), LONGEST_WAIT_MS)
    return Rate(limit, remaining, reset_in_ms)


def _count(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None
