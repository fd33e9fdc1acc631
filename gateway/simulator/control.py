"""Faults and facts over HTTP, for the practice cloud that runs as its own process: loopback only.

`GET /_simulator/state` tells what arrived. `POST /_simulator/faults` takes one JSON object with any of:
`{"on": "event", "script": [{"fault": "status", "status": 503}, null, …]}`: the next requests of a kind, one entry each;
`{"on": "put", "always": {"fault": …}, "camera_id": …, "rate": 0.2, "seed": 1}`: until cleared;
`{"clear": true}` or `{"clear": "put"}`; `{"revoke_tokens": true}`; `{"dark_seconds": 30}`: gone for a while.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.simulator.faults import entry_from_json
from gateway.simulator.records import EventRecord, UploadRecord

if TYPE_CHECKING:
    from gateway.simulator.cloud import Cloud

OWN: Final = "/_simulator"  # the simulator's own addresses; CHeKT has none of them
SHOWN_EVENTS: Final = 50
SHOWN_REFUSALS: Final = 20
MAX_DARK_SECONDS: Final = 24 * 3600
_KNOWN: Final = {"on", "script", "always", "camera_id", "rate", "seed", "clear", "revoke_tokens", "dark_seconds"}


async def guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Lets only this machine's own programs in; a web page of elsewhere cannot use a browser to reach us."""
    if not (_is_loopback(request.remote or "") and _is_loopback(request.url.host or "")):
        raise web.HTTPForbidden(reason="This address is for this machine only")
    if request.method == "POST" and request.content_type != "application/json":
        # A form of another site can be posted here by a browser without asking; JSON cannot.
        raise web.HTTPUnsupportedMediaType(reason="Content-Type must be application/json")
    return await handler(request)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def view_upload(upload: UploadRecord) -> dict[str, Any]:
    """One slot as the page and scripts see it; the addresses are secrets even here."""
    return {
        "kind": upload.kind,
        "seq": upload.seq,
        "expires_at": upload.expires_at,
        "put_at": upload.put_at,
        "puts": upload.puts,
        "confirmed_at": upload.confirmed_at,
        "callbacks": upload.callbacks,
        "size": upload.size,
        "sha256": upload.sha256,
        "content_type": upload.content_type,
        "looks_wrong": upload.looks_wrong,
        "href": f"{OWN}/media/{upload.chekt_event_id}/{upload.kind}/{upload.seq}" if upload.path else None,
    }


def view_event(event: EventRecord) -> dict[str, Any]:
    """One event as the page and scripts see it."""
    return {
        "chekt_event_id": event.chekt_event_id,
        "received_at": event.received_at,
        "request": event.request,
        "status": event.status,
        "reason": event.reason,
        "repeats": event.repeats,
        "double": event.double,
        "uploads": [view_upload(upload) for upload in event.uploads],
    }


def view_counts(cloud: Cloud) -> dict[str, int]:
    return {
        "events": len(cloud.events),
        "slots": len(cloud.slots),
        "uploads": len(cloud.uploads),
        "confirmed": len(cloud.done),
        "repeats": cloud.repeats,
        "duplicates": cloud.duplicates,
        "token_requests": len(cloud.token_requests),
        "requests": len(cloud.requests),
        "refused": len(cloud.refusals),
    }


def view_refusals(cloud: Cloud) -> list[dict[str, Any]]:
    """The newest requests that were refused for cause: what an installer needs to see."""
    return [
        {
            "received_at": request.received_at,
            "method": request.method,
            "path": request.target.partition("?")[0],
            "status": request.status,
            "why": request.refusal,
        }
        for request in cloud.refusals[-SHOWN_REFUSALS:]
    ]


def routes(cloud: Cloud) -> list[web.RouteDef]:
    tasks: set[asyncio.Task[None]] = set()

    async def state(request: web.Request) -> web.Response:
        body = {
            "url": cloud.url,
            "counts": view_counts(cloud),
            "faults_waiting": cloud.faults.waiting(),
            "events": [view_event(event) for event in cloud.events[-SHOWN_EVENTS:]],
            "refusals": view_refusals(cloud),
        }
        return web.json_response(body)

    async def faults(request: web.Request) -> web.Response:
        try:
            said = json.loads(await request.read())
            seconds = apply(cloud, said)
        except (ValueError, TypeError) as problem:
            return web.json_response({"error": str(problem)}, status=400)
        if seconds is not None:
            task = asyncio.create_task(_dark(cloud, seconds), name="practice cloud is dark")
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return web.json_response({"faults_waiting": cloud.faults.waiting()})

    return [web.get(f"{OWN}/state", state), web.post(f"{OWN}/faults", faults)]


def apply(cloud: Cloud, said: Any) -> float | None:
    """Does what one fault order says; returns the seconds of darkness it asks for. Raises ValueError."""
    if not isinstance(said, Mapping):
        raise ValueError("a fault order is a JSON object")
    if unknown := sorted(set(said) - _KNOWN):
        raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(_KNOWN))}")
    seconds = said.get("dark_seconds")
    if seconds is not None and not (_is_number(seconds) and 0 < seconds <= MAX_DARK_SECONDS):
        raise ValueError(f"dark_seconds is a number above 0, at most {MAX_DARK_SECONDS}")
    rate, on, script = said.get("rate", 1.0), said.get("on", "event"), said.get("script", [])
    if not (_is_number(rate) and 0 <= rate <= 1):
        raise ValueError("rate is a number from 0 to 1")
    if not isinstance(script, list):
        raise ValueError("script is a list")
    entries = [entry_from_json(entry) for entry in script]
    standing = entry_from_json(said.get("always"))
    if said.get("clear"):
        cloud.clear(None if said["clear"] is True else said["clear"])
    if entries:
        cloud.script(entries, on)
    if standing is not None:
        cloud.always(on, standing, camera_id=said.get("camera_id"), rate=rate, seed=said.get("seed", 0))
    if said.get("revoke_tokens"):
        cloud.revoke_tokens()
    return None if seconds is None else float(seconds)


async def _dark(cloud: Cloud, seconds: float) -> None:
    await asyncio.sleep(0.1)  # so that the answer to this order still gets out
    await cloud.go_dark()
    await cloud.closing_within(seconds)
    if not cloud.stopping:
        await cloud.come_back()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
