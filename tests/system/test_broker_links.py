"""The real process and the broker: every transport, an old protocol, restarts in the middle, nobody there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.frigate import encode, review
from tests.fakes.mosquitto import Certificates, Mosquitto, free_port
from tests.fakes.old_broker import OldBroker
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises

OPEN = 'snapshots = 0\nhold_off = "off"'


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("transport", ["mqtts", "ws", "wss"])
async def test_an_alarm_comes_over_every_transport(
    transport: str, premises: Premises, tmp_path: Path, certificates: Certificates
) -> None:
    """With an authority of one's own and a client certificate; the session outlives a kill there, too."""
    plain = free_port()
    lines = []
    if transport != "ws":
        certificate, key = certificates.issue("broker")
        lines += [f"certfile {certificate}", f"keyfile {key}"]
        lines += [f"cafile {certificates.ca_file}", "require_certificate true"]
        certificate, key = certificates.issue("gateway")
        premises.gateway.environment |= {
            "CHEKT_GATEWAY_BROKER__CA_FILE": os.fspath(certificates.ca_file),
            "CHEKT_GATEWAY_BROKER__CERT_FILE": os.fspath(certificate),
            "CHEKT_GATEWAY_BROKER__KEY_FILE": os.fspath(key),
        }
        key.chmod(0o600)
    if transport != "mqtts":
        lines.append("protocol websockets")
    (tmp_path / "other").mkdir()
    async with Mosquitto(tmp_path / "other", config=[*lines, f"listener {plain} 127.0.0.1"]) as broker:
        premises.configure(broker_url=f"{transport}://127.0.0.1:{broker.port}", defaults=OPEN)
        await premises.gateway.start()
        await premises.gateway.subscribed()
        async with Publisher(plain) as publisher:
            publisher.publish("frigate/reviews", encode(review("front_door")))
            await premises.cloud.wait_for(events=1, timeout=30)
            await premises.gateway.kill()
            for _ in range(50):
                publisher.publish("frigate/reviews", encode(review("driveway")))
            await publisher.confirmed()
        await premises.gateway.start()
        await premises.cloud.wait_for(events=51, timeout=30)
        await until(premises.gateway.settled, timeout=30)
        assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_broker_of_mqtt_3_1_1_is_served_and_the_journal_says_so(premises: Premises) -> None:
    async with OldBroker() as broker:
        premises.configure(broker_url=broker.url)
        await premises.gateway.start()
        await until(lambda: "mqtt_connected" in premises.gateway.log, timeout=60)
        assert "mqtt_protocol_fell_back" in premises.gateway.log
        async with Publisher(broker.port) as publisher:
            publisher.publish("frigate/reviews", encode(review("front_door")))
            await premises.cloud.wait_for(events=1, timeout=30)
        assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_gateway_configured_for_3_1_1_loses_nothing_in_a_kill(premises: Premises) -> None:
    premises.gateway.environment["CHEKT_GATEWAY_BROKER__PROTOCOL"] = "3.1.1"
    premises.configure(defaults=OPEN)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        for _ in range(200):
            publisher.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(events=20, timeout=30)
        await premises.gateway.kill()
        await publisher.confirmed()
    await premises.gateway.start()
    await premises.cloud.wait_for(events=200, timeout=30)
    assert premises.cloud.duplicates == 0
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_a_broker_that_is_not_there_at_the_start_is_waited_for(premises: Premises) -> None:
    """READY=1 all the same: systemd must not kill a gateway for a broker that boots more slowly."""
    await premises.broker.stop()
    await premises.gateway.start()
    await until(lambda: "mqtt_connect_failed" in premises.gateway.log, timeout=30)
    await premises.broker.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await premises.cloud.wait_for(events=1, timeout=30)
    assert await premises.gateway.stop() == 0


async def test_a_broker_that_restarts_again_and_again_in_a_flood_loses_nothing_that_it_took(premises: Premises) -> None:
    """SIGTERM: it keeps its sessions on disk. What it confirmed to the publisher must reach the cloud."""
    premises.configure(defaults=OPEN)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    confirmed = 0
    for _ in range(4):
        async with Publisher(premises.broker.port) as publisher:
            for _ in range(150):
                publisher.publish("frigate/reviews", encode(review("front_door")))
            await publisher.confirmed()
        confirmed += 150
        await premises.broker.restart()
    await premises.cloud.wait_for(events=confirmed, timeout=60)
    await until(premises.gateway.settled, timeout=30)
    assert premises.cloud.duplicates == premises.cloud.repeats == 0
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_what_is_published_with_qos_0_arrives_and_survives_a_stop(premises: Premises) -> None:
    """Frigate publishes so. What the gateway has received when it is told to stop is on disk when it ends."""
    premises.configure(defaults=OPEN)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        for _ in range(300):
            publisher.publish("frigate/reviews", encode(review("front_door")), qos=0)
        await publisher.confirmed()
        await premises.cloud.wait_for(events=300, timeout=60)
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_bad_input_is_kept_counted_and_hurts_nobody(premises: Premises) -> None:
    """Too large, not understood, of a camera that nobody configured; the alarm behind them arrives."""
    premises.gateway.environment["CHEKT_GATEWAY_OUTBOX__MAX_MESSAGE"] = "64KiB"
    premises.configure(defaults=OPEN)
    await premises.gateway.start()
    await premises.gateway.subscribed()
    async with Publisher(premises.broker.port) as publisher:
        publisher.publish("frigate/reviews", b"x" * 1_000_000)
        publisher.publish("frigate/reviews", b"\xff\xfe{")
        publisher.publish("frigate/reviews", b"{}")
        publisher.publish("frigate/reviews", encode(review("garden")))
        publisher.publish("frigate/reviews", encode(review("front_door")))
        await publisher.confirmed()
        await premises.cloud.wait_for(events=1, timeout=30)
    await until(lambda: premises.gateway.counters().get("received", 0) == 5)
    count = premises.gateway.counters()
    assert (count["unreadable"], count["unmapped"], count["stored"]) == (3, 1, 1)
    assert premises.gateway.rows("SELECT raw_bytes, length(raw) FROM event WHERE raw_bytes > 100000") == [
        (1_000_000, 65_536)
    ]
    # The camera is configured now: the alarm is brought back by a person, with a key of its own.
    [(event_id,)] = premises.gateway.rows("SELECT event_id FROM event WHERE state = 'unmapped'")
    assert await premises.gateway.stop() == 0
    premises.configure(defaults=OPEN, cameras=("front_door", "garden"))
    await premises.gateway.start()
    code, _, complaint = await premises.gateway.ask("retry", event_id, "--json")
    assert code == 0, complaint
    await premises.cloud.wait_for(events=2, timeout=30)
    assert premises.cloud.event(event_id).camera_id == "cam-garden"
    await until(premises.gateway.settled, timeout=30)
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


async def test_the_state_topic_tells_whether_the_gateway_is_there(premises: Premises) -> None:
    topic = "chekt-gateway/Z6RSOG/state"
    async with Publisher(premises.broker.port, listen=(topic,)) as listener:
        await premises.gateway.start()
        await until(lambda: listener.states(topic)[-1:] == ["online"], timeout=30)
        await premises.gateway.kill()
        await until(lambda: listener.states(topic)[-1:] == ["offline"], timeout=60)
        await premises.gateway.start()
        await until(lambda: listener.states(topic)[-1:] == ["online"], timeout=30)
        assert await premises.gateway.stop() == 0
        await until(lambda: listener.states(topic)[-1:] == ["offline"], timeout=30)
