"""The HTTP calls to the cloud: one session, one small method for each call, a `Reply` for every outcome.

Promises: no redirection is followed, no cookie kept, no certificate left unchecked, no address changed by a byte;
an answer costs at most 1 MiB of memory and a bounded time; what went wrong on the network comes back as a value, and
`Reply.written` says whether a byte of the request may have left. What an answer means is in `wire`, when to try again
in `gateway.retry`. Sources: CHeKT Event API v0.8, "API Endpoint"; CHeKT portal, "Idempotency"; AWS S3, PutObject.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, BinaryIO, Final, Literal

import aiohttp
from yarl import URL

from gateway.chekt.addresses import signs_content_type
from gateway.chekt.throttle import Throttle, read_slowly
from gateway.chekt.wire import Reply, http_date
from gateway.chekt.words import excerpt
from gateway.config import Cloud

CONNECT_S: Final = 5.0  # DNS, TCP and TLS: short, for nothing is written yet
ANSWER_S: Final = 30.0  # generous: what is given up after it was written may arrive twice
TOTAL_S: Final = CONNECT_S + ANSWER_S  # also bounds an answer that trickles
STALL_S: Final = 30.0  # a PUT that moves no byte for so long is given up
LONGEST_PUT_S: Final = 3600.0
MAX_BODY: Final = 1 << 20  # bytes of an answer
_CHUNK: Final = 1 << 16

EVENTS_PATH: Final = "/partner/v1/events"


class ClientError(Exception):
    """The client cannot be built from this configuration; the text says what to change."""


class Client:
    """Use as an async context, or call `close`. `on_date` hears the `Date` of every answer of the cloud."""

    def __init__(
        self,
        cloud: Cloud,
        *,
        version: str,
        api_key: str | None = None,
        max_bytes_per_second: int = 0,
        connections: int = 32,
        on_date: Callable[[int], None] | None = None,
    ) -> None:
        if cloud.event_header in ("x-api-key", "both") and not api_key:
            raise ClientError(f'event_header = "{cloud.event_header}" needs api_key_file')
        self._cloud = cloud
        self._api_key = api_key
        self.on_date = on_date  # wall milliseconds; `TokenSource.learn_date`
        self._events_url = URL(cloud.url.rstrip("/") + EVENTS_PATH)
        self._throttle = Throttle(max_bytes_per_second) if max_bytes_per_second else None
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        trace.on_request_chunk_sent.append(_moved)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=tls_context(cloud.ca_file)),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"chekt-gateway/{version}", "Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=TOTAL_S, connect=CONNECT_S, sock_connect=CONNECT_S, sock_read=ANSWER_S),
            trust_env=False,
            trace_configs=[trace],
        )
        _send_once(self._session)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def post_event(self, body: bytes, idempotency_key: str, token: str) -> Reply:
        """`token` is what `TokenSource.get` gave; which header it travels in is configured, never tried out."""
        headers = {"Content-Type": "application/json", **self._credentials(token)}
        if self._cloud.idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        return await self._call("POST", self._events_url, headers, data=body)

    async def post_form(self, url: str, fields: Mapping[str, str]) -> Reply:
        """A token request (RFC 6749, 4.4.2). Its answer's `Date` is told to `on_date` like any other."""
        return await self._call("POST", URL(url), {}, data=aiohttp.FormData(dict(fields)))

    async def ask_the_time(self) -> Reply:
        """Any answer will do: its `Date` is told to `on_date`. Asked only while nobody else can tell the time."""
        return await self._call("GET", URL(self._cloud.url.rstrip("/") + "/"), {}, data=None, skip=("Content-Type",))

    async def confirm(self, callback_url: str, token: str | None = None) -> Reply:
        """ASSUMED: Q10. An empty PUT; the address holds its own token, ours goes along only by `callback_auth`."""
        headers = {"Content-Length": "0"}
        if self._cloud.callback_auth and token is not None:
            headers |= self._credentials(token)
        return await self._call("PUT", URL(callback_url, encoded=True), headers, data=None, skip=("Content-Type",))

    async def put_file(
        self, url: str, path: Path, *, content_type: str, always_type: bool = False, seconds_left: float
    ) -> Reply:
        """Puts a file to its slot. `seconds_left`: until the slot ends. Raises OSError if the file cannot be read.

        The type is sent where the address signs it, else only by `always_type`: without a type in the signature any
        is right, and none is the least that can be wrong. Never `Authorization`: S3 refuses two kinds at once.
        """
        headers = {"Accept": "*/*"}
        if always_type or signs_content_type(url):
            headers["Content-Type"] = content_type
        total = max(0.001, min(seconds_left, LONGEST_PUT_S))
        timeout = aiohttp.ClientTimeout(total=total, connect=CONNECT_S, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        file = await asyncio.to_thread(_open, path)
        try:
            headers["Content-Length"] = str(os.fstat(file.fileno()).st_size)
            # The file object itself: aiohttp reads it in a thread. With a limit, a reader that does the same.
            data: Any = file if self._throttle is None else read_slowly(file, self._throttle)
            skip = () if "Content-Type" in headers else ("Content-Type",)
            target = URL(url, encoded=True)
            return await self._call("PUT", target, headers, data=data, timeout=timeout, skip=skip, own=False)
        finally:
            file.close()

    def _credentials(self, token: str) -> dict[str, str]:
        """CHeKT Event API v0.8 says Bearer in "Quick Start" and X-API-KEY in "API Endpoint" (ASSUMED: Q1, Bearer)."""
        header: Literal["bearer", "x-api-key", "both"] = self._cloud.event_header
        headers: dict[str, str] = {}
        if header in ("bearer", "both"):
            headers["Authorization"] = f"Bearer {token}"
        if header in ("x-api-key", "both"):
            headers["X-API-KEY"] = self._api_key or token
        return headers

    async def _call(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        data: Any,
        timeout: aiohttp.ClientTimeout | None = None,
        skip: tuple[str, ...] = (),
        own: bool = True,
    ) -> Reply:
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        watch = SimpleNamespace(written=False, moved=lambda: None)
        status: int | None = None
        answered: Mapping[str, str] = {}
        body = bytearray()
        complete = False
        error: str | None = None
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            async with asyncio.timeout(CONNECT_S + STALL_S) as stall:
                watch.moved = lambda: stall.reschedule(loop.time() + STALL_S)
                async with self._session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._cloud.proxy,
                    skip_auto_headers=skip,
                    trace_request_ctx=watch,
                    **options,
                ) as response:
                    status = response.status
                    answered = _lower(response.headers)
                    date = http_date(answered.get("date")) if own else None
                    if date is not None and self.on_date is not None:
                        self.on_date(date)  # now: a body that trickles would make it look old
                    stall.reschedule(None)  # reading has its own limits
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        body += chunk
                        if len(body) > MAX_BODY:
                            error = f"the answer is longer than {MAX_BODY} bytes"
                            response.close()
                            break
                    else:
                        complete = True
        except TimeoutError as exception:
            error = _timeout_words(exception, watch.written, status)
        except (aiohttp.ClientError, OSError, ValueError) as exception:
            # ValueError: an address or a header that aiohttp refuses, before anything is written.
            error = _words(exception)
        elapsed = round((time.monotonic() - begun) * 1000)
        written = bool(watch.written)
        return Reply(status, answered, bytes(body[:MAX_BODY]), complete, written or status is not None, error, elapsed)


@functools.cache  # reading this machine's authorities takes tens of milliseconds
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 at least, the system's authorities and, if configured, one more file of them (ASSUMED: Q22)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ClientError(f"ca_file {ca_file} cannot be used: {error}") from error
    return context


def _send_once(session: aiohttp.ClientSession) -> None:
    """A call is one request. By itself aiohttp sends a PUT again when a kept connection turns out to be broken.

    The first one may have arrived; the answer to the hidden second one would then be read as if it were the only one,
    a callback's 404 as a refusal. The switch is private to aiohttp (its own test tools use it); should it go, this says
    so at the start, and `test_a_put_on_a_broken_connection_is_not_repeated_below_us` if it no longer works.
    """
    if not hasattr(session, "_retry_connection"):
        raise ClientError("this version of aiohttp cannot be told to send a request once only; use the pinned one")
    session._retry_connection = False


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    """The first of each name counts."""
    lower: dict[str, str] = {}
    for name, value in headers.items():
        lower.setdefault(name.lower(), value)
    return lower


async def _connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    # From here on the request may be on the wire. Nothing later tells reliably that it is not.
    context.trace_request_ctx.written = True
    context.trace_request_ctx.moved()


async def _moved(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    context.trace_request_ctx.moved()


def _timeout_words(error: TimeoutError, written: bool, status: int | None) -> str:
    if status is not None:
        return "the answer began and did not end in time"
    if written and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no answer in time"
    return "no connection in time"


def _words(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            text = f"the name {error.host} cannot be resolved"
        case aiohttp.ClientConnectorCertificateError():
            fault = error.certificate_error
            why = fault.verify_message if isinstance(fault, ssl.SSLCertVerificationError) else str(fault)
            text = f"the certificate of {error.host} is not accepted: {why}"
        case aiohttp.ClientConnectorSSLError():
            text = f"TLS with {error.host} failed: {error.os_error}"
        case aiohttp.ClientProxyConnectionError():
            text = f"the proxy cannot be reached: {error.os_error}"
        case aiohttp.ClientHttpProxyError():
            text = f"the proxy refused: {error.status} {error.message}"
        case aiohttp.ClientConnectorError():
            # A connection that is closed while TLS is agreed upon comes without words.
            text = f"no connection to {error.host}: {str(error.os_error) or 'it was closed while it was being made'}"
        case aiohttp.ServerDisconnectedError():
            text = "the connection was closed before the answer"
        case aiohttp.ClientPayloadError():
            text = "the answer was cut off"
        case aiohttp.ClientResponseError():
            # aiohttp gives it a status 400 of its own, which nobody answered.
            text = f"an answer that is not HTTP: {error.message.partition(chr(10))[0].rstrip(':')}"
        case aiohttp.InvalidURL():
            text = "an address that cannot be called"
        case OSError():
            text = f"the connection broke: {error.strerror or type(error).__name__}"
        case _:
            text = f"{type(error).__name__}: {error}"
    return excerpt(text)
