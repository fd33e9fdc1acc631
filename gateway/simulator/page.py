"""The practice cloud's page: alarms and pictures as they arrive. Self-contained, on loopback, by server-sent events."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.simulator.control import OWN, SHOWN_EVENTS, view_counts, view_event, view_refusals

if TYPE_CHECKING:
    from gateway.simulator.cloud import Cloud

STATIC: Final = Path(__file__).parent / "static"
SIGN_OF_LIFE_SECONDS: Final = 15.0  # so that a browser notices a simulator that is gone
GATHER_SECONDS: Final = 0.1  # changes within this go out together
_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS: Final = {
    # Everything comes from here, and nothing that arrived (a camera's name) can become a script.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def routes(cloud: Cloud) -> list[web.RouteDef]:
    def file(name: str) -> web.RouteDef:
        async def serve(_: web.Request) -> web.Response:
            path = STATIC / name
            return web.Response(
                body=path.read_bytes(), content_type=_TYPES[path.suffix], charset="utf-8", headers=_HEADERS
            )

        return web.get("/" if name == "page.html" else f"{OWN}/{name}", serve)

    async def media(request: web.Request) -> web.StreamResponse:
        event = cloud.chekt_event(request.match_info["event"])
        wanted = request.match_info["kind"], request.match_info["seq"]
        for upload in event.uploads if event is not None else ():
            if (upload.kind, str(upload.seq)) == wanted and upload.path is not None:
                # The type is ours, not what was claimed: a page of a stranger must not come from here.
                kind = "image/jpeg" if upload.kind == "snapshot" else "video/mp4"
                return web.FileResponse(upload.path, headers=_HEADERS | {"Content-Type": kind})
        raise web.HTTPNotFound

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent: dict[str, Any] = {}
        version = -1
        try:
            while not cloud.stopping:
                news = await cloud.changed(version, SIGN_OF_LIFE_SECONDS)
                if news == version:
                    await response.write(b": still here\n\n")
                    continue
                version = news
                await _send_what_is_new(response, cloud, sent)
                await asyncio.sleep(GATHER_SECONDS)
        except ConnectionError:
            pass  # the browser has gone
        return response

    return [
        file("page.html"),
        file("page.js"),
        file("page.css"),
        web.get(f"{OWN}/media/{{event}}/{{kind}}/{{seq}}", media),
        web.get(f"{OWN}/stream", stream),
    ]


async def _send_what_is_new(response: web.StreamResponse, cloud: Cloud, sent: dict[str, Any]) -> None:
    shown = {event.chekt_event_id: json.dumps(view_event(event)) for event in cloud.events[-SHOWN_EVENTS:]}
    summary = json.dumps({"counts": view_counts(cloud), "refusals": view_refusals(cloud)})
    for name, text in shown.items():
        if sent.get(name) != text:
            await response.write(f"event: alarm\ndata: {text}\n\n".encode())
    if sent.get("summary") != summary:
        await response.write(f"event: summary\ndata: {summary}\n\n".encode())
    sent.clear()
    sent.update(shown, summary=summary)
