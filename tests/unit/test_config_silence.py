"""What `check` says of `silence_after`: where it is a guess, where it is short, and where nobody would hear of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.sources.known import known_families
from tests.fakes.configuration import Place, spoiled

GUESS = (
    "is a guess: cameras of sources.s say nothing between events, so a quiet time that is longer is told as a trouble; "
    'set it longer than any, or "off"'
)
SHORT = 'is short: cameras of sources.s give a sign of life every 60 s; better: at least "180s"'
LOCAL = (
    "is not set, nor is site.camera_id: if all cameras of this source are silent at once, that is a trouble of the "
    "recorder, and without an id it is not reported"
)
OWN = ('camera_id = "id-front"', 'camera_id = "id-front"\nsilence_after = "2m"')
SITE = ('location_id = "L"', 'location_id = "L"\ncamera_id = "id-site"')
AXIS = ('family = "frigate"', 'family = "axis"')


def all_silent(after: str) -> str:
    return f'[defaults]\nsilence_after = "{after}"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (spoiled(), []),
        (spoiled(OWN), [("cameras.front.silence_after", SHORT)]),
        (spoiled(SITE, more=all_silent("3m")), []),
        (spoiled(SITE, more=all_silent("2m")), [("defaults.silence_after", SHORT)]),
        (spoiled(SITE, AXIS, more=all_silent("12h")), [("defaults.silence_after", GUESS)]),
        (spoiled(SITE, AXIS, more=all_silent("off")), []),
        (spoiled(more=all_silent("10m")), [("sources.s.camera_id", LOCAL)]),
        (spoiled(AXIS, OWN), [("cameras.front.silence_after", GUESS)]),
        (
            spoiled(SITE, ('family = "frigate"', 'family = "hikvision"\ndialect = "hiksink"'), more=all_silent("1h")),
            [("defaults.silence_after", GUESS)],
        ),
        (spoiled(SITE, ('family = "frigate"', 'family = "hikvision"'), more=all_silent("1m")), []),
    ],
)
def test_what_is_said_of_it(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    loaded = Place(tmp_path).load(text, known=known_families())
    said = [(warning.key, warning.message) for warning in loaded.warnings]
    assert [(key, why) for key, why in said if "silen" in key + why] == expected


def test_a_family_of_the_sites_own_may_have_a_sign_of_life(tmp_path: Path) -> None:
    own = """
[rules.gate]
[[rules.gate.rule]]
name = "beat"
topic = "gate/{camera}/beat"
ignored = "a sign of life"
heartbeat = 30
camera = "topic.camera"
"""
    text = spoiled(SITE, ('family = "frigate"', 'family = "gate"'), more=all_silent("90s") + own)
    loaded = Place(tmp_path).load(text, known=known_families())
    assert not [warning for warning in loaded.warnings if "silen" in warning.key + warning.message]


def test_a_sign_of_life_is_somebodys(tmp_path: Path) -> None:
    own = '[rules.gate]\n[[rules.gate.rule]]\nname = "beat"\ntopic = "gate/beat"\nignored = "x"\nheartbeat = 30\n'
    with pytest.raises(ConfigError) as caught:
        Place(tmp_path).load(spoiled(more=own), known=known_families())
    assert any("needs camera with heartbeat" in fault.message for fault in caught.value.faults)
