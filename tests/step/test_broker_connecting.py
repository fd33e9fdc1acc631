"""Making the connection: every transport, both protocols, and each refusal in words that a person can act on."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from gateway import config
from gateway.sources.broker_target import shown, target_of
from tests.fakes.mosquitto import Certificates, Mosquitto, free_port
from tests.fakes.old_broker import OldBroker, ScriptedBroker, ordinary, protocol_level, publish
from tests.fakes.publisher import Publisher
from tests.fakes.session import QUICK, Running
from tests.fakes.waiting import until

needs_mosquitto = pytest.mark.needs("mosquitto")
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
Protocol = Literal["5", "3.1.1"]
Logs = list[MutableMapping[str, Any]]


def said(logs: Logs, event: str) -> Logs:
    return [entry for entry in logs if entry["event"] == event and entry["log_level"] != "debug"]


# --- transports -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


def tls_lines(certificates: Certificates, *, client: bool = False, **issue: Any) -> list[str]:
    cert, key = certificates.issue("broker", **issue)
    lines = [f"certfile {cert}", f"keyfile {key}"]
    if client:
        lines += [f"cafile {certificates.ca_file}", "require_certificate true"]
    return lines


@pytest.mark.slow
@needs_mosquitto
@both
@pytest.mark.parametrize("transport", ["mqtt", "mqtts", "ws", "wss"])
async def test_every_transport_carries_a_burst_whole_and_in_order(
    transport: str, protocol: Protocol, tmp_path: Path, certificates: Certificates
) -> None:
    """With TLS and websockets, bytes wait in buffers that select() does not see; the burst ends only if we look."""
    lines = []
    options: dict[str, Any] = {}
    if transport in ("mqtts", "wss"):
        lines += tls_lines(certificates, client=True)
        cert, key = certificates.issue("gateway")
        options = {"ca_file": str(certificates.ca_file), "cert_file": str(cert), "key_file": str(key)}
    plain = free_port()
    if transport in ("ws", "wss"):
        lines.append("protocol websockets")
    lines += ["max_inflight_messages 300", f"listener {plain} 127.0.0.1"]
    async with Mosquitto(tmp_path, config=lines) as broker, Publisher(plain) as device:
        url = f"{transport}://localhost:{broker.port}" + ("/mqtt" if transport == "ws" else "")
        async with Running(url, protocol=protocol, receive_maximum=300, **options) as running:
            payloads = [str(number).encode() * (1 + 13 * (number % 200)) for number in range(600)]
            for payload in payloads:
                device.publish("alarm/door", payload)
            # Mosquitto's websockets may write 4 KiB at a time, ten times a second.
            picture = bytes(30_000 if transport in ("ws", "wss") else 700_000)
            device.publish("alarm/picture", picture)
            got: list[bytes] = []
            while len(got) < 601:
                got += await running.take(1)
            assert got == [*payloads, picture]
            assert running.facts["unacknowledged"] == 0


@pytest.mark.parametrize("receive_maximum", [300, 10])
async def test_what_tls_has_decrypted_already_is_not_forgotten(
    receive_maximum: int, certificates: Certificates
) -> None:
    """Many packets in one TLS record, then silence: nothing tells us about the rest, least of all after a pause."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.issue("broker"))
    burst = b"".join(publish(mid, "alarm/door", str(mid).encode()) for mid in range(1, 251))
    assert len(burst) < 1 << 14  # a TLS record

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        if b"online" in packet:
            return b""  # its PUBACK would be one more thing to read, and wake us
        answer = ordinary()(broker, packet)
        return answer + burst if answer and packet[0] & 0xF0 == 0x80 else answer

    async with (
        ScriptedBroker(talk, tls=context) as broker,
        Running(
            f"mqtts://localhost:{broker.port}",
            ca_file=str(certificates.ca_file),
            receive_maximum=receive_maximum,
        ) as running,
    ):
        got: list[bytes] = []
        while len(got) < 250:
            got += await running.take(10)
        assert got == [str(mid).encode() for mid in range(1, 251)]


@needs_mosquitto
async def test_small_packets_leave_at_once(tmp_path: Path) -> None:
    """TCP_NODELAY, and an end for what nobody confirms."""
    async with Mosquitto(tmp_path) as broker, Running(broker.url) as running:
        link = running.session._link
        assert link is not None
        sock = link._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2 * QUICK.keepalive * 1000


@needs_mosquitto
@pytest.mark.parametrize(
    ("issue", "trusted", "words"),
    [
        ({"valid_from": datetime.timedelta(days=1)}, True, "not yet valid; is this machine's clock right?"),
        ({"valid_from": datetime.timedelta(days=-9)}, True, "has expired, or this machine's clock is wrong"),
        ({"hosts": ("broker.example",)}, True, "is for another name than localhost"),
        ({}, False, "not signed by an authority that we trust"),
    ],
)
async def test_a_certificate_that_is_not_good_is_refused_and_named(
    issue: dict[str, Any], trusted: bool, words: str, tmp_path: Path, certificates: Certificates
) -> None:
    """Verification cannot be switched off."""
    ca_file = certificates.ca_file if trusted else Certificates.create(tmp_path / "other").ca_file
    async with Mosquitto(tmp_path, config=tls_lines(certificates, **issue)) as broker:
        with capture_logs() as logs:
            async with Running(f"mqtts://localhost:{broker.port}", wait=False, ca_file=str(ca_file)) as running:
                await until(lambda: len(running.waits) >= 3)
        assert not running.session.connected
        [entry] = said(logs, "mqtt_connect_failed")
        assert words in entry["reason"]
        assert entry["log_level"] == "error"


@needs_mosquitto
async def test_a_missing_client_certificate_is_named(tmp_path: Path, certificates: Certificates) -> None:
    """TLS 1.3 tells it only after the handshake; it is no sign of an old protocol."""
    async with Mosquitto(tmp_path, config=tls_lines(certificates, client=True)) as broker:
        url = f"mqtts://localhost:{broker.port}"
        async with Running(url, wait=False, ca_file=str(certificates.ca_file)) as running:
            await until(lambda: len(running.waits) >= 4)
            assert "wants a client certificate (cert_file, key_file)" in running.facts["last_error"]
            assert running.facts["fell_back"] is False


@needs_mosquitto
async def test_a_port_without_tls_is_named(tmp_path: Path, certificates: Certificates) -> None:
    async with Mosquitto(tmp_path) as broker:
        url = f"mqtts://localhost:{broker.port}"
        async with Running(url, wait=False, ca_file=str(certificates.ca_file)) as running:
            await running.failed()
            assert str(broker.port) in running.facts["last_error"]
            assert not running.session.connected


async def test_a_file_that_is_missing_or_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for name, words in (("missing.pem", "No such file"), ("nonsense.pem", "not a usable PEM")):
        path = str(tmp_path / name)
        async with Running("mqtts://localhost:1", wait=False, ca_file=path) as running:
            await running.failed()
            assert path in running.facts["last_error"]
            assert words in running.facts["last_error"]


@needs_mosquitto
async def test_a_renewed_certificate_is_used_at_the_next_connect(tmp_path: Path, certificates: Certificates) -> None:
    other = Certificates.create(tmp_path / "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(other.ca_file.read_bytes())
    async with (
        Mosquitto(tmp_path, config=tls_lines(certificates)) as broker,
        Running(f"mqtts://localhost:{broker.port}", wait=False, ca_file=str(trusted)) as running,
    ):
        await running.failed()
        trusted.write_bytes(certificates.ca_file.read_bytes())
        await running.connected()


@needs_mosquitto
async def test_what_is_no_websocket_is_named(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as broker, Running(f"ws://127.0.0.1:{broker.port}", wait=False) as running:
        await running.failed()
        assert "WebSocket" in running.facts["last_error"]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def passwords(tmp_path: Path) -> list[str]:
    file = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(file), "gateway", "right"], check=True, capture_output=True)
    return ["allow_anonymous false", f"password_file {file}"]


@pytest.mark.needs("mosquitto", "mosquitto_passwd")
@both
async def test_a_wrong_password_is_said_once_and_tried_for_ever(
    protocol: Protocol, tmp_path: Path, passwords: list[str]
) -> None:
    async with Mosquitto(tmp_path, config=passwords) as broker:
        with capture_logs() as logs:
            async with Running(
                broker.url, protocol=protocol, wait=False, username="gateway", password="wrong"
            ) as running:
                await until(lambda: len(running.waits) >= 5)
        [entry] = said(logs, "mqtt_connect_failed")
        assert entry["reason"] == "the broker refuses our user name or password"
        assert entry["log_level"] == "error"
        assert "wrong" not in repr(logs)
        async with Running(broker.url, protocol=protocol, username="gateway", password="right") as running:
            assert running.session.connected
        async with Running(broker.url, protocol=protocol, wait=False) as running:
            await running.failed()
            assert "none is configured" in running.facts["last_error"]


def test_no_secret_is_shown() -> None:
    target = target_of(config.Broker(username="gateway"), "Z6RSOG", "secret", QUICK)
    assert "secret" not in repr(target)
    assert shown("wss://a:b@[::1]:443/mqtt?token=x") == "wss://[::1]:443/mqtt"


async def test_an_unknown_host_is_named() -> None:
    async with Running("mqtts://no-such-host.invalid", wait=False) as running:
        await running.failed()
        assert "no-such-host.invalid" in running.facts["last_error"]


async def test_a_refused_filter_is_said_loudly_and_the_others_go_on() -> None:
    """Also a broker that grants less than we asked for, and a filter that is none."""
    with capture_logs() as logs:
        async with (
            ScriptedBroker(ordinary(suback=b"\x87\x01\x00")) as broker,
            Running(broker.url, filters=["secret/#", "alarm/#", "weak/#", "wrong/#/end"]) as running,
        ):
            assert running.facts["refused_filters"] == {
                "secret/#": "not permitted",
                "wrong/#/end": "'#' stands alone, as the last level",
            }
            assert running.facts["filters_without_qos"] == ["weak/#"]
            assert running.session.subscribed_filters == {"alarm/#", "weak/#"}
            assert running.session.connected
    assert {entry["topic"] for entry in said(logs, "mqtt_filter_refused")} == {"secret/#", "wrong/#/end"}
    assert all(entry["log_level"] == "error" for entry in said(logs, "mqtt_filter_refused"))
    assert [entry["topic"] for entry in said(logs, "mqtt_filter_without_qos")] == ["weak/#"]


async def test_connect_says_what_the_session_needs() -> None:
    """MQTT 5: no clean start, session expiry and receive maximum as configured; the will is retained, QoS 1."""
    async with ScriptedBroker(ordinary()) as broker:
        async with Running(broker.url, receive_maximum=321, session_expiry="2d"):
            pass
        [connect] = broker.connects
        assert connect[9] == 0b0010_1100  # will retain, will QoS 1, will; no clean start
        properties = connect[13 : 13 + connect[12]]
        assert b"\x11" + (2 * 86400).to_bytes(4, "big") in properties
        assert b"\x21" + (321).to_bytes(2, "big") in properties
        assert b"chekt-gateway/Z6RSOG/state\x00\x07offline" in connect
        assert b"chekt-gateway-Z6RSOG" in connect
        kinds = [packet[0] & 0xF0 for packet in broker.packets]
        assert kinds == [0x10, 0x80, 0x30, 0x30, 0xE0]  # CONNECT SUBSCRIBE online offline DISCONNECT


# --- an older protocol ----------------------------------------------------------------------------------------------


async def test_a_broker_of_3_1_1_is_found_out_and_used() -> None:
    """A real one (amqtt), which never answers the CONNECT of MQTT 5."""
    with capture_logs() as logs:
        async with OldBroker() as broker, Running(broker.url, timing=replace(QUICK, connect_timeout=0.5)) as running:
            assert running.facts["protocol"] == "3.1.1"
            assert running.facts["fell_back"] is True
            async with Publisher(broker.port) as device:
                device.publish("alarm/door", "ON")
                assert await running.take(1) == [b"ON"]
            running.session.drop("again")
            await until(lambda: running.facts["connections"] == 2)
            assert running.facts["protocol"] == "3.1.1"
    assert len(said(logs, "mqtt_protocol_fell_back")) == 1


def speaks_only_3_1_1(answer: bytes | None) -> Callable[[ScriptedBroker, bytes], bytes | None]:
    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        match packet[0] & 0xF0:
            case 0x10:
                return b"\x20\x02\x00\x00" if protocol_level(packet) == 4 else answer
            case 0x80:
                return b"\x90\x03" + packet[2:4] + b"\x01"
            case 0x30:
                return b"\x40\x02" + packet[4 + packet[3] :][:2]
            case 0xE0:
                return None
            case _:
                return b""

    return talk


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (b"\x20\x02\x00\x01", 1),  # CONNACK of 3.1.1: unacceptable protocol version
        (b"\x20\x03\x00\x84\x00", 1),  # CONNACK of 5: unsupported protocol version
        (None, 2),  # just closes; so does a broker that is starting, hence twice
    ],
)
async def test_each_way_to_refuse_mqtt_5_leads_to_3_1_1(answer: bytes | None, tries: int) -> None:
    with capture_logs() as logs:
        async with ScriptedBroker(speaks_only_3_1_1(answer)) as broker, Running(broker.url) as running:
            assert [protocol_level(connect) for connect in broker.connects] == [5] * tries + [4]
            assert running.facts["protocol"] == "3.1.1"
    assert len(said(logs, "mqtt_protocol_fell_back")) == 1
    assert len(said(logs, "mqtt_connected")) == 1


async def test_a_broker_that_refuses_3_1_1_is_not_asked_in_an_even_older_one() -> None:
    """The library would try MQTT 3.1, and block the event loop for it."""
    with capture_logs() as logs:
        async with (
            ScriptedBroker(lambda broker, packet: b"\x20\x02\x00\x01") as broker,
            Running(broker.url, protocol="3.1.1", wait=False) as running,
        ):
            await until(lambda: len(running.waits) >= 3)
            assert len(broker.connects) >= 3
            assert {protocol_level(connect) for connect in broker.connects} == {4}
            assert broker.connections == len(broker.connects)
    assert said(logs, "mqtt_connect_failed")


async def test_a_broker_that_answers_nobody_is_not_taken_for_an_old_one() -> None:
    """A port mapping in front of a broker that is still starting accepts and closes, whatever is said."""
    with capture_logs() as logs:
        async with (
            ScriptedBroker(lambda broker, packet: None) as broker,
            Running(broker.url, wait=False) as running,
        ):
            await until(lambda: len(broker.connects) >= 7)
            levels = [protocol_level(connect) for connect in broker.connects[:7]]
            assert levels == [5, 5, 4, 5, 5, 4, 5]
            assert running.facts["fell_back"] is False
    assert said(logs, "mqtt_protocol_fell_back") == []


# --- others with our id, and stopping -------------------------------------------------------------------------------


async def test_another_client_with_our_id_is_named() -> None:
    """MQTT 5, DISCONNECT 0x8E; and we wait longer than usual, or each would throw out the other for ever."""
    with capture_logs() as logs:
        async with (
            ScriptedBroker(ordinary()) as broker,
            Running(broker.url, timing=replace(QUICK, taken_over=33.0)) as running,
        ):
            broker.say(b"\xe0\x02\x8e\x00")
            await until(lambda: running.waits)
            assert running.waits == [(33.0, 66.0)]
            assert "another client uses the id chekt-gateway-Z6RSOG" in running.facts["last_error"]
    [entry] = said(logs, "mqtt_lost")
    assert entry["log_level"] == "error"


@needs_mosquitto
async def test_two_gateways_with_one_id_do_not_throw_each_other_out_for_ever(tmp_path: Path) -> None:
    """Debian 12's Mosquitto (2.0.11) closes the older connection without a word, also with MQTT 5."""
    timing = replace(QUICK, taken_over=33.0)
    async with Mosquitto(tmp_path) as broker:
        with capture_logs() as logs:
            async with (
                Running(broker.url, timing=timing) as one,
                Running(broker.url, timing=timing, wait=False) as two,
            ):
                await until(lambda: (33.0, 66.0) in one.waits + two.waits)
                winner = one if (33.0, 66.0) in two.waits else two
                await winner.connected()
                assert len(one.waits) + len(two.waits) <= 6
    assert "error" in {entry["log_level"] for entry in said(logs, "mqtt_lost")}


async def test_without_a_reason_quick_ends_are_blamed_on_a_second_client_after_three() -> None:
    """MQTT 3.1.1 has no DISCONNECT from the broker."""

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        match packet[0] & 0xF0:
            case 0x10:
                return b"\x20\x02\x01\x00"
            case 0x80:
                return b"\x90\x03" + packet[2:4] + b"\x01"
            case _:
                return None

    with capture_logs() as logs:
        async with ScriptedBroker(talk) as broker:
            timing = replace(QUICK, taken_over=33.0)
            async with Running(broker.url, protocol="3.1.1", wait=False, timing=timing) as running:
                await until(lambda: (33.0, 66.0) in running.waits)
                assert len(running.waits) == 3
                assert "probably another client uses the id" in running.facts["last_error"]
    assert [entry["log_level"] for entry in said(logs, "mqtt_lost")] == ["warning", "warning", "error"]


async def test_quick_ends_that_the_broker_did_not_wish_are_not_blamed_on_a_second_client() -> None:
    """A network that damages what passes, or a machine without memory: the long wait would make alarms late."""

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        match packet[0] & 0xF0:
            case 0x10:
                return b"\x20\x02\x01\x00"
            case 0x80:
                return b"\x90\x03" + packet[2:4] + b"\x01" + b"\x00\x00"
            case _:
                return None

    async with ScriptedBroker(talk) as broker:
        timing = replace(QUICK, taken_over=33.0)
        async with Running(broker.url, protocol="3.1.1", wait=False, timing=timing) as running:
            await until(lambda: len(running.waits) >= 5)
            assert (33.0, 66.0) not in running.waits
            assert "not MQTT" in running.facts["last_error"]


async def test_a_stop_while_connecting_ends_at_once() -> None:
    """A TLS handshake that nobody answers blocks in its thread; the thread is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"mqtts://127.0.0.1:{listener.getsockname()[1]}"
        async with Running(url, wait=False, timing=replace(QUICK, connect_timeout=5.0)) as running:
            peer, _ = await asyncio.get_running_loop().sock_accept(listener)
            with peer:
                before = asyncio.get_running_loop().time()
                await running.stop()
                assert asyncio.get_running_loop().time() - before < 1.0


async def test_an_attempt_that_was_given_up_sends_no_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our id it would throw out the connection that was made since."""
    looked_up = threading.Event()
    go_on = threading.Event()
    look_up = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "mqtt-connect":
            looked_up.set()
            go_on.wait(20)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with ScriptedBroker(lambda broker, packet: b"") as broker:
        async with Running(broker.url, wait=False) as running:
            await until(looked_up.is_set)
            await running.stop()
        go_on.set()
        await until(lambda: not any(thread.name == "mqtt-connect" for thread in threading.enumerate()))
        await until(lambda: broker.connections == 1 and broker.open == 0)
        assert broker.connects == []


async def test_it_stops_while_it_waits_for_the_next_attempt() -> None:
    timing = replace(QUICK, retry_first=1000.0, retry_max=1000.0)
    async with Running(f"mqtt://127.0.0.1:{free_port()}", wait=False, timing=timing) as running:
        await until(lambda: running.waits)
        assert "nothing listens" in running.facts["last_error"]
        before = asyncio.get_running_loop().time()
        await running.stop()
        assert asyncio.get_running_loop().time() - before < 1.0
