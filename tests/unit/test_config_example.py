"""config/gateway.toml: complete, true and loadable. What is written twice is compared here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic_core import PydanticUndefined

from gateway.config import Camera, CameraDefaults, Settings, Table
from gateway.config.reading import sections
from gateway.sources.known import known_families
from tests.fakes.configuration import NOW, Place

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "config" / "gateway.toml"
_OFF: Final = re.compile(r"^#(?=[a-z0-9_]+ = )", re.MULTILINE)  # a setting that is switched off: no blank after "#"


def switched_on() -> dict[str, Any]:
    """The example with every setting switched on. tomllib refuses a key that stands twice."""
    return tomllib.loads(_OFF.sub("", EXAMPLE.read_text("utf-8")))


def tables() -> list[tuple[str, type[Table], dict[str, Any]]]:
    document = switched_on()
    found = []
    for name, table, is_many in sections(Settings):
        values = document[name]
        if is_many:
            [values] = values.values()
        found.append((name, table, values))
    return found


def test_it_loads_as_it_stands(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("")
    (tmp_path / "rsa.pem").rename(tmp_path / "chekt-private-key")
    loaded = place.load(EXAMPLE.read_text("utf-8"), known=known_families(), now=NOW)
    assert [warning.key for warning in loaded.warnings] == ["cloud.token_url", "delivery.stale_after"]


def test_every_table_is_there_and_nothing_else() -> None:
    assert list(switched_on()) == list(Settings.model_fields)


@pytest.mark.parametrize("section", list(Settings.model_fields))
def test_every_setting_is_there_once_and_nothing_else(section: str) -> None:
    [(table, values)] = [(table, values) for name, table, values in tables() if name == section]
    assert sorted(values) == sorted(table.model_fields)


@pytest.mark.parametrize("section", list(Settings.model_fields))
def test_every_default_is_the_true_one(section: str) -> None:
    """A setting that is switched off shows its default, or is said to be "not set" by default."""
    [(table, values)] = [(table, values) for name, table, values in tables() if name == section]
    read = table.model_validate(values)
    active = tomllib.loads(EXAMPLE.read_text("utf-8")).get(section, {})
    if section in ("sources", "cameras"):
        [active] = active.values()
    for key, info in table.model_fields.items():
        if key in active:
            continue
        default = info.get_default(call_default_factory=True)
        assert default is not PydanticUndefined, f"{key} is required and must be active"
        if section == "cameras" and key in CameraDefaults.model_fields:
            default = CameraDefaults.model_fields[key].get_default(call_default_factory=True)
        if default is not None:
            assert getattr(read, key) == default, key


def test_what_has_no_default_is_said_to_be_not_set() -> None:
    """Either in the explanation above the key, or it says where it is needed."""
    text = EXAMPLE.read_text("utf-8")
    for name, table, _ in tables():
        for key, info in table.model_fields.items():
            if info.is_required() or info.get_default(call_default_factory=True) is not None:
                continue
            if name == "cameras" and key in CameraDefaults.model_fields:
                continue
            explanation = explanation_of(text, name, key)
            assert re.search(r"[Nn]ot set|Needed|\boff\b", explanation), f"{name}.{key}: {explanation}"


def explanation_of(text: str, section: str, key: str) -> str:
    """The lines of words above a key; of keys that stand together those above the first."""
    begin = re.search(rf"^\[{section}(\.[a-z_]+)?\]$", text, re.MULTILINE)
    assert begin is not None
    lines = text[begin.end() :].split("\n")
    [at, *_] = [place for place, line in enumerate(lines) if re.match(rf"#?{key} = ", line)]
    while re.match(r"#?[a-z0-9_]+ = ", lines[at]):
        at -= 1
    words = []
    while lines[at].startswith("# "):
        words.append(lines[at])
        at -= 1
    return "\n".join(reversed(words))


def test_every_setting_has_a_meaning() -> None:
    """The docstrings become the reference."""
    for name, table, _ in sections(Settings):
        for key, info in table.model_fields.items():
            if name == "cameras" and key in CameraDefaults.model_fields:
                continue  # said in [defaults]
            assert info.description, f"{name}.{key}"
            assert info.description.endswith("."), f"{name}.{key}"


def test_every_required_setting_has_an_example_that_is_valid() -> None:
    """Faults of meaning are looked for with it where the value itself is missing."""
    for _, table, _ in sections(Settings):
        required = {key: info for key, info in table.model_fields.items() if info.is_required()}
        table.model_validate({key: (info.examples or [None])[0] for key, info in required.items()})


def test_a_camera_can_set_every_default_and_in_the_same_bounds() -> None:
    for key, info in CameraDefaults.model_fields.items():
        assert key in Camera.model_fields
        assert Camera.model_fields[key].get_default() is None
        for wrong in ("off", "999d", -1, 99, "x", 1.5):
            with_default = accepts(CameraDefaults, {key: wrong})
            with_camera = accepts(Camera, {"camera_id": "x", key: wrong})
            assert with_default == with_camera, (key, wrong, info)


def accepts(table: type[Table], values: dict[str, Any]) -> bool:
    try:
        table.model_validate(values)
    except ValueError:
        return False
    return True


def test_no_line_is_wider_than_a_screen() -> None:
    assert [line for line in EXAMPLE.read_text("utf-8").splitlines() if len(line) > 120] == []
