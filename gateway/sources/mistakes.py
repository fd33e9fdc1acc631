"""What is wrong with a family's file: where, and in words that say what is allowed. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.sources import language

Place = tuple[int | str, ...]

_TYPES: Final = {
    "string_type": "must be a text in quotation marks",
    "bool_type": "must be true or false, without quotation marks",
    "bool_parsing": "must be true or false, without quotation marks",
    "float_type": "must be a number, without quotation marks",
    "float_parsing": "must be a number, without quotation marks",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "too_short": "is empty; needs at least one",
}
# What may be a word or a table of its own kind: of the mistakes in each reading only those of the one that was meant.
_TABLES: Final = {"status": "Status", "event_type": "EventType"}
_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "status": language.Status,
    "event_type": language.EventType,
    "ignore": language.Ignore,
    "time": language.Time,
    "started": language.Time,
    "sent": language.Time,
    "media": language.Media,
    "dialects": language.Dialect,
}


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a family: where in its file, and what."""

    place: Place
    why: str

    def __str__(self) -> str:
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place).lstrip(".")
        return f"{key}: {self.why}" if key else self.why


def mistakes_of(error: ValidationError, document: Mapping[str, Any]) -> list[Mistake]:
    """One for each place: of a list whose elements are wrong, pydantic also says that it is empty."""
    found = [Mistake(_place(e["loc"], document), _said(e)) for e in error.errors() if _was_meant(e["loc"], document)]
    return [m for m in found if not any(m.place == other.place[: len(m.place)] != other.place for other in found)]


def _was_meant(loc: Place, document: Any) -> bool:
    for position, part in enumerate(loc):
        if part in _TABLES and position + 1 < len(loc):
            value = document.get(part) if isinstance(document, Mapping) else None
            return isinstance(value, Mapping) is (loc[position + 1] == _TABLES[str(part)])
        document = _inside(document, part)
    return True


def _place(loc: Place, document: Any) -> Place:
    """The part of pydantic's place that stands in the file, or should: it names alternatives of a union, too."""
    place: list[int | str] = []
    for position, part in enumerate(loc):
        inside = _inside(document, part)
        if inside is not None:
            place.append(part)
            document = inside
        elif isinstance(document, Mapping) and position + 1 == len(loc):
            place.append(part)  # a key that is missing
    return tuple(place)


def _inside(document: Any, part: int | str) -> Any:
    if isinstance(document, Mapping):
        return document.get(part)
    if isinstance(document, list) and isinstance(part, int) and part < len(document):
        return document[part]
    return None


def _said(error: ErrorDetails) -> str:
    kind, context, key = error["type"], error.get("ctx", {}), str(error["loc"][-1])
    if kind == "extra_forbidden":
        return _unknown(key, error["loc"])
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"is not one of the allowed words; allowed: {str(context['expected']).replace(chr(39), chr(34))}"
    if kind == "string_pattern_mismatch":
        if {"words", "ignored"} & set(error["loc"]):
            return "must be in lower case, as words are compared"
        return "must be of small letters, digits and _, and begin with a letter"
    if kind == "greater_than":
        return "must be more than 0"
    if kind == "greater_than_equal":
        return "must be 0 or more"
    return _TYPES.get(kind) or error["msg"]


def _unknown(key: str, loc: Place) -> str:
    model: type[BaseModel] = language.FamilyFile if len(loc) == 1 else language.Rule
    model = next((_MODELS[part] for part in map(str, loc[:-1]) if part in _MODELS), model)
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    return (
        f'unknown key; did you mean "{near[0]}"?' if near else f"unknown key; allowed: {', '.join(model.model_fields)}"
    )
