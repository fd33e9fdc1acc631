"""A fake Frigate recorder: its HTTP API for pictures and for what it remembers of its alarms, with its habits.

Follows the Frigate documentation ("HTTP API", "Authentication") and `frigate/api/media.py`: recordings are written in
segments and can be had only after a segment has ended; a clip asked for too early is short, and stays so, because it
is cached under its exact range; cuts are made at whole seconds of a segment. Reviews and tracked objects are listed as
`frigate/api/review.py` and `event.py` do it, newest first, compressed for whoever allows it. Faults on request.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiohttp import web

from gateway.simulator import pictures

Kind = Literal["snapshot", "clip", "login", "list"]
VERSION: Final = "0.16.2-practice"
LOGINS_A_MINUTE: Final = 5  # refused ones; Frigate, `failed_login_rate_limit`
USER: Final = "viewer"


@dataclass
class SeenObject:
    """What Frigate calls an event: one tracked object. `ended` is None while it is tracked."""

    id: str
    camera: str
    started: float
    ended: float | None = None
    has_snapshot: bool = True
    has_clip: bool = True


@dataclass
class Recorder:
    """The HTTP side. Times are Unix seconds, as in Frigate."""

    cameras: tuple[str, ...]
    segment_seconds: float = 10.0
    move_seconds: float = 1.0  # between the end of a segment and its place in the archive
    freezes_clips: bool = True
    nothing_status: int = 404  # where no recording is there yet; versions differ (404, 400, 500)
    password: str | None = None
    delay_seconds: float = 0.0
    now: Callable[[], float] = time.time
    recorded_since: float = 0.0
    objects: dict[str, SeenObject] = field(default_factory=dict)
    reviews: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows of its database
    tracked: dict[str, dict[str, Any]] = field(default_factory=dict)
    reviews_by_start: bool = False  # as versions 0.14 and 0.15 list them
    requests: list[tuple[str, int]] = field(default_factory=list)  # target, status
    _scripts: dict[Kind, deque[int | None]] = field(
        default_factory=lambda: {k: deque() for k in ("snapshot", "clip", "login", "list")}
    )
    _standing: dict[Kind, int] = field(default_factory=dict)
    _frozen: dict[str, bytes] = field(default_factory=dict)
    _tokens: set[str] = field(default_factory=set)
    _bad_logins: deque[float] = field(default_factory=deque)
    _runner: web.AppRunner | None = None
    port: int = 0

    async def start(self, port: int = 0) -> None:
        """Listens on loopback."""
        app = web.Application(middlewares=[self._door])
        api = [
            web.get("/api/version", self._version),
            web.post("/api/login", self._login),
            web.get("/api/review", self._kind("list", self._reviews)),
            web.get("/api/events", self._kind("list", self._events)),
            web.get("/api/events/{id}/snapshot.jpg", self._kind("snapshot", self._event_snapshot)),
            web.get("/api/events/{id}/clip.mp4", self._kind("clip", self._event_clip)),
            web.get("/api/{camera}/start/{start}/end/{end}/clip.mp4", self._kind("clip", self._range_clip)),
            web.get("/api/{camera}/recordings/{time}/snapshot.jpg", self._kind("snapshot", self._recorded_snapshot)),
            web.get("/api/{camera}/latest.jpg", self._kind("snapshot", self._latest)),
        ]
        app.router.add_routes(api)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Faults

    def script(self, kind: Kind, statuses: Iterable[int | None]) -> None:
        """The next requests of a kind are answered so, one entry each; None goes well."""
        self._scripts[kind].extend(statuses)

    def always(self, kind: Kind, status: int) -> None:
        """All requests of a kind are answered so (500: "Could not create clip", 404: never there), until `clear`."""
        self._standing[kind] = status

    def clear(self) -> None:
        self._standing.clear()
        for script in self._scripts.values():
            script.clear()

    # Requests

    @web.middleware
    async def _door(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self.password is not None and request.path != "/api/login" and not self._is_signed_in(request):
            response: web.StreamResponse = web.Response(status=401)
        else:
            response = await handler(request)
        self.requests.append((request.raw_path, response.status))
        return response

    def _is_signed_in(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return request.cookies.get("frigate_token", bearer) in self._tokens

    def forget_logins(self) -> None:
        """Every session ends, as after a restart of the recorder with a new secret."""
        self._tokens.clear()

    async def _login(self, request: web.Request) -> web.Response:
        if (fault := self._fault("login")) is not None:
            return _error("A fault on request", fault)
        now = self.now()
        while self._bad_logins and self._bad_logins[0] < now - 60:
            self._bad_logins.popleft()
        if len(self._bad_logins) >= LOGINS_A_MINUTE:
            return _error("Rate limit exceeded", 429)
        said = await request.json()
        if (said.get("user"), said.get("password")) != (USER, self.password):
            self._bad_logins.append(now)
            return _error("Login failed", 401)
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        response = web.json_response({})
        response.set_cookie("frigate_token", token, httponly=True)
        return response

    async def _version(self, _: web.Request) -> web.Response:
        return web.Response(text=VERSION)

    def _kind(
        self, kind: Kind, answer: Callable[[web.Request], web.Response]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if (fault := self._fault(kind)) is not None:
                wording = "Could not create clip from recordings" if kind == "clip" else "A fault on request"
                return _error(wording, fault)
            return answer(request)

        return handler

    def _fault(self, kind: Kind) -> int | None:
        script = self._scripts[kind]
        return script.popleft() if script else self._standing.get(kind)

    # What it remembers

    def _reviews(self, request: web.Request) -> web.Response:
        after, before = _limit(request, "after", self.now() - 86_400), _limit(request, "before", self.now())
        reviewed, severity = request.query.get("reviewed"), request.query.get("severity")

        def wanted(row: dict[str, Any]) -> bool:
            start, end = row["start_time"], row["end_time"]
            if self.reviews_by_start:
                at_that_time = start > after and (end is None or end < before)
                seen = (reviewed or "0") != "0" or not row["has_been_reviewed"]
            else:
                at_that_time = start < before and (end is None or end > after)
                seen = reviewed is None or row["has_been_reviewed"] is (reviewed == "1")
            return at_that_time and seen and severity in (None, row["severity"])

        return _list(request, filter(wanted, self.reviews.values()), None)

    def _events(self, request: web.Request) -> web.Response:
        after, before = _limit(request, "after", 0.0), _limit(request, "before", float("inf"))
        rows = [row for row in self.tracked.values() if after < row["start_time"] < before]
        return _list(request, rows, 100)

    # Pictures

    def _event_snapshot(self, request: web.Request) -> web.Response:
        seen = self.objects.get(request.match_info["id"])
        if seen is None:
            return _error("Event not found", 404)
        if not seen.has_snapshot:
            return _error("Snapshot not available", 404)
        return _jpeg(seen.camera, f"event {seen.id}")

    def _latest(self, request: web.Request) -> web.Response:
        camera = request.match_info["camera"]
        if camera not in self.cameras:
            return _error("Camera not found", 404)
        return _jpeg(camera, f"latest {self.now():.3f}")

    def _recorded_snapshot(self, request: web.Request) -> web.Response:
        camera, moment = request.match_info["camera"], _number(request, "time")
        if camera not in self.cameras or not self.recorded_since <= moment < self._recorded_until():
            return _error(f"Recording not found at {moment}", 404)
        return _jpeg(camera, f"recorded {moment:.3f}")

    def _event_clip(self, request: web.Request) -> web.Response:
        seen = self.objects.get(request.match_info["id"])
        if seen is None:
            return _error("Event not found", 404)
        if not seen.has_clip:
            return _error("Clip not available", 404)
        return self._clip(f"{seen.camera}-{seen.id}", seen.camera, seen.started, seen.ended or self.now())

    def _range_clip(self, request: web.Request) -> web.Response:
        camera, start, end = request.match_info["camera"], _number(request, "start"), _number(request, "end")
        if camera not in self.cameras:
            return _error("Camera not found", 404)
        return self._clip(f"clip_{camera}_{start}-{end}", camera, start, end)

    def _clip(self, name: str, camera: str, start: float, end: float) -> web.Response:
        if name not in self._frozen or not self.freezes_clips:
            seconds = self.recorded_seconds(start, end)
            if seconds <= 0:
                return _error("No recordings found for the specified time range", self.nothing_status)
            self._frozen[name] = pictures.clip(camera, seconds, f"{name} {seconds:.1f} s")
        return web.Response(body=self._frozen[name], content_type="video/mp4")

    def _recorded_until(self) -> float:
        return (self.now() - self.move_seconds) // self.segment_seconds * self.segment_seconds

    def recorded_seconds(self, start: float, end: float) -> float:
        """How much of a range can be had now, cut as Frigate cuts it (`inpoint`, `outpoint` in whole seconds)."""
        size, total = self.segment_seconds, 0.0
        first = max(start, self.recorded_since) // size * size
        until = self._recorded_until()
        count = max(0, round((min(until, end + size) - first) / size))
        for number in range(count):
            begins = first + number * size
            if begins > end or begins >= until:
                break
            inpoint = int(start - begins) if begins < start else 0
            outpoint = int(end - begins) if begins + size > end else size
            total += max(0.0, outpoint - inpoint)
        return total


def _number(request: web.Request, name: str) -> float:
    try:
        return float(request.match_info[name])
    except ValueError:
        raise web.HTTPUnprocessableEntity from None


def _limit(request: web.Request, name: str, default: float) -> float:
    try:
        return float(request.query.get(name, default)) or default
    except ValueError:
        raise web.HTTPUnprocessableEntity from None


def _list(request: web.Request, rows: Iterable[dict[str, Any]], limit: int | None) -> web.Response:
    newest_first = sorted(rows, key=lambda row: float(row["start_time"]), reverse=True)
    text = request.query.get("limit")
    response = web.json_response(newest_first[: int(text) if text else limit])
    response.enable_compression()
    return response


def _error(message: str, status: int) -> web.Response:
    return web.json_response({"success": False, "message": message}, status=status)


def _jpeg(camera: str, note: str) -> web.Response:
    return web.Response(body=pictures.snapshot(camera, f"{camera} {note}"), content_type="image/jpeg")
