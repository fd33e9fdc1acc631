"""What must not be read in a log is taken out here, whatever the caller handed in.

Secrets are found in three ways: by the name of a key (`access_token`, `Authorization`), by their look (a JWT, a Bearer
header, a private key in PEM), and by their place (the query part and the password of an address: a presigned upload
address is a bearer secret, AWS S3 "Sharing objects with presigned URLs"). Rather one word too many than one too few.
Pure: text and plain values in, the same without secrets out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Final

REDACTED: Final = "[redacted]"

# Deeper structures are no log values; they are cut, so that one that contains itself ends.
_MAX_DEPTH: Final = 6

_SECRET_WORDS: Final = frozenset(
    "token tokens secret secrets password passwords passwd passphrase authorization assertion assertions jwt jws "
    "bearer cookie cookies signature credential credentials apikey".split()
)
# `key` alone or as one of these; `idempotency_key`, `state_key` and `key_id` are no secrets.
_SECRET_KEYS: Final = ("", "api", "private", "secret", "signing", "access", "session", "shared", "encryption")

_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_WORD: Final = re.compile(r"[^\s\"'<>]+")
_ADDRESS_END: Final = re.compile(r"[?#]")
_BARE_QUERY: Final = re.compile(r"\?[\w.~%-]+=[^\s\"'<>]*")
_AWS: Final = re.compile(r"(x-amz-(?:signature|security-token|credential)=)[^&\s\"']+", re.IGNORECASE)
# base64url of '{"': every JOSE header begins so (RFC 7519, section 3.1).
_JWT: Final = re.compile(r"eyJ[\w-]{5,}(?:\.[\w-]*)*")
_SCHEME: Final = re.compile(r"\b(bearer|digest|negotiate)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_BASIC: Final = re.compile(r"\b(basic)\s+(?=[\w+/-]*[0-9=+/])[\w+/=-]{4,}", re.IGNORECASE)
_NAMES: Final = (
    r"(?:client_|access_|refresh_|id_)?(?:secret|assertion|token)|passwd|password|passphrase|api[_-]?key|"
    r"(?:proxy-)?authorization|(?:set-)?cookie"
)
_VALUE: Final = r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s&,;}\])\"']+)"
# At most 40 characters of a longer name, so that no text, however odd, takes long to search.
# name=value; "name": value (JSON and Python's repr); and a header, whose value goes to the end of the line.
_ASSIGNED: Final = re.compile(rf"(\b(?:[\w-]{{0,40}}[_-])?(?:{_NAMES})\s*=\s*){_VALUE}", re.IGNORECASE)
_QUOTED: Final = re.compile(rf"([\"'](?:[\w-]{{0,40}}[_-])?(?:{_NAMES})[\"']\s*[:,]\s*){_VALUE}", re.IGNORECASE)
_HEADER: Final = re.compile(
    r"(\b(?:(?:proxy-)?authorization|x-api-key|(?:set-)?cookie)\s*:\s*)[^\r\n\"']+", re.IGNORECASE
)
# Most values of a log line are ids and words: nothing in them can be a secret by its look but a JWT.
_PLAIN: Final = re.compile(r"[\w.-]{0,64}", re.ASCII)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9]+")


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether the value under this key is a secret. The last word decides: `token` is, `token_expires_at` is not."""
    words = [word for word in _NO_WORD.split(_CAMEL.sub("_", name).lower()) if word]
    if not words:
        return False
    if words[-1] == "key":
        return (words[-2] if len(words) > 1 else "") in _SECRET_KEYS
    return words[-1] in _SECRET_WORDS


def redact_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and "eyJ" not in text:
        return text
    text = _PEM.sub(REDACTED, text)
    text = _WORD.sub(_address_redacted, text)
    text = _BARE_QUERY.sub(f"?{REDACTED}", text)
    text = _AWS.sub(rf"\1{REDACTED}", text)
    text = _JWT.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1{REDACTED}", text)
    text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    text = _BASIC.sub(rf"\1 {REDACTED}", text)
    text = _QUOTED.sub(rf"\1{REDACTED}", text)
    return _ASSIGNED.sub(rf"\1{REDACTED}", text)


def _address_redacted(word: re.Match[str]) -> str:
    """`mqtts://user:password@host/path?query` -> `mqtts://[redacted]@host/path?[redacted]`"""
    scheme, sign, rest = word[0].partition("://")
    if not sign:
        return scheme
    place, *query = _ADDRESS_END.split(rest, maxsplit=1)
    host, slash, path = place.partition("/")
    user, at, host = host.rpartition("@")
    host = f"{REDACTED}@{host}" if at and user else at + host
    return f"{scheme}://{host}{slash}{path}" + (f"?{REDACTED}" if query and query[0] else "")


def redact(value: Any, name: str = "", depth: int = 0) -> Any:
    """`value` as numbers, text, dicts and lists without secrets. `name` is the key that it stands under."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if is_secret_name(name):
        return REDACTED
    if isinstance(value, int):
        return int(value)
    if depth > _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {redact_text(str(key)): redact(under, str(key), depth + 1) for key, under in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return redact_text(bytes(value).decode("utf-8", "backslashreplace"))
    if isinstance(value, (Sequence, AbstractSet)) and not isinstance(value, str):
        return [redact(under, "", depth + 1) for under in value]
    return redact_text(text_of(value))


def text_of(value: Any) -> str:
    """For people: an exception with its kind, anything else as it prints itself. Never raises."""
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}" if str(value) else type(value).__name__
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be printed>"
