"""The control channel: how `status`, `reload` and their kin ask the running gateway something.

A unix socket beside the outbox (two gateways on one machine do not meet), open to the owner alone; one JSON object a
line, one answer for each. Only the daemon that holds the lock of the outbox may start a `ControlServer`: so a socket
that is already there was left by one that was killed, and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger()

_MAX_REQUEST: Final = 1 << 20  # bytes of one line; a request is a few words
_MAX_ANSWER: Final = 64 << 20  # bytes of one line; the status of thousands of cameras is some MB
_MAX_ADDRESS: Final = 107  # unix(7): sun_path is 108 bytes with its final NUL

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """Somebody listens, but what came back is no answer."""


def socket_path(outbox_path: Path) -> Path:
    """Beside the outbox, and named after it."""
    return outbox_path.with_name(outbox_path.name + ".sock")


class ControlServer:
    """`answer` gets each request and returns what the client shall see; what it raises is contained and told."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # On Linux a socket's mode before bind(2) is the mode of the file: nobody else can connect at any moment.
            os.fchmod(listener.fileno(), 0o600)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(self._path.lstat().st_mode):
                    self._path.unlink()
            with _address(self._path) as address:
                listener.bind(address)
            made = self._path.lstat()
            self._inode = made.st_dev, made.st_ino
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_MAX_REQUEST)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Answers in hand are broken off: a client sees that nobody listens any more."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            there = self._path.lstat()
            if (there.st_dev, there.st_ino) == self._inode:  # else another gateway has taken the place
                self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer), name="control connection")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = await self._answer_line(line)
                writer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # the client went away; ValueError: a line above the limit
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer_line(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"error": "not JSON"}
        if not isinstance(request, dict):
            return {"error": "not a JSON object"}
        try:
            return await self._answer(request)
        except Exception as fault:
            log.exception("control_request_failed", request=request)
            return {"error": f"{type(fault).__name__}: {fault}"}


async def ask(path: Path, request: dict[str, Any], timeout: float = 10.0) -> dict[str, Any] | None:
    """One question to the gateway behind `path`; None where nobody listens.

    Raises TimeoutError where a gateway listens but does not answer, PermissionError where it belongs to another user,
    ControlError where what answers is no gateway.
    """
    async with asyncio.timeout(timeout):
        try:
            with _address(path) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=_MAX_ANSWER)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        try:
            writer.write(json.dumps(request, ensure_ascii=False).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
        except ConnectionError:
            return None
        except ValueError as fault:
            raise ControlError("the answer is longer than any of a gateway") from fault
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    if not line.endswith(b"\n"):
        return None  # it went away in the middle of its answer
    try:
        answer = json.loads(line)
    except ValueError as fault:
        raise ControlError("the answer is not JSON") from fault
    if not isinstance(answer, dict):
        raise ControlError("the answer is not a JSON object")
    return answer


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for `path` that fits into an address, however deep the folder lies."""
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
