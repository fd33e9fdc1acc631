"""Bytes -> plain values, or a reason; never anything else."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sources.decode import DECODERS, Undecodable, decode_json, decode_onvif, decode_text, decode_xml


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
    for decode in DECODERS.values():
        try:
            decode(payload)
        except Undecodable as error:
            assert str(error)


def test_xml_becomes_plain_values_without_namespaces() -> None:
    [root] = decode_xml(
        b'\xef\xbb\xbf<?xml version="1.0" encoding="UTF-8"?><a:E xmlns:a="urn:x" version="2"><b> 1 </b><c/>'
        b"<d><e>2</e></d><d>3</d></a:E>\n"
    )
    assert root == {"@version": "2", "b": "1", "c": "", "d": [{"e": "2"}, "3"]}


def test_each_document_of_a_multipart_payload_is_read() -> None:
    parts = [b"Content-Type: application/xml\r\n\r\n<E><x>%d</x></E>" % n for n in (1, 2)]
    picture = b"Content-Type: image/jpeg\r\n\r\n\xff\xd8\xff<<>&"
    payload = (
        b"--MIME_boundary\r\n"
        + b"\r\n--MIME_boundary\r\n".join([parts[0], picture, parts[1]])
        + b"\r\n--MIME_boundary--"
    )
    assert decode_xml(payload) == [{"x": "1"}, {"x": "2"}]
    assert decode_xml(parts[0] + b"\r\n\xff\xd8<") == [{"x": "1"}]
    assert len(decode_xml(b"<a>1</a>" * 1000)) == 32


def test_xml_in_the_encodings_of_cameras() -> None:
    said = '<?xml version="1.0" encoding="%s"?><E><n>\u6b63\u9580</n></E>'
    for encoding in ("UTF-8", "UTF-16", "GB18030", "Big5"):
        assert decode_xml((said % encoding).encode(encoding)) == [{"n": "\u6b63\u9580"}]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "http://192.0.2.1/x.dtd"><a/>', "DOCTYPE"),
        (b"<a>&b;</a>", "undefined entity"),
        (b"<a><b></a>", "mismatched tag"),
        (b"<a>" * 200, "too large or nested too deeply"),
        (b"<a>" + b"<b/>" * 6000 + b"</a>", "too large"),
        (b'<?xml version="1.0" encoding="quark"?><a/>', "unknown encoding"),
        (b"", "no element"),
        (b"hello", "no element"),
    ],
)
def test_what_is_no_xml_that_we_read_says_why(payload: bytes, why: str) -> None:
    with pytest.raises(Undecodable, match=why):
        decode_xml(payload)


@pytest.mark.parametrize(
    "data",
    [
        {"State": "true"},
        {"SimpleItem": {"Name": "State", "Value": "true"}},
        {"SimpleItem": [{"@Name": "Other", "@Value": 1}, {"@Name": "State", "@Value": "true"}]},
        [{"Name": "State", "Value": "true"}],
    ],
)
def test_the_forms_of_onvif_items_are_one(data: object) -> None:
    for message in ({"Data": data}, {"Message": {"Data": data}}):
        read = decode_onvif(json.dumps(message).encode())
        assert read["Data"]["State"] == "true"
        assert read["Source"] == {}
