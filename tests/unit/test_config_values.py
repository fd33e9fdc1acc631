"""How a value is written, and what is said about one that is written wrongly."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway.config import is_loopback, is_of_the_site, parse_duration, parse_optional_duration, parse_size
from gateway.config.values import BrokerUrl, CloudBase, CloudUrl, Id, SiteId, SiteUrl, TopicPrefix


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("10s", 10), ("0s", 0), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("7d", 604800)],
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "wrong", ["", "10", "10 s", "s", "-1s", "1e3s", "10S", "1w", "off", "٣s", "9" * 13 + "s", "10s\n", None, True, []]
)
def test_what_is_no_duration_is_refused_with_what_is_allowed(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; allowed"):
        parse_duration(wrong)


@pytest.mark.parametrize("wrong", [10, 10.5, 0])
def test_a_number_without_a_unit_is_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match="quotation marks and a unit"):
        parse_duration(wrong)


def test_off_is_a_duration_only_where_it_is_allowed() -> None:
    assert parse_optional_duration("off") is None
    assert parse_optional_duration("1s") == 1
    with pytest.raises(ValueError, match='or "off"'):
        parse_optional_duration("never")


@pytest.mark.parametrize(("text", "size"), [("0B", 0), ("512KiB", 524288), ("64MiB", 67108864), ("2GiB", 2147483648)])
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("wrong", ["", "2", "2GB", "2 GiB", "1.5GiB", "-1B", 2, None, "9" * 13 + "B"])
def test_what_is_no_size_is_refused_with_what_is_allowed(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a size; allowed"):
        parse_size(wrong)


LOOPBACK = ["localhost", "broker.localhost", "127.0.0.1", "127.9.9.9", "::1"]
SITE = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.1.1", "fd00::1", "fe80::1", "mosquitto"]
SITE += ["nvr.local", "nvr.lan", "nvr.home.arpa", "nvr.internal"]
OUTSIDE = ["8.8.8.8", "172.32.0.1", "11.0.0.1", "100.64.0.1", "203.0.113.1", "2001:db8::1", "example.com", "local.com"]
OUTSIDE += ["localhost.com", "127.0.0.1.example.com", "0.0.0.1", "mylocal.lan.com"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_is_known_and_belongs_to_the_site(host: str) -> None:
    assert is_loopback(host)
    assert is_of_the_site(host)


@pytest.mark.parametrize("host", SITE)
def test_a_private_address_belongs_to_the_site_and_is_not_this_machine(host: str) -> None:
    assert is_of_the_site(host)
    assert not is_loopback(host)


@pytest.mark.parametrize("host", OUTSIDE)
def test_everything_else_is_outside(host: str) -> None:
    assert not is_of_the_site(host)
    assert not is_loopback(host)


GOOD = [
    (CloudBase, "https://api.chekt.com", "https://api.chekt.com"),
    (CloudBase, "https://api.chekt.com/", "https://api.chekt.com"),
    (CloudBase, "http://127.0.0.1:8090", "http://127.0.0.1:8090"),
    (CloudBase, "http://[::1]:8090", "http://[::1]:8090"),
    (CloudUrl, "https://auth.example.com/oauth/token", "https://auth.example.com/oauth/token"),
    (SiteUrl, "http://192.168.1.20:5000/", "http://192.168.1.20:5000"),
    (SiteUrl, "http://frigate:5000", "http://frigate:5000"),
    (SiteUrl, "https://nvr.example.com", "https://nvr.example.com"),
    (BrokerUrl, "mqtt://10.0.0.1", "mqtt://10.0.0.1"),
    (BrokerUrl, "mqtts://broker.example.com:8883", "mqtts://broker.example.com:8883"),
    (BrokerUrl, "ws://localhost:9001/mqtt", "ws://localhost:9001/mqtt"),
    (BrokerUrl, "wss://broker.example.com/mqtt", "wss://broker.example.com/mqtt"),
]
WRONG = [
    (CloudBase, "http://api.chekt.com", "must begin with https://"),
    (CloudBase, "http://192.168.1.1", "must begin with https://"),
    (CloudBase, "ftp://api.chekt.com", "must begin with https:// or http://"),
    (CloudBase, "api.chekt.com", "must begin with https:// or http://"),
    (CloudBase, "https://", "names no host"),
    (CloudBase, "https://:443", "names no host"),
    (CloudBase, "https://api.chekt.com:0", "names no host"),
    (CloudBase, "https://api.chekt.com:99999", "is not an address"),
    (CloudBase, "https://[::1", "is not an address"),
    (CloudBase, "https://api.chekt.com\n", "is not an address"),
    (CloudBase, "https://api .chekt.com", "is not an address"),
    (CloudBase, "https://api.chëkt.com", "is not an address"),
    (CloudBase, "https://user:pass@api.chekt.com", "must not hold a user name or password"),
    (CloudBase, "https://api.chekt.com/?a=b", 'must not have a "?" or "#" part'),
    (CloudBase, "https://api.chekt.com#a", 'must not have a "?" or "#" part'),
    (CloudBase, "https://api.chekt.com/partner/v1/events", "must end before /partner/"),
    (CloudUrl, "http://auth.example.com/oauth/token", "must begin with https://"),
    (SiteUrl, "http://nvr.example.com", "must begin with https://"),
    (SiteUrl, "rtsp://10.0.0.1", "must begin with http:// or https://"),
    (BrokerUrl, "mqtt://broker.example.com", "must begin with mqtts://"),
    (BrokerUrl, "ws://8.8.8.8", "must begin with wss://"),
    (BrokerUrl, "tcp://10.0.0.1", "must begin with mqtt:// or mqtts:// or ws:// or wss://"),
    (BrokerUrl, "mqtt://10.0.0.1/topic", "must end after the port"),
    (BrokerUrl, "mqtt://u:p@10.0.0.1", "must not hold a user name or password"),
]


@pytest.mark.parametrize(("kind", "text", "kept"), GOOD)
def test_an_address_is_accepted_where_what_it_carries_is_safe(kind: Any, text: str, kept: str) -> None:
    assert TypeAdapter(kind).validate_python(text) == kept


@pytest.mark.parametrize(("kind", "text", "why"), WRONG)
def test_an_address_is_refused_with_what_is_allowed_and_never_repeated(kind: Any, text: str, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(text)
    [error] = caught.value.errors()
    said = str(error["ctx"]["error"])
    assert said.startswith(why)
    assert "; allowed: " in said
    assert "pass" not in said.replace("password", "")


@given(st.text())
def test_no_text_makes_an_address_check_fail_in_any_other_way(text: str) -> None:
    for kind in (CloudBase, CloudUrl, SiteUrl, BrokerUrl):
        for whole in (text, f"https://{text}", f"mqtt://{text}"):
            with suppress(ValidationError):
                TypeAdapter(kind).validate_python(whole)


@pytest.mark.parametrize("wrong", ["", " ", " a", "a ", "a\nb", "a\0"])
def test_an_id_is_taken_exactly_or_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Id).validate_python(wrong)


@pytest.mark.parametrize("wrong", ["a/b", "a+", "#", ""])
def test_the_id_of_a_site_can_stand_in_a_topic(wrong: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SiteId).validate_python(wrong)


@pytest.mark.parametrize("wrong", ["", "a/", "a/#", "+/a", "a\0", "é" * 600])
def test_a_topic_prefix_is_part_of_a_topic(wrong: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(TopicPrefix).validate_python(wrong)


def test_a_topic_prefix_may_have_levels() -> None:
    assert TypeAdapter(TopicPrefix).validate_python("site 1/nvr") == "site 1/nvr"
