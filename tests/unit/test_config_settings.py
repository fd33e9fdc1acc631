"""Settings as others get them: merged, filled in, resolved for each camera."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config import CameraDefaults, ConfigError, ResolvedCamera, Settings
from tests.fakes.configuration import GOOD, Place, spoiled


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# The environment


def test_a_variable_wins_over_the_file(place: Place) -> None:
    environ = {"CHEKT_GATEWAY_SITE__LOCATION_ID": "FROM-ENV", "CHEKT_GATEWAY_CONFIG": "/not/a/setting"}
    settings = place.load(GOOD, environ).settings
    assert settings.site.location_id == "FROM-ENV"
    assert settings.site.timezone == "UTC"


def test_a_variable_can_say_every_kind_of_value(place: Place) -> None:
    settings = place.load(
        GOOD,
        {
            "CHEKT_GATEWAY_OUTBOX__GIVE_UP_AFTER": "2d",
            "CHEKT_GATEWAY_OUTBOX__MEDIA_LIMIT": "5MiB",
            "CHEKT_GATEWAY_DELIVERY__PARALLEL": "3",
            "CHEKT_GATEWAY_DELIVERY__NEVER_SIGNAL": "true",
            "CHEKT_GATEWAY_DELIVERY__STALE_AFTER": "off",
            "CHEKT_GATEWAY_CLOUD__KEY_ID": "12",
            "CHEKT_GATEWAY_CLOUD__EXTRA_TOKEN_FIELDS": '{"https://x/claims": "y"}',
            "CHEKT_GATEWAY_BROKER__PROTOCOL": "3.1.1",
            "CHEKT_GATEWAY_SOURCES__S__IGNORE": '["cam7", "cam8"]',
            "CHEKT_GATEWAY_SOURCES__S__DIALECT": "events",
            "CHEKT_GATEWAY_SOURCES__S__MIN_SCORE": "0.5",
            "CHEKT_GATEWAY_CAMERAS__FRONT__SNAPSHOTS": "0",
            "CHEKT_GATEWAY_CAMERAS__FRONT__SIGNAL": "false",
        },
    ).settings
    assert settings.outbox.give_up_after == 172_800
    assert settings.outbox.media_limit == 5 << 20
    assert settings.delivery.parallel == 3
    assert settings.delivery.never_signal is True
    assert settings.delivery.stale_after is None
    assert settings.cloud.key_id == "12"
    assert settings.cloud.extra_token_fields == {"https://x/claims": "y"}
    assert settings.broker.protocol == "3.1.1"
    assert settings.sources["s"].ignore == ("cam7", "cam8")
    assert settings.sources["s"].min_score == 0.5
    assert settings.cameras["front"].snapshots == 0
    assert settings.cameras["front"].signal is False


def test_a_variable_can_add_a_table(place: Place) -> None:
    environ = {"CHEKT_GATEWAY_CAMERAS__GATE__CAMERA_ID": "id-gate", "CHEKT_GATEWAY_LOG__LEVEL": "debug"}
    settings = place.load(GOOD, environ).settings
    assert settings.cameras["gate"].camera_id == "id-gate"
    assert settings.log.level == "debug"


def test_a_variable_finds_a_table_whose_name_has_capitals(place: Place) -> None:
    text = spoiled(("[cameras.front]", "[cameras.Front-Door]"))
    settings = place.load(text, {"CHEKT_GATEWAY_CAMERAS__FRONT-DOOR__CAMERA_ID": "other"}).settings
    assert settings.cameras["Front-Door"].camera_id == "other"
    assert sorted(settings.cameras) == ["Front-Door", "back"]


VARIABLES = {
    "a wrong number": ("DELIVERY__PARALLEL", "many", "must be a whole number; allowed: digits without quotation marks"),
    "a wrong boolean": (
        "DELIVERY__NEVER_SIGNAL",
        "perhaps",
        "must be true or false; allowed: true or false, without quotation marks",
    ),
    "a wrong duration": (
        "OUTBOX__GIVE_UP_AFTER",
        "soon",
        'is not a duration; allowed: such as "200ms", "10s", "5m", "2h", "7d"',
    ),
    "a list that is no JSON": ("SOURCES__S__IGNORE", "cam7,cam8", 'is not JSON; allowed: such as ["one", "two"]'),
    "an unknown key": ("CLOUD__URI", "x", 'unknown key; did you mean "url"?'),
    "an unknown section": ("CLUOD__URL", "x", 'unknown section; did you mean "cloud"?'),
    "nothing": ("SITE__LOCATION_ID", "", "is empty or has blanks around it; allowed: the id exactly as CHeKT knows it"),
    "a table without a key": (
        "CAMERAS__FRONT",
        "x",
        "must be a table; allowed: [cameras.front] with its keys below it",
    ),
    "too deep": (
        "SITE__LOCATION_ID__MORE",
        "x",
        'must be text; allowed: a string in quotation marks, such as "text"',
    ),
    "a fault of meaning": ("SITE__TIMEZONE", "America/Chikago", 'unknown time zone; did you mean "America/Chicago"?'),
}


@pytest.mark.parametrize("case", VARIABLES)
def test_a_fault_of_a_variable_names_the_variable(place: Place, case: str) -> None:
    name, value, message = VARIABLES[case]
    [fault] = place.faults(GOOD, {f"CHEKT_GATEWAY_{name}": value})
    assert fault.startswith(f"environment: CHEKT_GATEWAY_{name}: ")
    assert fault.split(": ", 2)[2].startswith(message.split(";")[0])


def test_a_table_that_only_variables_speak_of_is_said_with_one_of_them(place: Place) -> None:
    """Mostly a misspelt name of a camera."""
    environ = {"CHEKT_GATEWAY_CAMERAS__FRNT__SNAPSHOTS": "0"}
    [fault] = place.faults(GOOD, environ)
    assert fault.startswith(
        "environment: CHEKT_GATEWAY_CAMERAS__FRNT__SNAPSHOTS: cameras.frnt.camera_id is missing; needed: CHeKT's id"
    )


def test_a_variable_that_means_two_tables_is_a_fault(place: Place) -> None:
    text = spoiled(("[cameras.back]", "[cameras.FRONT]"))
    assert place.faults(text, {"CHEKT_GATEWAY_CAMERAS__FRONT__SNAPSHOTS": "0"}) == [
        "environment: CHEKT_GATEWAY_CAMERAS__FRONT__SNAPSHOTS: means more than one table of the file"
    ]


def test_a_variable_that_is_no_setting_is_a_warning(place: Place) -> None:
    assert place.warnings(GOOD, {"CHEKT_GATEWAY_HOME": "/x"}) == [
        "environment: CHEKT_GATEWAY_HOME: is no setting; allowed: CHEKT_GATEWAY_SECTION__KEY"
    ]


def test_faults_of_file_and_environment_are_said_together(place: Place) -> None:
    text = spoiled(('timezone = "UTC"', "timezone = 1"))
    assert [fault.split(": ")[0] for fault in place.faults(text, {"CHEKT_GATEWAY_LOG__LEVEL": "x"})] == [
        "gateway.toml:3",
        "environment",
    ]


def test_the_environment_of_this_process_is_not_read_behind_the_callers_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEKT_GATEWAY_SITE__LOCATION_ID", "HIDDEN")
    settings = place.load(GOOD, {}).settings
    assert settings.site.location_id == "L"
    assert place.load(GOOD, os.environ).settings.site.location_id == "HIDDEN"
    assert Settings(site=settings.site, cloud=settings.cloud).site.location_id == "L"


# Filled in


def test_the_state_lies_where_systemd_says(place: Place) -> None:
    text = spoiled(("[outbox]", ""), ('path = "/nowhere/outbox.db"', ""))
    outbox = place.load(text, {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}).settings.outbox
    assert (outbox.path, outbox.media_path) == ("/var/lib/one/outbox.db", "/var/lib/one/media")
    outbox = place.load(text).settings.outbox
    assert (outbox.path, outbox.media_path) == (
        "/var/lib/chekt-gateway/outbox.db",
        "/var/lib/chekt-gateway/media",
    )


def test_the_media_lie_beside_the_outbox(place: Place) -> None:
    outbox = place.load(GOOD, {"STATE_DIRECTORY": "/var/lib/one"}).settings.outbox
    assert (outbox.path, outbox.media_path) == ("/nowhere/outbox.db", "/nowhere/media")


def test_the_client_id_follows_the_site(place: Place) -> None:
    assert place.load(GOOD).settings.broker.client_id == "chekt-gateway-L"
    text = spoiled(('username = "u"', 'username = "u"\nclient_id = "mine"'))
    assert place.load(text).settings.broker.client_id == "mine"


def test_a_broker_table_may_be_left_out(place: Place) -> None:
    text = GOOD[: GOOD.index("[broker]")] + GOOD[GOOD.index("[outbox]") :]
    broker = place.load(text).settings.broker
    assert (broker.url, broker.client_id) == ("mqtt://127.0.0.1:1883", "chekt-gateway-L")


def test_settings_do_not_change(place: Place) -> None:
    settings = place.load(GOOD).settings
    with pytest.raises(ValidationError):
        settings.site.location_id = "other"  # type: ignore[misc]


def test_families_are_not_judged_unless_they_are_given(place: Place) -> None:
    text = spoiled(('family = "frigate"', 'family = "unheard-of"'))
    assert place.load(text, known=None).settings.sources["s"].family == "unheard-of"


# Cameras


def test_a_camera_has_the_defaults_unless_it_says_otherwise(place: Place) -> None:
    text = spoiled(
        ('camera_id = "id-back"', 'camera_id = "id-back"\nname = "Hof/\\"1\\" ü"\nsnapshots = 0\nclip_after = "1m"'),
        more='[defaults]\nsnapshots = 3\nsignal = false\nhold_off = "off"\n',
    )
    cameras = place.load(text).settings.cameras_resolved()
    shared = asdict_of(CameraDefaults()) | {"snapshots": 3, "signal": False, "hold_off": None}
    assert cameras == {
        "front": ResolvedCamera("front", "front", "s", "id-front", None, **shared),
        "back": ResolvedCamera(
            "back", 'Hof/"1" ü', "s", "id-back", None, **(shared | {"snapshots": 0, "clip_after": 60.0})
        ),
    }


def asdict_of(defaults: CameraDefaults) -> dict[str, Any]:
    return {key: getattr(defaults, key) for key in CameraDefaults.model_fields}


@pytest.mark.parametrize(
    ("of_all", "of_camera", "resolved"),
    [
        ('"20s"', None, 20.0),
        ('"20s"', '"5s"', 5.0),
        ('"20s"', '"off"', None),
        ('"off"', None, None),
        ('"off"', '"5s"', 5.0),
    ],
)
def test_off_for_one_camera_is_not_the_default(
    place: Place, of_all: str, of_camera: str | None, resolved: float | None
) -> None:
    own = f"\nhold_off = {of_camera}" if of_camera else ""
    text = spoiled(('camera_id = "id-back"', f'camera_id = "id-back"{own}'), more=f"[defaults]\nhold_off = {of_all}\n")
    assert place.load(text).settings.cameras_resolved()["back"].hold_off == resolved


def test_every_key_of_the_defaults_can_be_set_for_a_camera_and_reaches_it(place: Place) -> None:
    others = {
        "signal": "false",
        "snapshots": "7",
        "short_mp4": "true",
        "event_mp4": "true",
        "hold_off": '"77s"',
        "send_restore": "true",
        "short_before": '"3s"',
        "short_after": '"5s"',
        "clip_before": '"6s"',
        "clip_after": '"8s"',
        "max_open": '"9m"',
        "trouble_delay": '"11s"',
        "silence_after": '"13m"',
        "dedupe_window": '"12h"',
    }
    assert set(others) == set(CameraDefaults.model_fields)
    own = "".join(f"\n{key} = {value}" for key, value in others.items())
    camera = asdict(
        place.load(spoiled(('camera_id = "id-back"', f'camera_id = "id-back"{own}'))).settings.cameras_resolved()[
            "back"
        ]
    )
    defaults = asdict_of(CameraDefaults())
    assert all(camera[key] != defaults[key] for key in others)


@pytest.mark.parametrize(
    ("site", "source", "camera", "resolved"),
    [
        (None, None, None, None),
        ("R1", None, None, "R1"),
        ("R1", "R2", None, "R2"),
        ("R1", "R2", "R3", "R3"),
        (None, "R2", None, "R2"),
    ],
)
def test_the_nearest_recorder_counts(
    place: Place, site: str | None, source: str | None, camera: str | None, resolved: str | None
) -> None:
    def line(value: str | None) -> str:
        return f'\nrecorder_id = "{value}"' if value else ""

    text = spoiled(
        ('location_id = "L"', f'location_id = "L"{line(site)}'),
        ('family = "frigate"', f'family = "frigate"{line(source)}'),
        ('camera_id = "id-back"', f'camera_id = "id-back"{line(camera)}'),
    )
    assert place.load(text).settings.cameras_resolved()["back"].recorder_id == resolved


def test_a_camera_of_any_of_several_sources_has_none(place: Place) -> None:
    text = GOOD + '[sources.t]\nfamily = "axis"\n[cameras.gate]\ncamera_id = "id-gate"\nsource = "t"\n'
    cameras = place.load(text).settings.cameras_resolved()
    assert {name: camera.source for name, camera in cameras.items()} == {"front": None, "back": None, "gate": "t"}


def test_the_message_is_good_for_a_log(place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(spoiled(('location_id = "L"', "location_id = 1"), ('url = "http://127.0.0.1:1"', "url = 1")))
    assert len(str(caught.value).splitlines()) == 2
