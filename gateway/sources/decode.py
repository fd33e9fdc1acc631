"""Bytes of one message -> plain values (None, bool, int, Decimal, str, list, dict), or Undecodable with a reason.

Promises: never another exception, whatever the bytes; cost linear in their number (the size limit comes before this).
Numbers with a fraction become Decimal: it costs what float costs and keeps the digits as they were sent, which are
part of an alarm's identity. NaN and Infinity, which Python publishers write although RFC 8259 has no such words, are
read as null, so that one broken measurement does not cost an alarm. XML: `gateway.sources.decode_xml`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from gateway.sources.decode_xml import BadXml, read_documents

_MAX_ITEMS: Final = 256  # simple items of one ONVIF message; real ones have a handful

# JPEG, PNG; the same in base64; a data URL.
_PICTURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"/9j/", b"iVBORw0KGgo", b"data:image/", b"data:video/", b"RIFF")


class Undecodable(Exception):
    """The payload is not what the rule says it is; `str()` is the reason for a person."""


def _no_number(_: str) -> None:
    return None


_read_json: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number).raw_decode


def decode_text(payload: bytes) -> str:
    try:
        return payload.decode("utf-8").strip(" \t\r\n\0\ufeff")
    except UnicodeDecodeError as error:
        raise Undecodable(f"not UTF-8 text: byte {error.start} of {len(payload)}") from None


def decode_json(payload: bytes) -> Any:
    text = decode_text(payload)
    if not text:
        raise Undecodable("empty payload where JSON was expected")
    try:
        read, end = _read_json(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return read
    except json.JSONDecodeError as error:
        raise Undecodable(f"not JSON: {error.msg} at character {error.pos} of {len(text)}") from None
    except RecursionError:
        raise Undecodable("not JSON that we read: nested too deeply") from None
    except (ValueError, InvalidOperation):  # an integer of thousands of digits; an exponent beyond all limits
        raise Undecodable("not JSON that we read: a number is out of all bounds") from None


def decode_onvif(payload: bytes) -> Any:
    """JSON of an ONVIF event broker with `Source`, `Key` and `Data` as objects from name to value.

    ONVIF Core, Event Broker, writes them so; some cameras write the XML form: `SimpleItem` with `Name` and `Value`,
    alone or in a list, also with `@` before the names.
    """
    read = decode_json(payload)
    if type(read) is not dict:
        raise Undecodable("no ONVIF message: not a JSON object")
    message = read["Message"] if type(read.get("Message")) is dict and "Data" not in read else read
    return {**message, **{part: _items(message.get(part)) for part in ("Source", "Key", "Data")}}


def _items(part: Any) -> dict[str, Any]:
    if type(part) is list:
        return _named(part)
    if type(part) is not dict:
        return {}
    listed = part.get("SimpleItem")
    if listed is None:
        return part
    return {**part, **_named(listed if type(listed) is list else [listed])}


def _named(items: list[Any]) -> dict[str, Any]:
    found = {}
    for item in items[:_MAX_ITEMS]:
        if type(item) is dict:
            name = item.get("Name", item.get("@Name"))
            if type(name) is str:
                found[name] = item.get("Value", item.get("@Value", item.get("#text")))
    return found


def decode_xml(payload: bytes) -> list[Any]:
    """One value for each document of the payload: an event of Hikvision's alert stream, also several, with parts."""
    try:
        return read_documents(payload)
    except BadXml as error:
        raise Undecodable(f"not XML that we read: {error}") from None


def decode_json_or_text(payload: bytes) -> Any:
    """For what its owner may write as he likes: JSON where it is an object, a list or a text in quotes, else text."""
    said = decode_text(payload)
    if said[:1] == '"':
        try:
            return decode_json(payload)
        except Undecodable:
            return said
    return decode_json(payload) if said[:1] in ("{", "[") else said


def decode_binary(payload: bytes) -> int:
    """Not looked into: the number of bytes. Where the arrival says it all, or for what is only left out."""
    return len(payload)


def is_picture(payload: bytes) -> bool:
    """Many publishers send pictures beside their events; they are no mistake worth a person's time."""
    return payload.startswith(_PICTURES)


DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "json": decode_json,
    "text": decode_text,
    "json_or_text": decode_json_or_text,
    "onvif": decode_onvif,
    "xml": decode_xml,
    "binary": decode_binary,
}
