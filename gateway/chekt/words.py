"""The cloud's words for people: short, on one line, without a secret.

An answer's text goes into the outbox and the journal. Addresses lose their query and password, tokens their value:
upload and callback addresses are bearer secrets (AWS S3 user guide, "Presigned URLs"). Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

MAX_TEXT: Final = 500  # characters of an answer that are kept
_MAX_SCRUBBED: Final = 8_000  # of a longer text only this much is looked at

_QUERY: Final = re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://[^\s\"'<>?#]*)[?#][^\s\"'<>]*", re.IGNORECASE)
_USERINFO: Final = re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^\s\"'<>/@]*@", re.IGNORECASE)
_BARE_QUERY: Final = re.compile(r"\?[\w.~%-]{1,60}=[^\s\"'<>]*")
# base64url of '{"': every JOSE header begins so (RFC 7519, 3.1).
_JWT: Final = re.compile(r"eyJ[\w-]{5,}(?:\.[\w-]*)*")
_SCHEME: Final = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_NAMES: Final = r"(?:access|refresh|id)_token|client_secret|client_assertion|(?:x-)?api[_-]?key|authorization"
_ASSIGNED: Final = re.compile(rf"(\b(?:{_NAMES})[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;}}<>]+", re.IGNORECASE)
_AWS: Final = re.compile(r"(x-amz-(?:signature|security-token|credential)=)[^&\s\"'<>]+", re.IGNORECASE)
_CHEKT_KEY: Final = re.compile(r"\bchekt_(?:live|test)_\w+")  # CHeKT portal, "Authentication"
# Most answers are ids and words: nothing in them can be a secret by its look but a JWT and an API key.
_PLAIN: Final = re.compile(r"[\w .-]{0,64}", re.ASCII)
_TELLING: Final = re.compile(r"eyJ|chekt_|bearer|basic", re.IGNORECASE)
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


def scrub(text: str) -> str:
    """The same text without secrets, as far as they can be recognised. Rather one word too many than too few."""
    if _PLAIN.fullmatch(text) and not _TELLING.search(text):
        return text
    text = text[:_MAX_SCRUBBED]
    text = _QUERY.sub(r"\1?…", text)
    text = _USERINFO.sub(r"\1", text)
    text = _BARE_QUERY.sub("?…", text)
    text = _SCHEME.sub(r"\1 …", text)  # first: in "Authorization: Bearer x" the value is behind the scheme
    text = _ASSIGNED.sub(r"\1…", text)
    text = _AWS.sub(r"\1…", text)
    text = _CHEKT_KEY.sub("chekt_…", text)
    return _JWT.sub("…", text)


def excerpt(text: str) -> str:
    """Scrubbed, on one line, at most 500 characters."""
    return _SPACE.sub(" ", scrub(text)).strip()[:MAX_TEXT]


def error_text(document: Any) -> tuple[bool, str]:
    """Whether a body is the cloud's own error, and its text.

    Three shapes: `{"error": "Bad Request", "message": "..."}` (CHeKT Event API v0.8, "Error Responses");
    `{"error": {"code", "message", "request_id", "field"}}` (CHeKT portal, "Errors"); `{"error", "error_description"}`
    (RFC 6749, 5.2). A JSON body without `error` is somebody else's: `{"message": "Forbidden"}` is AWS's own gateway.
    """
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, str) and error:
        parts = [error, *(document[name] for name in ("message", "error_description") if _text(document.get(name)))]
        return True, excerpt(": ".join(parts))
    if isinstance(error, dict) and (_text(error.get("code")) or _text(error.get("message"))):
        parts = [error[name] for name in ("code", "message") if _text(error.get(name))]
        parts += [f"{name} {error[name]}" for name in ("field", "request_id") if _text(error.get(name))]
        return True, excerpt(": ".join(parts))
    return False, ""


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
