"""The access token: one for everybody, fetched once, renewed before it ends.

Promises: many who wait cause one request, and none of them can break it off for the others; a token in hand is used
while a new one is fetched; a new assertion (new `jti`) for every request; a token endpoint that refuses is asked at
most eight times in ten minutes. Life is measured on the gateway's own clock; only `iat` and `exp` need wall time, and
that is the cloud's where ours is wrong (a box without a real-time clock boots in 1970: no token, no alarm).
Sources: CHeKT Event API v0.8, "Authentication"; CHeKT's public sample chekt-service-auth0-sample; RFC 6749, 4.4 and
5.2; RFC 7523, 2.2 and 3. ASSUMED: Q2, all of it is what the sample and the standards say.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog

from gateway.chekt.keys import Secrets
from gateway.chekt.wire import Reply, retry_after
from gateway.chekt.words import error_text, excerpt
from gateway.config import Cloud
from gateway.model import Clock
from gateway.retry import LONGEST_WAIT_MS, half_jitter_ms

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523, 2.2
BEFORE_S: Final = 30  # `iat` lies back a little: our clock may be ahead by what we do not correct
AHEAD_S: Final = 90  # Auth0: at most 300 s, under a minute or two advised; with BEFORE_S a life of 120 s
TRUSTED_OFFSET_MS: Final = 30_000  # `Date` counts whole seconds and travels: less than this says nothing
DEFAULT_LIFE_S: Final = 3_600  # CHeKT portal: "typically 1 hour"
LONGEST_LIFE_S: Final = 86_400  # the longest that any of CHeKT's tokens had
EARLY_MS: Final = 60_000
FIRST_REFUSED_MS: Final = 60_000
FIRST_UNREACHABLE_MS: Final = 1_000
LONGEST_UNREACHABLE_MS: Final = 30_000  # as for events: an alarm may be waiting
BUDGET: Final = 8  # requests that came to nothing, in BUDGET_MS
BUDGET_MS: Final = 600_000

log = structlog.get_logger()


class TokenError(Exception):
    """No token. `retry_in_ms`: when asking again can make a difference."""

    def __init__(self, text: str, *, retry_in_ms: int) -> None:
        super().__init__(text)
        self.text = text
        self.retry_in_ms = retry_in_ms


class TokenUnreachable(TokenError):
    """The token endpoint could not be asked, or nobody sensible answered."""


class TokenRefused(TokenError):
    """The token endpoint does not accept our credentials: a person must act."""


class TokenSource:
    """`get` a token, `invalidate` the one that was refused. `post_form` is `Client.post_form`."""

    def __init__(
        self,
        cloud: Cloud,
        secrets: Secrets,
        post_form: Callable[[str, Mapping[str, str]], Awaitable[Reply]],
        clock: Clock,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._cloud = cloud
        self._secrets = secrets
        self._post_form = post_form
        self._clock = clock
        self._jitter = jitter
        self._token: str | None = None
        self._renew_at = 0  # ticks
        self._ends_at = 0  # ticks
        self._request: asyncio.Task[None] | None = None
        self._not_before = 0  # ticks; also while _error says why
        self._error: TokenError | None = None
        self._failures = 0
        self._in_vain: deque[int] = deque(maxlen=BUDGET)  # ticks of requests that were refused or soon invalidated
        self._cloud_base: int | None = None  # the cloud's wall time less our ticks
        self._skew_said = False
        self.expires_at: int | None = None  # wall, for status
        self.last_error: str | None = None
        # An API key is its own token: nothing to fetch, nothing to renew (CHeKT portal, "Authentication").
        self._fixed = None if cloud.wants_token else secrets.api_key

    @property
    def renewable(self) -> bool:
        """Whether another token can be had after a 401. An API key stays what it is."""
        return self._fixed is None

    @property
    def clock_offset_ms(self) -> int | None:
        """The cloud's clock less ours; None while unknown."""
        if self._cloud_base is None:
            return None
        return self._cloud_base + self._clock.ticks_ms() - self._clock.wall_ms()

    async def get(self) -> str:
        """A token that has not ended. Raises TokenUnreachable or TokenRefused, often without a new request."""
        if self._fixed is not None:
            return self._fixed
        ticks = self._clock.ticks_ms()
        if self._token is not None and ticks >= self._ends_at:
            self._token = None
        if self._token is not None:
            if ticks >= self._renew_at and ticks >= self._not_before:
                self._start()  # whoever comes next has the new one; nobody waits for it
            return self._token
        if self._request is None and ticks < self._not_before and self._error is not None:
            raise self._again(ticks)
        # A waiter that is cancelled leaves the request to the others.
        await asyncio.shield(self._start())
        if self._token is not None:
            return self._token
        raise self._again(self._clock.ticks_ms())

    def invalidate(self, token: str) -> None:
        """The API said 401 to this token. Another one that has come in the meantime stays."""
        if token == self._token:
            self._token = None
            self._in_vain.append(self._clock.ticks_ms())

    def try_now(self) -> None:
        """A person has changed something: ask again at once."""
        self._not_before = 0
        self._in_vain.clear()

    def learn_date(self, server_date_at: int) -> None:
        """`Date` of an answer that has just come. Kept against ticks: a jump of our wall clock changes nothing."""
        self._cloud_base = server_date_at - self._clock.ticks_ms()
        offset = self.clock_offset_ms or 0
        skewed = abs(offset) > TRUSTED_OFFSET_MS
        if skewed and not self._skew_said:
            log.warning("clock_skewed", offset_seconds=round(offset / 1000), remedy="check the time sync")
        elif self._skew_said and not skewed:
            log.info("clock_agreed", offset_seconds=round(offset / 1000))
        self._skew_said = skewed

    async def close(self) -> None:
        if self._request is not None:
            self._request.cancel()
            await asyncio.gather(self._request, return_exceptions=True)

    def _start(self) -> asyncio.Task[None]:
        if self._request is None:
            self._request = asyncio.create_task(self._fetch(), name="token")
            self._request.add_done_callback(self._ended)
        return self._request

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._request = None
        if not task.cancelled() and task.exception() is not None:
            # A bug of ours, or of a library. Waiters see it; a renewal without waiters must not be silent.
            self._fail(TokenUnreachable(f"an error inside the gateway: {task.exception()!r}", retry_in_ms=0))

    async def _fetch(self) -> None:
        ticks = self._clock.ticks_ms()
        if len(self._in_vain) == BUDGET and ticks - self._in_vain[0] < BUDGET_MS:
            wait = self._in_vain[0] + BUDGET_MS - ticks
            text = f"asked {BUDGET} times in ten minutes for nothing"
            if self.last_error is not None and text not in self.last_error:
                text += f": {self.last_error}"
            self._error, self._not_before, self.last_error = TokenRefused(text, retry_in_ms=wait), ticks + wait, text
            return
        corrected = self._offset_used()
        error = await self._ask()
        if isinstance(error, TokenRefused) and self._offset_used() != corrected:
            # The refusal itself told us that our clock is wrong: most likely that is why.
            error = await self._ask()
        if error is not None:
            self._fail(error)

    async def _ask(self) -> TokenError | None:
        reply = await self._post_form(self._cloud.token_url or "", self._form())
        ticks = self._clock.ticks_ms()
        outcome = read_token_answer(reply, wall=self._clock.wall_ms())
        if isinstance(outcome, TokenError):
            if isinstance(outcome, TokenRefused):
                self._in_vain.append(ticks)
            return outcome
        token, life_ms = outcome
        self._token = token
        self._ends_at = ticks + life_ms
        # At the latest half-way, or a short-lived token would be renewed by every single get.
        self._renew_at = self._ends_at - min(max(EARLY_MS, life_ms // 10), life_ms // 2)
        self.expires_at = self._clock.wall_ms() + life_ms
        if self._error is not None:
            log.info("token_regained", after=self.last_error)
        self._error, self._failures, self._not_before, self.last_error = None, 0, 0, None
        log.debug("token_refreshed", life_seconds=life_ms // 1000)
        return None

    def _fail(self, error: TokenError) -> None:
        ticks = self._clock.ticks_ms()
        known = type(self._error)
        self._failures = self._failures + 1 if known is type(error) else 1
        if isinstance(error, TokenRefused):
            wait = min(LONGEST_WAIT_MS, FIRST_REFUSED_MS << min(self._failures - 1, 10))
        else:
            wait = half_jitter_ms(self._failures, FIRST_UNREACHABLE_MS, LONGEST_UNREACHABLE_MS, self._jitter())
        error.retry_in_ms = max(wait, error.retry_in_ms)
        self._error, self._not_before, self.last_error = error, ticks + error.retry_in_ms, error.text
        if known is not type(error):
            say = log.error if isinstance(error, TokenRefused) else log.warning
            name = "token_refused" if isinstance(error, TokenRefused) else "token_unreachable"
            offset = self.clock_offset_ms
            hint = {"clock_offset_seconds": round(offset / 1000)} if self._skew_said and offset is not None else {}
            say(name, why=error.text, retry_in_ms=error.retry_in_ms, **hint)

    def _again(self, ticks: int) -> TokenError:
        """The known error anew: an exception that is raised twice would collect tracebacks."""
        error = self._error
        if error is None:
            return TokenUnreachable("the token request was broken off", retry_in_ms=FIRST_UNREACHABLE_MS)
        return type(error)(error.text, retry_in_ms=max(0, self._not_before - ticks))

    def _offset_used(self) -> int:
        """What is added to our wall clock when signing; nothing while it agrees with the cloud's."""
        offset = self.clock_offset_ms or 0
        return offset if abs(offset) > TRUSTED_OFFSET_MS else 0

    def _form(self) -> dict[str, str]:
        """CHeKT's sample: no `client_id` beside an assertion, its `iss` and `sub` carry it."""
        cloud = self._cloud
        form = {"grant_type": "client_credentials"}
        if cloud.auth == "client_secret":
            form |= {"client_id": cloud.client_id or "", "client_secret": self._secrets.client_secret or ""}
        else:
            form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": self._assertion()}
        if cloud.audience is not None:
            form["audience"] = cloud.audience
        return form | cloud.extra_token_fields

    def _assertion(self) -> str:
        cloud = self._cloud
        now = (self._clock.wall_ms() + self._offset_used()) // 1000
        claims: dict[str, Any] = {
            "iss": cloud.client_id,
            "sub": cloud.client_id,
            "aud": cloud.assertion_audience or default_audience(cloud.token_url or ""),
            "iat": now - BEFORE_S,
            "exp": now + AHEAD_S,
            "jti": str(uuid.uuid4()),
        }
        key = self._secrets.signing_key
        if key is None:
            raise ValueError("no signing key was given")
        headers = {"kid": cloud.key_id} if cloud.key_id is not None else None
        return jwt.encode(claims, key, algorithm=cloud.algorithm, headers=headers)


def default_audience(token_url: str) -> str:
    """CHeKT's sample: the origin of the authorisation server with a slash, neither the token URL nor the API."""
    parts = urlsplit(token_url)
    return f"{parts.scheme}://{parts.netloc}/"


def read_token_answer(reply: Reply, *, wall: int) -> tuple[str, int] | TokenError:
    """Token and life in milliseconds, or why there is none."""
    wait = retry_after(reply.headers, wall) or 0
    if reply.status is None:
        return TokenUnreachable(excerpt(reply.error or "no answer"), retry_in_ms=0)
    document: Any = None
    if reply.complete:
        try:
            document = json.loads(reply.body)
        except (ValueError, RecursionError):
            document = None
    own_error, text = error_text(document)
    if 300 <= reply.status < 400:
        text = excerpt("redirected to " + reply.headers.get("location", "nowhere"))
    text = f"{reply.status}: {text or excerpt(reply.error or reply.body.decode('utf-8', 'replace'))}"
    if 200 <= reply.status < 300:
        token = document.get("access_token") if isinstance(document, dict) else None
        # It goes into a header: visible ASCII only (RFC 6750, 2.1).
        if isinstance(token, str) and token and all("!" <= letter <= "~" for letter in token):
            return token, life_ms(document.get("expires_in"))
        return TokenUnreachable("a success that holds no token: somebody else answers there", retry_in_ms=wait)
    # Only the endpoint's own words are a refusal; a proxy's page or a captive portal is a bad path.
    if own_error and 400 <= reply.status < 500 and reply.status not in (408, 425, 429):
        return TokenRefused(text, retry_in_ms=wait)
    return TokenUnreachable(text, retry_in_ms=wait)


def life_ms(expires_in: Any) -> int:
    """`expires_in` in milliseconds. Missing or no number: an hour; longer than a day: a day."""
    if isinstance(expires_in, str):
        try:
            expires_in = float(expires_in)
        except ValueError:
            expires_in = None
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)) or not expires_in > 0:
        return DEFAULT_LIFE_S * 1000
    return int(min(expires_in, LONGEST_LIFE_S) * 1000)
