"""The HTTP calls, against real servers on loopback: what leaves, what comes back, what a bad network makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.chekt import client as client_module
from gateway.chekt.client import Client, ClientError
from gateway.chekt.keys import Secrets, parse_key
from gateway.chekt.throttle import Throttle
from gateway.chekt.token import TokenSource
from gateway.chekt.upload_wire import UploadVerdict, read_callback_answer, read_put_answer
from gateway.chekt.wire import Options, Reply, compose, read_answer
from gateway.config import Cloud
from gateway.model import MediaKind, MediaOnDisk
from gateway.retry import Answer, Verdict
from gateway.simulator import faults
from gateway.simulator.cloud import Cloud as PracticeCloud
from gateway.simulator.terms import Terms
from tests.fakes.clock import FakeClock
from tests.fakes.rawserver import OK, RawRequest, RawServer, says
from tests.unit.test_retry import an_event

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 400 + b"\xff\xd9"


def settings(url: str, **changes: Any) -> Cloud:
    return Cloud(url=url, **changes)


def a_client(url: str, **changes: Any) -> Client:
    api_key = changes.pop("api_key", None)
    limit = changes.pop("max_bytes_per_second", 0)
    return Client(settings(url, **changes), version="1.2.3", api_key=api_key, max_bytes_per_second=limit)


async def post(server: RawServer, **changes: Any) -> Reply:
    async with a_client(server.url, **changes) as client:
        return await client.post_event(b'{"a":1}', "e1", "the-token")


def read(reply: Reply, url: str) -> Answer:
    return read_answer(reply, ticks=0, wall=0, cloud_url=url)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "snapshot.jpg"
    path.write_bytes(JPEG)
    return path


@pytest.fixture
async def practice() -> AsyncIterator[PracticeCloud]:
    async with PracticeCloud() as cloud:
        yield cloud


# Events


async def test_an_event_leaves_byte_for_byte_with_its_headers() -> None:
    async with RawServer() as server:
        reply = await post(server)
    (request,) = server.requests
    assert request.line == "POST /partner/v1/events HTTP/1.1"
    assert request.body == b'{"a":1}'
    assert request.headers["authorization"] == "Bearer the-token"
    assert request.headers["idempotency-key"] == "e1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == "7"
    assert request.headers["user-agent"] == "chekt-gateway/1.2.3"
    assert "x-api-key" not in request.headers
    assert "transfer-encoding" not in request.headers
    assert (reply.status, reply.body, reply.complete, reply.written, reply.error) == (200, b"{}", True, True, None)


@pytest.mark.parametrize(
    ("header", "authorization", "key"),
    [("bearer", "Bearer the-token", None), ("x-api-key", None, "the-key"), ("both", "Bearer the-token", "the-key")],
)
async def test_credentials_travel_in_the_configured_header_only(
    header: str, authorization: str | None, key: str | None
) -> None:
    async with RawServer() as server:
        await post(server, event_header=header, api_key="the-key")
    assert server.requests[0].headers.get("authorization") == authorization
    assert server.requests[0].headers.get("x-api-key") == key


async def test_a_header_without_its_key_is_a_configuration_error() -> None:
    with pytest.raises(ClientError, match="api_key_file"):
        a_client("http://127.0.0.1:1", event_header="x-api-key")


async def test_the_idempotency_key_can_be_switched_off() -> None:
    async with RawServer() as server:
        await post(server, idempotency_key=False)
    assert "idempotency-key" not in server.requests[0].headers


async def test_a_cookie_is_not_kept_and_a_redirection_not_followed() -> None:
    answer = (
        b"HTTP/1.1 307 T\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    async with RawServer(says(answer)) as server, a_client(server.url) as client:
        for _ in range(2):
            reply = await client.post_event(b"{}", "e", "t")
            assert reply.status == 307
            assert read(reply, server.url).verdict is Verdict.NOT_THE_API
    assert [request.target for request in server.requests] == ["/partner/v1/events"] * 2
    assert all("cookie" not in request.headers for request in server.requests)


async def test_a_connection_that_is_refused_wrote_nothing() -> None:
    async with RawServer() as server:
        url = server.url
    async with a_client(url) as client:
        reply = await client.post_event(b"{}", "e", "t")
    assert (reply.status, reply.written, reply.complete) == (None, False, False)
    assert reply.error is not None
    assert reply.error.startswith("no connection to 127.0.0.1")
    assert read(reply, url).verdict is Verdict.UNREACHABLE


async def test_a_name_that_does_not_exist_wrote_nothing() -> None:
    async with a_client("https://api.invalid") as client:
        reply = await client.post_event(b"{}", "e", "t")
    assert (reply.status, reply.written) == (None, False)
    assert reply.error is not None


async def test_a_connection_that_is_not_accepted_in_time_wrote_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS hangs: the server takes the connection and says nothing."""
    monkeypatch.setattr(client_module, "CONNECT_S", 0.2)
    async with RawServer() as server, a_client(f"https://127.0.0.1:{server.port}") as client:
        reply = await client.post_event(b"{}", "e", "t")
    assert (reply.status, reply.written, reply.error) == (None, False, "no connection in time")


def tls_server(tmp_path: Path, *, names: list[x509.GeneralName] | None = None) -> tuple[ssl.SSLContext, Path]:
    """A certificate of our own for loopback, and the file that makes it trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "practice")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both = tmp_path / "server.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both.write_bytes(pem + ca.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, ca


async def test_a_certificate_of_an_unknown_authority_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    context, ca = tls_server(tmp_path)
    async with RawServer(tls=context) as server:
        reply = await post(server)
        assert (reply.status, reply.written) == (None, False)
        assert reply.error is not None
        assert reply.error == "the certificate of 127.0.0.1 is not accepted: self-signed certificate"
        assert server.requests == []
        trusted = await post(server, ca_file=str(ca))
        assert (trusted.status, trusted.written) == (200, True)


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    context, ca = tls_server(tmp_path, names=[x509.DNSName("api.chekt.com")])
    async with RawServer(tls=context) as server:
        reply = await post(server, ca_file=str(ca))
    assert (reply.status, reply.written, server.requests) == (None, False, [])


async def test_a_connection_that_is_closed_while_tls_is_agreed_upon_says_so() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await reader.read(4096)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, a_client(url) as client:
        reply = await client.post_event(b"{}", "e", "t")
    assert reply.written is False
    assert reply.error is not None
    assert reply.error.startswith("no connection to 127.0.0.1: ")
    assert len(reply.error) > len("no connection to 127.0.0.1: ")


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    context = client_module.tls_context(None)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_an_authority_file_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "missing.pem"):
        with pytest.raises(ClientError, match="ca_file"):
            client_module.tls_context(str(path))


async def test_a_connection_that_closes_before_the_answer_may_have_taken_the_event() -> None:
    async with RawServer(says(b"")) as server:
        reply = await post(server)
        assert (reply.status, reply.written) == (None, True)
        assert read(reply, server.url).verdict is Verdict.UNANSWERED
    assert len(server.requests) == 1  # never repeated below us


@pytest.mark.parametrize("what", ["callback", "file"])
async def test_a_put_on_a_broken_connection_is_not_repeated_below_us(what: str, picture: Path) -> None:
    """The server closes a kept connection in the moment when we use it: the one request may have arrived."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, a_client(url) as client:
        assert (await client.confirm(url + "/first")).status == 200
        if what == "callback":
            reply = await client.confirm(url + "/second")
            answer = read_callback_answer(reply, wall=0, unclear_before=False)
        else:
            reply = await client.put_file(url + "/second", picture, content_type="image/jpeg", seconds_left=60)
            answer = read_put_answer(reply, wall=0, sent_content_type=False)
    assert (reply.status, reply.written) == (None, True)
    assert (answer.verdict, answer.unclear) == (UploadVerdict.AGAIN, True)
    assert [request.partition(b" HTTP")[0] for request in requests] == [b"PUT /second"]


def test_an_aiohttp_that_repeats_by_itself_is_refused() -> None:
    with pytest.raises(ClientError, match="once only"):
        client_module._send_once(object())  # type: ignore[arg-type]


async def test_an_answer_that_does_not_come_is_given_up_and_may_have_taken_the_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_S", 0.2)

    async def silent(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await server.release.wait()

    async with RawServer(silent) as server:
        reply = await post(server)
        assert (reply.status, reply.written, reply.error) == (None, True, "no answer in time")


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{"event_id":"eve-1","st',
        b'HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"eve\r\n',
        b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\nhello",
    ],
)
async def test_an_answer_that_is_cut_off_is_unclear(answer: bytes) -> None:
    async with RawServer(says(answer)) as server:
        reply = await post(server)
        assert (reply.status, reply.complete, reply.written) == (201, False, True)
        assert read(reply, server.url).verdict is Verdict.CUT_OFF


async def test_an_answer_that_trickles_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TOTAL_S", 0.5)

    async def trickle(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 100000\r\n\r\n")
        while not server.release.is_set():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with RawServer(trickle) as server:
        begun = time.monotonic()
        reply = await post(server)
        assert time.monotonic() - begun < 5
        assert (reply.status, reply.complete) == (201, False)


async def test_an_endless_answer_costs_a_bounded_memory() -> None:
    async def endless(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 201 Created\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with RawServer(endless) as server:
        reply = await post(server)
        assert len(reply.body) == client_module.MAX_BODY
        assert not reply.complete
        assert read(reply, server.url).verdict is Verdict.CUT_OFF


async def test_garbage_is_no_answer_and_may_have_taken_the_event() -> None:
    async with RawServer(says(b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
        reply = await post(server)
    assert (reply.status, reply.written) == (None, True)
    assert reply.error
    assert reply.error.startswith("an answer that is not HTTP")  # not aiohttp's "400", which nobody answered


async def test_a_proxy_is_used_and_its_failure_wrote_nothing() -> None:
    async with RawServer(says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")) as proxy:
        async with a_client("https://api.chektdev.com", proxy=proxy.url) as client:
            reply = await client.post_event(b"{}", "e", "t")
        assert proxy.requests[0].line == "CONNECT api.chektdev.com:443 HTTP/1.1"
    assert (reply.status, reply.written) == (None, False)
    assert reply.error is not None
    assert reply.error.startswith("the proxy refused")


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with RawServer() as server:
        assert (await post(server)).status == 200


async def test_the_date_of_every_answer_is_told() -> None:
    dates: list[int] = []
    answer = b"HTTP/1.1 500 E\r\nDate: Thu, 20 Nov 2025 01:46:28 GMT\r\nContent-Length: 0\r\n\r\n"
    async with RawServer(says(answer)) as server, a_client(server.url) as client:
        client.on_date = dates.append
        await client.post_event(b"{}", "e", "t")
    assert dates == [1_763_603_188_000]


# Files

QUERY = "?X-Amz-Signature=a%2Bb%2fc+d&x=%7E~!$'()*,;:@&empty=&X-Amz-SignedHeaders="


async def put(server: RawServer, path: Path, signed: str = "host", **changes: Any) -> Reply:
    more: dict[str, Any] = {name: changes.pop(name) for name in ("always_type", "seconds_left") if name in changes}
    async with a_client("http://127.0.0.1:1", **changes) as client:
        url = server.url + "/device/123/snap%20shot_0.jpg" + QUERY + signed
        return await client.put_file(url, path, content_type="image/jpeg", **{"seconds_left": 60.0} | more)


async def test_a_file_is_put_to_exactly_the_address_with_its_length(picture: Path) -> None:
    async with RawServer() as server:
        reply = await put(server, picture)
    (request,) = server.requests
    assert request.line == f"PUT /device/123/snap%20shot_0.jpg{QUERY}host HTTP/1.1"
    assert request.body == JPEG
    assert request.headers["content-length"] == str(len(JPEG))
    assert not {"transfer-encoding", "authorization", "content-type", "cookie", "x-api-key"} & set(request.headers)
    assert read_put_answer(reply, wall=0, sent_content_type=False).verdict is UploadVerdict.DONE


async def test_a_content_type_is_sent_where_it_is_signed_or_on_the_second_try(picture: Path) -> None:
    async with RawServer() as server:
        await put(server, picture, "content-type%3Bhost")
        await put(server, picture, "host", always_type=True)
    assert [request.headers.get("content-type") for request in server.requests] == ["image/jpeg", "image/jpeg"]


async def test_an_empty_file_has_a_length_too(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    async with RawServer() as server:
        await put(server, path)
    assert server.requests[0].headers["content-length"] == "0"
    assert "transfer-encoding" not in server.requests[0].headers


async def test_a_throttled_file_arrives_whole_with_its_length_and_takes_its_time(picture: Path) -> None:
    rate = 400_000
    async with RawServer() as server:
        begun = time.monotonic()
        reply = await put(server, picture, max_bytes_per_second=rate)
        took = time.monotonic() - begun
    assert reply.status == 200
    assert server.requests[0].body == JPEG
    assert server.requests[0].headers["content-length"] == str(len(JPEG))
    assert "transfer-encoding" not in server.requests[0].headers
    # The last chunk need not be waited for.
    assert took >= (len(JPEG) - Throttle(rate).chunk) / rate * 0.9


async def test_a_put_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "STALL_S", 0.3)
    path = tmp_path / "clip.mp4"
    with path.open("wb") as file:
        file.truncate(64 << 20)

    async def deaf(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await server.release.wait()

    async with RawServer(deaf, read_body=False) as server:
        begun = time.monotonic()
        monkeypatch.setattr(client_module, "CONNECT_S", 0.3)
        reply = await put(server, path)
        assert time.monotonic() - begun < 10
        assert (reply.status, reply.written) == (None, True)
        assert read_put_answer(reply, wall=0, sent_content_type=False).verdict is UploadVerdict.AGAIN


async def test_a_put_ends_with_its_slot(picture: Path) -> None:
    async def silent(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await server.release.wait()

    async with RawServer(silent) as server:
        reply = await put(server, picture, seconds_left=0.2)
        assert reply.status is None


async def test_a_file_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    async with RawServer() as server:
        with pytest.raises(FileNotFoundError):
            await put(server, tmp_path / "gone.jpg")


# Callbacks


async def test_a_callback_is_an_empty_put_without_credentials() -> None:
    async with RawServer() as server:
        url = server.url + "/partner/v1/events/eve-56/uploads/callback?seq=0&type=snapshot&access_token=eyJ%2B.a-b_c"
        async with a_client(server.url) as client:
            await client.confirm(url, "the-token")
        async with a_client(server.url, callback_auth=True) as client:
            await client.confirm(url, "the-token")
    first, second = server.requests
    assert (
        first.line
        == "PUT /partner/v1/events/eve-56/uploads/callback?seq=0&type=snapshot&access_token=eyJ%2B.a-b_c HTTP/1.1"
    )
    assert first.headers["content-length"] == "0"
    assert not {"authorization", "content-type", "transfer-encoding"} & set(first.headers)
    assert second.headers["authorization"] == "Bearer the-token"


# The whole way, against the practice cloud


def practice_settings(cloud: PracticeCloud, **changes: Any) -> Cloud:
    terms = cloud.terms
    values: dict[str, Any] = {
        "url": cloud.url,
        "token_url": cloud.token_url,
        "client_id": terms.client_id,
        "audience": terms.audience,
        "key_id": "practice-key",
        "callback_auth": terms.callback_auth,
    }
    return Cloud(**values | changes)


async def deliver(cloud: PracticeCloud, picture: Path, *, event_id: str = "e1") -> Answer:
    """Token, event, file, callback."""
    clock = FakeClock(wall=int(time.time() * 1000))
    config = practice_settings(cloud)
    secrets = Secrets(signing_key=parse_key(cloud.practice_key, "RS256"))
    async with Client(config, version="1") as client:
        source = TokenSource(config, secrets, client.post_form, clock)
        token = await source.get()
        event = an_event(event_id=event_id, event_at=clock.wall, received_at=clock.wall, received_ticks=clock.ticks)
        media = [MediaOnDisk(MediaKind.SNAPSHOT, 0, on_disk=True)]
        request = compose(event, media, sent_at=clock.wall, ticks=clock.ticks, options=Options())
        reply = await client.post_event(request.body, request.idempotency_key, token)
        answer = read_answer(reply, ticks=clock.ticks, wall=clock.wall, cloud_url=config.url)
        for slot in answer.slots:
            seconds = (slot.deadline_ticks - clock.ticks) / 1000
            stored = await client.put_file(slot.put_url, picture, content_type="image/jpeg", seconds_left=seconds)
            put_answer = read_put_answer(stored, wall=clock.wall, sent_content_type=False)
            assert put_answer.verdict is UploadVerdict.DONE, put_answer
            confirmed = await client.confirm(slot.callback_url, token)
            told = read_callback_answer(confirmed, wall=clock.wall, unclear_before=False)
            assert told.verdict is UploadVerdict.DONE, told
        await source.close()
        return answer


@pytest.mark.parametrize("terms", [Terms(), Terms(callback_auth=True), Terms(sign_content_type=True)])
async def test_a_strict_cloud_takes_an_event_and_its_picture(terms: Terms, picture: Path) -> None:
    async with PracticeCloud(terms) as cloud:
        answer = await deliver(cloud, picture)
        assert answer.verdict is Verdict.ACCEPTED
        (event,) = cloud.events
        assert event.confirmed
        assert event.uploads[0].sha256 == hashlib.sha256(JPEG).hexdigest()
        assert event.uploads[0].looks_wrong is None
        assert answer.chekt_event_id == event.chekt_event_id
        assert [request.refusal for request in cloud.requests if request.refusal] == []


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (faults.Status(400), Verdict.REFUSED),
        (faults.Status(403), Verdict.FORBIDDEN),
        (faults.Status(404), Verdict.UNKNOWN),
        (faults.Status(409), Verdict.CONFLICT),
        (faults.Status(429, retry_after="3"), Verdict.THROTTLED),
        (faults.Status(503), Verdict.BUSY),
        (faults.Html(), Verdict.NOT_THE_API),
        (faults.RefuseCredentials(), Verdict.UNAUTHORISED),
        (faults.Drop(), Verdict.UNANSWERED),
        (faults.DropBeforeAnswer(), Verdict.UNANSWERED),
        (faults.CutOff(), Verdict.CUT_OFF),
        (faults.Trickle(seconds=0.2), Verdict.ACCEPTED),
        (faults.Discard(), Verdict.DISCARDED),
        (faults.NoUploads("null"), Verdict.ACCEPTED),
        (faults.NoUploads("absent"), Verdict.ACCEPTED),
        (faults.Slots(snapshots=3, short=True, event=True), Verdict.ACCEPTED),
    ],
)
async def test_every_fault_of_the_cloud_is_recognised(
    practice: PracticeCloud, fault: faults.Fault, verdict: Verdict, tmp_path: Path
) -> None:
    practice.script([fault])
    clock = FakeClock(wall=int(time.time() * 1000))
    config = practice_settings(practice)
    secrets = Secrets(signing_key=parse_key(practice.practice_key, "RS256"))
    async with Client(config, version="1") as client:
        source = TokenSource(config, secrets, client.post_form, clock)
        event = an_event(event_at=clock.wall, received_at=clock.wall, received_ticks=clock.ticks)
        media = [MediaOnDisk(MediaKind.SNAPSHOT, 0, on_disk=True)]
        request = compose(event, media, sent_at=clock.wall, ticks=clock.ticks, options=Options())
        reply = await client.post_event(request.body, request.idempotency_key, await source.get())
        answer = read_answer(reply, ticks=clock.ticks, wall=clock.wall, cloud_url=config.url)
        assert answer.verdict is verdict, answer
        if isinstance(fault, faults.Slots):
            assert len(answer.slots) == 5
        if verdict is Verdict.THROTTLED:
            assert answer.retry_after_ms == 3_000
        assert json.loads(request.body)["upload_snapshot_count"] == 1


async def test_closing_the_client_leaves_nothing_open() -> None:
    async with RawServer(says(OK)) as server:
        client = a_client(server.url)
        await client.post_event(b"{}", "e", "t")
        await client.close()
        with pytest.raises((RuntimeError, aiohttp.ClientError)):
            await client._session.get(server.url)
