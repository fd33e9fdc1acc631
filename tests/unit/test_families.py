"""Every family: beginning, end, repeats, heartbeats, retained values, third words and what is broken.

The messages are written here in the formats that each family file names its sources for.
"""

from __future__ import annotations

import json
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import EventStatus, EventType, Reading, iso_utc
from gateway.sources.families import families, load_family
from gateway.sources.rules import CompiledSource, Ignored, Unreadable
from tests.unit.frigate_messages import NOW, message

ISAPI = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<EventNotificationAlert version="2.0" xmlns="http://www.isapi.org/ver20/XMLSchema">'
    "<ipAddress>192.0.2.7</ipAddress>%s<dateTime>2026-03-01T13:59:58+02:00</dateTime>"
    "<activePostCount>%d</activePostCount><eventType>%s</eventType><eventState>%s</eventState>%s"
    "</EventNotificationAlert>"
)


def isapi(kind: str, state: str = "active", *, channel: str = "", count: int = 1, more: str = "") -> str:
    return ISAPI % (channel or "<channelID>2</channelID>", count, kind, state, more)


MULTIPART = (
    "--boundary\r\nContent-Type: application/xml\r\n\r\n"
    + isapi("linedetection")
    + "\r\n--boundary\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8<<"
    + "\r\n--boundary\r\nContent-Type: application/xml\r\n\r\n"
    + isapi("VMD", channel="<dynChannelID>5</dynChannelID>")
    + "\r\n--boundary--\r\n"
)


def onvif(data: Any, source: Any = None, at: str = "2026-03-01T11:59:59.5Z") -> dict[str, Any]:
    return {"UtcTime": at, "Source": source or {}, "Data": data}


def axis(name: str, data: Any, source: Any = None) -> dict[str, Any]:
    return {"timestamp": NOW - 500, "topic": name, "message": {"source": source or {}, "key": {}, "data": data}}


def dahua(action: str, **more: Any) -> dict[str, Any]:
    return {"Action": action, "Data": {"LocaleTime": "2026-03-01 13:59:59", "UTC": NOW // 1000 - 1}, **more}


# family/dialect, topic, payload -> type status camera kind [id=…] [pulse]; several readings are joined by " + "
SAYS: list[tuple[str, str, Any, str]] = [
    # ONVIF: names of states, namespaces, item forms, unknown prefix depth, channels, moments
    (
        "onvif-ej",
        "Cam7/onvif-ej/VideoSource/MotionAlarm/&1",
        onvif({"State": "1"}, {"Source": "1"}),
        "alarm active Cam7 motion",
    ),
    (
        "onvif-ej",
        "a/b/Cam7/onvif-ej/tns1:VideoSource/tns1:MotionAlarm/&1",
        onvif({"State": False}),
        "alarm inactive a/b/Cam7 motion",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/RuleEngine/CellMotionDetector/Motion/&00000/00000/Rule",
        onvif({"IsMotion": "true"}, {"VideoSourceConfigurationToken": "00000"}),
        "alarm active C motion",
    ),
    (
        "onvif-ej",
        "N/onvif-ej/VideoSource/MotionAlarm/&VideoSource_3",
        onvif({"State": "true"}, {"Source": "VideoSource_3"}),
        "alarm active N/VideoSource_3 motion",
    ),
    (
        "onvif-ej",
        "N/onvif-ej/VideoSource/MotionAlarm/&VideoSource_0",
        onvif({"State": "true"}, {"Source": "VideoSource_0"}),
        "alarm active N/VideoSource_0 motion",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/RuleEngine/FieldDetector/ObjectsInside/&1/Zone",
        onvif({"IsInside": 1}),
        "alarm active C intrusion",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/RuleEngine/LineDetector/Crossed/&1/Line",
        onvif({"ObjectId": "4"}),
        "alarm active C line crossing pulse",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/RuleEngine/MyRuleDetector/PeopleDetect/&000",
        onvif({"State": "true"}, {"Source": "000"}),
        "alarm active C person",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/IVA/CrowdDetection/Crowd Detection/&1",
        onvif({"Status": "true"}),
        "alarm active C IVA/CrowdDetection/Crowd Detection",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/Device/tns1:Trigger/tns1:DigitalInput/&2",
        onvif({"SimpleItem": {"Name": "LogicalState", "Value": "inactive"}}),
        "alarm inactive C Device/Trigger/DigitalInput 2",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/Device/HardwareFailure/StorageFailure/&SD",
        onvif({"Failed": "false"}, {"Token": "SD"}),
        "trouble inactive C storage",
    ),
    (
        "onvif-ej",
        "C/onvif-ej/VideoSource/ImageTooDark/ImagingService/&1",
        onvif({"State": "true"}),
        "trouble active C VideoSource/ImageTooDark/ImagingService",
    ),
    ("onvif-ej", "C/onvif-ej/RuleEngine/CountAggregation/Counter/&1/R", onvif({"Count": 3}), "ignored"),
    ("onvif-ej", "C/onvif-ej/Media/ProfileChanged/&1", onvif({"State": "true"}), "ignored"),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", onvif({"State": "maybe"}), "ignored"),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", "", "ignored"),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", '{"UtcTime": "2026" "Source"', "unreadable"),
    # Hanwha
    ("hanwha", "00:09:18:AA:BB:CC/fireAlarm", "", "alarm active 00:09:18:AA:BB:CC fire pulse"),
    ("hanwha", "00:09:18:AA:BB:CC/heartbeat", "", "ignored"),
    # Axis
    (
        "axis",
        "axis/ACCC8E/event/CameraApplicationPlatform/VMD/Camera1Profile2",
        axis("axis:CameraApplicationPlatform/VMD/Camera1Profile2", {"active": "1"}),
        "alarm active ACCC8E VMD",
    ),
    (
        "axis",
        "axis/ACCC8E/event/tns:axis/CameraApplicationPlatform/ObjectAnalytics/Device2Scenario1",
        axis("axis:CameraApplicationPlatform/ObjectAnalytics/Device2Scenario1", {"active": "0", "classTypes": "human"}),
        "alarm inactive ACCC8E/2 ObjectAnalytics human",
    ),
    (
        "axis",
        "axis/ACCC8E/event/tns:onvif/Device/tns:axis/IO/Port",
        axis("onvif:Device/axis:IO/Port", {"state": "1"}, {"port": "3"}),
        "alarm active ACCC8E IO",
    ),
    (
        "axis",
        "axis/ACCC8E/event/tns:onvif/VideoSource/tns:axis/Tampering",
        axis("onvif:VideoSource/axis:Tampering", {"tampering": "1"}, {"channel": "2"}),
        "trouble active ACCC8E/2 tamper pulse",
    ),
    (
        "axis",
        "axis/ACCC8E/event/tns:axis/Storage/Disruption",
        axis("axis:Storage/Disruption", {"disruption": "1"}, {"disk_id": "NetworkShare"}),
        "ignored",
    ),
    (
        "axis",
        "axis/ACCC8E/event/CameraApplicationPlatform/ObjectAnalytics/Device1Scenario3",
        axis("axis:CameraApplicationPlatform/ObjectAnalytics/Device1Scenario3", {"total": "12"}),
        "ignored",
    ),
    (
        "axis",
        "axis/ACCC8E/event/tns:axis/PTZController/Move",
        axis("axis:PTZController/Move", {"is_moving": "1"}),
        "ignored",
    ),
    (
        "axis",
        "axis/ACCC8E/event/connection",
        {"connected": False, "description": "ungraceful"},
        "trouble active ACCC8E offline",
    ),
    ("axis", "axis/ACCC8E/event/connection", {"connected": True}, "trouble inactive ACCC8E offline"),
    ("axis", "axis/ACCC8E/event/Storage/Alert", "{", "unreadable"),
    # Blue Iris
    (
        "blueiris",
        "BlueIris/Gate/alert",
        {"type": "EXTERNAL", "trigger": "ON", "id": "@99"},
        "alarm active Gate external id=@99",
    ),
    (
        "blueiris",
        "blueiris/Gate/alert",
        {"type": "EXTERNAL", "trigger": "OFF", "id": "@99"},
        "alarm inactive Gate external id=@99",
    ),
    (
        "blueiris",
        "BlueIris/Gate/alert",
        {"type": "AUDIO", "trigger": "ON", "id": "&ALERT_DB"},
        "alarm active Gate audio",
    ),
    (
        "blueiris",
        "BlueIris/Gate/Status",
        {"type": "Connectivity", "trigger": "ON"},
        "trouble inactive Gate connectivity",
    ),
    ("blueiris", "BlueIris/Gate/Status", {"type": "MOTION_A", "trigger": "MAYBE"}, "ignored"),
    ("blueiris", "BlueIris/Gate/pic", "/9j/4AAQSkZJRgABAQ", "ignored"),
    ("blueiris", "BlueIris/Gate/alert", '{"path":"C:\\New\\x.bvr"}', "unreadable"),
    ("blueiris/legacy", "BlueIris/Gate/AUDIO", "off", "alarm inactive Gate audio"),
    ("blueiris/legacy", "BlueIris/Gate/Connectivity", "OFF", "trouble active Gate connectivity"),
    ("blueiris/legacy", "BlueIris/Gate/MOTION", "later", "ignored"),
    # ZoneMinder
    (
        "zoneminder",
        "zoneminder/3",
        {
            "monitor": "3",
            "name": "Yard:(7) Motion All",
            "state": "alarm",
            "eventid": "7",
            "eventtype": "event_start",
            "detection": [],
        },
        "alarm active 3 motion id=7",
    ),
    (
        "zoneminder",
        "zoneminder/3",
        {"monitor": "3", "name": "Ended:Yard:(7) Motion", "state": "alarm", "eventid": "7", "eventtype": "event_end"},
        "alarm inactive 3 motion id=7",
    ),
    (
        "zoneminder",
        "zoneminder/3",
        {"monitor": "3", "name": "Yard:(8) Motion", "state": "alarm", "eventid": 8},
        "alarm active 3 motion id=8 pulse",
    ),
    ("zoneminder", "zoneminder/3", {"monitor": "3", "state": "alarm"}, "unreadable"),
    # Hikvision
    ("hikvision", "hikvision/yard/alertStream", isapi("VMD"), "alarm active yard/2 motion"),
    ("hikvision", "hikvision/yard", isapi("VMD", "inactive"), "alarm inactive yard/2 motion"),
    (
        "hikvision",
        "hikvision/nvr/alertStream",
        isapi("linedetection", channel="<channelID>0</channelID><dynChannelID>33</dynChannelID>"),
        "alarm active nvr/33 line crossing",
    ),
    (
        "hikvision",
        "hikvision/nvr/alertStream",
        isapi(
            "duration",
            more="<DurationList><Duration><relationEvent>regionEntrance</relationEvent></Duration></DurationList>",
        ),
        "alarm active nvr/2 regionentrance",
    ),
    (
        "hikvision",
        "hikvision/nvr/alertStream",
        isapi("videoloss", "inactive", count=0),
        "trouble inactive nvr/2 video loss closes only",
    ),
    (
        "hikvision",
        "hikvision/nvr/alertStream",
        isapi("diskfull", channel="<channelID>0</channelID>"),
        "trouble active nvr/0 diskfull",
    ),
    ("hikvision", "hikvision/nvr/alertStream", isapi("somethingNew"), "ignored"),
    (
        "hikvision",
        "hikvision/nvr/alertStream",
        MULTIPART,
        "alarm active nvr/2 line crossing + alarm active nvr/5 motion",
    ),
    ("hikvision", "hikvision/nvr/alertStream", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "unreadable"),
    ("hikvision", "hikvision/nvr/alertStream", "<EventNotificationAlert><eventType>VMD", "unreadable"),
    (
        "hikvision/json",
        "hikvision/nvr/alertStream",
        {
            "channelID": 4,
            "dateTime": "2026-03-01T12:00:00Z",
            "activePostCount": 1,
            "eventType": "fielddetection",
            "eventState": "active",
        },
        "alarm active nvr/4 intrusion",
    ),
    (
        "hikvision/json",
        "hikvision/nvr/alertStream",
        {
            "EventNotificationAlert": {
                "channelID": ["1"],
                "eventType": ["videoloss"],
                "eventState": ["inactive"],
                "activePostCount": ["0"],
            }
        },
        "trouble inactive nvr/1 video loss closes only",
    ),
    (
        "hikvision/hiksink",
        "hikvision_cameras/device_yard/LineDetection",
        {"alerting": False, "regions": []},
        "alarm inactive yard line crossing",
    ),
    (
        "hikvision/hiksink",
        "hikvision_cameras/device_nvr/ch3/DiskFull",
        {"alerting": True},
        "trouble active nvr/ch3 diskfull",
    ),
    ("hikvision/hiksink", "hikvision_cameras/device_nvr/availability", "online", "trouble inactive nvr offline"),
    ("hikvision/alarmserver", "camera-alerts/yard/linedetection", "prose", "alarm active yard line crossing pulse"),
    ("hikvision/alarmserver", "camera-alerts/yard/videoloss", "videoloss alarm", "ignored"),
    ("hikvision/alarmserver", "camera-alerts/alarmserver", {"status": "up"}, "trouble inactive None recorder"),
    ("hikvision/doorbell", "hmd/sensor/door/Call-state/state", "ringing", "ignored"),
    ("hikvision/doorbell", "hmd/binary_sensor/door/tampering/state", "ON", "trouble active door tamper"),
    # Dahua
    ("dahua", "DahuaVTO/VideoMotion/Event", dahua("Stop", serialNumber="S1"), "alarm inactive S1 motion"),
    (
        "dahua",
        "DahuaVTO/CrossRegionDetection/Event",
        dahua("Start", serialNumber="N1", Index=0),
        "alarm active N1/0 intrusion",
    ),
    ("dahua", "DahuaVTO/AlarmLocal/Event", dahua("Start", serialNumber="N1", Index=2), "alarm active N1 alarmlocal 2"),
    (
        "dahua",
        "DahuaVTO/VideoBlind/Event",
        dahua("Pulse", serialNumber="N1", Index=4),
        "trouble active N1/4 tamper pulse",
    ),
    ("dahua", "DahuaVTO/NTPAdjustTime/Event", dahua("Pulse", serialNumber="N1"), "ignored"),
    ("dahua", "DahuaVTO/Invite/Event", dahua("Start", serialNumber="N1"), "ignored"),
    ("dahua", "DahuaVTO/VideoMotion/Event", dahua("Pause", serialNumber="N1"), "ignored"),
    ("dahua", "DahuaVTO/VideoMotion/Event", "null", "unreadable"),
    ("dahua/amcrest2mqtt", "amcrest2mqtt/AMC1/human", "off", "alarm inactive AMC1 motion"),
    ("dahua/amcrest2mqtt", "amcrest2mqtt/AMC1/doorbell", "on", "ignored"),
    ("dahua/amcrest2mqtt", "amcrest2mqtt/AMC1/status", "online", "trouble inactive AMC1 offline"),
    # Reolink
    ("neolink", "neolink/Yard/status/motion", "off", "alarm inactive Yard motion"),
    ("neolink", "neolink/Yard/status/motion", "unknown", "ignored"),
    ("neolink", "neolink/Yard/status/battery_level", "55", "ignored"),
    ("neolink", "neolink/Yard/status", "connected", "trouble inactive Yard offline"),
    ("neolink", "neolink/status", "disconnected", "trouble active None recorder"),
    # UniFi
    ("unifi", "unifi/protect/AABBCC/motion/smart/person", "true", "ignored"),
    ("unifi", "unifi/protect/AABBCC/leak", "true", "alarm active AABBCC water"),
    ("unifi", "unifi/protect/AABBCC/occupancy", "true", "ignored"),
    ("unifi", "unifi/protect/AABBCC/securitysystem", "Off", "arming inactive None arming + alarm inactive None panel"),
    ("unifi", "unifi/protect/AABBCC/securitysystem", "Sleeping", "ignored"),
    (
        "unifi/pakerfeldt",
        "unifi/protect/events/motion/Gate",
        {"event_id": "e1", "camera_id": "c1", "score": 80, "start": NOW - 9000, "end": NOW - 1000},
        "alarm inactive c1 motion id=e1",
    ),
    (
        "unifi/pakerfeldt",
        "unifi/protect/events/early/ring/Gate",
        {"event_id": "e1", "camera_id": "c1", "start": NOW, "end": 0},
        "ignored",
    ),
    (
        "unifi/bostaunieux",
        "unifi/camera/motion/gate",
        {"timestamp": NOW, "camera_id": "c1", "status": "OFF"},
        "alarm inactive c1 motion",
    ),
    (
        "unifi/bluewalk",
        "unifi/camera/motion/gate",
        {"timestamp": NOW // 1000, "camera_id": "c1", "status": "ON"},
        "alarm active c1 motion",
    ),
    # Scrypted
    ("scrypted", "scrypted/gate/motionDetected", "false", "alarm inactive gate motion"),
    ("scrypted", "scrypted/gate/online", "false", "trouble active gate offline"),
    (
        "scrypted",
        "scrypted/gate/ObjectDetector",
        {"timestamp": NOW, "detectionId": "x", "detections": [{"className": "motion", "score": 1}]},
        "ignored",
    ),
    ("scrypted", "scrypted/gate/batteryLevel", "80", "ignored"),
    # Shinobi
    (
        "shinobi",
        "shinobi/events",
        {"name": "onMonitorDied", "data": {"mid": "m1", "ke": "g"}, "time": "2026-03-01T12:00:00Z"},
        "trouble active m1 offline",
    ),
    (
        "shinobi",
        "shinobi/events",
        {"name": "onMonitorStart", "data": {"mid": "m1", "ke": "g"}},
        "trouble inactive m1 offline",
    ),
    ("shinobi", "shinobi/events", {"name": "onTwoFactorAuthCodeNotification", "data": {"id": "secret"}}, "ignored"),
    ("shinobi", "shinobi/events", {"name": "onEventTrigger", "data": {"ke": "g"}}, "unreadable"),
    # Viseron
    (
        "viseron",
        "viseron/binary_sensor/back_yard_motion_detected/state",
        {"state": "on"},
        "alarm active back_yard motion",
    ),
    ("viseron", "viseron/binary_sensor/yard_zone_gate_object_detected_car/state", {"state": "on"}, "ignored"),
    ("viseron", "viseron/binary_sensor/yard_object_detected/state", {"state": "on"}, "ignored"),
    ("viseron", "viseron/binary_sensor/yard_connected/state", {"state": "off"}, "trouble active yard offline"),
    ("viseron", "viseron/binary_sensor/yard_recorder/state", {"state": "on"}, "ignored"),
    ("viseron", "viseron/lwt", "online", "trouble inactive None recorder"),
    # motion
    (
        "motion",
        "motion/Yard/event",
        {"event": "3", "camera": "2", "state": "end", "time": str(NOW // 1000)},
        "alarm inactive 2 motion id=3",
    ),
    (
        "motion",
        "motion/Yard/event",
        {"event": "", "camera": "2", "state": "lost", "time": str(NOW // 1000)},
        "trouble active 2 offline",
    ),
    ("motion", "motion/Yard/event", {"camera": "2", "state": "start"}, "unreadable"),
    # Smaller ones
    (
        "lightnvr",
        "lightnvr/detections/gate",
        {"timestamp": NOW // 1000, "detections": [{"label": "dog", "confidence": 0.5}]},
        "alarm active gate dog pulse",
    ),
    ("lightnvr", "lightnvr/detections/gate", {"timestamp": NOW // 1000, "detections": []}, "ignored"),
    ("kerberos", "kerberos/agent/key1", "motion", "alarm active key1 motion pulse"),
    ("kerberos", "kerberos/agent/key1", "hello", "ignored"),
    ("instar", "cameras/12/status/alarm/triggered", {"val": "5"}, "alarm active 12 alarm 5 pulse"),
    ("instar", "cameras/12/status/alarm/triggered", {"val": "0"}, "ignored"),
    ("instar", "cameras/12/status/connection", {"val": "online"}, "trouble inactive 12 offline"),
    ("wyze", "wyzebridge/gate/motion", "2", "alarm inactive gate motion"),
    ("wyze", "wyzebridge/gate/motion", "0", "ignored"),
    ("wyze", "wyzebridge/gate/state", "stopped", "ignored"),
    ("wyze", "wyzebridge/state", "offline", "trouble active None recorder"),
    ("eufy", "homeassistant/binary_sensor/eufy/T1_pet/state", "motion", "alarm active T1 pet pulse"),
    ("eufy", "homeassistant/binary_sensor/eufy/T1_doorbell/state", "motion", "ignored"),
    ("yihack", "yicam/motion_detection", "motion_stop", "alarm inactive yicam motion"),
    ("yihack", "yicam/ai_human_detection", "human", "alarm active yicam human pulse"),
    ("yihack", "yicam/status", "online", "trouble inactive yicam offline"),
    ("deepstack", "aimotion/triggers/gate", {"state": "off"}, "alarm inactive gate gate"),
    ("deepstack", "aimotion/triggers/gate", "{}", "unreadable"),
    ("doubletake", "double-take/matches/eve", {"id": "1", "camera": "gate", "match": {}}, "ignored"),
    ("onvif2mqtt", "onvif2mqtt/gate/motion", "on", "alarm active gate motion"),
    ("onvif2mqtt", "onvif2mqtt/gate/colour", "on", "ignored"),
    ("onvif2mqtt", "onvif2mqtt/status", "ON", "trouble inactive None recorder"),
    # Panels
    ("panel", "alarmo/state", "disarmed", "arming inactive None arming (Home Assistant) + alarm inactive None panel"),
    (
        "panel",
        "alarmo/cellar/state",
        "armed_night",
        "arming active None arming (Home Assistant) + alarm inactive None panel",
    ),
    ("panel", "alarmo/state", "unavailable", "ignored"),
    ("panel/pai", "paradox/states/partitions/House/current_state", "triggered", "alarm active None panel"),
    ("panel/pai", "paradox/states/system/troubles/battery_trouble", "True", "ignored"),
    ("panel/pai", "paradox/interface/availability", "offline", "trouble active None recorder"),
    ("panel/dsc", "dsc/Get/Partition2", "armed_away", "arming active None arming (DSC) + alarm inactive None panel"),
    ("panel/dsc", "dsc/Get/Fire1", "0", "alarm inactive None fire"),
    ("panel/dsc", "dsc/Get/Zone4", "1", "ignored"),
    (
        "panel/risco",
        "riscopanel/alarm/1/status",
        "disarmed",
        "arming inactive None arming (Risco) + alarm inactive None panel",
    ),
    ("panel/risco", "riscopanel/alarm/sensor/3/status", "triggered", "ignored"),
    ("panel/risco", "riscopanel/alarm/status", "offline", "trouble active None recorder"),
    (
        "panel/homebridge",
        "homebridge-securitysystem",
        {"arming": True, "current_mode": "off", "target_mode": "away"},
        "alarm inactive None panel",
    ),
    (
        "panel/homebridge",
        "homebridge-securitysystem",
        {"arming": False, "current_mode": "triggered"},
        "alarm active None panel",
    ),
    ("ring", "ring/loc/alarm/d1/alarm/state", "armed_away", "arming active None arming + alarm inactive None panel"),
    ("ring", "ring/loc/alarm/d1/smoke/state", "ON", "alarm active None fire"),
    ("ring", "ring/loc/alarm/d1/contact/state", "ON", "ignored"),
    ("ring", "ring/loc/camera/c9/motion/state", "OFF", "alarm inactive c9 motion"),
    # Whatever can be told what to say
    ("generic", "site/gate/alarm", "ON", "alarm active gate alarm"),
    ("generic", "site/gate/alert", {"trigger": "OFF"}, "alarm inactive gate alarm"),
    (
        "generic",
        "site/gate/alarm",
        {"state": "pulse", "kind": "Person", "id": 5},
        "alarm active gate person id=5 pulse",
    ),
    ("generic", "site/gate/connection", "offline", "trouble active gate offline"),
    ("generic", "site/connection", "online", "trouble inactive None recorder"),
    ("generic", "site/gate/alarm", "perhaps", "ignored"),
    ("generic", "site/gate/alarm", "{", "unreadable"),
]


def compiled(spoken: str, **settings: Any) -> CompiledSource:
    family, _, dialect = spoken.partition("/")
    source = Source(family=family, dialect=dialect or None, **settings)
    zone = timezone(timedelta(hours=2))
    return load_family(family).compile_source("s", source, zone)


def summary(answer: list[Reading] | Ignored | Unreadable) -> str:
    if isinstance(answer, Ignored):
        return "ignored"
    if isinstance(answer, Unreadable):
        return "unreadable"
    said = []
    for r in answer:
        words = [r.event_type, r.event_status, r.camera, r.kind]
        words += [f"id={r.source_id}"] if r.source_id else []
        words += ["pulse"] if r.pulse_seconds else []
        words += ["closes only"] if not r.opens and r.event_status is EventStatus.INACTIVE else []
        said.append(" ".join(map(str, words)))
    return " + ".join(said)


@pytest.mark.parametrize(("spoken", "topic", "payload", "says"), SAYS, ids=lambda value: str(value)[:60])
def test_what_a_message_says(spoken: str, topic: str, payload: Any, says: str) -> None:
    if isinstance(payload, str):
        payload = payload.encode("latin-1")
    assert summary(compiled(spoken).read(message(payload, topic))) == says


def test_every_dialect_is_in_the_table() -> None:
    spoken = {f"{name}/{d}" for name, family in families().items() for d in family.dialects or ("",)} - {
        "panel/envisalink"
    }
    told = {
        f"{family}/{dialect or load_family(family).facts.dialect or ''}"
        for family, _, dialect in (said[0].partition("/") for said in SAYS)
    }
    assert {name for name in spoken if not name.startswith("frigate/")} == told


@pytest.mark.parametrize(("spoken", "topic", "payload", "says"), SAYS, ids=lambda value: str(value)[:60])
def test_no_retained_alarm_of_the_past_begins_anew(spoken: str, topic: str, payload: Any, says: str) -> None:
    """A replay may tell the truth of now (troubles, arming) or end something; an alarm it never begins."""
    if isinstance(payload, str):
        payload = payload.encode("latin-1")
    answer = compiled(spoken).read(message(payload, topic, retain=True, replay=True))
    for reading in answer if isinstance(answer, list) else []:
        assert (reading.event_type, reading.event_status) != (EventType.ALARM, EventStatus.ACTIVE)


@pytest.mark.parametrize(
    ("spoken", "settings", "topic", "payload", "says"),
    [
        ("panel/envisalink", {"zones": ["5"]}, "alarm/zone/5", "1", "alarm active None zone 5"),
        ("panel/envisalink", {}, "alarm/zone/5", "1", "ignored"),
        ("panel/dsc", {"zones": ["4"]}, "dsc/Get/Zone4", "0", "alarm inactive None zone 4"),
        ("unifi", {"labels": ["person"]}, "unifi/protect/A/motion/smart/person", "true", "alarm active A person"),
        ("unifi", {"labels": ["person"]}, "unifi/protect/A/motion", "true", "ignored"),
        (
            "viseron",
            {"zones": ["gate"]},
            "viseron/binary_sensor/y_zone_gate_object_detected_car/state",
            {"state": "on"},
            "alarm active y car",
        ),
        (
            "viseron",
            {"labels": ["person"]},
            "viseron/binary_sensor/y_object_detected_car/state",
            {"state": "on"},
            "ignored",
        ),
        (
            "lightnvr",
            {"labels": ["car"], "min_score": 0.6},
            "lightnvr/detections/g",
            {"detections": [{"label": "car", "confidence": 0.5}, {"label": "dog", "confidence": 0.9}]},
            "ignored",
        ),
        (
            "lightnvr",
            {"labels": ["car"], "min_score": 0.5},
            "lightnvr/detections/g",
            {"detections": [{"label": "car", "confidence": 0.5}]},
            "alarm active g car pulse",
        ),
        (
            "doubletake",
            {"labels": ["eve"]},
            "double-take/matches/eve",
            {"id": "1", "camera": "gate"},
            "alarm active gate eve id=1 pulse",
        ),
        (
            "onvif-ej",
            {"topic_prefix": "site/north"},
            "site/north/Cam1/onvif-ej/VideoSource/MotionAlarm/&1",
            onvif({"State": "1"}),
            "alarm active Cam1 motion",
        ),
        (
            "onvif-ej",
            {"topic_prefix": "site/Cam1"},
            "site/Cam1/onvif-ej/VideoSource/MotionAlarm/&1",
            onvif({"State": "1"}),
            "alarm active site/Cam1 motion",
        ),
        (
            "axis",
            {"labels": ["NetworkShare"]},
            "axis/A/event/tns:axis/Storage/Disruption",
            axis("axis:Storage/Disruption", {"disruption": "1"}, {"disk_id": "NetworkShare"}),
            "trouble active A storage",
        ),
        (
            "axis",
            {"topic_prefix": "north/gate"},
            "north/gate/event/Device/Sensor/PIR",
            axis("onvif:Device/axis:Sensor/PIR", {"state": "1"}),
            "alarm active north/gate pir",
        ),
        (
            "zoneminder",
            {"labels": ["car"]},
            "zoneminder/3",
            {"eventid": "7", "eventtype": "event_start", "detection": [{"label": "cat"}]},
            "ignored",
        ),
        ("hikvision", {"ignore": ["nvr/2"]}, "hikvision/nvr/alertStream", isapi("VMD"), "ignored"),
    ],
)
def test_options_of_the_families(spoken: str, settings: dict[str, Any], topic: str, payload: Any, says: str) -> None:
    source = Source.model_validate(
        {"family": spoken.partition("/")[0], "dialect": spoken.partition("/")[2] or None, **settings}
    )
    family = load_family(source.family)
    answer = family.compile_source("s", source, UTC).read(message(payload, topic))
    assert summary(answer) == says


@pytest.mark.parametrize(
    ("spoken", "settings", "topic", "payload", "at"),
    [
        # Dahua writes local time as if it were UTC, or true UTC; the site is at UTC+2 here.
        (
            "dahua",
            {},
            "DahuaVTO/VideoMotion/Event",
            {
                "Action": "Start",
                "serialNumber": "s",
                "Data": {"LocaleTime": "2026-03-01 13:59:50", "UTC": NOW // 1000 + 7200 - 10},
            },
            "2026-03-01T11:59:50.000Z",
        ),
        (
            "dahua",
            {},
            "DahuaVTO/VideoMotion/Event",
            {
                "Action": "Start",
                "serialNumber": "s",
                "Data": {"LocaleTime": "2026-03-01 06:59:50", "UTC": NOW // 1000 - 10},
            },
            "2026-03-01T11:59:50.000Z",
        ),
        ("hikvision", {}, "hikvision/n/alertStream", isapi("VMD"), "2026-03-01T11:59:58.000Z"),
        ("hikvision", {}, "hikvision/n/alertStream", isapi("VMD").replace("13:59:58+02:00", "13:59:0200:00"), None),
        (
            "onvif-ej",
            {},
            "C/onvif-ej/VideoSource/MotionAlarm/&1",
            onvif({"State": 1}, at="2026-03-01T11:59:59"),
            "2026-03-01T11:59:59.000Z",
        ),
        (
            "onvif-ej",
            {},
            "C/onvif-ej/VideoSource/MotionAlarm/&1",
            onvif({"State": 1}, at="2026-03-01T11:59:59.123456Z"),
            "2026-03-01T11:59:59.123Z",
        ),
        ("blueiris", {}, "BlueIris/G/alert", {"trigger": "ON", "time": "03/01/2026 01:59:59 PM"}, None),
        (
            "blueiris",
            {"time_format": "%m/%d/%Y %I:%M:%S %p"},
            "BlueIris/G/alert",
            {"trigger": "ON", "time": "03/01/2026 01:59:59 PM"},
            "2026-03-01T11:59:59.000Z",
        ),
        (
            "generic",
            {"time_format": "%d.%m.%Y %H:%M:%S"},
            "site/g/alarm",
            {"state": "on", "time": "01.03.2026 13:59:59"},
            "2026-03-01T11:59:59.000Z",
        ),
        (
            "unifi/pakerfeldt",
            {},
            "unifi/protect/events/person/G",
            {"event_id": "e", "camera_id": "c", "start": NOW - 9000, "end": NOW - 1000},
            "2026-03-01T11:59:59.000Z",
        ),
        (
            "axis",
            {},
            "axis/A/event/Device/Sensor/PIR",
            axis("onvif:Device/axis:Sensor/PIR", {"state": "1"}),
            "2026-03-01T11:59:59.500Z",
        ),
    ],
)
def test_times_of_the_families(spoken: str, settings: dict[str, Any], topic: str, payload: Any, at: str | None) -> None:
    reading = only(compiled(spoken, **settings).read(message(payload, topic)))
    assert (None if reading.event_at is None else iso_utc(reading.event_at)) == at


@pytest.mark.parametrize(
    "tokens",
    [
        ["0", "1", "2"],
        ["VideoSource_0", "VideoSource_1", "VideoSource_2"],
        ["VideoSourceToken-0", "VideoSourceToken-1"],
        ["000", "001"],
        ["00000", "00100", "00200"],
        ["V_SRC_000", "V_SRC_001"],
    ],
)
def test_channels_of_one_device_never_share_a_name(tokens: list[str]) -> None:
    """Whatever a firmware calls its sources, from 0 or from 1: two tokens are two cameras, one the device itself."""
    names = []
    for token in tokens:
        said = onvif({"State": "true"}, {"Source": token})
        names.append(
            only(compiled("onvif-ej").read(message(said, f"N/onvif-ej/VideoSource/MotionAlarm/&{token}"))).camera
        )
    assert len(set(names)) == len(tokens)
    assert names.count("N") == 1


def only(answer: list[Reading] | Ignored | Unreadable) -> Reading:
    assert isinstance(answer, list)
    [reading] = answer
    return reading


SCENARIOS = "axis:CameraApplicationPlatform/ObjectAnalytics"


def test_what_axis_tells_twice_is_one_alarm() -> None:
    source = compiled("axis")
    said = {"active": "1", "classTypes": "human"}
    one, both = (
        only(source.read(message(axis(f"{SCENARIOS}/{name}", said), f"axis/A/event/x/{name}")))
        for name in ("Device1Scenario1", "Device1ScenarioANY")
    )
    assert one.twin == both.twin is not None
    assert one.state_key != both.state_key


def test_filters_hear_what_the_rules_read() -> None:
    """Each message above that says something comes in through a subscription of its family."""
    from gateway.sources.broker_filters import matches

    for spoken, topic, _, says in SAYS:
        family, _, dialect = spoken.partition("/")
        filters = load_family(family).filters(Source(family=family, dialect=dialect or None))
        if says not in ("ignored", "unreadable"):
            assert any(matches(heard, topic) for heard, _ in filters), (spoken, topic)
        assert not any(heard in ("#", "+", "+/+") for heard, _ in filters)


@given(st.sampled_from(SAYS), st.binary(max_size=80), st.booleans())
def test_no_payload_makes_a_family_fail(said: tuple[str, str, Any, str], payload: bytes, retained: bool) -> None:
    compiled(said[0]).read(message(payload, said[1], retain=retained, replay=retained))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([said for said in SAYS if isinstance(said[2], dict)]), st.data())
def test_no_value_makes_a_family_fail(said: tuple[str, str, Any, str], data: st.DataObject) -> None:
    """A message as it should be, with one value replaced by anything."""
    payload = json.loads(json.dumps(said[2]))
    within = payload
    while True:
        key = data.draw(st.sampled_from(sorted(within)))
        if isinstance(within[key], dict) and within[key] and data.draw(st.booleans()):
            within = within[key]
            continue
        within[key] = data.draw(json_values)
        break
    compiled(said[0]).read(message(payload, said[1]))
