"""Which addresses of an answer the gateway is willing to call, and how long they live.

The cloud names addresses that we then call with files and tokens, so an answer must not be able to send us elsewhere:
`https` only, a callback only at the configured API. Loopback stands in for the cloud in the simulator and in tests.
Sources: CHeKT Event API v0.8, "Upload URLs"; AWS Signature Version 4, query form. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

MAX_ADDRESS: Final = 8_192  # characters; a presigned address with a session token has about 2,000
MAX_LIFETIME_S: Final = 7 * 86_400  # AWS S3 user guide, "Presigned URLs": the most that SigV4 allows
_PORTS: Final = {"https": 443, "http": 80}


def put_url_fault(url: str, cloud_url: str) -> str | None:
    """Why a file must not be put there; None if it may."""
    parts = _split(url)
    if isinstance(parts, str):
        return f"upload_put_url {parts}"
    return _scheme_fault("upload_put_url", parts, cloud_url)


def callback_fault(url: str, cloud_url: str) -> str | None:
    """Why a callback must not be sent there; None if it may."""
    parts = _split(url)
    if isinstance(parts, str):
        return f"callback_put_url {parts}"
    fault = _scheme_fault("callback_put_url", parts, cloud_url)
    cloud = urlsplit(cloud_url)
    same_host = parts.hostname == cloud.hostname or (is_loopback(parts.hostname) and is_loopback(cloud.hostname))
    if fault is None and not (same_host and _port(parts) == _port(cloud)):
        fault = f"callback_put_url is not at the configured API but at {parts.hostname}"
    return fault


def is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def signed_lifetime_ms(url: str, server_now: int) -> int | None:
    """How long a presigned address will live yet; None if it does not say. Negative: it has ended."""
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    expires, signed = query.get("x-amz-expires", ""), query.get("x-amz-date", "")
    if not (expires.isascii() and expires.isdigit()) or len(expires) > 9:
        return None
    try:
        signed_at = datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return min(int(expires), MAX_LIFETIME_S) * 1000 - (server_now - int(signed_at.timestamp()) * 1000)


def signs_content_type(url: str) -> bool:
    """Whether `Content-Type` is among the signed headers, so that the PUT must carry it."""
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    return "content-type" in query.get("x-amz-signedheaders", "").lower().split(";")


def _split(url: str) -> SplitResult | str:
    # It is sent byte for byte: a space or a line break would end up in the request line.
    if not url.isascii() or any(not "!" <= letter <= "~" for letter in url):
        return "has characters that no address has"
    if len(url) > MAX_ADDRESS:
        return f"is longer than {MAX_ADDRESS} characters"
    try:
        parts = urlsplit(url)
        _port(parts)
    except ValueError:
        return "is no address"
    if not parts.hostname:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "holds a user name"
    return parts


def _scheme_fault(name: str, parts: SplitResult, cloud_url: str) -> str | None:
    at_home = is_loopback(parts.hostname) and is_loopback(urlsplit(cloud_url).hostname)
    if parts.scheme == "https" or (parts.scheme == "http" and at_home):
        return None
    return f"{name} is not https but {parts.scheme[:20] or 'without scheme'}"


def _port(parts: SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)
