"""The practice cloud's answers: token endpoint, `POST /partner/v1/events`, presigned PUT and upload callback.

CHeKT Event API v0.8; where it is silent RFC 6749 (token endpoint), AWS S3 (storage), CHeKT portal pages (idempotency,
rate limits). Judges and records; what goes wrong on request comes in as faults and only shapes the answers.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import jwt
from aiohttp import web

from gateway.simulator import faults as f
from gateway.simulator.checks import BadEvent, read_event
from gateway.simulator.credentials import Doorkeeper, OAuthError
from gateway.simulator.faults import Fault
from gateway.simulator.records import EventRecord, Ledger, RequestRecord, TokenRecord, UploadRecord
from gateway.simulator.signing import AccessKey, presign_put
from gateway.simulator.storage import BUCKET, Bucket
from gateway.simulator.terms import Terms

EVENTS_PATH: Final = "/partner/v1/events"
OAUTH_PATH: Final = "/oauth/token"
KEEP_ANSWERS_MS: Final = 24 * 3600 * 1000  # CHeKT portal, "Idempotency"
FILE_NAMES: Final = {"snapshot": "snapshot_{seq}.jpg", "short_mp4": "short_mp4.mp4", "event_mp4": "event_mp4.mp4"}
CONTENT_TYPES: Final = {"snapshot": "image/jpeg", "short_mp4": "video/mp4", "event_mp4": "video/mp4"}


class Refusal(Exception):
    """An error answer of the Event API; `why` is for the person who practises."""

    def __init__(self, status: int, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.headers = status, why, headers


class Api:
    """The four kinds of requests, each as `handler(request, record, faults) -> response`; refuses by raising."""

    def __init__(self, terms: Terms, ledger: Ledger, now: Callable[[], float]) -> None:
        self.terms, self.ledger, self.now = terms, ledger, now
        self.origin = ""  # scheme://host:port, known once the port is
        self.doorkeeper = Doorkeeper(terms, now)
        session_token = f"IQoJb3JpZ2lu//+{secrets.token_urlsafe(24)}=="
        self.bucket = Bucket(AccessKey("ASIAPRACTICE", secrets.token_hex(20), session_token), terms)
        self._answers: dict[str, tuple[EventRecord, bytes]] = {}
        self._slots_by_path: dict[str, UploadRecord] = {}
        self._slots_by_name: dict[tuple[str, str, int], UploadRecord] = {}
        self._allowance = (float(terms.burst), 0.0)

    def slot_at(self, target: str) -> UploadRecord | None:
        """The slot that a request to storage means."""
        return self._slots_by_path.get(target.partition("?")[0])

    async def token(self, request: web.Request, record: RequestRecord, faults: tuple[Fault, ...]) -> web.Response:
        self._no_chunks(request)
        if request.content_type != "application/x-www-form-urlencoded":
            raise OAuthError(400, "invalid_request", "The body must be application/x-www-form-urlencoded")
        if "Authorization" in request.headers:
            raise OAuthError(400, "invalid_request", "More than one way of client authentication")
        try:
            pairs = parse_qsl((await request.read()).decode("ascii"), keep_blank_values=True, strict_parsing=True)
        except ValueError as problem:
            raise OAuthError(400, "invalid_request", f"The form cannot be read: {problem}") from None
        fields = dict(pairs)
        header: Mapping[str, Any] = {}
        claims: Mapping[str, Any] = {}
        with contextlib.suppress(jwt.InvalidTokenError):
            assertion = fields.get("client_assertion", "")
            header = jwt.get_unverified_header(assertion)
            claims = jwt.decode(assertion, options={"verify_signature": False})
        noted = TokenRecord(record.received_at, fields, header, claims)
        self.ledger.token_requests.append(noted)
        try:
            if len(fields) != len(pairs):
                raise OAuthError(400, "invalid_request", "A parameter is given twice")
            answer = self.doorkeeper.give_token(fields, self.origin + OAUTH_PATH)
        except OAuthError as problem:
            noted.refusal = str(problem)
            raise
        return web.json_response(answer, headers={"Cache-Control": "no-store"})

    # The Event API

    async def event(self, request: web.Request, record: RequestRecord, faults: tuple[Fault, ...]) -> web.Response:
        self._no_chunks(request)
        self._judge_credentials(request)
        headers = self._judge_rate()
        if request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8":
            raise Refusal(415, "Content-Type must be application/json", headers)
        if request.raw_path != EVENTS_PATH:
            raise Refusal(400, "the address has a query", headers)
        body = await request.read()
        try:
            said = read_event(body, strict=self.terms.strict)
        except BadEvent as problem:
            raise Refusal(400, str(problem), headers) from None
        cameras = self.terms.cameras
        if cameras is not None and said["camera_id"] not in cameras.get(said["location_id"], frozenset()):
            why = f"camera {said['camera_id']} of location {said['location_id']} is not registered"
            raise Refusal(404, why, headers)
        key = request.headers.get("Idempotency-Key") if self.terms.idempotency else None
        if key is not None and (stored := self._stored(key)) is not None:
            event, answer = stored
            if event.body != body:
                raise Refusal(409, "idempotency_conflict: this Idempotency-Key came with another body", headers)
            event.repeats += 1
            event.repeated_at.append(record.received_at)
        else:
            event = self._accept(said, body, record, key, faults)
            answer = self._answer(event, faults)
            if key is not None:
                self._answers[key] = event, answer
        return web.Response(status=201, body=answer, content_type="application/json", headers=headers)

    def _no_chunks(self, request: web.Request) -> None:
        if self.terms.strict and "Transfer-Encoding" in request.headers:
            raise Refusal(411, "chunked bodies are not taken; send Content-Length")

    def _judge_credentials(self, request: web.Request) -> None:
        given = request.headers
        refusal = self.doorkeeper.refusal(given.getall("Authorization", []), given.getall("X-API-KEY", []))
        if refusal is not None:
            raise Refusal(401, refusal)

    def _judge_rate(self) -> dict[str, str]:
        """Token bucket with CHeKT's headers (portal, "Rate limits"). ASSUMED: Q17, that they apply to the Event API."""
        per_minute, now = self.terms.per_minute, self.now()
        if per_minute is None:
            return {}
        left, since = self._allowance
        left = min(self.terms.burst, left + (now - since) * per_minute / 60)
        wait = max(0.0, (1 - left) * 60 / per_minute)
        headers = {
            "X-RateLimit-Limit": str(per_minute),
            "X-RateLimit-Remaining": str(max(0, int(left - 1))),
            "X-RateLimit-Reset": str(int(now + wait) + 1),
        }
        self._allowance = (left if left < 1 else left - 1, now)
        if left < 1:
            raise Refusal(429, "too fast", headers | {"Retry-After": str(int(wait) + 1)})
        return headers

    def _stored(self, key: str) -> tuple[EventRecord, bytes] | None:
        stored = self._answers.get(key)
        if stored is not None and stored[0].received_at + KEEP_ANSWERS_MS < int(self.now() * 1000):
            del self._answers[key]
            return None
        return stored

    def _accept(
        self, said: dict[str, Any], body: bytes, record: RequestRecord, key: str | None, faults: Sequence[Fault]
    ) -> EventRecord:
        discarded = next((fault for fault in faults if isinstance(fault, f.Discard)), None)
        event = EventRecord(
            chekt_event_id=f"eve-{len(self.ledger.events) + 1}",
            response_id=str(uuid.uuid4()),
            request=said,
            body=body,
            headers=record.headers,
            received_at=record.received_at,
            status="accepted" if discarded is None else "discarded",
            reason=None if discarded is None else discarded.reason,
            idempotency_key=key,
        )
        self.ledger.add_event(event)
        return event

    def _answer(self, event: EventRecord, faults: Sequence[Fault]) -> bytes:
        answer: dict[str, Any] = {"event_id": event.chekt_event_id, "response_id": event.response_id}
        shape = next((fault.shape for fault in faults if isinstance(fault, f.NoUploads)), None)
        if event.status == "discarded" or shape == "null":
            answer["uploads"] = None
        elif shape == "empty":
            answer["uploads"] = {}
        elif shape is None:
            answer["uploads"] = self._offer(event, faults)
        answer |= {"status": event.status, "reason": event.reason}
        return json.dumps(answer).encode()

    def _offer(self, event: EventRecord, faults: Sequence[Fault]) -> dict[str, Any]:
        count = event.request["upload_snapshot_count"]
        short, clip = event.request["upload_short_mp4"], event.request["upload_event_mp4"]
        seconds = self.terms.slot_seconds
        for fault in faults:
            match fault:
                case f.Slots(snapshots, short_too, clip_too):
                    count = count if snapshots is None else snapshots
                    short = short if short_too is None else short_too
                    clip = clip if clip_too is None else clip_too
                case f.ExpireSlots(life):
                    seconds = life
        return {
            "snapshots": [{"seq": seq} | self._slot(event, "snapshot", seq, seconds) for seq in range(count)],
            "short_mp4": self._slot(event, "short_mp4", 0, seconds) if short else None,
            "event_mp4": self._slot(event, "event_mp4", 0, seconds) if clip else None,
        }

    def _slot(self, event: EventRecord, kind: str, seq: int, seconds: int) -> dict[str, str]:
        now = self.now()
        name = FILE_NAMES[kind].format(seq=seq)
        path = f"/{BUCKET}/device/{event.camera_id}/{event.chekt_event_id}/{name}"
        content_type = CONTENT_TYPES[kind] if self.terms.sign_content_type else None
        host = self.origin.partition("://")[2]
        moment = datetime.fromtimestamp(int(now), UTC)
        target = presign_put(self.bucket.key, host, path, now=moment, expires=seconds, content_type=content_type)
        token = self.doorkeeper.make_callback_token(event.chekt_event_id, kind, seq, now + seconds)
        query = (f"seq={seq}&" if kind == "snapshot" else "") + f"type={kind}&access_token={token}"
        callback = f"{self.origin}{EVENTS_PATH}/{event.chekt_event_id}/uploads/callback?{query}"
        slot = UploadRecord(
            chekt_event_id=event.chekt_event_id,
            event_id=event.event_id,
            camera_id=event.camera_id,
            kind=kind,
            seq=seq,
            put_url=self.origin + target,
            callback_url=callback,
            issued_at=int(now * 1000),
            expires_at=(int(now) + seconds) * 1000,
        )
        self.ledger.slots.append(slot)
        event.uploads.append(slot)
        self._slots_by_path[target.partition("?")[0]] = slot
        self._slots_by_name[event.chekt_event_id, kind, seq] = slot
        return {"upload_put_url": slot.put_url, "callback_put_url": slot.callback_url}

    # Storage and callbacks

    async def put(self, request: web.Request, record: RequestRecord, faults: tuple[Fault, ...]) -> web.Response:
        slot, length = self.bucket.judge(request, self.slot_at(request.raw_path), self.now())
        await self.bucket.take(request, slot, length, self.now())
        return web.Response(headers={"ETag": f'"{slot.etag}"'})

    async def callback(self, request: web.Request, record: RequestRecord, faults: tuple[Fault, ...]) -> web.Response:
        self._no_chunks(request)
        pairs = parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
        query = dict(pairs)
        kind, token = query.pop("type", ""), query.pop("access_token", "")
        seq_text = query.pop("seq", None)
        if (query or len({name for name, _ in pairs}) != len(pairs)) and self.terms.strict:
            raise Refusal(400, "unknown or repeated parameters in the query")
        if kind not in FILE_NAMES or (kind == "snapshot") != (seq_text is not None and seq_text.isdigit()):
            raise Refusal(400, "type or seq is wrong")
        if self.terms.callback_auth:
            self._judge_credentials(request)
        event, seq = request.match_info["event"], int(seq_text or 0)
        if (refusal := self.doorkeeper.callback_refusal(token, event, kind, seq)) is not None:
            raise Refusal(401, refusal)
        headers = self._judge_rate()
        if self.terms.strict and await request.read():
            raise Refusal(400, "a body where none belongs", headers)
        slot = self._slots_by_name.get((event, kind, seq))
        if slot is None or slot.put_at is None:
            raise Refusal(404, "nothing was uploaded to this slot", headers)
        slot.callbacks += 1
        slot.confirmed_at = slot.confirmed_at or int(self.now() * 1000)
        return web.json_response({"event_id": event, "type": kind, "status": "uploaded"}, headers=headers)
