"""Pictures and clips from a Frigate recorder, over its HTTP API, and the lists from which missed alarms are read.

Promises: what it hands over is a picture of the moment that was asked for, never merely the newest one; it logs in only
where a password is configured, once for all requests that wait for it, and not again at once where that was refused
(Frigate limits failed logins); it follows no redirects. It knows nothing of events, rows or deadlines.

Follows the Frigate documentation, "HTTP API" and "Authentication" (port 5000: no login; port 8971: TLS and a login),
and Frigate's `frigate/api/media.py`: range clips are cached under their exact range by versions up to 0.14, so that one
asked for too early stays short; every attempt therefore asks for an end one second later than the last.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from gateway.media import jpeg
from gateway.media.files import Draft, TooLarge
from gateway.model import Clock

SNAPSHOT_LIMIT: Final = 5 << 20  # bytes: a 4K JPEG has 2 to 3 MiB
CLIP_LIMIT: Final = 100 << 20  # bytes: 30 s at 25 Mbit/s
CONNECT_SECONDS: Final = 5.0  # a recorder stands in the same building
SNAPSHOT_SECONDS: Final = 15.0  # for one picture, whole
CLIP_SECONDS: Final = 120.0  # for one clip, whole; Frigate first runs ffmpeg over its segments
CLIP_SILENCE_SECONDS: Final = 45.0  # without a byte, within that
LIST_LIMIT: Final = 8 << 20  # bytes: some ten thousand reviews
LIST_SECONDS: Final = 30.0  # for one list, whole
SETTLE_MS: Final = 5_000  # segments of 10 s are moved when they end, so that half of all clips are complete by then
LONGER_AT_MOST_SECONDS: Final = 15  # a clip is not asked for with a window that is longer by more than this
DETECTIONS_TRIED: Final = 3  # a review may hold dozens of objects; the first ones opened it
FIRST_LOGIN_PAUSE_MS: Final = (
    60_000  # Frigate, failed_login_rate_limit: the usual setting allows 5 a minute, 20 an hour
)
MAX_LOGIN_PAUSE_MS: Final = 600_000
_CHUNK_BYTES: Final = 64 << 10
_AS_IT_IS: Final = {"Accept-Encoding": "identity"}  # Frigate's nginx compresses lists for whoever allows it
_SITE_SUFFIXES: Final = (".local", ".lan", ".home", ".internal", ".home.arpa", ".localdomain")


class FetchError(Exception):
    """Why there is no picture; the text is fit for the reason of a row and holds no secret."""


class NotThere(FetchError):
    """The recorder answered, and does not have it (yet)."""


class Unanswered(FetchError):
    """The recorder took the request, and did not answer it to the end. Others may fare better."""


class Unreachable(FetchError):
    """The recorder cannot be connected: no request to it can succeed now."""


class Refused(FetchError):
    """The recorder wants another login than the one that is configured. A person must act."""


class Forbidden(FetchError):
    """The login is good, and may not see this camera. A person must act."""


class Sink(Protocol):
    """What an answer is written into; a `Draft`, or memory."""

    async def restart(self, limit: int) -> None: ...
    async def write(self, chunk: bytes) -> None: ...


class _Memory:
    def __init__(self) -> None:
        self._parts = bytearray()
        self._limit = 0

    async def restart(self, limit: int) -> None:
        self._parts.clear()
        self._limit = limit

    async def write(self, chunk: bytes) -> None:
        self._parts += chunk
        if len(self._parts) > self._limit:
            raise TooLarge(f"larger than {self._limit} bytes")

    def content(self) -> bytes:
        return bytes(self._parts)


class Frigate:
    """One recorder. `make_password` reads the secret when a login is due, so that it is not kept."""

    settle_ms: Final = SETTLE_MS

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        username: str | None = None,
        make_password: Callable[[], str] | None = None,
    ) -> None:
        self._base = url.rstrip("/")
        self._clock = clock
        self._username = username
        self._make_password = make_password
        self._session: aiohttp.ClientSession | None = None
        self._login = asyncio.Lock()
        self._logins = 0  # successful ones; tells a request whether another has logged in meanwhile
        self._refused: str | None = None
        self._login_not_before: int = 0
        self._login_pause_ms = FIRST_LOGIN_PAUSE_MS
        # Frigate's own certificate on port 8971 is self-signed. An address of the site is trusted as far as the site's
        # network is (plain http is accepted there too); anywhere else the certificate must be good.
        self._verify = not is_of_the_site(URL(self._base).host or "")

    async def snapshot(self, recipe: Mapping[str, Any], moment_at: int, *, seq: int, live: bool, draft: Draft) -> None:
        """Writes the picture of a moment into `draft`. `live`: the moment is now, so the newest picture shows it."""
        camera = _segment(str(recipe.get("camera") or ""))
        moment = _seconds(moment_at - _offset_of(recipe))
        ways: list[str] = []
        if seq == 0:
            detections = list(recipe.get("detections") or ())[:DETECTIONS_TRIED]
            ways += [f"/api/events/{_segment(str(detection))}/snapshot.jpg" for detection in detections]
            if live:
                ways.append(f"/api/{camera}/latest.jpg")
            ways.append(f"/api/{camera}/recordings/{moment}/snapshot.jpg")
        else:
            # The recording has no frame of the last 10 s yet, so while the moment is now the newest one is better.
            ways = [f"/api/{camera}/latest.jpg"] if live else []
            ways.append(f"/api/{camera}/recordings/{moment}/snapshot.jpg")
        reasons: list[str] = []
        for way in ways:
            try:
                await self._get(way, draft, SNAPSHOT_LIMIT, SNAPSHOT_SECONDS, SNAPSHOT_SECONDS)
            except NotThere as error:
                reasons.append(str(error))
                continue
            fault = jpeg.fault(draft.head, draft.tail)
            if fault is None:
                return
            reasons.append(f"the recorder sent something else: {fault}")
        raise NotThere(reasons[0] if reasons else "the alarm names no camera")

    async def clip(self, recipe: Mapping[str, Any], from_at: int, to_at: int, *, attempt: int, draft: Draft) -> None:
        """Writes the recording of a window into `draft`, as far as the recorder has it; the caller judges how much."""
        camera = _segment(str(recipe.get("camera") or ""))
        # Whole seconds: older versions have a route for integers and another for decimals with a point.
        offset = _offset_of(recipe)
        start, end = (from_at - offset) // 1000, -((offset - to_at) // 1000) + min(attempt, LONGER_AT_MOST_SECONDS)
        path = f"/api/{camera}/start/{start}/end/{end}/clip.mp4"
        await self._get(path, draft, CLIP_LIMIT, CLIP_SECONDS, CLIP_SILENCE_SECONDS)

    async def read(self, path: str) -> bytes:
        """One answer of the API, whole: a list of reviews, say. Raises FetchError."""
        memory = _Memory()
        await self._get(path, memory, LIST_LIMIT, LIST_SECONDS, LIST_SECONDS)
        return memory.content()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _get(self, path: str, draft: Sink, limit: int, total: float, silence: float) -> None:
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_SECONDS, sock_read=silence)
        logins = self._logins
        if not await self._try_get(path, draft, limit, timeout):
            await self._log_in(logins)
            if not await self._try_get(path, draft, limit, timeout):
                raise Refused("the recorder does not accept its own login: the user may lack the role viewer")

    async def _try_get(self, path: str, draft: Sink, limit: int, timeout: aiohttp.ClientTimeout) -> bool:
        """False: a login is wanted."""
        await draft.restart(limit)
        size = 0
        try:
            async with self._open().get(
                self._url(path), timeout=timeout, allow_redirects=False, headers=_AS_IT_IS
            ) as answer:
                if answer.status == 401:
                    return False
                _require_picture(answer.status)
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    size += len(chunk)
                    await draft.write(chunk)
        except TooLarge as error:
            raise NotThere(f"the recorder's file is {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _fault_of(error) from error
        if size == 0:
            raise NotThere("the recorder sent an empty file")
        return True

    async def _log_in(self, seen_logins: int) -> None:
        """Returns once somebody has logged in since `seen_logins`. Raises Refused or Unreachable."""
        async with self._login:
            if self._logins != seen_logins:
                return
            if self._username is None or self._make_password is None:
                raise Refused("the recorder wants a login: set username and password_file of its source")
            if self._refused is not None and self._clock.ticks_ms() < self._login_not_before:
                raise Refused(self._refused)
            try:
                body = {"user": self._username, "password": self._make_password()}
            except (OSError, ValueError) as error:
                raise Refused("the password_file of its source cannot be read") from error
            timeout = aiohttp.ClientTimeout(total=SNAPSHOT_SECONDS, sock_connect=CONNECT_SECONDS)
            try:
                async with self._open().post(
                    self._url("/api/login"), json=body, timeout=timeout, allow_redirects=False
                ) as answer:
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _fault_of(error) from error
            if 200 <= status < 300:  # the session cookie is in the jar now, whatever its configured name
                self._logins += 1
                self._refused, self._login_pause_ms = None, FIRST_LOGIN_PAUSE_MS
                return
            if status >= 500:
                raise Unanswered(f"the recorder answered {status} to the login")
            self._refused = (
                "the recorder limits logins after failed ones (429)"
                if status == 429
                else f"the recorder refused the login ({status}): check username and password_file of its source"
            )
            self._login_not_before = self._clock.ticks_ms() + self._login_pause_ms
            self._login_pause_ms = min(2 * self._login_pause_ms, MAX_LOGIN_PAUSE_MS)
            raise Refused(self._refused)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # `unsafe` keeps cookies of hosts that are bare addresses. Capture limits the parallel requests.
                cookie_jar=aiohttp.CookieJar(unsafe=True),
                connector=aiohttp.TCPConnector(limit=0, ssl=self._verify),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _url(self, path: str) -> URL:
        return URL(self._base + path, encoded=True)


def is_of_the_site(host: str) -> bool:
    """Whether a host is of this site's own network: a private or loopback address, or a name that only exists there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return bool(name) and ("." not in name or name.endswith(_SITE_SUFFIXES))
    return address.is_private or address.is_loopback or address.is_link_local


def _require_picture(status: int) -> None:
    if status == 200:
        return
    if status == 403:
        raise Forbidden("the recorder refuses this camera (403): the user may lack the role or the camera")
    if status in (408, 429, 502, 503, 504):
        raise Unanswered(f"the recorder answered {status}")
    # 404: no such picture. 400, 500: "Could not create clip": also the answer where no segment is there yet.
    raise NotThere(f"the recorder answered {status}")


def _fault_of(error: BaseException) -> FetchError:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return Unreachable("the recorder's certificate is not trusted")
        case aiohttp.ClientConnectorDNSError():
            return Unreachable("the recorder's name is not known")
        case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorError():
            return Unreachable("the recorder cannot be connected")
        case TimeoutError():  # aiohttp's other timeouts are TimeoutError too
            return Unanswered("the recorder did not answer in time")
        case aiohttp.ClientPayloadError():
            return Unanswered("the recorder's answer was cut off")
        case _:
            return Unanswered(f"the connection to the recorder failed ({type(error).__name__})")


def _segment(text: str) -> str:
    """One path segment from the equipment's own text. Raises NotThere where it cannot be one."""
    if text in ("", ".", ".."):
        raise NotThere("the alarm names no camera" if not text else "the alarm's names cannot be asked for")
    return quote(text, safe="")


def _offset_of(recipe: Mapping[str, Any]) -> int:
    """How far our time is ahead of the recorder's own, where that is known; milliseconds."""
    return int(recipe.get("clock_offset_ms") or 0)


def _seconds(wall_ms: int) -> str:
    return f"{wall_ms // 1000}.{wall_ms % 1000:03d}"
