"""What the answers to a PUT of a file and to its callback mean.

Nothing here ever changes an event: it was delivered before its pictures travel. Sources: CHeKT Event API v0.8, "Upload
Workflow" and "Upload Best Practices"; AWS S3 API, "Error responses". `ASSUMED: Qn` marks a guess. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.chekt.wire import Reply, retry_after
from gateway.chekt.words import excerpt

_CODE: Final = re.compile(rb"<Code>\s*(\w{1,60})\s*</Code>")
_MESSAGE: Final = re.compile(rb"<Message>\s*([^<]{1,300})</Message>")
# S3 answers 400 where our own sending was the trouble: too slow, cut off.
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')
_PASSING_400: Final = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest"})


class UploadVerdict(StrEnum):
    DONE = "done"
    AGAIN = "again"  # with back-off, as long as the slot lives
    AGAIN_WITH_TYPE = "again_with_type"  # once, with Content-Type
    DEAD = "dead"  # this slot is lost


@dataclass(frozen=True, slots=True)
class UploadAnswer:
    verdict: UploadVerdict
    http_status: int | None = None
    text: str = ""
    retry_after_ms: int | None = None
    unclear: bool = False  # it may have been done all the same


def read_put_answer(reply: Reply, *, wall: int, sent_content_type: bool, md5: str | None = None) -> UploadAnswer:
    """A PUT may be repeated at will until the slot ends: it replaces the same object (AWS S3, "Presigned URLs").

    307 is not followed: the signature covers the host (`X-Amz-SignedHeaders` always has `host`), so the other host
    would refuse it; S3 answers so only until its DNS has caught up, and the same address is tried again.
    `md5`: of the file, where it shall be compared with the ETag of what the storage has.
    """
    if reply.status is None:
        return UploadAnswer(UploadVerdict.AGAIN, None, excerpt(reply.error or "no answer"), unclear=reply.written)
    code = _first(_CODE, reply.body)
    text = excerpt(f"{code}: {_first(_MESSAGE, reply.body)}" if code else reply.body.decode("utf-8", "replace"))
    wait = retry_after(reply.headers, wall)
    match reply.status:
        case status if 200 <= status < 300:
            verdict = UploadVerdict.AGAIN if _is_page(reply) else UploadVerdict.DONE
            if verdict is UploadVerdict.DONE and md5 is not None and _is_other_object(reply, md5):
                verdict, text = UploadVerdict.AGAIN, "the storage has other bytes than we sent"
        case 403 if code == "SignatureDoesNotMatch" and not sent_content_type:
            # It was signed with a type that the address does not tell (ASSUMED: Q13, image/jpeg and video/mp4).
            verdict = UploadVerdict.AGAIN_WITH_TYPE
        case 403 if not code and _is_page(reply):
            verdict = UploadVerdict.AGAIN  # a proxy's page, not S3's XML
        case 400 if code in _PASSING_400:
            verdict = UploadVerdict.AGAIN
        case 302 | 303 | 307 | 407 | 408 | 425 | 429 | 511:
            verdict = UploadVerdict.AGAIN
        case status if status >= 500:
            verdict = UploadVerdict.AGAIN
        case _:  # 403 expired, 301 wrong region, other 4xx
            verdict = UploadVerdict.DEAD
    return UploadAnswer(verdict, reply.status, text, wait, unclear=reply.status >= 500)


def read_callback_answer(reply: Reply, *, wall: int, unclear_before: bool) -> UploadAnswer:
    """ASSUMED: Q10, any 2xx is a success. `unclear_before`: an earlier try of this callback may have arrived."""
    if reply.status is None:
        return UploadAnswer(UploadVerdict.AGAIN, None, excerpt(reply.error or "no answer"), unclear=reply.written)
    text = excerpt(reply.body.decode("utf-8", "replace"))
    match reply.status:
        case status if 200 <= status < 300:
            verdict = UploadVerdict.AGAIN if _is_page(reply) else UploadVerdict.DONE
        case 404 | 409 | 410 if unclear_before:
            verdict = UploadVerdict.DONE  # what was asked has been done, the address is used up
        case 407 | 408 | 425 | 429 | 511:
            verdict = UploadVerdict.AGAIN
        case status if 300 <= status < 400 or status >= 500:
            verdict = UploadVerdict.AGAIN
        case _:  # 401 and 403: its token has ended, there is no other; 404 and the rest: nobody knows it
            verdict = UploadVerdict.DEAD
    wait = retry_after(reply.headers, wall)
    return UploadAnswer(verdict, reply.status, text, wait, unclear=reply.status in (502, 504))


def _is_other_object(reply: Reply, md5: str) -> bool:
    """AWS S3 API, "Object", ETag: an MD5 unless the object was composed of parts, or encrypted with a key of KMS's or
    the customer's, which the answer tells."""
    encrypted = reply.headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    customers = "x-amz-server-side-encryption-customer-algorithm" in reply.headers
    etag = _MD5.fullmatch(reply.headers.get("etag", ""))
    return etag is not None and not encrypted and not customers and etag[1] != md5


def _is_page(reply: Reply) -> bool:
    """A page for people: a captive portal or a proxy speaks, neither S3 nor CHeKT."""
    return reply.headers.get("content-type", "").lower().startswith("text/html")


def _first(pattern: re.Pattern[bytes], body: bytes) -> str:
    match = pattern.search(body[:4096])
    return "" if match is None else match[1].decode("utf-8", "replace")
