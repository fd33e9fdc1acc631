"""Faults at work: what a request meets before it is judged, and what happens to its answer afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from gateway.simulator import faults as f
from gateway.simulator.faults import Fault
from gateway.simulator.signing import Refused
from gateway.simulator.storage import xml_error

# CHeKT Event API v0.8, "Error Responses"
MESSAGES: Final = {
    400: "Invalid input or params",
    401: "Invalid token or credentials",
    403: "Access denied",
    404: "Resource does not exist",
}
PORTAL_PAGE: Final = (
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Welcome to the guest network</h1></body></html>"
)
HUNG_UP: Final = web.RequestKey("hung_up", bool)


def error_answer(status: int, why: str | None = None, headers: Mapping[str, str] | None = None) -> web.Response:
    """The Event API's error body; `why` follows the documented message."""
    phrase = HTTPStatus(status).phrase
    message = MESSAGES.get(status, phrase)
    body = {"error": phrase, "message": message if why is None else f"{message}: {why}"}
    return web.json_response(body, status=status, headers=headers)


class Mishaps:
    """Carries faults out. `closing` ends every wait, so that the simulator can stop at any time."""

    def __init__(self, closing: asyncio.Event) -> None:
        self._closing = closing

    async def before(self, kind: str, request: web.Request, fault: Fault) -> web.StreamResponse | None:
        """An answer in place of the right one, or None to go on."""
        if kind == "put" and isinstance(fault, f.Html | f.Status | f.RefuseCredentials | f.StorageError):
            # Who answers while the file still comes and then closes resets the connection: the answer may not arrive,
            # and another fault than the one on request would be practised.
            async for _ in request.content.iter_chunked(65536):
                pass
        match fault:
            case f.Delay(seconds, after=False):
                await self._pause(seconds)
            case f.Drop():
                return self._hang_up(request)
            case f.Html(status):
                return web.Response(status=status, text=PORTAL_PAGE, content_type="text/html")
            case f.Status(status, retry_after, body, content_type):
                headers = {} if retry_after is None else {"Retry-After": retry_after}
                if body is not None:
                    return web.Response(status=status, body=body.encode(), headers=headers, content_type=content_type)
                return _error_of(kind, status, headers)
            case f.StorageError(status, code, message):
                return xml_error(Refused(status, code, message))
            case f.RefuseCredentials():
                return _error_of(kind, 403 if kind == "put" else 401, {})
            case f.Stall(at, seconds):
                left = int((request.content_length or 0) * at)
                while left > 0 and (chunk := await request.content.read(min(left, 65536))):
                    left -= len(chunk)
                await self._pause(seconds)
                return self._hang_up(request)
        return None

    async def after(
        self, request: web.Request, response: web.StreamResponse, fault: Fault
    ) -> web.StreamResponse | None:
        """What is answered in place of `response`, or None."""
        match fault:
            case f.Delay(seconds, after=True):
                await self._pause(seconds)
            case f.DropBeforeAnswer():
                return self._hang_up(request)
            case f.CutOff():
                body, slow = await self._begin(request, response)
                await slow.write(body[: len(body) // 2])
                request[HUNG_UP] = True
                if request.transport is not None:
                    # What was written still goes out: the client sees an answer that breaks off, not a reset.
                    request.transport.close()
                return slow
            case f.Trickle(seconds, drops):
                body, slow = await self._begin(request, response)
                size = -(-len(body) // max(1, drops)) or 1
                for start in range(0, len(body), size):
                    await slow.write(body[start : start + size])
                    await self._pause(seconds / max(1, drops))
                await slow.write_eof()
                return slow
        return None

    async def _begin(self, request: web.Request, response: web.StreamResponse) -> tuple[bytes, web.StreamResponse]:
        body = response.body if isinstance(response, web.Response) and isinstance(response.body, bytes) else b""
        slow = web.StreamResponse(status=response.status, headers=response.headers)
        slow.content_length = len(body)
        await slow.prepare(request)
        return body, slow

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    def _hang_up(self, request: web.Request) -> web.Response:
        request[HUNG_UP] = True
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)  # for aiohttp; nobody is there to read it


def _error_of(kind: str, status: int, headers: Mapping[str, str]) -> web.Response:
    if kind == "put":
        code = {403: "AccessDenied", 503: "SlowDown", 500: "InternalError"}.get(status, "PracticeFault")
        return xml_error(Refused(status, code, "A fault on request"))
    if kind == "token":
        error = {401: "invalid_client", 403: "access_denied", 429: "too_many_requests"}.get(status, "server_error")
        body = {"error": error, "error_description": "A fault on request"}
        return web.json_response(body, status=status, headers=headers)
    return error_answer(status, None, headers)
