"""What a broker or a device may do that few do: QoS 2, odd topics, no answer to a subscription, a word refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from structlog.testing import capture_logs

from gateway.sources.broker_window import OVERSIZE_KEPT
from tests.fakes.mosquitto import Mosquitto
from tests.fakes.old_broker import ScriptedBroker, ordinary, publish
from tests.fakes.publisher import Publisher
from tests.fakes.session import LOCATION, QUICK, STATE, Running
from tests.fakes.waiting import until

Protocol = Literal["5", "3.1.1"]
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
needs_mosquitto = pytest.mark.needs("mosquitto")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


# --- QoS 2 ----------------------------------------------------------------------------------------------------------


async def subscribe_with_qos_2(broker: Mosquitto) -> None:
    """Somebody before us used our id, and wanted QoS 2. He is gone, his session is not."""
    subscribed = asyncio.Event()
    loop = asyncio.get_running_loop()
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"chekt-gateway-{LOCATION}", clean_session=False)
    client.on_connect = lambda client, *_: client.subscribe("alarm/#", 2)

    def on_subscribe(*_: Any) -> None:
        loop.call_soon_threadsafe(subscribed.set)

    client.on_subscribe = on_subscribe
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    async with asyncio.timeout(10):
        await subscribed.wait()
    client.disconnect()
    client.loop_stop()


async def publish_many(broker: Mosquitto, first: int, count: int, qos: int = 2) -> list[bytes]:
    async with Publisher(broker.port, inflight=15) as device:
        for number in range(first, first + count):
            device.publish("alarm/door", str(number), qos=qos)
        await device.confirmed()
        return device.acked


async def take(running: Running, count: int) -> list[bytes]:
    """No more at a time than the window of MQTT 3.1.1 has."""
    taken: list[bytes] = []
    while len(taken) < count:
        taken += await running.take(min(10, count - len(taken)))
    return taken


@needs_mosquitto
@both
async def test_a_session_that_still_holds_qos_2_messages_hands_them_all_out(
    broker: Mosquitto, protocol: Protocol
) -> None:
    await subscribe_with_qos_2(broker)
    waiting = await publish_many(broker, 0, 60)
    async with Running(broker.url, protocol=protocol, wait=False, had_session=True) as running:
        got = await running.receive(20)
        assert {received.message.qos for received in got} == {2}
        running.session.acknowledge([received.token for received in got])
        assert [received.message.payload for received in got] + await take(running, 40) == waiting
        await running.connected()
        later = await publish_many(broker, 100, 30)
        assert await take(running, 30) == later
    async with Running(broker.url, protocol=protocol, had_session=True) as again:
        assert await publish_many(broker, 200, 1) == await again.take(1), "nothing comes twice, nothing is stuck"


@needs_mosquitto
@both
async def test_a_crash_amid_qos_2_messages_of_somebody_elses_session_does_not_stop_the_flow(
    broker: Mosquitto, protocol: Protocol
) -> None:
    """Nor is anything lost in it. Were half-done places in the broker's window never given back, nothing would arrive
    any more."""
    await subscribe_with_qos_2(broker)
    waiting = await publish_many(broker, 0, 60)
    committed: list[bytes] = []
    for _ in range(3):
        running = await Running(broker.url, protocol=protocol, wait=False, had_session=True).__aenter__()
        got = await running.receive(15)
        running.session.acknowledge([received.token for received in got[:4]])
        committed = [*committed, *(received.message.payload for received in got[:4])]
        await running.crash()
    async with Running(broker.url, protocol=protocol, wait=False, had_session=True) as again:
        fresh = await publish_many(broker, 100, 30, qos=1)
        seen: list[bytes] = []
        while fresh[-1] not in seen:
            async with asyncio.timeout(10):
                got = await again.session.receive(100)
            again.session.acknowledge([received.token for received in got])
            seen += [received.message.payload for received in got]
        assert [payload for payload in seen if payload in fresh] == fresh
        assert set(committed) | set(seen) >= set(waiting)


@needs_mosquitto
@both
async def test_devices_that_publish_with_qos_2_lose_nothing_over_crashes(broker: Mosquitto, protocol: Protocol) -> None:
    """Our own subscription has QoS 1, and with it what they publish."""
    committed: set[bytes] = set()
    running = await Running(broker.url, protocol=protocol).__aenter__()
    sent = asyncio.create_task(publish_many(broker, 0, 400))
    for _ in range(4):
        got = await running.receive(10)
        running.session.acknowledge([received.token for received in got])
        committed |= {received.message.payload for received in got}
        await running.receive(3)  # these are not committed
        await running.crash()
        running = await Running(broker.url, protocol=protocol, had_session=True, wait=False).__aenter__()
    acked = await sent
    while not committed >= set(acked):
        async with asyncio.timeout(10):
            got = await running.session.receive(100)
        running.session.acknowledge([received.token for received in got])
        committed |= {received.message.payload for received in got}
    assert len(acked) == 400
    await running.stop()


# --- odd words ------------------------------------------------------------------------------------------------------


async def test_topics_and_payloads_that_are_no_utf_8_are_handed_out() -> None:
    """A broker that does not check (MQTT 5.0, 1.5.4, it should). Refusing it would bring it again for ever."""
    async with ScriptedBroker(ordinary(session_present=True)) as broker, Running(broker.url) as running:
        packet = publish(7, "alarm/X", b"\xff\xfe")
        broker.say(packet.replace(b"X", b"\xe9"))
        [received] = await running.receive(1)
        assert received.message.topic == "alarm/\udce9"
        assert received.message.payload == b"\xff\xfe"
        assert received.message.digest()
        running.session.acknowledge([received.token])
        await until(lambda: b"\x40\x02\x00\x07" in broker.packets or b"\x40\x04\x00\x07\x00\x00" in broker.packets)
        assert running.session.connected


@needs_mosquitto
async def test_topics_with_spaces_signs_and_a_dollar_are_ordinary(broker: Mosquitto) -> None:
    """A topic that begins with `$` belongs to the broker itself, and must be named (MQTT 5.0, 4.7.2)."""
    topics = ["alarm/front door", "alarm/ä/#no", "alarm/$x/y", "alarm//", "$own/alarm"]
    topics = [topic.replace("#", "") for topic in topics]
    async with (
        Running(broker.url, filters=["alarm/#", "$own/alarm", "+/alarm"]) as running,
        Publisher(broker.port) as device,
    ):
        for topic in topics:
            device.publish(topic, "ON")
        assert [received.message.topic for received in await running.receive(len(topics))] == topics


@needs_mosquitto
@both
async def test_a_payload_far_beyond_the_limit_is_hashed_whole_and_kept_in_part(
    broker: Mosquitto, protocol: Protocol
) -> None:
    payload = hashlib.sha256(b"seed").digest() * 100_000
    async with (
        Running(broker.url, protocol=protocol, max_message=100_000) as running,
        Publisher(broker.port) as device,
    ):
        device.publish("alarm/picture", payload)
        device.publish("alarm/door", "ON")
        large, small = await running.receive(2)
        assert large.message.payload == payload[:OVERSIZE_KEPT]
        assert (large.oversize, large.oversize_sha256) == (len(payload), hashlib.sha256(payload).hexdigest())
        assert small.message.payload == b"ON"
        running.session.acknowledge([large.token, small.token])
        assert running.facts["unacknowledged"] == 0


# --- answers that do not come ---------------------------------------------------------------------------------------


async def test_a_subscription_that_is_not_answered_is_tried_again() -> None:
    """Without it we would be connected and deaf."""
    usual = ordinary()
    deaf = [True, True, False]

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        if packet[0] & 0xF0 == 0x80 and deaf[broker.connections - 1]:
            return b""
        return usual(broker, packet)

    with capture_logs() as logs:
        async with ScriptedBroker(talk) as broker, Running(broker.url, timing=replace(QUICK, suback=0.05)) as running:
            assert broker.connections == 3
            assert running.session.is_subscribed
    dropped = [entry for entry in logs if entry["event"] == "mqtt_dropped"]
    assert "did not answer our SUBSCRIBE" in dropped[0]["reason"]
    assert [entry["log_level"] for entry in dropped] == ["warning", "debug"]


async def test_a_subscription_behind_a_backlog_is_waited_for() -> None:
    usual = ordinary()

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        return b"" if packet[0] & 0xF0 == 0x80 else usual(broker, packet)

    async with ScriptedBroker(talk) as broker:
        timing = replace(QUICK, suback=0.05)
        async with Running(broker.url, wait=False, timing=timing) as running:
            await until(lambda: running.session.connected)
            broker.say(publish(1, "alarm/door", b"ON"))
            [received] = await running.receive(1)
            await until(lambda: len(running.session._timers) >= 5, what="several looks at the clock")
            assert broker.connections == 1
            running.session.acknowledge([received.token])
            await until(lambda: broker.connections == 2)


async def test_a_broker_that_does_not_take_our_state_is_said_and_used() -> None:
    """MQTT 5, PUBACK 0x87: not authorised. Alarms come all the same."""
    usual = ordinary()

    def talk(broker: ScriptedBroker, packet: bytes) -> bytes | None:
        if packet[0] & 0xF0 == 0x30:
            return b"\x40\x03" + packet[4 + packet[3] :][:2] + b"\x87"
        return usual(broker, packet)

    with capture_logs() as logs:
        async with ScriptedBroker(talk) as broker, Running(broker.url) as running:
            broker.say(publish(1, "alarm/door", b"ON"))
            assert await running.take(1) == [b"ON"]
            await until(lambda: any(entry["event"] == "mqtt_state_refused" for entry in logs))
    [entry] = [entry for entry in logs if entry["event"] == "mqtt_state_refused"]
    assert (entry["topic"], entry["log_level"]) == (STATE, "warning")
