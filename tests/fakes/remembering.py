"""Recorders that remember what they said over MQTT: strict about login and questions, as their documentation has it.

`ZoneMinderServer`: ZoneMinder 1.36 with its event notification server. `UnifiConsole`: UniFi Protect with the bridge
pakerfeldt/unifi-protect-mqtt. Both publish with QoS 0, as they do. What they cannot be asked is answered with an error.
"""

from __future__ import annotations

import json
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from aiohttp import web

from tests.fakes.publisher import Publisher

USER, PASSWORD = "viewer", "geheim & gut"


@dataclass
class _Server(ABC):
    port: int = 0
    login_wanted: bool = True
    logins: int = 0
    requests: list[str] = field(default_factory=list)
    answers: list[tuple[int, bytes]] = field(default_factory=list)  # given first, one for each question
    events: list[dict[str, Any]] = field(default_factory=list)
    publisher: Publisher | None = None
    _session: int = 0
    _runner: web.AppRunner | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        self._routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def connect(self, broker_port: int) -> None:
        self.publisher = await Publisher(broker_port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self.publisher is not None:
            await self.publisher.stop()
            self.publisher = None

    def forget_sessions(self) -> None:
        self._session += 1

    @abstractmethod
    def _routes(self, app: web.Application) -> None: ...

    def _scripted(self, request: web.Request) -> web.Response | None:
        self.requests.append(request.raw_path)
        if not self.answers:
            return None
        status, body = self.answers.pop(0)
        return web.Response(status=status, body=body)

    def _say(self, topic: str, said: dict[str, Any]) -> None:
        if self.publisher is not None:
            self.publisher.publish(topic, json.dumps(said), qos=0)


@dataclass
class ZoneMinderServer(_Server):
    zone: tzinfo = field(default_factory=lambda: ZoneInfo("Asia/Kathmandu"))

    @property
    def url(self) -> str:
        return f"{self.origin}/zm"

    def alarm(
        self, monitor: str = "5", *, notes: str = "Motion: All", ago: float = 0.0, frames: int = 9
    ) -> dict[str, Any]:
        """Begins an event now, or so many seconds ago, and says it."""
        row = {
            "Id": str(5060 + len(self.events)),
            "MonitorId": monitor,
            "Cause": "Motion",
            "Notes": notes,
            "AlarmFrames": str(frames),
            "started": int(time.time() - ago),
            "ended": None,
        }
        self.events.append(row)
        if frames:
            self._notify(row, "event_start")
        return row

    def end(self, row: dict[str, Any], *, lasted: int | None = None) -> None:
        row["ended"] = int(time.time()) if lasted is None else row["started"] + lasted
        self._notify(row, "event_end")

    def _notify(self, row: dict[str, Any], what: str) -> None:
        seen = re.findall(r"(\w+):(\d+)%", row["Notes"].partition("detected:")[2])
        said = {
            "monitor": row["MonitorId"],
            "name": f"{'Ended:' if what == 'event_end' else ''}Garage:({row['Id']}) {row['Notes']}",
            "state": "alarm",
            "eventid": row["Id"],
            "hookvalue": "0",
            "eventtype": what,
            "detection": [{"type": "object", "label": label, "confidence": f"{sure}.00%"} for label, sure in seen]
            if what == "event_start"
            else [],
        }
        self._say(f"zoneminder/{row['MonitorId']}", said)

    def _routes(self, app: web.Application) -> None:
        app.router.add_post("/zm/api/host/login.json", self._log_in)
        app.router.add_get("/zm/api/events/index/{filter:.*}.json", self._index)

    async def _log_in(self, request: web.Request) -> web.Response:
        self.logins += 1
        said = await request.post() if request.content_type == "application/x-www-form-urlencoded" else {}
        if (said.get("user"), said.get("pass")) != (USER, PASSWORD):
            return web.json_response({"success": False, "data": {"name": "Invalid credentials"}}, status=401)
        token = {"access_token": f"a.{self._session}+/=", "access_token_expires": 7200, "refresh_token": "r"}
        return web.json_response({**token, "version": "1.36.33", "apiversion": "2.0"})

    async def _index(self, request: web.Request) -> web.Response:
        if (scripted := self._scripted(request)) is not None:
            return scripted
        if self.login_wanted and request.query.get("token") != f"a.{self._session}+/=":
            return web.json_response({"success": False, "data": {"name": "Not Authenticated"}}, status=401)
        filters = unquote(request.raw_path.partition("?")[0]).removesuffix(".json").split("/")[5:]
        found = [_as_listed(row, self.zone) for row in self.events]
        for one in filters:
            match = re.fullmatch(r"(StartTime|AlarmFrames) (>=):(.+)", one)
            if match is None:
                return web.json_response({"success": False, "data": {"name": f"Invalid argument {one}"}}, status=500)
            key, limit = match[1], match[3]
            if key == "AlarmFrames":
                found = [row for row in found if int(row[key]) >= int(limit)]
            else:
                datetime.strptime(limit, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007  as the database compares: as text
                found = [row for row in found if row[key] >= limit]
        sort, direction = request.query["sort"], request.query["direction"]
        found.sort(key=lambda row: row[sort], reverse=direction == "desc")
        limit, page = min(int(request.query["limit"]), 100), int(request.query["page"])
        shown = found[(page - 1) * limit : page * limit]
        paging = {"page": page, "current": len(shown), "count": len(found), "prevPage": page > 1}
        paging |= {"nextPage": page * limit < len(found), "pageCount": -(-len(found) // limit), "limit": limit}
        return web.json_response({"events": [{"Event": row} for row in shown], "pagination": paging})


def _as_listed(row: dict[str, Any], zone: tzinfo) -> dict[str, Any]:
    def local(at: int) -> str:
        return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S}"

    start, end = local(row["started"]), None if row["ended"] is None else local(row["ended"])
    times = {"StartDateTime": start, "EndDateTime": end, "StartTimeSecs": str(row["started"])}
    made_up = {"StartTime": start, "EndTime": end or local(int(time.time()))}
    return {key: value for key, value in row.items() if key not in ("started", "ended")} | times | made_up


@dataclass
class UnifiConsole(_Server):
    @property
    def url(self) -> str:
        return self.origin

    def alarm(self, camera: str = "65d8f3a4017b8a03e7000423", *, seen: tuple[str, ...] = ("person",)) -> dict[str, Any]:
        row = {
            "id": f"67c2f4a1003e5c03e40b{len(self.events):04x}",
            "type": "smartDetectZone",
            "modelKey": "event",
            "camera": camera,
            "start": int(time.time() * 1000),
            "end": None,
            "score": 80,
            "smartDetectTypes": list(seen),
        }
        self.events.append(row)
        self._publish(row, "/early")
        return row

    def end(self, row: dict[str, Any]) -> None:
        row["end"] = max(int(time.time() * 1000), row["start"] + 1)
        self._publish(row, "")

    def _publish(self, row: dict[str, Any], early: str) -> None:
        for what in row["smartDetectTypes"]:
            said = {
                "event_id": row["id"],
                "type": what,
                "camera_id": row["camera"],
                "camera_name": "Front Door",
                "score": row["score"],
                "start": row["start"],
                "end": row["end"] or 0,
                "timestamp": datetime.now(UTC).isoformat(),
            }
            self._say(f"unifi/protect/events{early}/{what}/Front_Door", said)

    def _routes(self, app: web.Application) -> None:
        app.router.add_post("/api/auth/login", self._log_in)
        app.router.add_get("/proxy/protect/api/events", self._list)

    async def _log_in(self, request: web.Request) -> web.Response:
        self.logins += 1
        if await request.json() != {"username": USER, "password": PASSWORD}:
            return web.json_response({"code": 403, "message": "Invalid username or password"}, status=403)
        answer = web.json_response({"unique_id": "x", "username": USER})
        answer.set_cookie("TOKEN", f"t{self._session}", httponly=True)
        return answer

    async def _list(self, request: web.Request) -> web.Response:
        if (scripted := self._scripted(request)) is not None:
            return scripted
        if self.login_wanted and request.cookies.get("TOKEN") != f"t{self._session}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        start, end, limit = (int(request.query[key]) for key in ("start", "end", "limit"))
        types = request.query.getall("types")
        found = [row for row in self.events if row["type"] in types and start <= row["start"] <= end]
        found.sort(key=lambda row: row["start"], reverse=request.query["orderDirection"] == "DESC")
        return web.json_response(found[:limit])
