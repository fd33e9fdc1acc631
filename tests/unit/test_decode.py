"""Bytes -> plain values, or a reason; never anything else."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sources.decode import Undecodable, decode_json, decode_text


def test_a_number_keeps_the_digits_as_they_were_sent() -> None:
    assert str(decode_json(b'{"t": 1718987129.3083960}')["t"]) == "1718987129.3083960"
    assert decode_json(b'{"n": 12}') == {"n": 12}
    assert decode_json(b"0.5") == Decimal("0.5")


def test_words_that_are_no_json_numbers_do_not_cost_the_message() -> None:
    assert decode_json(b'{"speed": NaN, "angle": -Infinity, "id": "a"}') == {"speed": None, "angle": None, "id": "a"}


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "empty payload"),
        (b" \n", "empty payload"),
        (b'{"a": 1,, "b": 2}', "not JSON"),
        (b'{"summary":"Person (62%)', "not JSON"),
        (b"\xff\xd8\xff\xe0 a picture", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "out of all bounds"),
        (b"1e99999999999999999999", "out of all bounds"),
    ],
)
def test_what_is_not_json_says_why(payload: bytes, why: str) -> None:
    with pytest.raises(Undecodable, match=why):
        decode_json(payload)


def test_a_text_loses_what_bridges_add_around_it() -> None:
    assert decode_text("\ufeffoffline\r\n\0".encode()) == "offline"


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_else(payload: bytes) -> None:
    for decode in (decode_json, decode_text):
        try:
            decode(payload)
        except Undecodable as error:
            assert str(error)
