"""Messages that no sample shows: what the publishers' own sources say that they send, and what equipment makes of it.

Other capitals, numbers as texts, fields more and fewer, other types, other encodings, nothing and too much: no family
may fail, name another camera, or raise an alarm that nobody meant.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.sources.families import families
from tests.unit.frigate_messages import NOW, message, review
from tests.unit.test_families import SAYS, compiled, dahua, isapi, onvif, summary

DETECTOR = {"plug": "built-in", "reason": "motion", "confidence": "87", "matrices": [{"tag": "person"}, {"tag": "car"}]}

OUTSIDE: list[tuple[str, str, Any, str]] = [
    # Shinobi: monitors are `monitorId` in all but events; images, logins and logs on the same topic
    (
        "shinobi",
        "shinobi/events",
        {"title": "Monitor Died", "name": "onMonitorDied", "data": {"name": "Hof", "monitorId": "hof"}, "time": "x"},
        "trouble active hof offline",
    ),
    (
        "shinobi",
        "shinobi/events",
        {"name": "onMonitorStart", "data": {"name": "Hof", "monitorId": "hof"}},
        "trouble inactive hof offline",
    ),
    ("shinobi", "shinobi/events", {"name": "onMonitorStop", "data": {"monitorId": "hof"}}, "ignored"),
    ("shinobi", "shinobi/events", {"name": "onAccountSave", "data": {"mail": "a@b", "ke": "g"}}, "ignored"),
    ("shinobi", "shinobi/events", {"name": "userLog", "data": {"ke": "g", "log": {"msg": "x" * 5000}}}, "ignored"),
    ("shinobi", "shinobi/events", {"title": "2FA", "description": "**123456**"}, "unreadable"),
    (
        "shinobi",
        "shinobi/events",
        {
            "name": "onEventTrigger",
            "data": {"mid": "m1", "ke": "g", "details": DETECTOR, "screenshotBuffer": "/9j/" * 999},
        },
        "alarm active m1 car+person pulse",
    ),
    (
        "shinobi",
        "shinobi/events",
        {"name": "onEventTrigger", "data": {"id": 7, "ke": "g", "details": "motion"}},
        "alarm active 7 detection pulse",
    ),
    ("shinobi", "shinobi/events", {"name": ["onEventTrigger"], "data": None}, "unreadable"),
    # Door stations: what they say once comes as a device trigger, mostly without payload
    (
        "hikvision/doorbell",
        "hmd/device_automation/Haust-r/tampering_alarm/state",
        "",
        "trouble active Haust-r tamper pulse",
    ),
    (
        "hikvision/doorbell",
        "hmd/device_automation/Door/door-open-by-external-force/state",
        {"door_id": 1},
        "alarm active Door forced door pulse",
    ),
    ("hikvision/doorbell", "hmd/device_automation/Door/hijacking_alarm/state", "", "alarm active Door duress pulse"),
    ("hikvision/doorbell", "hmd/device_automation/Door/sos/state", "", "alarm active Door panic pulse"),
    ("hikvision/doorbell", "hmd/device_automation/Door/sos_cancelled/state", "", "ignored"),
    ("hikvision/doorbell", "hmd/device_automation/Door/Door-unlocked/state", {"control_source": "card"}, "ignored"),
    ("hikvision/doorbell", "hmd/device_automation/Door/motion_detection/state", {"motion_detected": "x"}, "ignored"),
    ("hikvision/doorbell", "hmd/switch/Door/Door-1-relay/state", "ON", "ignored"),
    ("hikvision/doorbell", "hmd/sensor/Door/Call-state/state", "Ringing", "ignored"),
    ("hikvision/doorbell", "hmd/binary_sensor/Door/tamper/state", "", "ignored"),
    # UniFi: bluewalk says a word, retained; the camera is the topic's last level
    ("unifi/bluewalk", "unifi/camera/motion/front_door", "Start", "alarm active front_door motion"),
    ("unifi/bluewalk", "unifi/camera/motion/front_door", "STOP", "alarm inactive front_door motion"),
    ("unifi/bluewalk", "unifi/camera/motion/front_door", "1", "alarm active front_door motion"),
    ("unifi/bluewalk", "unifi/camera/motion/front_door", "Pause", "ignored"),
    ("unifi/bluewalk", "unifi/camera/motion/front_door", "", "ignored"),
    ("unifi/bluewalk", "unifi/camera/snapshot/front_door", "\xff\xd8\xff\xe0", "ignored"),
    (
        "unifi/bostaunieux",
        "unifi/camera/motion/g",
        {"camera_id": "A", "status": "on", "timestamp": "soon"},
        "alarm active A motion",
    ),
    (
        "unifi/pakerfeldt",
        "unifi/protect/events/early/person/G",
        {"event_id": "e", "camera_id": "c", "start": NOW, "end": None},
        "alarm active c person id=e",
    ),
    ("unifi", "unifi/protect/AA/motion", "True", "alarm active AA motion"),
    ("unifi", "unifi/protect/AA/securitysystem", "AWAY", "arming active None arming + alarm inactive None panel"),
    # homebridge-securitysystem: its own default topic; a trigger delay and an arming delay are no states
    (
        "panel/homebridge",
        "security-system/state",
        {"arming": False, "current_mode": "night", "target_mode": "night", "tripped": False},
        "arming active None arming (homebridge) + alarm inactive None panel",
    ),
    (
        "panel/homebridge",
        "security-system/state",
        {"arming": False, "current_mode": "triggered", "target_mode": "away", "tripped": True},
        "alarm active None panel",
    ),
    (
        "panel/homebridge",
        "security-system/state",
        {"arming": True, "current_mode": "off", "target_mode": "away", "tripped": False},
        "alarm inactive None panel",
    ),
    (
        "panel/homebridge",
        "security-system/state",
        {"arming": "no", "current_mode": "OFF"},
        "arming inactive None arming (homebridge) + alarm inactive None panel",
    ),
    ("panel/homebridge", "security-system/state", {"current_mode": None}, "unreadable"),
    ("panel/homebridge", "security-system/state", "off", "unreadable"),
    # risco-mqtt-local: partitions, zones of both forms, bypass and outputs
    (
        "panel/risco",
        "riscopanel/alarm/2/status",
        "armed_away",
        "arming active None arming (Risco) + alarm inactive None panel",
    ),
    ("panel/risco", "riscopanel/alarm/2/status", "Triggered", "alarm active None panel"),
    ("panel/risco", "riscopanel/alarm/status", "online", "trouble inactive None recorder"),
    ("panel/risco", "riscopanel/alarm/zone/3/status", "1", "ignored"),
    ("panel/risco", "riscopanel/alarm/1/sensor/3/status", "triggered", "ignored"),
    ("panel/risco", "riscopanel/alarm/zone/3-bypass/status", "1", "ignored"),
    ("panel/risco", "riscopanel/alarm/1/set", "DISARM", "ignored"),
    (
        "panel/pai",
        "paradox/states/partitions/Erdgeschoß/current_state",
        "Disarmed",
        "arming inactive None arming (Paradox) + alarm inactive None panel",
    ),
    ("panel/pai", "paradox/states/system/troubles/trouble", "false", "trouble inactive None panel"),
    ("panel/dsc", "dsc/Get/Partition1", "exit_delay", "ignored"),
    ("panel/dsc", "dsc/Get/Trouble", "1", "trouble active None panel"),
    ("panel/dsc", "dsc/Get/Panic1", "1", "ignored"),
    (
        "panel",
        "alarmo/garage/state",
        "ARMED_NIGHT",
        "arming active None arming (Home Assistant) + alarm inactive None panel",
    ),
    ("panel", "alarmo/state", "unknown", "ignored"),
    ("panel", "alarmo/state", "None", "ignored"),
    ("panel", "alarmo/command", "DISARM", "ignored"),
    # yi-hack: what was seen comes on the topic of the motion
    ("yihack", "yicam/motion_detection", "human", "alarm active yicam motion pulse"),
    ("yihack", "yicam/motion_detection", "VEHICLE", "alarm active yicam motion pulse"),
    ("yihack", "yicam/motion_detection", "motion_start", "alarm active yicam motion"),
    ("yihack", "yicam/motion_files", '{"files": []}', "ignored"),
    ("yihack", "yicam/sound_detection", "crying", "alarm active yicam crying pulse"),
    # yi-hack-MStar, mqttv4.conf: a person begins and ends, and the sound has another word
    ("yihack", "yicam/ai_human_detection", "human_start", "alarm active yicam human"),
    ("yihack", "yicam/ai_human_detection", "human_stop", "alarm inactive yicam human"),
    ("yihack", "yicam/sound_detection", "sound", "alarm active yicam sound pulse"),
    ("yihack", "yicam/motion_detection_image", "\xff\xd8\xff", "ignored"),
    ("yihack", "yicam/status", "Offline", "trouble active yicam offline"),
    # Wyze: words of the stream, names of errors, and numbers that are no motion
    ("wyze", "wyzebridge/hof-2/motion", "1", "alarm active hof-2 motion"),
    ("wyze", "wyzebridge/hof-2/motion", 1, "alarm active hof-2 motion"),
    ("wyze", "wyzebridge/hof-2/motion", "on", "ignored"),
    ("wyze", "wyzebridge/hof-2/state", "starting", "ignored"),
    ("wyze", "wyzebridge/hof-2/state", "IOTC_ER_TIMEOUT", "ignored"),
    ("wyze", "wyzebridge/hof-2/state", "offline", "trouble active hof-2 offline"),
    ("wyze", "wyzebridge/hof-2/state", "disabled", "ignored"),
    ("wyze", "wyzebridge/hof-2/motion_ts", "1772366398", "ignored"),
    # eufy: the word is `motion` or what was seen again; a contact is no alarm
    ("eufy", "homeassistant/binary_sensor/eufy/T8400_crying/state", "crying", "alarm active T8400 crying pulse"),
    ("eufy", "homeassistant/binary_sensor/eufy/T8010N1_motion/state", "Motion", "alarm active T8010N1 motion pulse"),
    ("eufy", "homeassistant/binary_sensor/eufy/T8010N1_motion/state", "clear", "ignored"),
    ("eufy", "homeassistant/binary_sensor/eufy/T8900_door/state", "open", "ignored"),
    ("eufy", "homeassistant/binary_sensor/kitchen/state", "on", "ignored"),
    ("eufy", "homeassistant/binary_sensor/eufy/T1_motion/config", {"name": "x"}, "ignored"),
    ("eufy", "homeassistant/camera/eufy/T1_thumbnail", "\xff\xd8\xff", "ignored"),
    # INSTAR: the maker's own prefix; val as a number, a text, or alone
    ("instar", "instar/000389888811/status/alarm/triggered", {"val": 2}, "alarm active 000389888811 alarm 2 pulse"),
    ("instar", "instar/000389888811/status/alarm/triggered", {"val": "10"}, "alarm active 000389888811 alarm 10 pulse"),
    ("instar", "instar/000389888811/status/alarm/triggered", {"val": ""}, "unreadable"),
    ("instar", "instar/000389888811/status/alarm/triggered", {"val": "-1"}, "ignored"),
    ("instar", "instar/000389888811/status/alarm/triggered", {"val": "on"}, "ignored"),
    ("instar", "instar/000389888811/alarm/area1/enable", {"val": "1"}, "ignored"),
    ("instar", "instar/000389888811/status/connection", {"val": "Offline"}, "trouble active 000389888811 offline"),
    # Kerberos: commands come on the same topic, as JSON of any length
    ("kerberos", "kerberos/agent/key 1", "MOTION", "alarm active key 1 motion pulse"),
    ("kerberos", "kerberos/agent/key1", {"payload": {"action": "request-hd-stream", "value": "x" * 900}}, "ignored"),
    ("kerberos", "kerberos/agent/key1", "", "ignored"),
    ("kerberos", "kerberos/hub/abc", {"payload": {"action": "motion"}}, "ignored"),
    # lightNVR: plain motion, no ids, numbers as texts, what is no list
    (
        "lightnvr",
        "lightnvr/detections/Hof 1",
        {
            "stream": "Hof 1",
            "timestamp": str(NOW // 1000),
            "count": 1,
            "detections": [{"label": "motion", "zone_id": ""}],
        },
        "alarm active Hof 1 motion pulse",
    ),
    ("lightnvr", "lightnvr/detections/g", {"timestamp": 0, "detections": {"label": "person"}}, "ignored"),
    ("lightnvr", "lightnvr/detections/g", {"detections": [None, 3, "person", {"label": 7}]}, "alarm active g 7 pulse"),
    ("lightnvr", "lightnvr/detections/g/snapshot", "\xff\xd8\xff", "ignored"),
    ("lightnvr", "lightnvr/detections/g", "[]", "ignored"),
    # The large families, as their equipment varies
    ("frigate", "frigate/reviews", {**review(), "extra": {"deep": [1]}}, "alarm active front_door person id="),
    ("hikvision", "hikvision/nvr/alertStream", isapi("vmd", "ACTIVE"), "alarm active nvr/2 motion"),
    (
        "hikvision/json",
        "hikvision/nvr/e",
        {"eventType": "VMD", "eventState": "active", "channelID": "02"},
        "alarm active nvr/02 motion",
    ),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", onvif({"State": "TRUE "}), "alarm active C motion"),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", {"Data": {"State": True}}, "alarm active C motion"),
    ("onvif-ej", "C/onvif-ej/VideoSource/MotionAlarm/&1", {"Data": [], "UtcTime": 7}, "ignored"),
    ("dahua", "DahuaVTO/VideoMotion/Event", dahua("start", serialNumber=77), "alarm active 77 motion"),
    ("dahua", "DahuaVTO/VideoMotion/Event", {"Action": "Start", "Data": None}, "alarm active DahuaVTO motion"),
    (
        "zoneminder",
        "zoneminder/5",
        {"eventid": 5060, "eventtype": "EVENT_START", "name": 3},
        "alarm active 5 motion id=5060",
    ),
    ("generic", "site/Kasse 3/alarm", {"state": 1, "kind": "Überfall"}, "alarm active Kasse 3 überfall"),
    ("generic", "site/c/alarm", {"state": None}, "unreadable"),
    ("generic", "site/c/alarm", '"ON"', "alarm active c alarm"),  # a script that writes JSON of a text
    ("onvif2mqtt", "onvif2mqtt/door/motion", '"False"', "alarm inactive door motion"),
    # A retained value that somebody takes away comes as an empty message
    ("panel", "alarmo/state", "", "ignored"),
    ("neolink", "neolink/c/status/motion", "", "ignored"),
    ("frigate", "frigate/available", "", "ignored"),
    ("frigate", "frigate/reviews", "", "unreadable"),  # never retained
]

# People write names in settings with other capitals than equipment does.
IN_OTHER_CAPITALS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("frigate", {"labels": ("Person",), "zones": ("Yard",)}, "frigate/reviews", review(zones=("yard",))),
    ("doubletake", {"labels": ("David",)}, "double-take/matches/david", {"id": "1", "camera": "c"}),
    (
        "scrypted",
        {"labels": ("Person",), "zones": ("driveway",)},
        "scrypted/c/ObjectDetector",
        {"detections": [{"className": "person", "zones": ["Driveway"]}]},
    ),
    (
        "lightnvr",
        {"labels": ("PERSON",), "zones": ("Hof",)},
        "lightnvr/detections/c",
        {"detections": [{"label": "person", "zone_id": "hof"}]},
    ),
    (
        "viseron",
        {"labels": ("Person",), "zones": ("Porch",)},
        "viseron/binary_sensor/c_zone_porch_object_detected_person/state",
        {"state": "on"},
    ),
    ("unifi", {"labels": ("Person",)}, "unifi/protect/M/motion/smart/person", "true"),
    ("eufy", {"labels": ("Person",)}, "homeassistant/binary_sensor/eufy/T1_person/state", "motion"),
    ("panel/pai", {"zones": ("front_door",)}, "paradox/states/zones/Front_door/open", "True"),
]


@pytest.mark.parametrize(("spoken", "settings", "topic", "payload"), IN_OTHER_CAPITALS)
def test_names_in_settings_may_have_other_capitals(
    spoken: str, settings: dict[str, Any], topic: str, payload: Any
) -> None:
    payload = payload.encode() if isinstance(payload, str) else payload
    assert summary(compiled(spoken, **settings).read(message(payload, topic))).startswith("alarm active")
    others = dict.fromkeys(settings, ("elsewhere",))
    assert summary(compiled(spoken, **others).read(message(payload, topic))) == "ignored"


@pytest.mark.parametrize(("spoken", "topic", "payload", "says"), OUTSIDE, ids=lambda value: str(value)[:70])
def test_what_a_message_outside_the_samples_says(spoken: str, topic: str, payload: Any, says: str) -> None:
    """A topic that nobody subscribes counts as ignored."""
    source = compiled(spoken)
    if isinstance(payload, str):
        payload = payload.encode("latin-1", "ignore")
    said = "ignored" if not source.covers(topic) else summary(source.read(message(payload, topic)))
    assert said.startswith(says) if says.endswith("=") else said == says


BROKEN = {
    "nothing": b"",
    "a zero": b"\0",
    "not UTF-8": b"\xff\xfe\xfa\xc3\x28",
    "a picture": b"\xff\xd8\xff\xe0" + bytes(2000),
    "half of JSON": b'{"state": "ON", "name": "x',
    "deep": b"[" * 20_000,
    "a list": b'["ON", "motion", 1]',
    "a number beyond all": b'{"time": 1e999, "state": 99999999999999999999999999999999, "timestamp": -1e308}',
    "long": json.dumps({"state": "x" * 300_000}).encode(),
    "an endless text": b"on" * 300_000,
    "null": b"null",
    "half of XML": b"<EventNotificationAlert><eventType>VMD</eventType>",
    "entities": b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
}
SAID_ONCE = ("hikvision/alarmserver", "hikvision/doorbell")
TOPICS = sorted({(spoken, topic) for spoken, topic, *_ in (*SAYS, *OUTSIDE)})


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_what_is_broken_neither_fails_nor_raises_an_alarm(broken: str) -> None:
    """Save where the arrival is the alarm, whatever the payload."""
    for spoken, topic in TOPICS:
        source = compiled(spoken)
        if not source.covers(topic):
            continue
        answer = source.read(message(BROKEN[broken], topic))
        arrival = topic.endswith(("fireAlarm", "Crossed/&1/Line")) or spoken in SAID_ONCE
        if isinstance(answer, list) and not arrival:
            assert [r for r in answer if r.event_type == "alarm" and r.event_status == "active"] == [], (spoken, topic)


def test_all_of_them_are_known() -> None:
    assert {spoken.partition("/")[0] for spoken, *_ in OUTSIDE} <= families().keys()
