"""The practice cloud: token endpoint, Event API, storage and callbacks on one loopback port, strict and on the record.

`cloud = Cloud(); await cloud.start(); … cloud.url … await cloud.stop()`. Everything that arrives is remembered (see
`Ledger`), and `wait_for` waits for it without polling. Faults: `script`, `always`, `go_dark`, `revoke_tokens`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from typing import Final

from aiohttp import web

from gateway.simulator import control, page
from gateway.simulator.api import EVENTS_PATH, OAUTH_PATH, Api, Refusal
from gateway.simulator.credentials import OAuthError
from gateway.simulator.faults import Entry, Fault, FaultBook
from gateway.simulator.mishaps import HUNG_UP, Mishaps, error_answer
from gateway.simulator.records import Ledger, RequestRecord
from gateway.simulator.signing import Refused
from gateway.simulator.storage import BUCKET, xml_error
from gateway.simulator.terms import Terms, practice_private_key

_RECORD: Final = web.RequestKey("record", RequestRecord)
_KEPT_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
        "x-partner-trace-id",
    }
)

_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Judge = Callable[[web.Request, RequestRecord, tuple[Fault, ...]], Awaitable[web.Response]]


class Cloud(Ledger):
    """One practice cloud. `now` gives seconds since 1970: a clock that is off can be practised too."""

    def __init__(self, terms: Terms | None = None, *, now: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.terms = terms or Terms()
        self.now = now
        self.host, self.port = "127.0.0.1", 0
        self.faults = FaultBook()
        self.api = Api(self.terms, self, now)
        self._closing = asyncio.Event()
        self._mishaps = Mishaps(self._closing)
        self._runner: web.AppRunner | None = None
        self._listener: web.TCPSite | None = None
        self._ssl: ssl.SSLContext | None = None

    # Life

    async def start(self, port: int = 0, *, ssl_context: ssl.SSLContext | None = None) -> None:
        """Listens on loopback; port 0 takes a free one."""
        app = web.Application(middlewares=[self._remember], client_max_size=self.terms.max_body_bytes)
        app.router.add_post(OAUTH_PATH, self._handler("token", self.api.token))
        app.router.add_post(EVENTS_PATH, self._handler("event", self.api.event))
        app.router.add_put(EVENTS_PATH + "/{event}/uploads/callback", self._handler("callback", self.api.callback))
        app.router.add_put(f"/{BUCKET}/{{path:.*}}", self._handler("put", self.api.put))
        app.router.add_routes([*control.routes(self), *page.routes(self)])
        app.on_response_prepare.append(self._stamp)
        self._closing.clear()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        self._ssl, self.port = ssl_context, port
        await self.come_back()
        self.api.origin = self.url

    async def stop(self) -> None:
        """Closes everything and removes the pictures; the records stay."""
        self._closing.set()
        if self._runner is not None:
            await self.tell()
            await self.go_dark()
            await self._runner.cleanup()
            self._runner = None
        self.api.bucket.close()

    async def __aenter__(self) -> Cloud:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def go_dark(self) -> None:
        """The cloud is gone: connections break, new ones are refused."""
        if self._listener is not None:
            await self._listener.stop()
            self._listener = None
        if self._runner is not None and self._runner.server is not None:
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    async def come_back(self) -> None:
        """Listens again, on the same port."""
        if self._runner is None:
            raise RuntimeError("the practice cloud was not started")
        if self._listener is not None:
            return
        listener = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._ssl, reuse_address=True)
        await listener.start()
        self._listener = listener
        self.port = self._runner.addresses[0][1]

    @property
    def stopping(self) -> bool:
        return self._closing.is_set()

    async def closing_within(self, seconds: float) -> bool:
        """Waits so long, or until the simulator stops; True when it stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        return self.stopping

    @property
    def url(self) -> str:
        return f"{'http' if self._ssl is None else 'https'}://{self.host}:{self.port}"

    @property
    def token_url(self) -> str:
        return self.url + OAUTH_PATH

    @property
    def practice_key(self) -> bytes:
        """The private key (PEM) whose public half is registered while `terms.keys` is empty; kid `practice-key`."""
        return practice_private_key()

    # Faults

    def script(self, entries: Iterable[Entry], on: str = "event") -> None:
        """One entry for each of the next requests of a kind: "event", "token", "put", "callback"."""
        self.faults.script(entries, on)

    def always(self, on: str, fault: Entry, *, camera_id: str | None = None, rate: float = 1.0, seed: int = 0) -> None:
        """A fault for all requests of a kind (of one camera; at a rate), until `clear`."""
        self.faults.always(on, fault, camera_id=camera_id, rate=rate, seed=seed)

    def clear(self, on: str | None = None) -> None:
        """Forgets scripts and standing faults, of one kind or of all."""
        self.faults.clear(on)

    def revoke_tokens(self) -> None:
        """Access tokens that were given out are refused from now on; new ones may be fetched."""
        self.api.doorkeeper.revoke()

    # Requests

    @web.middleware
    async def _remember(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        if request.path == "/" or request.path.startswith(control.OWN):
            return await control.guard(request, handler)
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() in _KEPT_HEADERS}
        record = RequestRecord("other", request.method, request.raw_path, headers, int(self.now() * 1000))
        request[_RECORD] = record
        self.requests.append(record)
        try:
            response = await handler(request)
            record.status = None if request.get(HUNG_UP) else response.status
            return response
        except web.HTTPException as problem:
            record.status, record.refusal = problem.status, problem.reason
            allow = {"Allow": problem.headers["Allow"]} if "Allow" in problem.headers else None
            return error_answer(problem.status, problem.reason, allow)
        finally:
            await self.tell()

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        # aiohttp writes the machine's time, and the simulator's clock may be another one.
        response.headers["Date"] = formatdate(self.now(), usegmt=True)

    def _handler(self, kind: str, judge: _Judge) -> _Next:
        """`judge` with the faults of its kind around it."""

        async def handler(request: web.Request) -> web.StreamResponse:
            record = request[_RECORD]
            record.kind = kind
            faults = self.faults.take(kind, await self._camera_of(kind, request))
            for fault in faults:
                if (instead := await self._mishaps.before(kind, request, fault)) is not None:
                    return instead
            response: web.StreamResponse
            try:
                response = await judge(request, record, faults)
            except Refusal as refusal:
                record.refusal = refusal.why
                response = error_answer(refusal.status, refusal.why, refusal.headers)
            except Refused as refused:
                record.refusal = str(refused)
                response = xml_error(refused)
            except OAuthError as problem:
                record.refusal = str(problem)
                body = {"error": problem.error, "error_description": problem.description}
                response = web.json_response(body, status=problem.status)
            for fault in faults:
                if (instead := await self._mishaps.after(request, response, fault)) is not None:
                    return instead
            return response

        return handler

    async def _camera_of(self, kind: str, request: web.Request) -> str | None:
        if kind == "event":
            with contextlib.suppress(ValueError, AttributeError):
                return str(json.loads(await request.read()).get("camera_id"))
        if kind == "put" and (slot := self.api.slot_at(request.raw_path)) is not None:
            return slot.camera_id
        if kind == "callback" and (event := self.chekt_event(request.match_info["event"])) is not None:
            return event.camera_id
        return None
