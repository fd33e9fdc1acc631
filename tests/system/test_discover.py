"""What an installer does: listen with `discover`, paste what it prints, `check`, start; each alarm has its camera."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import Premises
from tests.unit.test_families import dahua, isapi, onvif

MAC = "E4:30:22:F3:31:AA"


def motion(kind: str = "1") -> bytes:
    return json.dumps(
        onvif({"State": "true"}, {"VideoSourceToken": kind}, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    ).encode()


def traffic() -> list[tuple[str, Any, str | None]]:
    """Topic, payload, and the table of the camera or source that its alarm is told under."""
    return [
        ("frigate/reviews", encode(review("Haustür links")), "Haustur_links"),
        ("frigate/reviews", encode(review("cam.1")), "cam_1"),
        ("frigate/reviews", encode(review("007")), "007"),
        ("frigate/front/person", "1", None),
        ("cctv/north/reviews", encode(review("007")), "cctv_north_007"),
        ("Hof/Cam 3/onvif-ej/VideoSource/MotionAlarm/&1", motion(), "Hof_Cam_3"),
        (f"{MAC}/onvif-ej/VideoSource/MotionAlarm/&2", motion("2"), "E4_30_22_F3_31_AA_2"),
        ("hikvision/nvr 1/alertStream", isapi("linedetection"), "nvr_1_2"),
        ("hikvision_cameras/device_porch/Motion", {"alerting": True, "regions": []}, "porch"),
        ("DahuaVTO/CrossLineDetection/Event", dahua("Start", serialNumber="6F01", Index=3), "6F01_3"),
        ("house/vto/VideoMotion/Event", dahua("Start", serialNumber="6F02"), "6F02"),
        ("zoneminder/5", {"eventid": "1", "eventtype": "event_start", "name": "a", "state": "alarm"}, "5"),
        ("neolink/Küche/status/motion", "on", "Kuche"),
        ("yicam_garage/motion_detection", "motion_start", "yicam_garage_yicam_garage"),
        ("alarmo/state", "triggered", "panel"),
        ("dsc/Get/Fire1", "1", "panel_dsc"),
        ('site/Kasse 3 "alt"/alarm', "ON", "Kasse_3_alt"),
        ("zigbee2mqtt/lamp", {"state": "ON"}, None),
        ("zigbee2mqtt/hall", {"occupancy": True}, None),
        ("tele/tasmota_1/STATE", {"POWER": "ON"}, None),
        ("homeassistant/binary_sensor/front/state", "on", None),
        ("homeassistant/sensor/x/config", {"name": "x"}, None),
    ]


def say(publisher: Publisher, messages: list[tuple[str, Any, str | None]]) -> None:
    for topic, payload, _ in messages:
        publisher.publish(topic, json.dumps(payload) if isinstance(payload, dict) else payload)


async def test_what_is_printed_is_pasted_and_works(premises: Premises) -> None:
    gateway = premises.gateway
    premises.configure(defaults='snapshots = 0\nhold_off = "off"', cameras=())
    head = gateway.config.read_text().replace('[sources.nvr]\nfamily = "frigate"\n', "")
    gateway.config.write_text(head)
    async with Publisher(premises.broker.port) as publisher:
        listening = asyncio.create_task(gateway.ask("discover", "--for", "3s"))
        await until(lambda: "Sending SUBACK to chekt-discover" in premises.broker.log_text(), timeout=30)
        say(publisher, traffic())
        code, stanzas, said = await listening
        assert code == 0, said
        assert "not recognised: " in said
        assert "zigbee2mqtt/… (2)" in said
        assert "frigate/…" not in said
        assert "in place of each ID-FROM-CHEKT-" in said

        expected = {table for _, _, table in traffic() if table is not None}
        proposed = set(re.findall(r'"ID-FROM-CHEKT-([^"]+)"', stanzas))
        assert proposed == expected
        assert not re.search("zigbee|tasmota|homeassistant", stanzas)

        gateway.config.write_text(head + stanzas)
        code, out, said = await gateway.ask("check")
        assert code == 0, said
        assert (out + said).count("is still a placeholder") == len(expected)
        code, again, said = await gateway.ask("discover", "--for", "200ms")
        assert again == "", "and then nothing is new"

        await gateway.start()
        await gateway.subscribed()
        messages = traffic()
        say(publisher, messages)
        await premises.cloud.wait_for(events=len(expected), timeout=30)
        await until(gateway.settled, timeout=20)
    told = sorted((e.camera_id, e.request["event_type"], e.request["event_status"]) for e in premises.cloud.events)
    assert told == sorted((f"ID-FROM-CHEKT-{table}", "alarm", "active") for table in expected)
    status = await gateway.status()
    assert status["events"]["unmapped"] == status["events"]["unreadable"] == 0
    assert await gateway.stop() == 0
