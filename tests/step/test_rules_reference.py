"""docs/rules.md: its example is run, its tables are complete; `check` finds a wrong rule of a site with its line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.cli.explain import Explainer
from gateway.config import ConfigError
from gateway.sources import expressions, language
from gateway.sources.known import known_families
from tests.fakes.configuration import GOOD, Place

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text("utf-8")
CONFIGURATION, MESSAGES, ANSWERS = re.findall(r"```(?:toml|json|)\n(.*?)```", PAGE, re.DOTALL)[:3]
CAMERAS: Final = '[cameras.north]\ncamera_id = "n"\n'


def site(rules: str) -> str:
    return GOOD[: GOOD.index("[sources.s]")] + rules


def explained(tmp_path: Path, rules: str, lines: str) -> list[dict[str, Any]]:
    loaded = Place(tmp_path).load(site(rules + CAMERAS), known=known_families())
    return list(Explainer(loaded.settings, stateful=False).explain(io.BytesIO(lines.encode())))


def test_the_example_says_what_the_page_says(tmp_path: Path) -> None:
    said = []
    for answer in explained(tmp_path, CONFIGURATION, MESSAGES):
        if event := answer.get("event"):
            said.append(f"{event['event_type']} {event['event_status']} {event['camera']} {event['kind']}")
        else:
            said += [f"{kind}: {reason}" for kind, reason in answer.items()]
    assert said == ANSWERS.strip().split("\n")


@pytest.mark.parametrize("table", [language.Rule, language.FamilyFile])
def test_every_key_of_the_language_is_on_the_page(table: type[language.Table]) -> None:
    keys = {
        key for row in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE) for key in re.findall(r"`([a-z_]+)`", row)
    }
    assert set(table.model_fields) <= keys


def test_every_function_is_on_the_page() -> None:
    assert {name for name in expressions.FUNCTIONS if f"`{name}(" not in PAGE} == set()


@pytest.mark.parametrize(
    ("good", "wrong", "line_of", "said"),
    [
        ("topic.leaf", "topic.leave", "camera = ", r"rules\.gate\.rule\[0\]\.camera: the topic has"),
        ('decode = "json"', 'decode = "yaml"', "decode = ", r"rules\.gate\.rule\[0\]\.decode: "),
        (
            "repeats = false",
            "repeat = false",
            "repeat = ",
            r'rules\.gate\.rule\[0\]\.repeat: unknown key; did you mean "repeats"',
        ),
        ("maps.kinds, payload", "maps.kind, payload", "kind = ", r"rules\.gate\.rule\[0\]\.kind: the maps are kinds"),
        (
            'family = "gate"',
            'family = "gat"',
            "family = ",
            r"sources\.gate\.family: unknown family; did you mean \"gate\"",
        ),
        ('options = ["labels"]', 'options = ["colours"]', "options = ", r"rules\.gate\.options: colours is no option"),
        (
            "[sources.gate]",
            "[sources.gate]\nmin_score = 0.5",
            "min_score = ",
            r"sources\.gate\.min_score: is no option",
        ),
        ("{leaf}]", "{leaf]", "topic = ", r"rules\.gate\.rule\[0\]\.topic: "),
    ],
)
def test_a_wrong_rule_is_found_with_its_line(tmp_path: Path, good: str, wrong: str, line_of: str, said: str) -> None:
    text = site(CONFIGURATION.replace(good, wrong, 1) + CAMERAS)
    with pytest.raises(ConfigError) as caught:
        Place(tmp_path).load(text, known=known_families())
    line = next(n for n, text_line in enumerate(text.split("\n"), 1) if text_line.startswith(line_of) and n > 14)
    faults = [str(fault) for fault in caught.value.faults]
    assert any(re.search(rf"gateway\.toml:{line}: {said}", fault) for fault in faults), faults


def test_a_table_of_the_site_cannot_replace_a_built_in_family(tmp_path: Path) -> None:
    text = site(CONFIGURATION.replace("rules.gate", "rules.axis").replace('"gate"', '"axis"') + CAMERAS)
    with pytest.raises(ConfigError, match=r"rules\.axis: is the name of a built-in family"):
        Place(tmp_path).load(text, known=known_families())


def test_messages_are_json_lines() -> None:
    assert [json.loads(line)["topic"][:4] for line in MESSAGES.strip().split("\n")] == ["gate"] * 5
