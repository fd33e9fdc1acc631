"""Arming through the real process: what each kind of panel says, in the order in which the cloud must hear it.

A wrong order silences a site: the cloud discards the alarms of one that is disarmed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises

TRIPPED: Final = '{"arming": false, "current_mode": "triggered", "target_mode": "away", "tripped": true}'
MODE: Final = '{"arming": false, "current_mode": "%s", "target_mode": "%s", "tripped": false}'
# dialect -> topic, armed, in between, triggered, disarmed
PANELS: Final = {
    "ha": ("alarmo/state", "armed_away", "pending", "triggered", "disarmed"),
    "pai": ("paradox/states/partitions/House/current_state", "armed_away", "pending", "triggered", "disarmed"),
    "dsc": ("dsc/Get/Partition1", "armed_home", "pending", "triggered", "disarmed"),
    "risco": ("riscopanel/alarm/1/status", "armed_home", "armed_home", "triggered", "disarmed"),
    "homebridge": (
        "security-system/state",
        MODE % ("away", "away"),
        MODE % ("away", "away"),
        TRIPPED,
        MODE % (2 * ("off",)),
    ),
}
CYCLE: Final = [("arming", "active"), ("alarm", "active"), ("arming", "inactive"), ("alarm", "inactive")]


def configure(premises: Premises, *dialects: str, password: bool = True, arming: str = "") -> None:
    secret = premises.folder / "password"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    sources = "".join(
        f'\n[sources.{dialect}]\nfamily = "panel"\ndialect = "{dialect}"\ncamera_id = "cam-{dialect}"\n'
        + ('zones = ["3"]\n' if dialect == "envisalink" else "")
        for dialect in dialects
    )
    premises.configure(
        defaults='snapshots = 0\nsend_restore = true\ntrouble_delay = "1s"',
        delivery='retry_max = "1s"',
        cameras=("front_door",),
        extra=f"{sources}\n[arming]\nenabled = true\n{arming}\n",
    )
    named = f'[broker]\nusername = "gateway"\npassword_file = "{secret}"\n' if password else "[broker]\n"
    file = premises.gateway.config
    file.write_text(file.read_text().replace("[broker]\n", named))


@pytest.fixture
async def panel(premises: Premises) -> AsyncIterator[Publisher]:
    async with Publisher(premises.broker.port) as publisher:
        yield publisher


def told(premises: Premises, camera_id: str) -> list[tuple[str, str]]:
    events = [event.request for event in premises.cloud.events if event.camera_id == camera_id]
    return [(request["event_type"], request["event_status"]) for request in events]


def arming(premises: Premises) -> list[str]:
    return [e.request["event_status"] for e in premises.cloud.events if e.request["event_type"] == "arming"]


async def settled(premises: Premises, events: int) -> None:
    await premises.cloud.wait_for(events=events, timeout=30)
    await until(premises.gateway.settled, timeout=20, what="settled")
    assert len(premises.cloud.events) == events


async def test_every_kind_of_panel_arms_alarms_and_disarms(premises: Premises, panel: Publisher) -> None:
    """Each under its own camera; an alarm of one waits for the arming of all, and no disarmed overtakes an alarm."""
    configure(premises, *PANELS, "envisalink")
    await premises.gateway.start()
    await premises.gateway.subscribed()
    for word in range(1, 5):
        for topic, *words in PANELS.values():
            panel.publish(topic, words[word - 1], retain=True)
        await panel.confirmed()
    panel.publish("alarm/zone/4", "1", retain=True)
    panel.publish("alarm/zone/3", "1", retain=True)
    panel.publish("alarm/zone/3", "0", retain=True)
    await settled(premises, 4 * len(PANELS) + 2)
    for dialect in PANELS:
        heard = told(premises, f"cam-{dialect}")
        assert sorted(heard) == sorted(CYCLE), dialect
        assert heard.index(("arming", "active")) < heard.index(("alarm", "active")), dialect
        assert heard.index(("alarm", "active")) < heard.index(("arming", "inactive")), dialect
    assert told(premises, "cam-envisalink") == [("alarm", "active"), ("alarm", "inactive")]
    for event in premises.cloud.events:
        if event.request["event_type"] == "arming":
            assert event.request.get("recorder_id") is None
            assert event.request["should_signal_to_monitoring_center"] is False
    assert await premises.gateway.stop() == 0


async def test_what_waited_in_the_broker_is_told_in_its_order(premises: Premises, panel: Publisher) -> None:
    """All of it comes in one moment when the gateway is back, and the cloud is away at first."""
    configure(premises, "ha", arming='camera_id = "cam-arming"')
    await premises.gateway.start()
    await premises.gateway.subscribed()
    assert await premises.gateway.stop() == 0
    topic, *words = PANELS["ha"]
    for word in words:
        panel.publish(topic, word)
    await panel.confirmed()
    await premises.cloud.go_dark()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await until(lambda: premises.gateway.rows("SELECT count(*) FROM event") == [(4,)], timeout=20)
    await premises.cloud.come_back()
    await settled(premises, 4)
    order = [(e.request["event_type"], e.request["event_status"]) for e in premises.cloud.events]
    assert order[:2] == CYCLE[:2]
    assert sorted(order[2:]) == sorted(CYCLE[2:])
    assert await premises.gateway.stop() == 0


async def test_the_state_is_told_again_after_an_outage(premises: Premises, panel: Publisher) -> None:
    """A broker that forgot us, and the same over a crash. A retained disarmed waits until it is said live."""
    configure(premises, "ha", arming='camera_id = "cam-arming"')
    await premises.gateway.start()
    await premises.gateway.subscribed()
    panel.publish("alarmo/state", "armed_away", retain=True)
    await settled(premises, 1)
    await premises.gateway.kill()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    panel.publish("alarmo/state", "armed_away", retain=True)  # as panels do every few hours
    panel.publish("alarmo/state", "pending")
    await premises.gateway.stop()
    assert arming(premises) == ["active"], "it is known"

    await panel.stop()
    await premises.broker.kill()
    premises.broker.forget()
    await premises.broker.start()
    async with Publisher(premises.broker.port) as again:
        again.publish("alarmo/state", "armed_away", retain=True)
        await again.confirmed()
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await settled(premises, 2)
        assert arming(premises) == ["active", "active"]
        assert await premises.gateway.stop() == 0
        again.publish("alarmo/state", "disarmed", retain=True)
        await again.confirmed()
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await settled(premises, 3)
        assert arming(premises)[2:] == ["inactive"], "it waited in the broker: said live, and not retained"
        assert await premises.gateway.stop() == 0


async def test_a_retained_disarmed_is_only_remembered(premises: Premises, panel: Publisher) -> None:
    """It may be older than the last arming. Said live it is told; a retained armed is told at once."""
    configure(premises, "ha", "dsc", arming='camera_id = "cam-arming"')
    panel.publish("alarmo/state", "disarmed", retain=True)
    panel.publish("dsc/Get/Partition1", "armed_away", retain=True)
    await panel.confirmed()
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await settled(premises, 1)
    assert arming(premises) == ["active"]
    panel.publish("alarmo/state", "disarmed", retain=True)
    panel.publish("dsc/Get/Partition1", "disarmed", retain=True)
    await settled(premises, 2)
    assert arming(premises) == ["active", "inactive"], "disarmed only once both are"
    assert await premises.gateway.stop() == 0


async def test_without_a_password_anyone_could_disarm(premises: Premises) -> None:
    configure(premises, "ha", password=False)
    code, _, said = await premises.gateway.ask("check")
    assert code == 78
    assert "arming.enabled: is refused on a broker without password" in said
    await premises.gateway.start(ready=False)
    assert await premises.gateway.wait() == 78


async def test_what_is_configured_for_panels_is_good(premises: Premises) -> None:
    """Panels of different makes are no two ways of hearing one."""
    configure(premises, *PANELS, "envisalink")
    code, out, said = await premises.gateway.ask("check", "--json")
    assert code == 0, said
    assert "one occurrence may become two alarms" not in out + said
    assert json.loads(out)
