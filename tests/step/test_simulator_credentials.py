"""The practice cloud's doorkeeper: RFC 7523 assertions by Auth0's rules, and every way of showing credentials."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.simulator.cloud import Cloud
from gateway.simulator.faults import RefuseCredentials
from gateway.simulator.terms import RegisteredKey, Terms, practice_private_key, public_half
from tests.step.simulator_client import Partner

SHARED_SECRET = "a shared secret of more than 32 bytes, as RFC 7518 wants it"


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


EC_KEY = pem(ec.generate_private_key(ec.SECP256R1()))
OTHER_RSA_KEY = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud() as made:
        yield made


@pytest.fixture
def partner(cloud: Cloud, http: aiohttp.ClientSession) -> Partner:
    return Partner(cloud, http)


async def test_a_good_assertion_is_worth_a_token(cloud: Cloud, partner: Partner) -> None:
    answer = await partner.ask_token()
    assert answer.status == 200
    assert (answer.said["token_type"], answer.said["expires_in"]) == ("Bearer", 3600)
    (asked,) = cloud.token_requests
    assert asked.header["kid"] == "practice-key"
    assert asked.claims["iss"] == "practice"
    assert asked.refusal is None


NOW = 1_772_366_400
WRONG_CLAIMS: list[dict[str, Any]] = [
    {"iss": "someone"},
    {"iss": None},
    {"sub": "someone"},
    {"sub": None},
    {"aud": "https://elsewhere.invalid/"},
    {"aud": None},
    {"exp": NOW - 11},
    {"exp": NOW + 311},
    {"exp": None},
    {"exp": "soon"},
    {"iat": NOW + 60},
    {"nbf": NOW + 60},
    {"jti": None},
    {"jti": ""},
    {"jti": 7},
]


@pytest.mark.parametrize("changed", WRONG_CLAIMS, ids=str)
async def test_a_wrong_claim_is_refused(http: aiohttp.ClientSession, changed: dict[str, Any]) -> None:
    async with Cloud(now=lambda: float(NOW)) as cloud:
        partner = Partner(cloud, http)
        good: dict[str, Any] = {"iat": NOW, "exp": NOW + 300}
        assert (await partner.ask_token(partner.assertion(**good))).status == 200
        claims = {name: value for name, value in partner.claims(**good | changed).items() if value is not None}
        # PyJWT would not make some of these; the signature is right all the same.
        signed = jwt.PyJWS().encode(
            json.dumps(claims).encode(), cloud.practice_key, algorithm="RS256", headers={"kid": "practice-key"}
        )
        answer = await partner.ask_token(signed)
        assert (answer.status, answer.said["error"]) == (401, "invalid_client")
        assert next(iter(changed)) in answer.said["error_description"] or "expired" in answer.said["error_description"]


async def test_the_audience_is_the_origin_with_a_slash_and_nothing_else(cloud: Cloud, partner: Partner) -> None:
    for wrong in (cloud.url, cloud.token_url, [cloud.url + "/"]):
        assert (await partner.ask_token(partner.assertion(aud=wrong))).status == 401
    assert (await partner.ask_token(partner.assertion(aud=cloud.url + "/"))).status == 200


async def test_a_shorter_life_can_be_demanded(http: aiohttp.ClientSession) -> None:
    async with Cloud(Terms(assertion_seconds=120, leeway_seconds=5)) as cloud:
        partner = Partner(cloud, http)
        now = int(time.time())
        assert (await partner.ask_token(partner.assertion(exp=now + 200))).status == 401
        assert (await partner.ask_token(partner.assertion(exp=now + 119))).status == 200


async def test_an_assertion_is_used_once(partner: Partner) -> None:
    assertion = partner.assertion()
    assert (await partner.ask_token(assertion)).status == 200
    answer = await partner.ask_token(assertion)
    assert (answer.status, answer.said["error_description"]) == (401, "jti was used before")


async def test_only_the_registered_key_algorithm_and_kid_will_do(cloud: Cloud, partner: Partner) -> None:
    wrong = [
        partner.assertion(OTHER_RSA_KEY),
        partner.assertion(algorithm="RS384"),
        partner.assertion(algorithm="PS256"),
        partner.assertion(EC_KEY, "ES256"),
        partner.assertion(SHARED_SECRET, "HS256"),
        partner.assertion(kid="another"),
        jwt.encode(partner.claims(), "", algorithm="none"),
        "not.a.jwt",
        partner.assertion()[:-6] + "AAAAAA",
    ]
    for assertion in wrong:
        answer = await partner.ask_token(assertion)
        assert (answer.status, answer.said["error"]) == (401, "invalid_client"), assertion
    assert all(request.refusal for request in cloud.token_requests)
    # A sender may leave the kid out where only one key is registered.
    assert (await partner.ask_token(partner.assertion(kid=None))).status == 200


async def test_the_public_key_is_no_shared_secret(partner: Partner) -> None:
    """The classic confusion: an HS256 assertion signed with the public key's bytes."""
    forged = jwt.PyJWS().encode(b"{}", "x" * 32, algorithm="HS256", headers={"kid": "practice-key"})
    head, payload, _ = forged.split(".")
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        f"{head}.{payload}".encode(), public_half(practice_private_key())
    )
    answer = await partner.ask_token(f"{head}.{payload}.{jwt.utils.base64url_encode(signature).decode()}")
    assert answer.status == 401


async def test_several_registered_keys_are_told_apart_by_kid(http: aiohttp.ClientSession) -> None:
    keys = (
        RegisteredKey(public_half(practice_private_key()), "PS256", "old"),
        RegisteredKey(public_half(EC_KEY), "ES256", "new"),
    )
    async with Cloud(Terms(keys=keys)) as cloud:
        partner = Partner(cloud, http)
        assert (await partner.ask_token(partner.assertion(None, "PS256", "old"))).status == 200
        assert (await partner.ask_token(partner.assertion(EC_KEY, "ES256", "new"))).status == 200
        assert (await partner.ask_token(partner.assertion(EC_KEY, "ES256", "old"))).status == 401
        assert (await partner.ask_token(partner.assertion(EC_KEY, "ES256", None))).status == 401


async def test_a_shared_secret_excludes_all_other_keys(http: aiohttp.ClientSession) -> None:
    async with Cloud(Terms(shared_secret=SHARED_SECRET)) as cloud:
        partner = Partner(cloud, http)
        assert (await partner.ask_token(partner.assertion(SHARED_SECRET, "HS256", None))).status == 200
        assert (await partner.ask_token(partner.assertion(SHARED_SECRET[::-1], "HS256", None))).status == 401
        assert (await partner.ask_token(partner.assertion())).status == 401


@pytest.mark.parametrize(
    ("changed", "status", "error"),
    [
        ({"grant_type": "authorization_code"}, 400, "unsupported_grant_type"),
        ({"grant_type": None}, 400, "unsupported_grant_type"),
        ({"client_assertion_type": "jwt-bearer"}, 400, "invalid_request"),
        ({"client_assertion_type": None}, 400, "invalid_request"),
        ({"audience": None}, 400, "invalid_request"),
        ({"audience": "https://other.invalid/"}, 403, "access_denied"),
        ({"scope": "events"}, 400, "invalid_request"),
        ({"client_id": "someone"}, 401, "invalid_client"),
        ({"client_secret": "x"}, 400, "invalid_request"),
    ],
    ids=str,
)
async def test_a_wrong_form_is_refused(partner: Partner, changed: dict[str, Any], status: int, error: str) -> None:
    answer = await partner.ask_token(**changed)
    assert (answer.status, answer.said["error"]) == (status, error)
    assert answer.said["error_description"]


async def test_the_form_must_be_a_form(cloud: Cloud, partner: Partner) -> None:
    fields = {"grant_type": "client_credentials", "client_assertion": partner.assertion()}
    assert (await partner.request("POST", cloud.token_url, json=fields)).status == 400
    twice = aiohttp.FormData([("grant_type", "client_credentials"), ("grant_type", "client_credentials")])
    assert (await partner.request("POST", cloud.token_url, data=twice)).status == 400
    basic = {"Authorization": "Basic cHJhY3RpY2U6eA=="}
    answer = await partner.request("POST", cloud.token_url, data=fields, headers=basic)
    assert (answer.status, answer.said["error"]) == (400, "invalid_request")


async def test_extra_token_fields_are_wanted_where_agreed(http: aiohttp.ClientSession) -> None:
    claim = "https://api.chektdev.com/claims/partner"
    async with Cloud(Terms(extra_token_fields={claim: '{"site_id": "7"}'})) as cloud:
        partner = Partner(cloud, http)
        assert (await partner.ask_token()).status == 400
        assert (await partner.ask_token(**{claim: '{"site_id": "7"}'})).status == 200


async def test_a_client_secret_may_be_agreed_instead(http: aiohttp.ClientSession) -> None:
    async with Cloud(Terms(auth="client_secret")) as cloud:
        partner = Partner(cloud, http)
        bare = {"client_assertion": None, "client_assertion_type": None, "client_id": "practice"}
        assert (await partner.ask_token(**bare, client_secret=cloud.terms.client_secret)).status == 200
        assert (await partner.ask_token(**bare, client_secret="wrong")).status == 401
        assert (await partner.ask_token(**bare)).status == 401
        assert (await partner.ask_token()).status == 400


async def test_a_token_is_good_until_it_expires_or_is_revoked(http: aiohttp.ClientSession) -> None:
    moment = [float(NOW)]
    async with Cloud(Terms(expires_in=120), now=lambda: moment[0]) as cloud:
        partner = Partner(cloud, http)

        async def sign_in() -> None:
            issued = int(moment[0])
            answer = await partner.ask_token(partner.assertion(iat=issued, exp=issued + 60))
            partner.token = answer.said["access_token"]

        await sign_in()
        moment[0] += 119
        assert (await partner.post(event_id="1")).status == 201
        moment[0] += 1
        answer = await partner.post(event_id="2")
        assert (answer.status, answer.said["error"]) == (401, "Unauthorized")
        await sign_in()
        assert (await partner.post(event_id="2")).status == 201
        cloud.revoke_tokens()
        assert (await partner.post(event_id="3")).status == 401
        await sign_in()
        assert (await partner.post(event_id="3")).status == 201


async def test_the_life_of_a_token_may_be_unsaid(http: aiohttp.ClientSession) -> None:
    async with Cloud(Terms(expires_in=None)) as cloud:
        assert "expires_in" not in (await Partner(cloud, http).ask_token()).said


@pytest.mark.parametrize("auth", ["assertion", "api_key"])
@pytest.mark.parametrize("agreed", ["bearer", "x-api-key", "both"])
async def test_only_the_agreed_header_will_do(http: aiohttp.ClientSession, agreed: Any, auth: Any) -> None:
    async with Cloud(Terms(event_header=agreed, auth=auth)) as cloud:
        partner = Partner(cloud, http)
        if auth == "assertion":
            await partner.sign_in()
        else:
            partner.token = cloud.terms.api_key
        bearer, key = {"Authorization": f"Bearer {partner.token}"}, {"X-API-KEY": cloud.terms.api_key}
        none = {"Authorization": ""}
        for shown, headers in (("bearer", bearer), ("x-api-key", none | key), ("both", bearer | key), ("none", none)):
            answer = await partner.post(event_id=shown, headers=headers)
            assert answer.status == (201 if shown == agreed else 401), shown
        wrong = [{"Authorization": f"bearer {partner.token}"}, {"Authorization": "Bearer x"}, none | {"X-API-KEY": "x"}]
        for headers in wrong:
            assert (await partner.post(event_id="wrong", headers=headers)).status == 401
        assert [event.event_id for event in cloud.events] == [agreed]


async def test_refusing_credentials_on_request_looks_like_the_real_refusal(cloud: Cloud, partner: Partner) -> None:
    cloud.script([RefuseCredentials()], on="token")
    answer = await partner.ask_token()
    assert (answer.status, answer.said["error"]) == (401, "invalid_client")
    await partner.sign_in()
    cloud.script([RefuseCredentials()])
    answer = await partner.post()
    assert (answer.status, answer.said) == (
        401,
        {"error": "Unauthorized", "message": "Invalid token or credentials"},
    )
