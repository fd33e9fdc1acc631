"""The access token: fetched once for everybody, renewed in time, and gently when it is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway.chekt.client import Client
from gateway.chekt.keys import KeyUnusable, Secrets, parse_key, read_secrets
from gateway.chekt.token import (
    BUDGET,
    BUDGET_MS,
    LONGEST_LIFE_S,
    TokenError,
    TokenRefused,
    TokenSource,
    TokenUnreachable,
    default_audience,
    life_ms,
    read_token_answer,
)
from gateway.chekt.wire import Reply, http_date
from gateway.config import Cloud
from gateway.simulator import faults
from gateway.simulator.cloud import Cloud as PracticeCloud
from gateway.simulator.terms import RegisteredKey, Terms, public_half
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

TOKEN_URL = "https://auth.example/oauth/token"


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def settings(**changes: Any) -> Cloud:
    values = {"url": "https://api.example", "token_url": TOKEN_URL, "client_id": "me", "audience": "https://api/"}
    return Cloud(**values | changes)


def granted(name: str = "t1", **fields: Any) -> Reply:
    body = {"access_token": name, "token_type": "Bearer", "expires_in": 3600} | fields
    return Reply(200, {}, json.dumps(body).encode(), True, True)


def refused(status: int = 401, error: str = "invalid_client", headers: Mapping[str, str] | None = None) -> Reply:
    body = {"error": error, "error_description": "signature eyJhbGciOiJSUzI1NiJ9.abc is wrong"}
    return Reply(status, headers or {}, json.dumps(body).encode(), True, True)


class Endpoint:
    """A token endpoint of values: the last of its replies stays."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.forms: list[dict[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.source: TokenSource | None = None

    async def post_form(self, url: str, fields: Mapping[str, str]) -> Reply:
        assert url == TOKEN_URL
        self.forms.append(dict(fields))
        await self.open.wait()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        date = http_date(reply.headers.get("date"))
        if date is not None and self.source is not None:
            self.source.learn_date(date)
        return reply


def source_of(endpoint: Endpoint, clock: FakeClock, **changes: Any) -> TokenSource:
    secrets = Secrets(signing_key=RSA, client_secret="the-secret", api_key="the-key")
    endpoint.source = TokenSource(settings(**changes), secrets, endpoint.post_form, clock, jitter=lambda: 0.5)
    return endpoint.source


def claims_of(form: Mapping[str, str]) -> dict[str, Any]:
    claims = jwt.decode(form["client_assertion"], options={"verify_signature": False})
    assert isinstance(claims, dict)
    return claims


# The request


async def test_the_assertion_says_what_the_sample_says() -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted())
    source = source_of(endpoint, clock, key_id="k1", extra_token_fields={"https://x/claims/partner": "{}"})
    assert await source.get() == "t1"
    (form,) = endpoint.forms
    assert set(form) == {
        "grant_type", "client_assertion_type", "client_assertion", "audience", "https://x/claims/partner",
    }  # fmt: skip
    assert form["grant_type"] == "client_credentials"
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    header = jwt.get_unverified_header(form["client_assertion"])
    assert header == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    claims = jwt.decode(
        form["client_assertion"],
        RSA.public_key(),
        algorithms=["RS256"],
        audience="https://auth.example/",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["iss"] == claims["sub"] == "me"
    assert claims["exp"] - claims["iat"] <= 120
    assert claims["iat"] <= clock.wall // 1000 < claims["exp"]


async def test_every_request_has_an_assertion_of_its_own() -> None:
    endpoint = Endpoint(granted())
    source = source_of(endpoint, FakeClock())
    for _ in range(3):
        source.invalidate(await source.get())
    assert len({claims_of(form)["jti"] for form in endpoint.forms}) == 3


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "PS256", "ES256", "HS256"])
async def test_a_strict_authorisation_server_accepts_every_algorithm(algorithm: str, tmp_path: Path) -> None:
    secret = "s" * 40
    key = EC if algorithm == "ES256" else RSA
    (tmp_path / "key.pem").write_bytes(pem_of(key))
    (tmp_path / "secret").write_text(secret + "\n")
    if algorithm == "HS256":
        terms = Terms(shared_secret=secret)
    else:
        terms = Terms(keys=(RegisteredKey(public_half(pem_of(key)), algorithm, "k1"),))
    async with PracticeCloud(terms) as cloud:
        config = settings(
            url=cloud.url, token_url=cloud.token_url, client_id=terms.client_id, audience=terms.audience, key_id="k1",
            algorithm=algorithm, private_key_file=str(tmp_path / "key.pem"),
            client_secret_file=str(tmp_path / "secret"),
        )  # fmt: skip
        clock = FakeClock(wall=int(datetime.now(UTC).timestamp() * 1000))
        async with Client(config, version="1") as client:
            source = TokenSource(config, read_secrets(config), client.post_form, clock)
            assert await source.get()
            await source.close()
        assert cloud.token_requests[0].refusal is None


async def test_a_client_secret_travels_in_the_form() -> None:
    endpoint = Endpoint(granted())
    await source_of(endpoint, FakeClock(), auth="client_secret").get()
    assert endpoint.forms == [
        {
            "grant_type": "client_credentials",
            "client_id": "me",
            "client_secret": "the-secret",
            "audience": "https://api/",
        }
    ]


@pytest.mark.parametrize("changes", [{"auth": "api_key"}, {"event_header": "x-api-key"}])
async def test_an_api_key_needs_no_token_request(changes: dict[str, Any]) -> None:
    endpoint = Endpoint(granted())
    source = source_of(endpoint, FakeClock(), **changes)
    assert await source.get() == "the-key"
    source.invalidate("the-key")
    assert await source.get() == "the-key"
    assert endpoint.forms == []
    assert not source.renewable


def test_the_audience_of_an_assertion_is_the_origin_with_a_slash() -> None:
    assert default_audience("https://tenant.us.auth0.com/oauth/token") == "https://tenant.us.auth0.com/"
    assert default_audience("http://127.0.0.1:8000/oauth/token?x=1") == "http://127.0.0.1:8000/"


# One for everybody


async def test_many_who_wait_cause_one_request() -> None:
    endpoint = Endpoint(granted())
    endpoint.open.clear()
    source = source_of(endpoint, FakeClock())
    waiters = [asyncio.create_task(source.get()) for _ in range(50)]
    await until(lambda: endpoint.forms)
    endpoint.open.set()
    assert set(await asyncio.gather(*waiters)) == {"t1"}
    assert len(endpoint.forms) == 1


async def test_a_waiter_that_is_cancelled_leaves_the_request_to_the_others() -> None:
    endpoint = Endpoint(granted())
    endpoint.open.clear()
    source = source_of(endpoint, FakeClock())
    first, second = asyncio.create_task(source.get()), asyncio.create_task(source.get())
    await until(lambda: endpoint.forms)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    endpoint.open.set()
    assert await second == "t1"
    assert len(endpoint.forms) == 1


async def test_fifty_refused_waiters_cause_one_request_and_each_has_its_own_error() -> None:
    endpoint = Endpoint(refused())
    source = source_of(endpoint, FakeClock())
    errors = await asyncio.gather(*(source.get() for _ in range(50)), return_exceptions=True)
    assert all(isinstance(error, TokenRefused) for error in errors)
    assert len({id(error) for error in errors}) == 50
    assert len(endpoint.forms) == 1


# Life


@pytest.mark.parametrize(
    ("expires_in", "renewed_after"), [(3600, 3240), (86_400, 77_760), (300, 240), (60, 30), (20, 10)]
)
async def test_a_token_is_renewed_before_it_ends_while_the_old_one_is_used(expires_in: int, renewed_after: int) -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted("old", expires_in=expires_in), granted("new", expires_in=expires_in))
    source = source_of(endpoint, clock)
    assert await source.get() == "old"
    clock.advance(renewed_after - 1)
    assert await source.get() == "old"
    assert len(endpoint.forms) == 1
    clock.advance(1)
    endpoint.open.clear()
    assert await source.get() == "old"  # at once: an alarm does not wait for a renewal
    await until(lambda: len(endpoint.forms) == 2)
    endpoint.open.set()
    await until(lambda: source._token == "new")
    assert await source.get() == "new"
    assert len(endpoint.forms) == 2


async def test_a_jump_of_the_wall_clock_does_not_end_a_token() -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted())
    source = source_of(endpoint, clock)
    await source.get()
    clock.wall += 10 * 86_400_000
    assert await source.get() == "t1"
    assert len(endpoint.forms) == 1


async def test_a_token_that_has_ended_is_not_used() -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted("old"), granted("new"))
    source = source_of(endpoint, clock)
    await source.get()
    clock.advance(3600)
    assert await source.get() == "new"


async def test_a_renewal_that_fails_leaves_the_token_in_use_until_its_end() -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted("old"), Reply(503, {}, b"", True, True))
    source = source_of(endpoint, clock)
    await source.get()
    clock.advance(3300)
    for _ in range(20):
        assert await source.get() == "old"
        await until(lambda: source._request is None)
    assert len(endpoint.forms) == 2  # with a back-off of its own
    clock.advance(300)
    with pytest.raises(TokenUnreachable):
        await source.get()


async def test_only_the_token_that_was_refused_is_dropped() -> None:
    endpoint = Endpoint(granted("a"), granted("b"))
    source = source_of(endpoint, FakeClock())
    first = await source.get()
    source.invalidate(first)
    second = await source.get()
    source.invalidate(first)  # a late 401 to the old one
    assert await source.get() == second == "b"
    assert len(endpoint.forms) == 2


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [
        (60, 60_000), ("120", 120_000), (1.5, 1_500), (None, 3_600_000), ("soon", 3_600_000), (True, 3_600_000),
        (0, 3_600_000), (-5, 3_600_000), ([], 3_600_000), ("nan", 3_600_000),
        (10**400, LONGEST_LIFE_S * 1000), ("inf", LONGEST_LIFE_S * 1000),
    ],
)  # fmt: skip
def test_a_life_is_read_leniently(expires_in: Any, expected: int) -> None:
    assert life_ms(expires_in) == expected


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8))
def test_a_life_is_never_nothing_nor_endless(expires_in: Any) -> None:
    assert 0 <= life_ms(expires_in) <= LONGEST_LIFE_S * 1000


# Refused and unreachable


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(400, "invalid_request"), TokenRefused),
        (refused(401), TokenRefused),
        (refused(403, "access_denied"), TokenRefused),
        (refused(429, "too_many_requests"), TokenUnreachable),
        (refused(500), TokenUnreachable),
        (Reply(403, {}, b"<html>blocked</html>", True, True), TokenUnreachable),
        (Reply(404, {}, b"", True, True), TokenUnreachable),
        (Reply(302, {"location": "http://portal"}, b"", True, True), TokenUnreachable),
        (Reply(200, {}, b"<html>hotel</html>", True, True), TokenUnreachable),
        (Reply(200, {}, b'{"access_token": "a\\r\\nX: y"}', True, True), TokenUnreachable),
        (Reply(200, {}, b'{"access_token": 5}', True, True), TokenUnreachable),
        (Reply(200, {}, b'{"access_token": "abc"', False, True), TokenUnreachable),
        (Reply(None, error="no connection"), TokenUnreachable),
    ],
)
async def test_what_the_endpoint_says_decides_whether_a_person_must_act(reply: Reply, kind: type[TokenError]) -> None:
    source = source_of(Endpoint(reply), FakeClock())
    with pytest.raises(kind) as error:
        await source.get()
    assert type(error.value) is kind
    assert error.value.retry_in_ms > 0
    assert "eyJ" not in error.value.text
    assert source.last_error == error.value.text


def test_a_redirection_of_the_endpoint_says_where_to() -> None:
    reply = Reply(302, {"location": "http://portal.example/login?session=x"}, b"", complete=True, written=True)
    error = read_token_answer(reply, wall=0)
    assert isinstance(error, TokenUnreachable)
    assert error.text == "302: redirected to http://portal.example/login?…"


def test_a_success_of_the_endpoint_is_a_token_and_its_life() -> None:
    assert read_token_answer(granted("x", expires_in=7), wall=0) == ("x", 7_000)


async def test_a_refused_credential_is_tried_again_slowly() -> None:
    clock = FakeClock()
    endpoint = Endpoint(refused())
    source = source_of(endpoint, clock)
    waits = []
    for _ in range(6):
        with pytest.raises(TokenRefused) as error:
            await source.get()
        waits.append(error.value.retry_in_ms)
        for _ in range(10):  # in between nobody asks
            with pytest.raises(TokenRefused):
                await source.get()
        clock.advance(error.value.retry_in_ms / 1000)
    assert waits == [60_000, 120_000, 240_000, 480_000, 900_000, 900_000]
    assert len(endpoint.forms) == 6


async def test_tokens_that_the_api_refuses_again_and_again_use_up_a_budget() -> None:
    clock = FakeClock()
    endpoint = Endpoint(*(granted(f"t{n}") for n in range(100)))
    source = source_of(endpoint, clock)
    for _ in range(BUDGET):
        source.invalidate(await source.get())
        clock.advance(1)
    for _ in range(20):
        with pytest.raises(TokenRefused, match="ten minutes"):
            await source.get()
        clock.advance(1)
    assert len(endpoint.forms) == BUDGET
    clock.advance(BUDGET_MS / 1000)
    await source.get()
    assert len(endpoint.forms) == BUDGET + 1


async def test_a_person_need_not_wait_for_the_slow_timer() -> None:
    endpoint = Endpoint(refused(), granted())
    source = source_of(endpoint, FakeClock())
    with pytest.raises(TokenRefused):
        await source.get()
    source.try_now()
    assert await source.get() == "t1"


async def test_an_unreachable_endpoint_is_asked_again_soon_and_never_in_a_tight_loop() -> None:
    clock = FakeClock()
    endpoint = Endpoint(Reply(None, error="no connection"))
    source = source_of(endpoint, clock)
    for _ in range(6_000):  # ten minutes, asked every tenth of a second
        with pytest.raises(TokenUnreachable):
            await source.get()
        clock.advance(0.1)
    assert 20 <= len(endpoint.forms) <= 60


async def test_retry_after_of_the_endpoint_is_obeyed() -> None:
    source = source_of(Endpoint(Reply(429, {"retry-after": "77"}, b"", True, True)), FakeClock())
    with pytest.raises(TokenUnreachable) as error:
        await source.get()
    assert error.value.retry_in_ms == 77_000


async def test_a_fault_is_said_when_it_begins_and_when_it_ends() -> None:
    clock = FakeClock()
    endpoint = Endpoint(refused(), refused(), granted())
    source = source_of(endpoint, clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(TokenRefused):
                await source.get()
            clock.advance(1_000)
        await source.get()
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["log_level"] != "debug"] == [
        ("token_refused", "error"),
        ("token_regained", "info"),
    ]


# The clock


def date_header(clock: FakeClock, off_seconds: int) -> dict[str, str]:
    return {"date": format_datetime(datetime.fromtimestamp(clock.wall // 1000 + off_seconds, UTC), usegmt=True)}


async def test_a_box_that_wakes_in_1970_learns_the_time_from_the_refusal_and_signs_again() -> None:
    clock = FakeClock(wall=60_000)
    years = 1_772_366_400
    endpoint = Endpoint(refused(headers=date_header(clock, years)), granted())
    source = source_of(endpoint, clock)
    with structlog.testing.capture_logs() as logs:
        assert await source.get() == "t1"
    first, second = (claims_of(form) for form in endpoint.forms)
    assert first["exp"] < 1_000
    assert abs(second["iat"] - (years + 60)) <= 60
    assert first["jti"] != second["jti"]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["clock_skewed"]
    assert source.clock_offset_ms == years * 1000


async def test_after_a_time_sync_the_learned_offset_does_no_harm() -> None:
    clock = FakeClock()
    source = source_of(Endpoint(granted()), clock)
    source.learn_date(clock.wall + 500_000)
    clock.wall += 500_000  # the time sync sets our clock right
    assert source.clock_offset_ms == 0
    assert source._offset_used() == 0


async def test_a_small_difference_is_not_corrected() -> None:
    clock = FakeClock()
    endpoint = Endpoint(granted())
    source = source_of(endpoint, clock)
    source.learn_date(clock.wall + 29_000)
    await source.get()
    assert claims_of(endpoint.forms[0])["iat"] == clock.wall // 1000 - 30


@pytest.mark.parametrize("off", [-86_400.0, -29.0, 0.0, 29.0, 86_400.0])
async def test_a_strict_server_accepts_us_whatever_our_clock_says(off: float) -> None:
    now = datetime.now(UTC).timestamp()
    async with PracticeCloud(now=lambda: now) as cloud:
        config = settings(
            url=cloud.url, token_url=cloud.token_url, client_id=cloud.terms.client_id, audience=cloud.terms.audience,
            key_id="practice-key",
        )  # fmt: skip
        clock = FakeClock(wall=int((now + off) * 1000))
        async with Client(config, version="1") as client:
            secrets = Secrets(signing_key=parse_key(cloud.practice_key, "RS256"))
            source = TokenSource(config, secrets, client.post_form, clock)
            client.on_date = source.learn_date
            assert await source.get()
        assert len(cloud.token_requests) == (1 if abs(off) < 30 else 2)


async def test_faults_of_a_real_endpoint_are_survived() -> None:
    async with PracticeCloud() as cloud:
        config = settings(
            url=cloud.url, token_url=cloud.token_url, client_id=cloud.terms.client_id, audience=cloud.terms.audience,
            key_id="practice-key",
        )  # fmt: skip
        clock = FakeClock(wall=int(datetime.now(UTC).timestamp() * 1000))
        cloud.script([faults.Status(503), faults.Drop(), faults.Html(), None], on="token")
        async with Client(config, version="1") as client:
            secrets = Secrets(signing_key=parse_key(cloud.practice_key, "RS256"))
            source = TokenSource(config, secrets, client.post_form, clock)
            for _ in range(3):
                with pytest.raises(TokenUnreachable):
                    await source.get()
                clock.ticks += 30_000
            assert await source.get()


# Keys


def test_a_key_that_does_not_fit_is_refused_with_what_was_expected() -> None:
    public = public_half(pem_of(RSA))
    small = pem_of(rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505  the point of the test
    locked = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    for pem, algorithm, words in (
        (pem_of(EC), "RS256", "needs an RSA key"),
        (pem_of(RSA), "ES256", "P-256"),
        (pem_of(ec.generate_private_key(ec.SECP384R1())), "ES256", "P-256"),
        (small, "RS256", "2048"),
        (public, "RS256", "a public key"),
        (b"rubbish", "RS256", "no private key"),
        (locked, "RS256", "password"),
    ):
        with pytest.raises(KeyUnusable, match=words):
            parse_key(pem, algorithm)


def test_secrets_are_read_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem_of(RSA))
    (tmp_path / "secret").write_text("sesame-sesame\n")
    (tmp_path / "api").write_text("chekt_test_key\n")
    (tmp_path / "empty").touch()
    (tmp_path / "two").write_text("two\nlines")
    names = {"client_secret_file": str(tmp_path / "secret"), "api_key_file": str(tmp_path / "api")}
    secrets = read_secrets(settings(private_key_file=str(tmp_path / "key.pem"), **names))
    assert (secrets.client_secret, secrets.api_key) == ("sesame-sesame", "chekt_test_key")
    assert "sesame" not in repr(secrets)
    assert "chekt_test" not in repr(secrets)
    for changes, words in (
        ({}, "private_key_file, which is not set"),
        ({"private_key_file": str(tmp_path / "none")}, "No such file"),
        ({"auth": "client_secret"}, "needs client_secret_file"),
        ({"auth": "api_key"}, "api_key_file is not set"),
        ({"auth": "api_key", "api_key_file": str(tmp_path / "empty")}, "empty"),
        ({"auth": "api_key", "api_key_file": str(tmp_path / "two")}, "one line"),
        ({"algorithm": "HS256"}, "client_secret_file, which is not set"),
        ({"algorithm": "HS256", "client_secret_file": str(tmp_path / "secret")}, "at least 32 bytes"),
    ):
        with pytest.raises(KeyUnusable, match=words):
            read_secrets(settings(**changes))
