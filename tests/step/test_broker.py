"""The broker session against a real Mosquitto: what is handed out, when it is acknowledged, what comes again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from gateway.sources.broker_filters import Filter
from gateway.sources.broker_window import OVERSIZE_KEPT, AckToken, Received
from tests.fakes.mosquitto import Mosquitto
from tests.fakes.publisher import Publisher
from tests.fakes.session import STATE, Running
from tests.fakes.waiting import until

pytestmark = pytest.mark.needs("mosquitto")

Protocol = Literal["5", "3.1.1"]
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


@both
async def test_a_message_comes_with_everything_that_the_broker_said(broker: Mosquitto, protocol: Protocol) -> None:
    """Topic, payload, flags and both clocks; live messages are no replay."""
    async with Running(broker.url, protocol=protocol) as running, Publisher(broker.port) as device:
        device.publish("alarm/door", b"\x00ON\xff")
        [received] = await running.receive(1)
        message = received.message
        assert (message.topic, message.payload, message.qos) == ("alarm/door", b"\x00ON\xff", 1)
        assert (message.retain, message.dup, message.replay) == (False, False, False)
        assert (message.received_at, message.received_ticks) == (running.clock.wall, running.clock.ticks)
        assert received.oversize is None
        assert running.facts["protocol"] == protocol
        assert running.facts["unacknowledged"] == 1
        running.session.acknowledge([received.token])
        assert running.facts["unacknowledged"] == 0


@both
async def test_what_is_not_acknowledged_comes_again_after_a_crash(broker: Mosquitto, protocol: Protocol) -> None:
    """And what is acknowledged does not. In order, marked DUP."""
    async with Publisher(broker.port) as device:
        running = await Running(broker.url, protocol=protocol).__aenter__()
        for number in range(5):
            device.publish("alarm/door", str(number))
        first = await running.receive(5)
        running.session.acknowledge([received.token for received in first[:2]])
        await until(lambda: broker.log_text().count("Received PUBACK from chekt-gateway") == 2)
        await running.crash()

        async with Running(broker.url, protocol=protocol, had_session=True) as again:
            second = await again.receive(3)
            assert [received.message.payload for received in second] == [b"2", b"3", b"4"]
            assert all(received.message.dup for received in second)
            assert again.gaps == []


@both
async def test_acknowledgements_leave_in_order_of_receipt(broker: Mosquitto, protocol: Protocol) -> None:
    """MQTT 5.0, 4.6.0-2."""
    async with Running(broker.url, protocol=protocol) as running, Publisher(broker.port) as device:
        for number in range(30):
            device.publish("alarm/door", str(number))
        got = await running.receive(20 if protocol == "3.1.1" else 30)
        running.session.acknowledge([received.token for received in got])
        mids = [received.token.mid for received in got]
        await until(lambda: broker.log_text().count("Received PUBACK from chekt-gateway") >= len(mids))
        said = [line for line in broker.log_text().splitlines() if "Received PUBACK from chekt-gateway" in line]
        assert [f"Mid: {mid}," in line for mid, line in zip(mids, said, strict=False)] == [True] * len(mids)


@both
async def test_messages_wait_in_the_broker_while_the_gateway_is_away(broker: Mosquitto, protocol: Protocol) -> None:
    """A fixed client id, a session that outlives the process, no UNSUBSCRIBE and no clean start (mqtt: 15 of 15)."""
    async with Running(broker.url, protocol=protocol) as running:
        assert running.facts["session_present"] is False
    async with Publisher(broker.port) as device:
        for number in range(15):
            device.publish("alarm/door", str(number))
        await device.confirmed()
    async with Running(broker.url, protocol=protocol, had_session=True) as again:
        assert await again.take(15) == [str(number).encode() for number in range(15)]
        assert again.facts["session_present"] is True
        assert again.gaps == []


async def test_qos_2_is_subscribed_as_1_and_qos_0_needs_no_acknowledgement(broker: Mosquitto) -> None:
    async with Running(broker.url) as running, Publisher(broker.port) as device:
        device.publish("alarm/two", "2", qos=2)
        [received] = await running.receive(1)
        assert received.message.qos == 1
        assert received.token.mid > 0
        device.publish("alarm/zero", "0", qos=0)
        [received] = await running.receive(1)
        assert received.message.qos == 0
        assert received.token.mid == 0
        running.session.acknowledge([received.token])
        assert running.facts["unacknowledged"] == 1


@both
async def test_a_token_of_an_older_connection_acknowledges_nothing(tmp_path: Path, protocol: Protocol) -> None:
    """The broker lost its sessions and counts packet ids from 1 again: the late token of the old message 1 must not
    acknowledge the new message 1, which would be lost in a crash."""
    broker = Mosquitto(tmp_path, persistence=False)
    async with broker, Running(broker.url, protocol=protocol) as running:
        async with Publisher(broker.port) as device:
            device.publish("alarm/door", "old")
            [old] = await running.receive(1)
        await broker.kill()
        await until(lambda: not running.session.connected)
        await broker.start()
        await running.connected()
        async with Publisher(broker.port) as device:
            device.publish("alarm/door", "new")
            [new] = await running.receive(1)
        assert new.token.mid == old.token.mid
        assert running.session.is_current(new.token)
        assert not running.session.is_current(old.token)
        running.session.acknowledge([old.token])
        assert running.facts["unacknowledged"] == 1
        await running.crash()
        async with Running(broker.url, protocol=protocol, had_session=True) as again:
            [redelivered] = await again.receive(1)
            assert redelivered.message.payload == b"new"
            assert redelivered.message.dup


async def test_a_deliberate_reconnect_brings_everything_unacknowledged_again_in_order(broker: Mosquitto) -> None:
    """A failed commit: what failed must not be overtaken by what still waited here."""
    async with Running(broker.url) as running, Publisher(broker.port, listen=(STATE,)) as device:
        for number in range(6):
            device.publish("alarm/door", str(number))
        await until(lambda: running.facts["waiting"] == 6)
        first = await running.receive(2)
        running.session.acknowledge([first[0].token])
        before = running.facts["connections"]
        running.session.drop("disk full")
        running.session.acknowledge([first[1].token])  # too late: not committed, or not in time
        assert running.facts["waiting"] == 0
        again = await running.receive(5)
        assert [received.message.payload for received in again] == [b"1", b"2", b"3", b"4", b"5"]
        assert running.facts["connections"] == before + 1
        assert running.facts["last_error"] == "disk full"
        assert "offline" not in device.states(STATE)


async def test_a_deliberate_reconnect_keeps_what_would_not_come_again(broker: Mosquitto) -> None:
    """QoS 0."""
    async with Running(broker.url) as running, Publisher(broker.port) as device:
        device.publish("alarm/zero", "0", qos=0)
        device.publish("alarm/one", "1")
        await until(lambda: running.facts["waiting"] == 2)
        running.session.drop("disk full")
        assert running.facts["waiting"] == 1
        assert sorted(await running.take(2)) == [b"0", b"1"]


async def test_what_waited_when_the_connection_broke_is_still_handed_out(tmp_path: Path) -> None:
    """The broker may have forgotten it, as here."""
    broker = Mosquitto(tmp_path, persistence=False)
    async with broker, Running(broker.url) as running:
        async with Publisher(broker.port) as device:
            device.publish("alarm/door", "precious")
            await until(lambda: running.facts["waiting"] == 1)
        await broker.kill()
        await until(lambda: not running.session.connected)
        assert await running.take(1) == [b"precious"]


async def test_a_message_that_is_too_large_is_cut_and_can_be_acknowledged(broker: Mosquitto) -> None:
    """Its true size and its hash are told, so that it can be kept as unreadable."""
    payload = bytes(range(256)) * 800
    async with Running(broker.url, max_message=100_000) as running, Publisher(broker.port) as device:
        device.publish("alarm/picture", payload)
        device.publish("alarm/door", "ON")
        large, small = await running.receive(2)
        assert large.message.payload == payload[:OVERSIZE_KEPT]
        assert large.oversize == len(payload)
        assert large.oversize_sha256 == hashlib.sha256(payload).hexdigest()
        assert small.oversize is None
        running.session.acknowledge([large.token, small.token])
        await until(lambda: broker.log_text().count("Received PUBACK from chekt-gateway") == 2)


async def test_retained_values_are_replays_and_live_ones_are_not(broker: Mosquitto) -> None:
    """Also where two filters bring two copies."""
    async with Publisher(broker.port) as device:
        device.publish("alarm/door", "ON", retain=True)
        await device.confirmed()
        async with Running(broker.url, filters=["alarm/#", "alarm/door"]) as running:
            replays = await running.receive(2)
            assert [(r.message.retain, r.message.replay) for r in replays] == [(True, True)] * 2
            device.publish("alarm/door", "OFF", retain=True)
            [live] = await running.receive(1)
            assert (live.message.payload, live.message.retain, live.message.replay) == (b"OFF", False, False)


async def test_retained_values_behind_a_backlog_are_still_replays(broker: Mosquitto) -> None:
    """They come after all that waited, long after the SUBACK, and after live messages of the same topic."""
    async with Running(broker.url, protocol="3.1.1"):
        pass
    async with Publisher(broker.port) as device:
        for number in range(100):
            device.publish("alarm/door", str(number), retain=True)
        await device.confirmed()
    async with Running(broker.url, protocol="3.1.1", wait=False) as again:
        got: list[Received] = []
        while len(got) < 101:
            group = await again.session.receive(10)
            got += group
            again.clock.advance(1)
            again.session.acknowledge([received.token for received in group])
        assert [received.message.replay for received in got].count(True) == 1
        [replay] = [received.message for received in got if received.message.replay]
        assert (replay.payload, replay.retain) == (b"99", True)


async def test_retain_handling_is_said_for_each_filter(broker: Mosquitto) -> None:
    """MQTT 5.0, 3.8.3.1: 0 availability, 1 alarm state, 2 momentary events."""
    filters = [Filter("a/state", 1), Filter("a/available", 0), Filter("a/event", 2)]
    async with Publisher(broker.port) as device:
        for topic in ("a/state", "a/available", "a/event"):
            device.publish(topic, "x", retain=True)
        await device.confirmed()
        async with Running(broker.url, filters=filters) as running:
            assert sorted(r.message.topic for r in await running.receive(2)) == ["a/available", "a/state"]
            await running.crash()
        async with Running(broker.url, filters=filters, had_session=True) as again:
            device.publish("a/event", "live")
            topics = [received.message.topic for received in await again.receive(4)]
            assert topics.count("a/available") >= 1
            assert topics[-1] == "a/event"


async def test_shared_subscriptions_pass_through(broker: Mosquitto) -> None:
    async with (
        Running(broker.url, filters=["$share/gateways/alarm/#"]) as running,
        Publisher(broker.port) as device,
    ):
        device.publish("alarm/door", "ON")
        assert await running.take(1) == [b"ON"]


@both
async def test_filters_that_are_gone_are_unsubscribed(broker: Mosquitto, protocol: Protocol) -> None:
    """Also if they were known only from an earlier process."""
    async with Running(broker.url, protocol=protocol, filters=["alarm/#", "old/#"]) as running:
        assert running.known == {"alarm/#", "old/#"}
        known = running.known
    async with Running(broker.url, protocol=protocol, filters=["alarm/#"], known_filters=known) as again:
        await until(lambda: again.known == {"alarm/#"})
        assert again.session.subscribed_filters == {"alarm/#"}
        async with Publisher(broker.port) as device:
            device.publish("old/door", "ON")
            device.publish("alarm/door", "ON")
            [received] = await again.receive(1)
            assert received.message.topic == "alarm/door"


async def test_the_state_topic_tells_online_offline_and_the_last_will(broker: Mosquitto) -> None:
    """Retained, QoS 1: `online` on connect, `offline` at a stop, `offline` by the broker when we vanish."""
    async with Publisher(broker.port, listen=(STATE,)) as observer:
        async with Running(broker.url):
            await until(lambda: observer.states(STATE) == ["online"])
        await until(lambda: observer.states(STATE) == ["online", "offline"])
        running = await Running(broker.url).__aenter__()
        await until(lambda: observer.states(STATE) == ["online", "offline", "online"])
        await running.crash()
        await until(lambda: observer.states(STATE) == ["online", "offline", "online", "offline"])
    async with Publisher(broker.port, listen=(STATE,)) as late:
        await until(lambda: late.heard == [(STATE, b"offline", True)])


async def test_a_stop_says_goodbye_properly(broker: Mosquitto) -> None:
    """DISCONNECT, so that no last will is published, and no UNSUBSCRIBE."""
    async with Running(broker.url):
        pass
    log = broker.log_text()
    assert "Received DISCONNECT from chekt-gateway-Z6RSOG" in log
    assert "Received UNSUBSCRIBE" not in log
    assert log.index("Received PUBLISH from chekt-gateway") > log.index("Received SUBSCRIBE from chekt-gateway")


async def test_an_exception_in_our_own_callback_ends_the_session(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not swallowed by the MQTT library, nor by the event loop."""

    class Fault(Exception):
        pass

    async with Running(broker.url) as running:

        def fail(*_: object) -> None:
            raise Fault

        monkeypatch.setattr(running.session, "arrived", fail)
        async with Publisher(broker.port) as device:
            device.publish("alarm/door", "ON")
            assert running.task is not None
            with pytest.raises(Fault):
                await asyncio.wait_for(asyncio.shield(running.task), 10)
        running.task = None


async def test_an_unknown_token_is_harmless(broker: Mosquitto) -> None:
    async with Running(broker.url) as running:
        running.session.acknowledge([AckToken(-1, 1), AckToken(1, 77)])
        assert running.session.connected
