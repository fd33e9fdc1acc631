"""An HTTP server below HTTP: it shows every byte of a request and answers with any bytes, or none.

For what a well-behaved server cannot do: cut an answer off, let it trickle, close before it, refuse TLS, stop reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"


@dataclass
class RawRequest:
    line: str
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


Answer = Callable[[RawRequest, asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes) -> Answer:
    """Answers with these bytes and closes."""

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return answer


class RawServer:
    """`async with RawServer(says(OK)) as server: … server.url … server.requests`."""

    def __init__(
        self, answer: Answer | None = None, *, tls: ssl.SSLContext | None = None, read_body: bool = True
    ) -> None:
        self.answer = answer or says(OK)
        self.requests: list[RawRequest] = []
        self.connections = 0
        self.read_body = read_body
        self.release = asyncio.Event()  # what an answer that waits may wait for; set at the end
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls, limit=1 << 16)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release.set()
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = await self._read(reader)
            if request is not None:
                self.requests.append(request)
                await self.answer(request, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> RawRequest | None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        request = RawRequest(line)
        for header in fields:
            name, _, value = header.partition(":")
            request.headers[name.lower()] = value.strip()
        if self.read_body and "content-length" in request.headers:
            request.body = await reader.readexactly(int(request.headers["content-length"]))
        return request
