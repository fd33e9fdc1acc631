"""Bytes of one message -> plain values (None, bool, int, Decimal, str, list, dict), or Undecodable with a reason.

Promises: never another exception, whatever the bytes; cost linear in their number (the size limit comes before this).
Numbers with a fraction become Decimal: it costs what float costs and keeps the digits as they were sent, which are
part of an alarm's identity. NaN and Infinity, which Python publishers write although RFC 8259 has no such words, are
read as null, so that one broken measurement does not cost an alarm. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

KINDS: Final = ("json", "text")


class Undecodable(Exception):
    """The payload is not what the rule says it is; `str()` is the reason for a person."""


def _no_number(_: str) -> None:
    return None


_read_json: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number).decode


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
        return _read_json(text)
    except json.JSONDecodeError as error:
        raise Undecodable(f"not JSON: {error.msg} at character {error.pos} of {len(text)}") from None
    except RecursionError:
        raise Undecodable("not JSON that we read: nested too deeply") from None
    except (ValueError, InvalidOperation):  # an integer of thousands of digits; an exponent beyond all limits
        raise Undecodable("not JSON that we read: a number is out of all bounds") from None


DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {"json": decode_json, "text": decode_text}
