"""discover: several families at once on a real broker; what it prints passes `check` and reads these messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.cli.discover import listen, propose, summary
from gateway.config import Settings
from gateway.model import Message
from gateway.sources.families import families
from gateway.sources.known import known_families
from gateway.sources.plans import Plans, compile_sources
from gateway.sources.recognition import Recogniser
from tests.fakes.configuration import GOOD, Place
from tests.fakes.mosquitto import Mosquitto
from tests.fakes.publisher import Publisher
from tests.unit.frigate_messages import message, review
from tests.unit.test_families import axis, dahua, isapi, onvif

HEAD = GOOD[: GOOD.index("[sources.s]")]

TRAFFIC: list[tuple[str, Any]] = [
    ("frigate/reviews", review(camera="front door")),
    ("frigate/gate/status/detect", "online"),
    ("frigate/available", "online"),
    ("frigate/gate/person", "2"),
    ("cctv/north/reviews", review(camera="roof")),
    ("Cam1/onvif-ej/VideoSource/MotionAlarm/&1", onvif({"State": "true"})),
    ("axis/ACCC8E/event/tns:onvif/Device/tns:axis/Sensor/PIR", axis("onvif:Device/axis:Sensor/PIR", {"state": "0"})),
    ("hikvision/nvr/alertStream", isapi("VMD")),
    ("house/vto/VideoMotion/Event", dahua("Start", serialNumber="S1")),
    ("alarmo/state", "armed_away"),
    ("zigbee2mqtt/lamp", {"state": "ON"}),
    ("weather/temperature", "12.5"),
    ("neolink/Yard/status/motion", "unknown"),
    ("neolink/Yard/status", "connected"),
]


def heard(traffic: list[tuple[str, Any]] = TRAFFIC) -> tuple[Recogniser, list[Message]]:
    recogniser = Recogniser(families())
    messages = [message(payload, topic) for topic, payload in traffic]
    for one in messages:
        recogniser.hear(one)
    return recogniser, messages


def settings_of(place: Place, text: str) -> Settings:
    return place.load(text, known=known_families()).settings


def test_families_are_told_apart_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    recogniser, _ = heard()
    proposed = list(propose(recogniser, settings_of(Place(tmp_path), HEAD)))
    assert {(p["family"], p["dialect"], p["topic_prefix"], *p["cameras"]) for p in proposed} == {
        ("frigate", "reviews", None, "front door", "gate"),
        ("frigate", "reviews", "cctv/north", "roof"),
        ("onvif-ej", None, None, "Cam1"),
        ("axis", None, None, "ACCC8E"),
        ("hikvision", "xml", None, "nvr/2"),
        ("dahua", "vto2mqtt", "house/vto", "S1"),
        ("panel", "ha", None),
        ("neolink", None, None, "Yard"),
    }


def test_what_is_proposed_passes_check_and_reads_the_same_messages(tmp_path: Path) -> None:
    recogniser, messages = heard()
    place = Place(tmp_path)
    stanzas = "\n".join(p["stanza"] for p in propose(recogniser, settings_of(place, HEAD)))
    settings = settings_of(place, HEAD + stanzas)
    plans, cameras = Plans(settings), set()
    for source in compile_sources(settings).values():
        for one in messages:
            answer = source.read(one) if source.covers(one.topic) else []
            for reading in answer if isinstance(answer, list) else []:
                plan = plans.find(reading.source, reading.camera)
                assert plan is not None, reading
                cameras |= {plan.table} if plan.table else set()
    assert cameras == set(settings.cameras)
    assert list(propose(recogniser, settings)) == [], "and then nothing is new"


def test_a_new_camera_of_a_configured_source_is_proposed_alone(tmp_path: Path) -> None:
    recogniser, _ = heard(TRAFFIC[:3])
    text = HEAD + '[sources.nvr]\nfamily = "frigate"\n[cameras.gate]\ncamera_id = "g"\nsource = "nvr"\n'
    [proposed] = propose(recogniser, settings_of(Place(tmp_path), text))
    assert (proposed["source"], proposed["new"], proposed["cameras"]) == ("nvr", False, ["front door"])
    assert "[sources" not in proposed["stanza"]


def test_a_duration_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Place(tmp_path).write(HEAD)
    with pytest.raises(SystemExit) as caught:
        main(["discover", "--for", "1x", "--config", str(file)])
    assert caught.value.code == 64
    assert "duration" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
async def test_it_hears_a_real_broker(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    async with Mosquitto(tmp_path / "broker") as broker:
        settings = settings_of(
            Place(tmp_path), HEAD.replace('127.0.0.1:1"\nusername', f'127.0.0.1:{broker.port}"\nusername')
        )
        async with Publisher(broker.port) as publisher:
            for topic, payload in TRAFFIC:  # retained, so that it does not matter who is there first
                publisher.publish(topic, payload if isinstance(payload, str) else json.dumps(payload), retain=True)
            await publisher.confirmed()
        recogniser = Recogniser(families())
        assert await listen(settings, recogniser, 2.0) is None
    direct, _ = heard()
    assert recogniser.heard == len(TRAFFIC)
    assert recogniser.found.keys() == direct.found.keys()


def test_dialects_with_topics_of_their_own_are_other_equipment(tmp_path: Path) -> None:
    """Two panels are two sources, each with an id for its alarms; the names of tables tell them apart."""
    recogniser, _ = heard([("alarmo/state", "armed_away"), ("dsc/Get/Partition1", "disarmed"), ("lamp/x", "1")])
    stanzas = list(propose(recogniser, settings_of(Place(tmp_path), HEAD)))
    assert [(s["source"], s["dialect"]) for s in stanzas] == [("panel", "ha"), ("panel_dsc", "dsc")]
    assert 'camera_id = "ID-FROM-CHEKT-panel_dsc"' in stanzas[1]["stanza"]
    assert "[arming]" in stanzas[1]["stanza"]
    assert summary(recogniser, stanzas).endswith("not recognised: lamp/… (1)")
    text = HEAD + '[sources.p]\nfamily = "panel"\ndialect = "dsc"\ntopic_prefix = "dsc"\n'
    [other] = propose(recogniser, settings_of(Place(tmp_path), text))
    assert other["dialect"] == "ha", "configured with its own prefix written out is configured"


def test_cameras_that_raise_no_alarm_meanwhile_are_known_by_their_signs_of_life(tmp_path: Path) -> None:
    stats = {"cameras": {"Kasse": {"camera_fps": 5.1}, "dead": {"camera_fps": 0}}, "service": {}}
    recogniser, _ = heard([("frigate/stats", stats), ("weather/stats", {"cameras": 3})])
    [proposed] = propose(recogniser, settings_of(Place(tmp_path), HEAD))
    assert (proposed["family"], proposed["cameras"]) == ("frigate", ["Kasse"])


def test_a_camera_that_exists_already_is_named_with_its_source(tmp_path: Path) -> None:
    recogniser, _ = heard([("frigate/reviews", review(camera="gate")), ("north/reviews", review(camera="gate"))])
    names = [
        re.findall(r"\[cameras\.(.+)\]", s["stanza"]) for s in propose(recogniser, settings_of(Place(tmp_path), HEAD))
    ]
    assert names == [["gate"], ["north_gate"]]


@pytest.mark.needs("mosquitto")
async def test_the_registration_may_come_later_but_not_the_password_of_the_broker(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    place = Place(tmp_path)
    async with Mosquitto(tmp_path / "broker") as broker:
        file = place.write(HEAD.replace('127.0.0.1:1"\nusername', f'127.0.0.1:{broker.port}"\nusername'))
        (tmp_path / "rsa.pem").unlink()
        settings = Settings.load(file, {}, known=known_families(), with_files=False)
        assert await listen(settings, Recogniser(families()), 0.1) is None
        (tmp_path / "password").unlink()
        fault = await listen(settings, Recogniser(families()), 0.1)
        assert fault is not None
        assert "broker.password_file: " in fault


def test_a_fresh_configuration_without_its_key_is_good_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_heard(*_: object) -> None:
        return None

    monkeypatch.setattr("gateway.cli.discover.listen", nothing_heard)
    file = Place(tmp_path).write(HEAD)
    (tmp_path / "rsa.pem").unlink()
    assert main(["discover", "--config", str(file)]) == 1
    out, said = capsys.readouterr()
    assert out == ""
    assert "nothing was heard" in said
