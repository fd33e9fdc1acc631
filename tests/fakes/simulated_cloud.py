"""A CHeKT in memory with weather: what the network and the cloud do to a request, by chance from a seed.

A model for `tests/step/test_simulation.py`, in virtual time and without sockets. It decides what arrived and what came
back; reading that is left to the real `gateway.chekt.wire`. Every attempt is kept, so that promises can be checked.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from gateway.chekt.wire import Reply
from gateway.model import Clock

OUTCOMES = (
    "accepted",
    "discarded",
    "refused_for_good",  # 400, this event only
    "everything_refused",  # 400
    "camera_refused",  # 403, 404
    "unauthorised",
    "throttled",
    "busy",
    "gateway_error",  # 502, 504: whether it arrived nobody knows
    "page",  # a captive portal
    "unreachable",
    "lost_before",  # written, never arrived
    "lost_after",  # arrived, the answer did not
    "cut_off",  # arrived, half of the answer came
)
UNCLEAR = frozenset({"gateway_error", "page", "lost_before", "lost_after", "cut_off", "broken_off"})
WEATHER: Mapping[str, Mapping[str, float]] = {
    "fine": {"accepted": 1.0},
    "rough": dict.fromkeys(("busy", "gateway_error", "page", "unreachable", "lost_before", "lost_after"), 1.0)
    | {"cut_off": 1.0, "throttled": 0.3, "accepted": 6.0},
    "away": {"unreachable": 1.0},
    "mute": {"lost_before": 1.0, "lost_after": 1.0},
    "broken": {"busy": 3.0, "gateway_error": 1.0},
    "portal": {"page": 1.0},
    "narrow": {"throttled": 1.0, "accepted": 2.0},
    "revoked": {"unauthorised": 1.0},
    "nonsense": {"everything_refused": 1.0},
    "cameras": {"accepted": 1.0},  # with some cameras refused
    "discarding": {"discarded": 1.0, "accepted": 1.0},
}


@dataclass
class Attempt:
    event_id: str
    lane: str
    began: float  # seconds
    body: bytes
    key: str
    life: int  # which process made it
    ended: float | None = None
    outcome: str = "broken_off"  # the process ended before the answer
    arrived: bool = False  # the cloud took it, the first time or again
    retry_after: float | None = None


@dataclass
class SimulatedCloud:
    clock: Clock
    dice: random.Random
    honours_keys: bool = True
    weather: str = "fine"
    refused_cameras: frozenset[str] = frozenset()
    poisoned: set[str] = field(default_factory=set)  # cameras whose events are refused for good; see the scenario
    life: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    answers: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # key -> body, answer
    taken: Counter[str] = field(default_factory=Counter)  # event_id -> how often it became an alarm at the station
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)  # event_id -> request that the cloud has taken
    final: dict[str, str] = field(default_factory=dict)  # event_id -> accepted, discarded
    token_requests: list[float] = field(default_factory=list)
    in_flight: Counter[str] = field(default_factory=Counter)
    overlaps: list[str] = field(default_factory=list)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def post_form(self, url: str, fields: Mapping[str, str]) -> Reply:
        self.token_requests.append(self._now())
        await asyncio.sleep(0.05)
        if self.weather in ("away", "mute"):
            return Reply(None, error="no connection", written=self.weather == "mute")
        if self.weather == "portal":
            return self._reply(200, b"<html>Welcome</html>", {"content-type": "text/html"})
        if self.weather == "revoked" and self.dice.random() < 0.5:
            return self._reply(401, b'{"error": "invalid_client", "error_description": "revoked"}')
        token = {"access_token": f"token-{len(self.token_requests)}", "token_type": "Bearer", "expires_in": 3600}
        return self._reply(200, json.dumps(token).encode())

    async def post_event(self, body: bytes, idempotency_key: str, token: str) -> Reply:
        request = json.loads(body)
        lane = f"{request['location_id']}/{request['camera_id']}"
        attempt = Attempt(request["event_id"], lane, self._now(), body, idempotency_key, self.life)
        self.attempts.append(attempt)
        if self.in_flight[lane]:
            self.overlaps.append(attempt.event_id)
        self.in_flight[lane] += 1
        try:
            outcome = self._outcome(request)
            await asyncio.sleep(self.dice.choice((0.02, 0.05, 0.1, 0.4)))
            reply = self._answer(attempt, request, outcome)
            if outcome in ("lost_before", "lost_after"):
                await asyncio.sleep(30.0)
            attempt.outcome, attempt.ended = outcome, self._now()
            return reply
        finally:
            self.in_flight[lane] -= 1

    def _outcome(self, request: Mapping[str, Any]) -> str:
        chances = WEATHER[self.weather]
        outcome = self.dice.choices(list(chances), list(chances.values()))[0]
        if outcome in ("accepted", "discarded"):
            if request["camera_id"] in self.poisoned and not (self.honours_keys and request["event_id"] in self.seen):
                return "refused_for_good"
            if self.weather == "cameras" and request["camera_id"] in self.refused_cameras:
                return "camera_refused"
        return outcome

    def _answer(self, attempt: Attempt, request: Mapping[str, Any], outcome: str) -> Reply:
        match outcome:
            case "accepted" | "discarded" | "cut_off" | "lost_after":
                status, answer = self._take(attempt, request, "discarded" if outcome == "discarded" else "accepted")
                if outcome == "lost_after":
                    return Reply(None, error="no answer in time", written=True)
                if outcome == "cut_off":
                    return Reply(status, {}, answer[: len(answer) // 2], complete=False, written=True)
                return self._reply(status, answer)
            case "refused_for_good" | "everything_refused":
                return self._reply(400, b'{"error": "Bad Request", "message": "Invalid input or params"}')
            case "camera_refused":
                status = self.dice.choice((403, 404))
                return self._reply(status, b'{"error": "Not Found", "message": "Resource does not exist"}')
            case "unauthorised":
                return self._reply(401, b'{"error": "Unauthorized", "message": "Invalid token or credentials"}')
            case "throttled":
                seconds = self.dice.choice((1, 7, 30, 120))
                date = formatdate(self.clock.wall_ms() // 1000 + seconds, usegmt=True)
                attempt.retry_after = seconds - 1.0  # a date has whole seconds
                return self._reply(
                    429,
                    b'{"error": "Too Many Requests", "message": "slow down"}',
                    {"retry-after": self.dice.choice((str(seconds), date))},
                )
            case "busy":
                return self._reply(503, b"busy")
            case "gateway_error":
                if self.dice.random() < 0.5:
                    self._take(attempt, request, "accepted")
                return self._reply(self.dice.choice((502, 504)), b"<html>Bad gateway</html>")
            case "page":
                status = self.dice.choice((200, 302, 511))
                return self._reply(status, b"<html>Welcome to the guest network</html>")
            case "unreachable":
                return Reply(None, error="no connection", written=False)
            case _:
                return Reply(None, error="the connection was closed before the answer", written=True)

    def _take(self, attempt: Attempt, request: Mapping[str, Any], status: str) -> tuple[int, bytes]:
        known = self.answers.get(attempt.key)
        if known is not None and known[0] != attempt.body:
            return 409, b'{"error": {"code": "idempotency_conflict", "message": "another body"}}'
        attempt.arrived = True
        if known is not None and self.honours_keys:
            return 201, known[1]
        self.taken[attempt.event_id] += 1
        self.seen.setdefault(attempt.event_id, dict(request))
        self.final.setdefault(attempt.event_id, status)
        answer = {
            "event_id": f"eve-{len(self.seen)}",
            "response_id": f"r-{len(self.attempts)}",
            "uploads": None,
            "status": self.final[attempt.event_id],
            "reason": None,
        }
        encoded = json.dumps(answer).encode()
        self.answers.setdefault(attempt.key, (attempt.body, encoded))
        return 201, encoded

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        date = {"date": formatdate(self.clock.wall_ms() // 1000, usegmt=True)}
        return Reply(status, {**date, **(headers or {})}, body, complete=True, written=True)
