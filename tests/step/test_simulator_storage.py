"""The practice bucket judges presigned requests as S3 does; compared with a signer made from the AWS documents."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import pytest

from gateway.simulator.cloud import Cloud
from gateway.simulator.faults import ExpireSlots, Stall, StorageError
from gateway.simulator.signing import AccessKey, Refused, judge, presign_put
from gateway.simulator.terms import Terms
from tests.step.simulator_client import JPEG, Partner

MOMENT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
# The example of AWS's own document, "Authenticating Requests: Using Query Parameters": there with GET and no token.
EXAMPLE_KEY = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


def sign_like_aws(
    method: str, host: str, path: str, query: list[tuple[str, str]], secret: str, extra: dict[str, str] | None = None
) -> str:
    """Signature of a presigned request, step by step from AWS's description. Shares nothing with the simulator."""
    given = dict(query)
    stamp, region = given["X-Amz-Date"], given["X-Amz-Credential"].split("/")[2]

    def enc(text: str) -> str:
        return quote(text, safe="")

    canonical_query = "&".join(sorted(f"{enc(name)}={enc(value)}" for name, value in query))
    headers = {"host": host} | (extra or {})
    canonical_headers = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    signed_headers = ";".join(sorted(headers))
    canonical = f"{method}\n{quote(path)}\n{canonical_query}\n{canonical_headers}\n{signed_headers}\nUNSIGNED-PAYLOAD"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"

    def step(key: bytes, text: str) -> bytes:
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    key = step(step(step(step(b"AWS4" + secret.encode(), stamp[:8]), region), "s3"), "aws4_request")
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def test_the_signer_of_this_test_gives_the_signature_of_the_aws_document() -> None:
    query = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", f"{EXAMPLE_KEY[0]}/20130524/us-east-1/s3/aws4_request"),
        ("X-Amz-Date", "20130524T000000Z"),
        ("X-Amz-Expires", "86400"),
        ("X-Amz-SignedHeaders", "host"),
    ]
    signature = sign_like_aws("GET", "examplebucket.s3.amazonaws.com", "/test.txt", query, EXAMPLE_KEY[1])
    assert signature == "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"


@pytest.mark.parametrize("path", ["/bucket/a.jpg", "/bucket/Überwachung 1/a+b=c&d.jpg", "/bucket/~x/100%.mp4"])
@pytest.mark.parametrize("content_type", [None, "image/jpeg"])
def test_presigned_addresses_carry_the_signature_that_aws_describes(path: str, content_type: str | None) -> None:
    key = AccessKey("ASIA1", "secret", "to/ken+==", "eu-west-1")
    target = presign_put(key, "127.0.0.1:9000", path, now=MOMENT, expires=60, content_type=content_type)
    raw_path, _, raw_query = target.partition("?")
    query = [(unquote(n), unquote(v)) for n, _, v in (part.partition("=") for part in raw_query.split("&"))]
    given = dict(query)
    assert unquote(raw_path) == path
    assert given["X-Amz-Security-Token"] == "to/ken+=="
    unsigned = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    extra = {} if content_type is None else {"content-type": content_type}
    assert given["X-Amz-Signature"] == sign_like_aws("PUT", "127.0.0.1:9000", path, unsigned, "secret", extra)
    judge(key, "PUT", target, {"host": "127.0.0.1:9000"} | extra, now=MOMENT)


class Judged:
    """One good presigned request, to be spoilt in one place."""

    key = AccessKey("ASIA1", "secret", "to/ken+==")
    host = "127.0.0.1:9000"

    def __init__(self) -> None:
        self.target = presign_put(self.key, self.host, "/bucket/eve-1/snapshot_0.jpg", now=MOMENT, expires=60)

    def refusal(self, **changed: Any) -> Refused:
        request: dict[str, Any] = {
            "method": "PUT",
            "target": self.target,
            "headers": {"host": self.host},
            "now": MOMENT,
        } | changed
        with pytest.raises(Refused) as caught:
            judge(self.key, request["method"], request["target"], request["headers"], now=request["now"])
        return caught.value


@pytest.mark.parametrize(
    ("pattern", "replacement", "code"),
    [
        ("snapshot_0", "snapshot_1", "SignatureDoesNotMatch"),
        ("X-Amz-Expires=60", "X-Amz-Expires=6000", "SignatureDoesNotMatch"),
        (r"X-Amz-Signature=\w", "X-Amz-Signature=z", "SignatureDoesNotMatch"),
        ("$", "&extra=1", "SignatureDoesNotMatch"),
        ("%2Fken%2B", "%2Fken+", "InvalidToken"),
        ("ASIA1", "ASIA2", "InvalidAccessKeyId"),
        ("us-east-1", "us-west-1", "AuthorizationQueryParametersError"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=60", "X-Amz-Expires=604801", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires=60", "X-Amz-Expires=x", "AuthorizationQueryParametersError"),
        ("20260301T120000Z", "2026-03-01", "AuthorizationQueryParametersError"),
        (r"&X-Amz-Date=\w+", "", "AuthorizationQueryParametersError"),
        ("$", "&X-Amz-Expires=60", "AuthorizationQueryParametersError"),
        (r"\?.*", "", "AccessDenied"),
        ("SignedHeaders=host", "SignedHeaders=date", "AccessDenied"),
    ],
)
def test_a_spoilt_address_is_refused(pattern: str, replacement: str, code: str) -> None:
    judged = Judged()
    spoilt = re.sub(pattern, replacement, judged.target, count=1)
    assert spoilt != judged.target
    assert judged.refusal(target=spoilt).code == code


def test_method_host_and_time_are_bound() -> None:
    judged = Judged()
    assert judged.refusal(method="GET").code == "SignatureDoesNotMatch"
    assert judged.refusal(headers={"host": "elsewhere"}).code == "SignatureDoesNotMatch"
    assert judged.refusal(now=MOMENT + timedelta(seconds=60)).message == "Request has expired"
    assert judged.refusal(now=MOMENT - timedelta(minutes=16)).message == "Request is not yet valid"
    judge(judged.key, "PUT", judged.target, {"host": judged.host}, now=MOMENT + timedelta(seconds=59))


# Over HTTP


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud() as made:
        yield made


@pytest.fixture
async def partner(cloud: Cloud) -> AsyncIterator[Partner]:
    async with aiohttp.ClientSession() as http:
        yield Partner(cloud, http)


async def slot_of(partner: Partner) -> str:
    return str((await partner.post()).said["uploads"]["snapshots"][0]["upload_put_url"])


async def test_a_repeated_put_replaces_the_object(cloud: Cloud, partner: Partner) -> None:
    url = await slot_of(partner)
    await partner.put(url, JPEG)
    answer = await partner.put(url, JPEG + b"more")
    assert answer.headers["ETag"] == f'"{hashlib.md5(JPEG + b"more", usedforsecurity=False).hexdigest()}"'
    (upload,) = cloud.uploads
    assert (upload.puts, upload.size, upload.content) == (2, len(JPEG) + 4, JPEG + b"more")
    assert upload.sha256 == hashlib.sha256(JPEG + b"more").hexdigest()


async def test_bytes_of_another_kind_are_noted(cloud: Cloud, partner: Partner) -> None:
    await partner.put(await slot_of(partner), b"<html>")
    assert cloud.uploads[0].looks_wrong == "not a JPEG"


async def test_a_chunked_body_is_refused_and_leaves_nothing(cloud: Cloud, partner: Partner) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield JPEG

    answer = await partner.put(await slot_of(partner), pieces())
    assert answer.status == 501
    assert b"<Code>NotImplemented</Code>" in answer.body
    assert cloud.uploads == []


async def test_a_second_way_of_authentication_is_refused(cloud: Cloud, partner: Partner) -> None:
    answer = await partner.put(await slot_of(partner), JPEG, Authorization=f"Bearer {partner.token}")
    assert answer.status == 400
    assert b"<Code>InvalidArgument</Code>" in answer.body
    assert cloud.uploads == []


async def test_a_put_without_a_length_is_refused(cloud: Cloud, partner: Partner) -> None:
    """aiohttp always says a length, so this speaks HTTP by hand."""
    parts = urlsplit(await slot_of(partner))
    reader, writer = await asyncio.open_connection(cloud.host, cloud.port)
    writer.write(
        f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert b"MissingContentLength" in answer


async def test_a_body_that_breaks_off_leaves_no_object(cloud: Cloud, partner: Partner) -> None:
    parts = urlsplit(await slot_of(partner))
    _, writer = await asyncio.open_connection(cloud.host, cloud.port)
    head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + JPEG[:500])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await cloud.wait_for(fact=lambda: cloud.requests[-1].kind == "put")
    assert cloud.uploads == []


async def test_an_expired_slot_says_so_as_s3_does(cloud: Cloud, partner: Partner) -> None:
    cloud.script([ExpireSlots(0)])
    answer = await partner.put(await slot_of(partner))
    assert answer.status == 403
    assert answer.headers["Content-Type"].startswith("application/xml")
    assert b"<Code>AccessDenied</Code><Message>Request has expired</Message>" in answer.body
    assert cloud.refusals[-1].refusal == "AccessDenied: Request has expired"


async def test_a_changed_address_is_refused_even_where_s3_would_not_mind(cloud: Cloud, partner: Partner) -> None:
    url = await slot_of(partner)
    assert (await partner.put(url.replace("%2Fus-east-1", "/us-east-1"))).status == 403
    assert (await partner.put(url)).status == 200


async def test_the_content_type_may_be_bound() -> None:
    async with Cloud(Terms(sign_content_type=True)) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        url = await slot_of(partner)
        assert "X-Amz-SignedHeaders=content-type%3Bhost" in url
        assert (await partner.put(url, Content_Type="application/octet-stream")).status == 403
        assert (await partner.put(url, Content_Type="image/jpeg")).status == 200


async def test_an_object_may_be_too_large() -> None:
    async with Cloud(Terms(max_object_bytes=1000)) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        answer = await partner.put(await slot_of(partner))
        assert (answer.status, b"EntityTooLarge" in answer.body) == (400, True)


async def test_old_pictures_make_room_for_new_ones() -> None:
    async with Cloud(Terms(keep_bytes=2 * len(JPEG))) as cloud, aiohttp.ClientSession() as http:
        partner = Partner(cloud, http)
        for _ in range(3):
            await partner.put(await slot_of(partner))
        kept = [upload.path is not None for upload in cloud.uploads]
        assert kept == [False, True, True]
        with pytest.raises(LookupError):
            _ = cloud.uploads[0].content
        assert cloud.uploads[0].size == len(JPEG)
    assert all(upload.path is None for upload in cloud.uploads)


async def test_storage_errors_on_request(cloud: Cloud, partner: Partner) -> None:
    cloud.script([StorageError(), StorageError(403, "ExpiredToken", "The provided token has expired."), None], on="put")
    url = await slot_of(partner)
    answers = [await partner.put(url) for _ in range(3)]
    assert [answer.status for answer in answers] == [503, 403, 200]
    assert b"<Code>SlowDown</Code>" in answers[0].body
    assert b"<Code>ExpiredToken</Code>" in answers[1].body


async def test_storage_may_stop_reading(cloud: Cloud, partner: Partner) -> None:
    cloud.script([Stall(at=0.9)], on="put")
    url = await slot_of(partner)
    with pytest.raises(TimeoutError):
        await partner.request("PUT", url, data=JPEG, timeout=aiohttp.ClientTimeout(sock_read=0.1))
    assert cloud.uploads == []
    assert (await partner.put(url)).status == 200
