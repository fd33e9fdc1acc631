"""One recorder over HTTP: questions, logins, limits, and what its answers mean.

Promises: it logs in only where a password is configured, once for all requests that wait for it, and not again at once
where that was refused (recorders limit failed logins); it follows no redirects; no answer is larger or takes longer
than was said; no reason holds a secret. It knows nothing of events, rows or deadlines, and of no kind of recorder more
than its `Login`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from gateway.media.files import TooLarge
from gateway.media.logins import Login
from gateway.model import Clock

CONNECT_SECONDS: Final = 5.0  # a recorder stands in the same building
LIST_LIMIT: Final = 8 << 20  # bytes: some ten thousand events
LIST_SECONDS: Final = 30.0  # for one list, whole
LOGIN_LIMIT: Final = 64 << 10  # bytes
LOGIN_SECONDS: Final = 15.0
FIRST_LOGIN_PAUSE_MS: Final = (
    60_000  # Frigate, failed_login_rate_limit: the usual setting allows 5 a minute, 20 an hour
)
MAX_LOGIN_PAUSE_MS: Final = 600_000
_CHUNK_BYTES: Final = 64 << 10
_AS_IT_IS: Final = {"Accept-Encoding": "identity"}  # recorders compress lists for whoever allows it
_SITE_SUFFIXES: Final = (".local", ".lan", ".home", ".internal", ".home.arpa", ".localdomain")


class FetchError(Exception):
    """Why there is no answer; the text is fit for the reason of a row and holds no secret."""


class NotThere(FetchError):
    """The recorder answered, and does not have it (yet)."""

    def __init__(self, why: str, status: int = 200) -> None:
        super().__init__(why)
        self.status = status


class Unanswered(FetchError):
    """The recorder took the request, and did not answer it to the end. Others may fare better."""


class Unreachable(FetchError):
    """The recorder cannot be connected: no request to it can succeed now."""


class Refused(FetchError):
    """The recorder wants another login than the one that is configured. A person must act."""


class Forbidden(FetchError):
    """The login is good, and may not see this. A person must act."""


class Sink(Protocol):
    """What an answer is written into; a `gateway.media.files.Draft`, or memory."""

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


class Recorder:
    """`make_password` reads the secret when a login is due, so that it is not kept."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        login: Login,
        username: str | None = None,
        make_password: Callable[[], str] | None = None,
    ) -> None:
        self._base = url.rstrip("/")
        self._clock = clock
        self._login = login
        self._username = username
        self._make_password = make_password
        self._session: aiohttp.ClientSession | None = None
        self._logging_in = asyncio.Lock()
        self._logins = 0  # successful ones; tells a request whether another has logged in meanwhile
        self._token: str | None = None
        self._refused: str | None = None
        self._login_not_before: int = 0
        self._login_pause_ms = FIRST_LOGIN_PAUSE_MS
        # A recorder's own certificate is self-signed. An address of the site is trusted as far as the site's
        # network is (plain http is accepted there too); anywhere else the certificate must be good.
        self._verify = not is_of_the_site(URL(self._base).host or "")

    async def read(self, path: str) -> bytes:
        """One answer of the API, whole: a list of events, say. Raises FetchError."""
        memory = _Memory()
        try:
            await self.get(path, memory, limit=LIST_LIMIT, total=LIST_SECONDS, silence=LIST_SECONDS)
        except NotThere as error:
            if error.status >= 500:
                raise Unanswered(str(error)) from error
            if error.status >= 300:
                raise NotThere(f"{error}: is the url of its source that of this kind of recorder?") from error
            raise
        except Forbidden as error:
            lacking = self._login.lacking
            raise Forbidden(f"the recorder refuses its list of events (403): the user may lack {lacking}") from error
        return memory.content()

    async def get(self, path: str, sink: Sink, *, limit: int, total: float, silence: float) -> None:
        """Writes the answer into `sink`. `limit` in bytes; `total` and `silence` in seconds. Raises FetchError."""
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_SECONDS, sock_read=silence)
        logins = self._logins
        if not await self._try_get(path, sink, limit, timeout):
            await self._log_in(logins)
            if not await self._try_get(path, sink, limit, timeout):
                raise Refused(f"the recorder does not accept its own login: the user may lack {self._login.lacking}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _try_get(self, path: str, sink: Sink, limit: int, timeout: aiohttp.ClientTimeout) -> bool:
        """False: a login is wanted."""
        await sink.restart(limit)
        size = 0
        try:
            async with self._open().get(
                self._url(path), timeout=timeout, allow_redirects=False, headers=_AS_IT_IS
            ) as answer:
                if answer.status == 401:
                    return False
                _require_content(answer.status, self._login)
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    size += len(chunk)
                    await sink.write(chunk)
        except TooLarge as error:
            raise NotThere(f"the recorder's answer is {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _fault_of(error) from error
        if size == 0:
            raise NotThere("the recorder sent an empty answer")
        return True

    async def _log_in(self, seen_logins: int) -> None:
        """Returns once somebody has logged in since `seen_logins`. Raises Refused, Unanswered or Unreachable."""
        async with self._logging_in:
            if self._logins != seen_logins:
                return
            if self._username is None or self._make_password is None:
                raise Refused("the recorder wants a login: set username and password_file of its source")
            if self._refused is not None and self._clock.ticks_ms() < self._login_not_before:
                raise Refused(self._refused)
            try:
                password = self._make_password()
            except (OSError, ValueError) as error:
                raise Refused("the password_file of its source cannot be read") from error
            status, body = await self._post_login({self._login.user: self._username, self._login.password: password})
            if 200 <= status < 300:  # a session cookie is in the jar now, whatever its configured name
                self._token = _token_of(body, self._login.token)
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

    async def _post_login(self, words: dict[str, str]) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=LOGIN_SECONDS, sock_connect=CONNECT_SECONDS)
        url = URL(self._base + self._login.path, encoded=True)
        try:
            async with self._open().post(
                url,
                data=words if self._login.as_form else None,
                json=None if self._login.as_form else words,
                timeout=timeout,
                allow_redirects=False,
                headers=_AS_IT_IS,
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > LOGIN_LIMIT:
                        raise Unanswered("the recorder's answer to the login is too large for one")
                return answer.status, bytes(body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _fault_of(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # `unsafe` keeps cookies of hosts that are bare addresses. The callers limit the parallel requests.
                cookie_jar=aiohttp.CookieJar(unsafe=True),
                connector=aiohttp.TCPConnector(limit=0, ssl=self._verify),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _url(self, path: str) -> URL:
        if self._token is not None:
            path += f"{'&' if '?' in path else '?'}token={quote(self._token, safe='')}"
        return URL(self._base + path, encoded=True)


def is_of_the_site(host: str) -> bool:
    """Whether a host is of this site's own network: a private or loopback address, or a name that only exists there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return bool(name) and ("." not in name or name.endswith(_SITE_SUFFIXES))
    return address.is_private or address.is_loopback or address.is_link_local


def _token_of(body: bytes, key: str | None) -> str | None:
    """None where a cookie does it: the next answer shows whether one does."""
    if key is None:
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    token = said.get(key) if isinstance(said, dict) else None
    return token if isinstance(token, str) and token else None


def _require_content(status: int, login: Login) -> None:
    if status == 200:
        return
    if status == 403:
        raise Forbidden(f"the recorder refuses this camera (403): the user may lack {login.lacking}, or the camera")
    if status in (408, 429, 502, 503, 504):
        raise Unanswered(f"the recorder answered {status}")
    # 404: no such thing. 400, 500 of Frigate: "Could not create clip": also the answer where no segment is there yet.
    raise NotThere(f"the recorder answered {status}", status)


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
