"""AWS Signature Version 4 in the query string: makes presigned PUT addresses and judges requests that use them.

Sources: AWS S3 API reference, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)" and
"Create a signed AWS API request". The judge computes everything anew from the request as received.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote, unquote_to_bytes

ALGORITHM: Final = "AWS4-HMAC-SHA256"
MAX_EXPIRES: Final = 604_800  # seconds; AWS: seven days
MAX_AHEAD: Final = timedelta(minutes=15)  # AWS: RequestTimeTooSkewed
_QUERY_NAMES: Final = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)


class Refused(Exception):
    """Storage refuses a request, with the status, code and message that S3 uses."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class AccessKey:
    """Temporary credentials; their session token travels in the query, with characters that re-encoding would spoil."""

    id: str
    secret: str
    session_token: str
    region: str = "us-east-1"

    def scope(self, date: str) -> str:
        return f"{date}/{self.region}/s3/aws4_request"

    def sign(self, date: str, text: str) -> str:
        key = f"AWS4{self.secret}".encode()
        for part in (date, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex()


def encode(text: str | bytes, *, safe: str = "") -> str:
    """AWS's UriEncode: everything but the unreserved characters, upper-case hex."""
    return quote(text, safe=safe + "-._~")


def presign_put(
    key: AccessKey, host: str, path: str, *, now: datetime, expires: int, content_type: str | None = None
) -> str:
    """Target (path and query) of a presigned PUT to `path`, which is not encoded yet."""
    stamp = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    headers = {"host": host}
    if content_type is not None:
        headers["content-type"] = content_type
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{key.id}/{key.scope(stamp[:8])}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires),
        "X-Amz-Security-Token": key.session_token,
        "X-Amz-SignedHeaders": ";".join(sorted(headers)),
    }
    pairs = [(encode(name), encode(value)) for name, value in query.items()]
    target = encode(path, safe="/")
    signature = _signature(key, stamp, _canonical_request("PUT", target, pairs, headers))
    return f"{target}?{'&'.join(f'{name}={value}' for name, value in pairs)}&X-Amz-Signature={signature}"


def judge(key: AccessKey, method: str, target: str, headers: Mapping[str, str], *, now: datetime) -> None:
    """Raises Refused unless this request was signed with `key` and is not over. `headers` have lower-case names."""
    raw_path, _, raw_query = target.partition("?")
    pairs = [_pair(part) for part in raw_query.split("&") if part]
    query = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
    if len(query) != len(pairs):
        raise Refused(400, "AuthorizationQueryParametersError", "A query parameter is given twice")
    if missing := [name for name in _QUERY_NAMES if not query.get(name)]:
        if len(missing) == len(_QUERY_NAMES):
            raise Refused(403, "AccessDenied", "Access Denied")
        raise _malformed(f"Query-string authentication needs {', '.join(missing)}")
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise _malformed(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    stamp = query["X-Amz-Date"]
    try:
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expires = int(query["X-Amz-Expires"])
    except ValueError:
        raise _malformed("X-Amz-Date must be in the ISO8601 Long Format, X-Amz-Expires a number") from None
    if not 0 <= expires <= MAX_EXPIRES:
        raise _malformed("X-Amz-Expires must be between 0 and 604800 seconds")
    if query["X-Amz-Credential"] != f"{key.id}/{key.scope(stamp[:8])}":
        if not query["X-Amz-Credential"].startswith(f"{key.id}/"):
            message = "The AWS Access Key Id you provided does not exist in our records."
            raise Refused(403, "InvalidAccessKeyId", message)
        raise _malformed("Error parsing the X-Amz-Credential parameter")
    if query.get("X-Amz-Security-Token") != key.session_token:
        raise Refused(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    signed = query["X-Amz-SignedHeaders"].split(";")
    if "host" not in signed:
        raise Refused(403, "AccessDenied", "There were headers present in the request which were not signed")
    values = {name: " ".join(headers.get(name, "").split()) for name in signed}
    unsigned = [(encode(n), encode(v)) for n, v in pairs if n != b"X-Amz-Signature"]
    canonical = _canonical_request(method, encode(unquote_to_bytes(raw_path), safe="/"), unsigned, values)
    # S3 looks at the time first: an address that is over says so, whatever else is wrong with it.
    if signed_at - now > MAX_AHEAD:
        raise Refused(403, "AccessDenied", "Request is not yet valid")
    if now >= signed_at + timedelta(seconds=expires):
        raise Refused(403, "AccessDenied", "Request has expired")
    if not hmac.compare_digest(_signature(key, stamp, canonical).encode(), query["X-Amz-Signature"].encode()):
        raise Refused(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
        )


def _malformed(message: str) -> Refused:
    return Refused(400, "AuthorizationQueryParametersError", message)


def _pair(part: str) -> tuple[bytes, bytes]:
    # A plus sign is a space in a query: a client that decodes %2B into "+" on the way breaks the signature, as with S3.
    name, _, value = part.partition("=")
    return unquote_to_bytes(name.replace("+", " ")), unquote_to_bytes(value.replace("+", " "))


def _canonical_request(
    method: str, encoded_path: str, encoded_pairs: list[tuple[str, str]], headers: Mapping[str, str]
) -> str:
    names = sorted(headers)
    return "\n".join(
        (
            method,
            encoded_path or "/",
            "&".join(f"{name}={value}" for name, value in sorted(encoded_pairs)),
            *(f"{name}:{headers[name]}" for name in names),
            "",
            ";".join(names),
            "UNSIGNED-PAYLOAD",
        )
    )


def _signature(key: AccessKey, stamp: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return key.sign(stamp[:8], "\n".join((ALGORITHM, stamp, key.scope(stamp[:8]), digest)))
