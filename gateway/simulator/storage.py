"""The practice bucket: takes presigned PUTs as S3 does and keeps what it got, up to a sum of bytes.

Sources: AWS S3 API reference, PutObject and "Error responses". S3 refuses bodies without a length and chunked bodies,
and a request with two ways of authentication.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web

from gateway.simulator.records import UploadRecord
from gateway.simulator.signing import AccessKey, Refused, judge
from gateway.simulator.terms import Terms

BUCKET = "practice-bucket"
_CHUNK = 64 * 1024


def xml_error(refused: Refused) -> web.Response:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message>"
        "<RequestId>PRACTICE</RequestId><HostId>practice</HostId></Error>"
    )
    response = web.Response(status=refused.status, body=body.encode(), content_type="application/xml")
    # S3 answers without reading the body, and closes.
    response.force_close()
    return response


@dataclass
class Bucket:
    """Objects as files in a folder of their own."""

    key: AccessKey
    terms: Terms
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _kept: deque[UploadRecord] = field(default_factory=deque)
    _bytes: int = 0
    _count: int = 0

    def judge(self, request: web.Request, slot: UploadRecord | None, now: float) -> tuple[UploadRecord, int]:
        """The slot, and the length that the body will have. Raises Refused."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if "authorization" in headers:
            raise Refused(400, "InvalidArgument", "Only one auth mechanism allowed")
        judge(self.key, request.method, request.raw_path, headers, now=datetime.fromtimestamp(now, UTC))
        if "transfer-encoding" in headers:
            raise Refused(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        if "content-length" not in headers:
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        length = int(headers["content-length"])
        if length > self.terms.max_object_bytes:
            raise Refused(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        if slot is None:
            raise Refused(403, "AccessDenied", "Access Denied")
        if self.terms.strict and not slot.put_url.endswith(request.raw_path):
            # S3 itself takes an address that was decoded and encoded again without damage. The next one may be damaged.
            raise Refused(403, "SignatureDoesNotMatch", "The address was changed on its way; use it byte for byte")
        return slot, length

    async def take(self, request: web.Request, slot: UploadRecord, length: int, now: float) -> None:
        """Reads the body into the slot's object. A body that breaks off leaves no object."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="chekt-practice-")
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}"
        md5, sha256, size, head = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0, b""
        try:
            with path.open("wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    file.write(chunk)
                    md5.update(chunk)
                    sha256.update(chunk)
                    size += len(chunk)
                    head = head or chunk[:16]
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if size != length:
            path.unlink()
            raise Refused(400, "IncompleteBody", "You did not provide the number of bytes specified by Content-Length")
        self._forget(slot)
        slot.path, slot.size, slot.content_type = path, size, request.headers.get("Content-Type")
        slot.etag, slot.sha256 = md5.hexdigest(), sha256.hexdigest()
        slot.looks_wrong = _looks_wrong(slot.kind, head)
        slot.put_at, slot.puts = int(now * 1000), slot.puts + 1
        self._kept.append(slot)
        self._bytes += size
        while self._bytes > self.terms.keep_bytes and len(self._kept) > 1:
            self._forget(self._kept[0])

    def _forget(self, slot: UploadRecord) -> None:
        if slot.path is not None:
            self._kept.remove(slot)
            self._bytes -= slot.size or 0
            slot.path.unlink(missing_ok=True)
            slot.path = None

    def close(self) -> None:
        """Removes all objects."""
        for slot in list(self._kept):
            self._forget(slot)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _looks_wrong(kind: str, head: bytes) -> str | None:
    if kind == "snapshot":
        return None if head.startswith(b"\xff\xd8\xff") else "not a JPEG"
    return None if head[4:8] == b"ftyp" else "not an MP4"
