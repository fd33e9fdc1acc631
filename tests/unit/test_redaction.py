"""No secret reaches a log line, whichever way it was handed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.host.redaction import REDACTED, is_secret_name, redact, redact_text

SECRET = "s3cr3t-Zq7pW9xK2mT5vB8n"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"


@pytest.mark.parametrize(
    "name",
    "token access_token accessToken client_secret password passwd Authorization authorization client_assertion api_key "
    "x-api-key X-API-Key private_key key Set-Cookie X-Amz-Signature X-Amz-Security-Token X-Amz-Credential "
    "mqtt.password CHEKT_GATEWAY_CLOUD__CLIENT_SECRET".split(),
)
def test_the_value_under_a_secret_name_is_never_shown(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: SECRET}) == {name: REDACTED}
    assert redact({"headers": [{name: {"nested": SECRET}}]}) == {"headers": [{name: REDACTED}]}
    assert redact(12345678, name) == REDACTED


@pytest.mark.parametrize(
    "name",
    "event_id state_key idempotency_key key_id private_key_file token_expires_at token_url keyboard tokenless_count "
    "camera status".split(),
)
def test_what_only_speaks_about_a_secret_stays_readable(name: str) -> None:
    assert redact({name: "plain"}) == {name: "plain"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("PUT https://b.s3.amazonaws.com/k.jpg?X-Amz-Signature={s}&X-Amz-Date=1 failed", "b.s3.amazonaws.com/k.jpg?"),
        ("url=URL('https://b.example/k.jpg?{s}')", "https://b.example/k.jpg?"),
        ("PUT /k.jpg?X-Amz-Signature={s} HTTP/1.1", "PUT /k.jpg?"),
        ("HTTPS://B.EXAMPLE/K?SIG={s}", "HTTPS://B.EXAMPLE/K?"),
        ("https://b.example/k#access_token={s}", "https://b.example/k"),
        ("mqtts://user:{s}@broker.example:8883", "broker.example:8883"),
        ("rtsp://admin:{s}@10.0.0.9/stream", "10.0.0.9/stream"),
        ("X-Amz-Credential={s}/20260301/us-east-1", "X-Amz-Credential="),
        ("Authorization: Bearer {s}", "Authorization:"),
        ("authorization: Basic {s}==", "authorization:"),
        ("sent with bearer {s} twice", "twice"),
        ("sent with Basic {s}=", "sent with Basic"),
        ("x-api-key: {s}", "x-api-key:"),
        ("grant_type=x&client_assertion={s}&audience=y", "audience=y"),
        ("grant_type=x&client_secret={s}&audience=y", "audience=y"),
        ("partner_access_token={s}&audience=y", "audience=y"),
        ('{{"my-api-key": "{s}", "user": "u"}}', '"user": "u"'),
        ("cannot log in: password='{s} with words'", "cannot log in"),
        ('{{"access_token": "{s}", "expires_in": 86400}}', '"expires_in": 86400'),
        ("{{'password': '{s}', 'user': 'u'}}", "'user': 'u'"),
        ("[('Authorization', '{s}')]", "Authorization"),
        ("-----BEGIN RSA PRIVATE KEY-----\n{s}\n{s}\n-----END RSA PRIVATE KEY-----\nafter", "after"),
        ("-----BEGIN PRIVATE KEY-----\n{s}", ""),
    ],
)
def test_a_secret_inside_a_text_is_taken_out_and_the_rest_stays(text: str, left: str) -> None:
    clean = redact_text(text.format(s=SECRET))
    assert SECRET not in clean
    assert REDACTED in clean
    assert left in clean


def test_what_looks_like_a_token_is_taken_out_wherever_it_stands() -> None:
    assert redact_text(f"answer: {JWT}.") == f"answer: {REDACTED}"
    assert JWT.split(".")[2] not in redact_text(f"cut off {JWT[:60]}")
    assert redact(JWT.encode()) == REDACTED
    assert redact(ValueError(JWT)) == f"ValueError: {REDACTED}"
    assert redact({JWT: 1}) == {REDACTED: 1}


def test_ordinary_lines_are_left_alone() -> None:
    for text in [
        "front_door: https://api.chekt.com/v1/events answered 503 in 0.2 s",
        "disk full; 3 % left",
        "password file /etc/chekt-gateway/mqtt: Permission denied",
        "who is there? nobody",
        "frigate/reviews 1772366400.5-abc",
    ]:
        assert redact_text(text) == text


_around = st.text(max_size=30)
_plain_secret = st.text(alphabet="abcdefghjkmnpqrstuvwxyz0123456789", min_size=16, max_size=40).map(lambda s: "Z9" + s)


@given(before=_around, secret=_plain_secret, after=_around)
def test_an_address_never_shows_its_query(before: str, secret: str, after: str) -> None:
    clean = redact_text(f"{before} https://h.example/p?X-Amz-Signature={secret} {after}")
    assert secret not in clean


@given(before=_around, secret=_plain_secret, after=_around)
def test_a_bearer_header_never_shows_its_token(before: str, secret: str, after: str) -> None:
    assert secret not in redact_text(f"{before}\nAuthorization: Bearer {secret}\n{after}")


_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=20),
        st.binary(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=10,
)


@given(value=_values, secret=_plain_secret)
def test_any_structure_is_searched_to_its_bottom(value: object, secret: str) -> None:
    assert secret not in repr(redact({"a": [value, {"password": secret, "b": (value, f"token={secret}")}]}))


def test_a_structure_that_contains_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "…" in repr(redact(loop))


def test_a_value_that_cannot_be_printed_harms_nobody() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert redact(Broken()) == "<Broken that cannot be printed>"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a-", "a.", "a", "token_", "-----BEGIN PRIVATE KEY-----", "'\\", "://a", "?a", "eyJ"])
def test_long_hostile_texts_do_not_take_long(unit: str) -> None:
    """A camera's name or a server's answer decides what is searched: the timeout of this test is the promise."""
    redact_text(unit * (200_000 // len(unit)))
