"""What the session does when the broker, the network or the steps behind it do not do their part."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from tests.fakes.mosquitto import Mosquitto, free_port
from tests.fakes.old_broker import ScriptedBroker, ordinary, publish
from tests.fakes.publisher import Publisher
from tests.fakes.session import QUICK, STATE, Running
from tests.fakes.waiting import until

pytestmark = pytest.mark.needs("mosquitto")

Protocol = Literal["5", "3.1.1"]
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


def at_least(broker: Mosquitto, packet: str, more: int) -> Callable[[], bool]:
    """Whether the broker has had so many more packets of this kind from the gateway than now."""

    def count() -> int:
        return broker.log_text().count(f"Received {packet} from chekt-gateway")

    wanted = count() + more
    return lambda: count() >= wanted


# --- again and again ------------------------------------------------------------------------------------------------


async def test_a_broker_that_comes_late_is_found(tmp_path: Path) -> None:
    """Said once; tried with growing, capped pauses, of which a random part is waited (full jitter)."""
    port = free_port()
    with capture_logs() as logs:
        async with Running(f"mqtt://127.0.0.1:{port}", wait=False) as running:
            await until(lambda: len(running.waits) >= 6)
            assert running.waits[:6] == [(0.0, 0.01), (0.0, 0.02), (0.0, 0.04), (0.0, 0.08), (0.0, 0.1), (0.0, 0.1)]
            async with Mosquitto(tmp_path, port=port):
                await running.connected()
                assert running.gaps == []
    loud = [(entry["event"], entry["log_level"]) for entry in logs if entry["log_level"] != "debug"]
    assert loud[:2] == [("mqtt_connect_failed", "warning"), ("mqtt_connected", "info")]


@pytest.mark.slow
async def test_a_store_that_refuses_for_long_is_said_with_a_count(broker: Mosquitto) -> None:
    """Each refusal ends a connection, and the next one is soon ended as well."""
    with capture_logs() as logs:
        async with Running(broker.url, timing=replace(QUICK, settled=1.0)) as running:

            async def drop() -> None:
                before = running.facts["connections"]
                running.session.drop("disk full")
                await until(lambda: running.facts["connections"] > before and running.facts["subscribed"])

            def loud() -> list[tuple[str, int | None]]:
                names = ("mqtt_dropped", "mqtt_connected")
                said = [entry for entry in logs if entry["event"] in names and entry["log_level"] != "debug"]
                return [(entry["event"], entry.get("drops")) for entry in said]

            for _ in range(5):
                await drop()
            assert loud() == [("mqtt_connected", None), ("mqtt_dropped", 1)]
            running.clock.advance(301)
            await drop()
            assert loud()[2:] == [("mqtt_dropped", 6)]
            await until(lambda: len(loud()) == 4, what="the end of it")
            assert loud()[3:] == [("mqtt_connected", 6)]
            await drop()  # another one
            await until(lambda: len(loud()) == 6)
            assert loud()[4:] == [("mqtt_dropped", 1), ("mqtt_connected", 1)]


async def test_a_store_that_is_back_need_not_wait_for_the_pause_to_end(broker: Mosquitto) -> None:
    """The broker holds the alarms. But a store that accepts and refuses in turn gets the pause in full."""
    async with Running(broker.url, timing=replace(QUICK, retry_first=1000.0, retry_max=1000.0)) as running:
        running.session.hurry()  # connected: nothing to hurry
        running.session.drop("disk full")
        await until(lambda: running.waits == [(0.0, 1000.0)] and not running.session.connected)
        running.session.hurry()
        await running.connected()
        running.session.drop("disk full again")
        await until(lambda: len(running.waits) == 2)
        running.session.hurry()
        pause = running.session._hurried
        assert pause is not None
        assert not pause.done()


async def test_a_connection_that_held_begins_the_pauses_anew(broker: Mosquitto) -> None:
    async with Running(broker.url, timing=replace(QUICK, settled=0.01)) as running:
        for _ in range(3):
            await until(lambda: running.facts["failures"] == 0)
            running.session.drop("for the test")
            await until(lambda: not running.session.connected)
            await running.connected()
        assert running.waits == [(0.0, 0.01)] * 3


@both
async def test_a_broker_that_restarts_is_joined_again_and_nothing_is_lost(
    broker: Mosquitto, protocol: Protocol
) -> None:
    """SIGTERM: it keeps session and queue."""
    with capture_logs() as logs:
        async with Running(broker.url, protocol=protocol) as running:
            async with Publisher(broker.port) as device:
                device.publish("alarm/door", "before")
                [unacknowledged] = await running.receive(1)
            await broker.stop()
            await until(lambda: not running.session.connected)
            running.session.acknowledge([unacknowledged.token])
            await broker.start()
            await running.connected()
            assert running.facts["session_present"] is True
            [again] = await running.receive(1)
            assert again.message.payload == b"before"
            assert again.message.dup
            assert again.token.generation != unacknowledged.token.generation
    loud = [entry["event"] for entry in logs if entry["event"] in ("mqtt_lost", "mqtt_connected")]
    assert loud == ["mqtt_connected", "mqtt_lost", "mqtt_connected"]


@both
async def test_a_lost_session_is_a_gap(tmp_path: Path, protocol: Protocol) -> None:
    """In this process, or since an earlier one."""
    async with Mosquitto(tmp_path, persistence=False) as broker:
        async with Running(broker.url, protocol=protocol) as running:
            await broker.kill()
            await until(lambda: not running.session.connected)
            await broker.start()
            await running.connected()
            assert running.facts["session_present"] is False
            [gap] = running.gaps
            assert "lost our session" in gap
        await broker.restart()
        async with Running(broker.url, protocol=protocol, had_session=True) as later:
            assert len(later.gaps) == 1
        await broker.restart()
        async with Running(broker.url, protocol=protocol, had_session=False) as first:
            assert first.gaps == []


@both
async def test_a_broker_that_died_and_kept_an_older_session_is_a_gap_too(broker: Mosquitto, protocol: Protocol) -> None:
    """What came after its last save is gone, although it says that our session is present."""
    async with Running(broker.url, protocol=protocol) as running:
        await broker.save()
        await broker.kill()
        await until(lambda: "nothing listens" in str(running.facts["last_error"]))
        await broker.start()
        await running.connected()
        assert running.facts["session_present"] is True
        [gap] = running.gaps
        assert "not yet saved" in gap


@pytest.mark.parametrize("goodbye", [True, False])
async def test_a_broker_that_said_goodbye_had_saved_everything(goodbye: bool) -> None:
    """MQTT 5, DISCONNECT 0x8B, server shutting down. Debian 12's Mosquitto never says it; then we cannot know."""
    async with ScriptedBroker(ordinary(session_present=True)) as broker:
        running = await Running(broker.url).__aenter__()
        if goodbye:
            broker.say(b"\xe0\x02\x8b\x00")
            await until(lambda: not running.session.connected)
    await until(lambda: "nothing listens" in str(running.facts["last_error"]))
    async with ScriptedBroker(ordinary(session_present=True), port=broker.port):
        await running.connected()
        assert bool(running.gaps) is not goodbye
        await running.stop()


async def test_a_network_that_breaks_is_no_gap(broker: Mosquitto) -> None:
    """The broker kept everything."""
    async with Running(broker.url) as running:
        link = running.session._link
        assert link is not None
        sock = link._client.socket()
        assert sock is not None
        sock.shutdown(2)  # type: ignore[attr-defined]
        await until(lambda: running.facts["connections"] == 2)
        await running.connected()
        assert running.facts["session_present"] is True
        assert running.gaps == []


@pytest.mark.slow
async def test_a_broker_that_no_longer_answers_is_left(broker: Mosquitto) -> None:
    """Half-open: TCP is up, nobody is there. Noticed after at most two keepalives, by our own ping."""
    async with Running(broker.url, timing=replace(QUICK, keepalive=1, connect_timeout=0.5)) as running:
        broker.freeze()
        await until(lambda: not running.session.connected)
        assert "no reply to a ping" in running.facts["last_error"]
        broker.thaw()
        await running.connected()


@pytest.mark.slow
async def test_an_idle_connection_is_kept_by_pings(broker: Mosquitto) -> None:
    async with Running(broker.url, timing=replace(QUICK, keepalive=1)) as running:
        await until(at_least(broker, "PINGREQ", 3), timeout=20)
        assert running.facts["connections"] == 1


# --- slow steps behind it -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(180)
@both
async def test_20000_messages_at_once_keep_their_place_in_the_broker(broker: Mosquitto, protocol: Protocol) -> None:
    """Mosquitto 2.0.11 sends far more than the window. Reading pauses, for longer than the keepalive allows; nothing is
    lost, and nothing comes twice."""
    total, window = 20_000, 50
    allowed = 20 if protocol == "3.1.1" else window
    async with Running(broker.url, protocol=protocol, receive_maximum=window):
        pass
    async with Publisher(broker.port, inflight=1000) as device:
        for number in range(total):
            device.publish("alarm/door", str(number))
        await device.confirmed(60)
    timing = replace(QUICK, keepalive=2)
    async with Running(
        broker.url, protocol=protocol, receive_maximum=window, wait=False, had_session=True, timing=timing
    ) as running:
        got: list[bytes] = []
        most = 0
        while len(got) < total:
            group = await running.session.receive(10)
            got += [received.message.payload for received in group]
            running.session.acknowledge([received.token for received in group])
            if len(got) == 1000:
                # A slow commit: more than twice the keepalive, and reading is paused unless the window is kept.
                await until(lambda: running.session.paused or running.facts["unacknowledged"] == allowed)
                await until(at_least(broker, "PINGREQ", 3), timeout=30)
            most = max(most, running.facts["unacknowledged"])
        assert got == [str(number).encode() for number in range(total)]
        assert most <= 2 * window
        assert running.facts["connections"] == 1
        assert running.facts["unacknowledged"] == 0


async def test_nothing_more_is_taken_from_a_connection_that_is_given_up() -> None:
    """It will come again, behind what failed."""
    async with ScriptedBroker(ordinary(session_present=True)) as broker, Running(broker.url) as running:
        broker.say(publish(1, "alarm/door", b"failed"))
        await running.receive(1)
        broker.say(publish(2, "alarm/door", b"too early"))
        running.session.drop("disk full")
        await until(lambda: running.facts["connections"] == 2)
        await running.connected()
        assert running.facts["waiting"] == 0


async def test_large_messages_pause_reading_before_their_number_does(broker: Mosquitto) -> None:
    """16 MiB at most may wait here."""
    async with Running(broker.url, receive_maximum=200) as running, Publisher(broker.port, inflight=5) as device:
        for number in range(40):
            device.publish("alarm/picture", bytes([number]) * 1_000_000)
        await device.confirmed()
        await until(lambda: running.session.paused)
        assert running.facts["waiting"] < 20
        payloads = [await running.take(1) for _ in range(40)]
        assert [payload[0][0] for payload in payloads] == list(range(40))


@pytest.mark.slow
async def test_qos_0_cannot_flood_the_memory(broker: Mosquitto) -> None:
    """It is not acknowledged, so it counts while it waits here."""
    async with (
        Running(broker.url, receive_maximum=10, timing=replace(QUICK, keepalive=1)) as running,
        Publisher(broker.port) as device,
    ):
        for number in range(500):
            device.publish("alarm/zero", str(number), qos=0)
        await until(lambda: running.session.paused)
        await until(at_least(broker, "PINGREQ", 3), timeout=20)  # and the answers cannot be read
        assert running.facts["waiting"] <= 20
        assert await running.take(500) == [str(number).encode() for number in range(500)]
        assert not running.session.paused
        assert running.facts["connections"] == 1


@pytest.mark.slow
async def test_a_broken_connection_while_paused_is_noticed_by_the_next_ping(tmp_path: Path) -> None:
    """Nobody reads the socket then."""
    async with Mosquitto(tmp_path) as broker:
        timing = replace(QUICK, keepalive=1)
        async with Running(broker.url, receive_maximum=5, timing=timing) as running:
            async with Publisher(broker.port) as device:
                for number in range(100):
                    device.publish("alarm/zero", str(number), qos=0)
                await device.confirmed()
                await until(lambda: running.session.paused)
            await broker.kill()
            await until(lambda: not running.session.connected, timeout=20)
            await broker.start()
            await running.connected()


async def test_a_stop_while_paused_says_offline_and_goodbye(broker: Mosquitto) -> None:
    """Although much has come that nobody read: a close would be a reset, and the last will would speak, too."""
    async with Publisher(broker.port, listen=(STATE,)) as device:
        async with Running(broker.url, receive_maximum=5) as running:
            for number in range(100):
                device.publish("alarm/zero", str(number), qos=0)
            await until(lambda: running.session.paused)
        await until(lambda: "Received DISCONNECT from chekt-gateway" in broker.log_text())
        device.publish(STATE, "end")
        await until(lambda: "end" in device.states(STATE))
        assert device.states(STATE) == ["online", "offline", "end"]


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@both
@pytest.mark.parametrize("acknowledge", ["after the commit", "before the commit"])
async def test_eight_crashes_lose_nothing_unless_acknowledged_too_early(
    broker: Mosquitto, protocol: Protocol, acknowledge: str
) -> None:
    """The control must lose, or the test is blind."""
    seed = random.Random(8)
    committed: set[bytes] = set()
    total = 1000
    running = await Running(broker.url, protocol=protocol).__aenter__()
    async with Publisher(broker.port) as device:
        for number in range(total):
            device.publish("alarm/door", str(number))
        for _ in range(8):
            for _ in range(seed.randrange(1, 6)):
                group = await running.receive(seed.randrange(1, 20))
                running.session.acknowledge([received.token for received in group])
                committed |= {received.message.payload for received in group}
            doomed = await running.receive(5)
            if acknowledge == "before the commit":
                all_of_them = at_least(broker, "PUBACK", 5)
                running.session.acknowledge([received.token for received in doomed])
                await until(all_of_them)
            await running.crash()
            # Not waiting for the SUBACK: it stands behind the backlog.
            running = await Running(broker.url, protocol=protocol, had_session=True, wait=False).__aenter__()
        await device.confirmed()
        device.publish("alarm/door", "last")
        seen: set[bytes] = set()
        while b"last" not in seen:
            async with asyncio.timeout(10):
                group = await running.session.receive(100)
            seen |= {received.message.payload for received in group}
            running.session.acknowledge([received.token for received in group])
        committed |= seen
    assert running.gaps == []
    await running.stop()
    lost = {str(number).encode() for number in range(total)} - committed
    assert bool(lost) is (acknowledge == "before the commit"), lost
