"""A recorder over HTTP that answers what a test says, path by path, and remembers every request."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Recorder:
    """`answers` are tried in order: the first whose words all occur in the path answers; else 404."""

    password: str | None = None  # set: requests without the cookie of a login get 401
    port: int = 0
    requests: list[str] = field(default_factory=list)
    logins: int = 0
    login_status: int | None = None  # set: this is the answer to every login
    busy: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_busy: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _answers: list[tuple[tuple[str, ...], Answer]] = field(default_factory=list)
    _runner: web.AppRunner | None = None
    _session: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/api/login", self._log_in)
        app.router.add_get("/{rest:.*}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """The port stays the same for the next start."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def answer(self, *words: str, body: bytes = b"", status: int = 200) -> None:
        async def say(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=body)

        self.answer_with(say, *words)

    def answer_with(self, answer: Answer, *words: str) -> None:
        """The newest answer for a path wins."""
        self._answers.insert(0, (words, answer))

    def hold(self, *words: str, body: bytes) -> asyncio.Event:
        """Answers only once the returned event is set."""
        gate = asyncio.Event()

        async def say(_: web.Request) -> web.StreamResponse:
            await gate.wait()
            return web.Response(body=body)

        self.answer_with(say, *words)
        return gate

    def forget_sessions(self) -> None:
        self._session += 1

    def asked(self, *words: str) -> list[str]:
        return [path for path in self.requests if all(word in path for word in words)]

    async def _log_in(self, request: web.Request) -> web.Response:
        self.logins += 1
        said = await request.json()
        if self.login_status is not None:
            return web.Response(status=self.login_status)
        if said != {"user": "viewer", "password": self.password}:
            return web.json_response({"message": "Login failed"}, status=401)
        answer = web.json_response({})
        answer.set_cookie("frigate_token", f"token-{self._session}", httponly=True)
        return answer

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        self.requests.append(path)
        if self.password is not None and request.cookies.get("frigate_token") != f"token-{self._session}":
            return web.Response(status=401)
        for words, answer in self._answers:
            if all(word in path for word in words):
                key = "clip" if "clip.mp4" in path else "snapshot"
                self.busy[key] += 1
                self.most_busy[key] = max(self.most_busy[key], self.busy[key])
                try:
                    return await answer(request)
                finally:
                    self.busy[key] -= 1
        return web.json_response({"success": False, "message": "not found"}, status=404)
