"""Troubles of each family through rules, conditions, intake and store: begin, end, debounced, never a storm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.step.live_site import LiveSite, live_site
from tests.unit.test_families import isapi

DELAY = 60.0  # trouble_delay
ON, OFF = "active", "inactive"


def cameras(**names: str) -> str:
    """Table -> the equipment's name."""
    return "".join(f'[cameras.{table}]\ncamera_id = "id-{table}"\nname = "{name}"\n' for table, name in names.items())


def source(family: str, dialect: str | None = None) -> str:
    return f'[sources.eq]\nfamily = "{family}"\n' + (f'dialect = "{dialect}"\n' if dialect else "")


FRIGATE = source("frigate") + cameras(front="front", back="back")
ONVIF = source("onvif-ej") + cameras(front="C1", back="ENC/VideoSource_2")
HIKVISION = source("hikvision") + cameras(one="nvr/1", two="nvr/2")
HIKSINK = source("hikvision", "hiksink") + cameras(one="nvr", two="nvr/ch2")
DAHUA = source("dahua") + cameras(one="SN/0", two="SN/3")
AMCREST = source("dahua", "amcrest2mqtt") + cameras(one="AMC1", two="AMC2")
AXIS = source("axis") + cameras(front="AC01", back="AC02")
PANEL = source("panel", "pai")


def onvif(data: dict[str, Any], **of_source: str) -> dict[str, Any]:
    return {"UtcTime": "2026-03-01T12:00:00Z", "Source": of_source, "Data": data}


def axis(event: str, data: dict[str, Any], serial: str = "AC01") -> tuple[str, dict[str, Any]]:
    message = {"source": {}, "key": {}, "data": data}
    said = {"topic": event, "timestamp": 1772366400000, "serial": serial, "message": message}
    return f"axis/{serial}/event/{event}", said


def dahua(code: str, action: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return f"DahuaVTO/{code}/Event", {"Action": action, "serialNumber": "SN", "Data": {}, **more}


@dataclass(frozen=True)
class Lasting:
    """Equipment that says when a trouble begins and when it is over."""

    site: str
    begin: tuple[str, Any]
    end: tuple[str, Any]
    who: str
    kind: str

    def __str__(self) -> str:
        return f"{self.site.split(chr(34))[1]} {self.kind}"


LASTING = [
    Lasting(FRIGATE, ("frigate/available", "offline"), ("frigate/available", "online"), "id-site", "recorder"),
    Lasting(
        FRIGATE,
        ("frigate/front/status/detect", "offline"),
        ("frigate/front/status/detect", "online"),
        "front",
        "detect",
    ),
    Lasting(
        ONVIF,
        ("ENC/onvif-ej/VideoSource/SignalLoss/&VideoSource_2", onvif({"State": "true"}, Source="VideoSource_2")),
        ("ENC/onvif-ej/VideoSource/SignalLoss/&VideoSource_2", onvif({"State": "false"}, Source="VideoSource_2")),
        "back",
        "video loss",
    ),
    Lasting(
        ONVIF,
        ("C1/onvif-ej/VideoSource/GlobalSceneChange/ImagingService/&1", onvif({"State": "true"}, Source="1")),
        ("C1/onvif-ej/VideoSource/GlobalSceneChange/ImagingService/&1", onvif({"State": "false"}, Source="1")),
        "front",
        "scene change",
    ),
    Lasting(
        ONVIF,
        ("C1/onvif-ej/Device/HardwareFailure/StorageFailure/&SD1", onvif({"Failed": True}, Token="SD1")),
        ("C1/onvif-ej/Device/HardwareFailure/StorageFailure/&SD1", onvif({"Failed": False}, Token="SD1")),
        "front",
        "storage",
    ),
    Lasting(
        HIKSINK,
        ("hikvision_cameras/device_nvr/availability", "offline"),
        ("hikvision_cameras/device_nvr/availability", "online"),
        "one",
        "offline",
    ),
    Lasting(
        HIKSINK,
        ("hikvision_cameras/device_nvr/ch2/VideoLoss", {"alerting": True}),
        ("hikvision_cameras/device_nvr/ch2/VideoLoss", {"alerting": False}),
        "two",
        "video loss",
    ),
    Lasting(DAHUA, dahua("VideoLoss", "Start", Index=3), dahua("VideoLoss", "Stop", Index=3), "two", "video loss"),
    Lasting(DAHUA, dahua("VideoBlind", "Start", Index=0), dahua("VideoBlind", "Stop", Index=0), "one", "tamper"),
    Lasting(DAHUA, dahua("StorageFailure", "Start"), dahua("StorageFailure", "Stop"), "id-site", "storagefailure"),
    Lasting(AMCREST, ("amcrest2mqtt/AMC1/status", "offline"), ("amcrest2mqtt/AMC1/status", "online"), "one", "offline"),
    Lasting(
        AXIS,
        ("axis/AC01/event/connection", {"connected": False}),
        ("axis/AC01/event/connection", {"connected": True}),
        "front",
        "offline",
    ),
    Lasting(
        AXIS,
        axis("axis:Storage/Disruption", {"disruption": "1"}),
        axis("axis:Storage/Disruption", {"disruption": "0"}),
        "front",
        "storage",
    ),
    Lasting(
        PANEL,
        ("paradox/interface/availability", "offline"),
        ("paradox/interface/availability", "online"),
        "id-site",
        "recorder",
    ),
    Lasting(
        PANEL,
        ("paradox/states/system/troubles/trouble", "True"),
        ("paradox/states/system/troubles/trouble", "False"),
        "id-site",
        "panel",
    ),
]


@pytest.mark.parametrize("one", LASTING, ids=str)
async def test_a_trouble_begins_and_ends_once(tmp_path: Path, one: Lasting) -> None:
    async with live_site(tmp_path, one.site) as site:
        await site.hear(*one.begin)
        await site.passes(DELAY - 5)
        await site.hear(*one.begin)
        assert site.events() == [], "debounced"
        await site.passes(10)
        assert site.events() == [(one.who, one.kind, ON)]
        for _ in range(3):
            await site.hear(*one.begin)
            await site.passes(3 * DELAY)
        await site.crash(down=300)
        await site.hear(*one.begin, replay=True)
        await site.passes(3 * DELAY)
        assert site.events() == [(one.who, one.kind, ON)], "never twice, also over a restart"
        await site.hear(*one.end)
        await site.hear(*one.end)
        await site.passes(3 * DELAY)
        assert site.events() == [(one.who, one.kind, ON), (one.who, one.kind, OFF)]
        assert site.open() == []
        await site.hear(*one.begin)
        await site.passes(2 * DELAY)
        assert len(site.events()) == 3, "the next one is another"


@pytest.mark.parametrize("one", LASTING, ids=str)
async def test_what_is_over_soon_is_no_trouble(tmp_path: Path, one: Lasting) -> None:
    async with live_site(tmp_path, one.site) as site:
        for _ in range(5):
            await site.hear(*one.begin)
            await site.passes(DELAY / 2)
            await site.hear(*one.end)
            await site.passes(DELAY / 2)
        assert (site.events(), site.open()) == ([], [])


@pytest.mark.parametrize("one", LASTING, ids=str)
async def test_with_the_broker_away_nothing_is_concluded(tmp_path: Path, one: Lasting) -> None:
    async with live_site(tmp_path, one.site) as site:
        await site.hear(*one.begin)
        await site.connection(False)
        await site.passes(10 * DELAY)
        await site.connection(True)
        await site.hear(*one.end)
        await site.passes(2 * DELAY)
        assert site.events() == []


# Families that do not say when a trouble is over


async def hikvision(site: LiveSite, kind: str, state: str = "active", channel: str = "1", count: int = 1) -> None:
    said = isapi(kind, state, channel=f"<channelID>{channel}</channelID>", count=count)
    await site.hear("hikvision/nvr/alertStream", said)


async def test_hikvision_repeats_a_video_loss_while_it_lasts(tmp_path: Path) -> None:
    async with live_site(tmp_path, HIKVISION) as site:
        for _ in range(100):
            await hikvision(site, "videoloss", channel="2")
            await hikvision(site, "videoloss", "inactive", count=0)
            await site.passes(1)
        assert site.events() == [("two", "video loss", ON)]
        await site.passes(30)
        assert site.events() == [("two", "video loss", ON), ("two", "video loss", OFF)]


async def test_hikvision_repeats_a_tampering_while_it_lasts(tmp_path: Path) -> None:
    async with live_site(tmp_path, HIKVISION) as site:
        for _ in range(100):
            await hikvision(site, "shelteralarm")
            await site.passes(1)
        await hikvision(site, "shelteralarm", "inactive")
        assert site.events() == [("one", "tamper", ON), ("one", "tamper", OFF)]


@pytest.mark.parametrize("repeated", [None, 60.0])
async def test_the_disk_of_a_hikvision_recorder_is_the_recorders_trouble(
    tmp_path: Path, repeated: float | None
) -> None:
    """Channel 0 is the recorder itself. Whether it is said once or now and then, it is one trouble."""
    async with live_site(tmp_path, HIKVISION) as site:
        for _ in range(10 if repeated else 1):
            await hikvision(site, "diskerror", channel="0")
            await site.passes(repeated or 0)
        await site.passes(3 * DELAY)
        assert site.events() == [("id-site", "diskerror", ON)]
        await site.passes(5 * DELAY)
        assert site.events() == [("id-site", "diskerror", ON), ("id-site", "diskerror", OFF)]


async def test_alarmserver_has_a_last_will(tmp_path: Path) -> None:
    async with live_site(tmp_path, source("hikvision", "alarmserver") + cameras(one="cam1")) as site:
        await site.hear("camera-alerts/alarmserver", {"status": "down"})
        await site.passes(2 * DELAY)
        await site.hear("camera-alerts/cam1/videoloss", "Camera: cam1")
        await site.hear("camera-alerts/alarmserver", {"status": "up"})
        assert site.events() == [("id-site", "recorder", ON), ("id-site", "recorder", OFF)]


async def test_an_axis_camera_tells_a_tampering_once(tmp_path: Path) -> None:
    async with live_site(tmp_path, AXIS) as site:
        for _ in range(3):
            await site.hear(*axis("onvif:VideoSource/axis:Tampering", {"tampering": "1"}))
            await site.passes(120)
        assert site.events() == [("front", "tamper", ON)], "at once: it is not told again"
        await site.passes(300)
        assert site.events() == [("front", "tamper", ON), ("front", "tamper", OFF)]


# Families without a word for any trouble: their silence is all there is


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            source("zoneminder") + cameras(front="5", back="6"),
            lambda: ("zoneminder/6", {"eventid": "7", "eventtype": "event_start", "name": "Yard:(7) Motion"}),
        ),
        (
            source("unifi") + cameras(front="AABB", back="CCDD"),
            lambda: ("unifi/protect/CCDD/motion", "false"),
        ),
    ],
    ids=["zoneminder", "unifi"],
)
async def test_where_nothing_is_said_of_troubles_silence_is(tmp_path: Path, text: str, says: Any) -> None:
    async with live_site(tmp_path, '[defaults]\nsilence_after = "2h"\n' + text) as site:
        for _ in range(5):
            await site.hear(*says())
            await site.passes(1800, every=30)
        troubles = [event for event in site.events() if event[1] == "silence"]
        assert troubles == [("front", "silence", ON)]


# Never a storm


async def test_a_lost_recorder_of_fifty_cameras_is_one_trouble(tmp_path: Path) -> None:
    names = {f"cam{n}": f"cam{n}" for n in range(50)}
    async with live_site(tmp_path, source("frigate") + cameras(**names)) as site:
        for name in names:
            await site.hear(f"frigate/{name}/status/detect", "offline")
        await site.passes(10)
        await site.hear("frigate/available", "offline")
        await site.passes(3600)
        assert site.events() == [("id-site", "recorder", ON)]
        await site.hear("frigate/available", "online")
        for name in names:
            await site.hear(f"frigate/{name}/status/detect", "online")
        await site.passes(3600)
        assert site.events() == [("id-site", "recorder", ON), ("id-site", "recorder", OFF)]
        assert site.open() == []


async def test_a_recorder_that_reports_its_disk_still_speaks_for_its_cameras(tmp_path: Path) -> None:
    """Only a recorder that is gone explains what its cameras say."""
    async with live_site(tmp_path, DAHUA) as site:
        await site.hear(*dahua("StorageFailure", "Start"))
        await site.hear(*dahua("VideoLoss", "Start", Index=3))
        await site.passes(2 * DELAY)
        assert sorted(site.events()) == [("id-site", "storagefailure", ON), ("two", "video loss", ON)]


async def test_a_tampered_panel_still_speaks_for_its_cameras(tmp_path: Path) -> None:
    async with live_site(tmp_path, source("ring") + cameras(front="c1")) as site:
        await site.hear("ring/L/alarm/d1/tamper/state", "ON")
        await site.passes(2 * DELAY)
        await site.hear("ring/L/camera/c1/status", "offline")
        await site.passes(2 * DELAY)
        assert [event[0] for event in site.events()] == ["id-site", "front"]


async def test_a_panel_with_a_fault_is_still_heard_when_it_goes(tmp_path: Path) -> None:
    async with live_site(tmp_path, PANEL) as site:
        await site.hear("paradox/states/system/troubles/trouble", "True")
        await site.passes(2 * DELAY)
        await site.hear("paradox/interface/availability", "offline")
        await site.passes(2 * DELAY)
        assert site.events() == [("id-site", "panel", ON), ("id-site", "recorder", ON)]


async def test_a_trouble_of_a_camera_that_is_not_configured_is_nobodys(tmp_path: Path) -> None:
    async with live_site(tmp_path, DAHUA) as site:
        await site.hear(*dahua("VideoLoss", "Start", Index=7))
        await site.passes(2 * DELAY)
        assert site.events() == []
