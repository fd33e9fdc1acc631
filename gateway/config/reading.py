"""The file and the environment, read into tables: every fault of form is found in one pass.

The file is TOML. A variable CHEKT_GATEWAY_<SECTION>__<KEY> wins over the file; numbers and booleans in variables are
read from their text, lists are written as JSON. Which variable speaks of which key is decided by pydantic-settings,
one variable at a time, so that each fault can name its variable.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, Final, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from gateway.config.faults import ENVIRONMENT, ConfigError, Fault, Findings, written
from gateway.config.tables import Table
from gateway.toml_lines import Path

PREFIX: Final = "CHEKT_GATEWAY_"
DELIMITER: Final = "__"
CONFIG_VARIABLE: Final = "CHEKT_GATEWAY_CONFIG"  # says which file; no setting itself
DEFAULT_PATH: Final = FilePath("/etc/chekt-gateway/gateway.toml")
_MAX_FILE_BYTES: Final = 16 << 20  # a configuration is written by people; more is another file
_SYNTAX_PLACE: Final = re.compile(r" \((?:at line (\d+), column \d+|at end of document)\)$")
_TYPES: Final = {
    "string_type": 'must be text; allowed: a string in quotation marks, such as "text"',
    "bool_type": "must be true or false; allowed: true or false, without quotation marks",
    "int_type": "must be a whole number; allowed: digits without quotation marks",
    "int_from_float": "must be a whole number; allowed: digits without quotation marks",
    "float_type": "must be a number; allowed: a number without quotation marks",
    "finite_number": "must be a finite number; allowed: a number such as 0.7",
    "tuple_type": 'must be a list; allowed: such as ["one", "two"]',
    "dict_type": 'must be a table; allowed: such as { "key" = "text" }',
}


def config_path(named: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> FilePath:
    """Which file: the one named on the command line, else in CHEKT_GATEWAY_CONFIG, else the usual one."""
    return FilePath(named or environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)


def sections(settings: type[BaseSettings]) -> Iterator[tuple[str, type[Table], bool]]:
    """Name, table and "one table for each name?" of every section."""
    for name, info in settings.model_fields.items():
        is_many = get_origin(info.annotation) is dict
        table: Any = get_args(info.annotation)[1] if is_many else info.annotation
        yield name, table, is_many


def read_file(path: FilePath) -> tuple[str, dict[str, Any]]:
    """The text and its values. Raises ConfigError where there is no TOML to speak of."""

    def wrong(message: str, line: int | None = None) -> ConfigError:
        return ConfigError([Fault(str(path), line, "", message)])

    try:
        if not path.is_file():  # also: a pipe would block
            is_there = path.exists()
            raise wrong("is no file" if is_there else "there is no such file; name another with --config FILE")
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise wrong("is too long for a configuration")
    try:
        text = raw.decode("utf-8-sig")  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise wrong("is not UTF-8; allowed: plain text in UTF-8", line) from error
    try:
        return text, tomllib.loads(text)
    except RecursionError as error:
        raise wrong("is nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        place = _SYNTAX_PLACE.search(str(error))
        what = str(error)[: place.start()] if place else str(error)
        last = text.count("\n") + (not text.endswith("\n"))
        number = int(place[1]) if place and place[1] else last
        raise wrong(f"is not TOML: {what[:1].lower()}{what[1:]}", number) from error


def read_environment(
    settings: type[BaseSettings], environ: Mapping[str, str], of_file: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Path, str], list[Fault], list[Fault]]:
    """Values of the environment as nested tables; which variable each came from; faults; warnings."""
    values: dict[str, Any] = {}
    variables: dict[Path, str] = {}
    faults: list[Fault] = []
    warnings: list[Fault] = []
    names = {name: is_many for name, _, is_many in sections(settings)}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        section, *rest = variable[len(PREFIX) :].lower().split(DELIMITER)
        if not rest:
            warnings.append(Fault(ENVIRONMENT, None, variable, f"is no setting; allowed: {PREFIX}SECTION__KEY"))
            continue
        if section not in names:
            faults.append(Fault(ENVIRONMENT, None, variable, unknown("section", section, names)))
            continue
        source = EnvSettingsSource(settings)
        source.env_vars = {variable.lower(): environ[variable]}
        try:
            found = source()
        except SettingsError:
            faults.append(Fault(ENVIRONMENT, None, variable, 'is not JSON; allowed: such as ["one", "two"]'))
            continue
        path: Path = (section, *rest)
        if names[section]:  # the file may write the name of a camera with capitals
            tables = of_file.get(section, {})
            match = [name for name in tables if name.lower() == rest[0]] if isinstance(tables, dict) else []
            if len(match) > 1:
                faults.append(Fault(ENVIRONMENT, None, variable, "means more than one table of the file"))
                continue
            if match:
                path = (section, match[0], *rest[1:])
                found = {section: {match[0]: found[section][rest[0]]}}
        values = merged(values, found)
        variables[path] = variable
        key = path[: 3 if names[section] else 2]
        if not isinstance(_at(of_file, key), dict):  # it goes deeper than the file does
            variables[key] = variable
    return values, variables, faults, warnings


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both say something, `above` holds."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both


def read_tables(settings: type[BaseSettings], values: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """Each section as its class: a faulty key has its default, a faulty required one is empty, a table that is none
    is missing. Good enough to look for faults of meaning in the same pass.
    """
    known = {f"{name}.NAME" if is_many else name: table for name, table, is_many in sections(settings)}
    for name in values:
        if name not in settings.model_fields:
            findings.fault((name,), unknown("table", name, settings.model_fields))
    built: dict[str, Any] = {}
    for name, table, is_many in sections(settings):
        if not is_many:
            is_required = settings.model_fields[name].is_required()
            if name in values:
                built[name] = _read_table(table, values[name], (name,), findings, known)
            elif not is_required:
                built[name] = table()
            else:
                needed = ", ".join(key for key, info in table.model_fields.items() if info.is_required())
                findings.fault((name,), f"the table [{name}] is missing; it needs at least {needed}")
        elif not isinstance(values.get(name, {}), dict):
            findings.fault((name,), f"must be tables; allowed: one table [{name}.NAME] for each")
            built[name] = {}
        else:
            each = values.get(name, {})
            built[name] = {key: _read_table(table, value, (name, key), findings, known) for key, value in each.items()}
            built[name] = {key: value for key, value in built[name].items() if value is not None}
    return {name: value for name, value in built.items() if value is not None}


def _read_table(
    table: type[Table], values: Any, path: Path, findings: Findings, known: Mapping[str, type[Table]]
) -> Table | None:
    if not isinstance(values, dict):
        findings.fault(path, f"must be a table; allowed: [{written(path)}] with its keys below it")
        return None
    try:
        return table.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    for detail in details:
        findings.fault((*path, *(part for part in detail["loc"] if part != "[key]")), _said(detail, table, known))
    wrong = {str(detail["loc"][0]) for detail in details}
    good = {key: value for key, value in values.items() if key not in wrong}
    # In place of a required key its example, so that the rest can be read; then empty: nobody takes it for true.
    examples = {
        key: info.examples[0] for key, info in table.model_fields.items() if info.is_required() and info.examples
    }
    lacking = {key: example for key, example in examples.items() if key not in good}
    return table.model_validate(good | lacking).model_copy(update=dict.fromkeys(lacking, ""))


def _said(detail: ErrorDetails, table: type[Table], known: Mapping[str, type[Table]]) -> str:
    """One fault of form in our words. Never the value itself: it may be a secret in the wrong place."""
    kind, context = detail["type"], detail.get("ctx", {})
    key = str(detail["loc"][0])
    if kind == "extra_forbidden":
        elsewhere = [f"[{name}]" for name, other in known.items() if key in other.model_fields]
        if elsewhere and not _similar(key, table.model_fields):
            return f"unknown key here; it belongs to {' or '.join(elsewhere)}"
        return unknown("key", key, table.model_fields)
    if kind == "missing":
        return f"is missing; needed: {_meaning(table.model_fields[key])}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"is not one of the allowed words; allowed: {str(context['expected']).replace(chr(39), chr(34))}"
    if kind == "greater_than_equal":
        return f"is too small; allowed: {context['ge']} or more"
    if kind == "less_than_equal":
        return f"is too large; allowed: {context['le']} or less"
    return _TYPES.get(kind) or detail["msg"]


def unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    near = _similar(name, known)
    return f'unknown {what}; did you mean "{near}"?' if near else f"unknown {what}; allowed: {', '.join(known)}"


def _similar(name: str, known: Mapping[str, Any]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)), None)


def _meaning(info: FieldInfo) -> str:
    """The first sentence of a field's docstring, and its example."""
    sentence = re.split(r"\.\s", f"{info.description or ''} ")[0].replace("\n", " ").rstrip(" .")
    if sentence[1:2].islower():
        sentence = sentence[0].lower() + sentence[1:]
    return f'{sentence}, such as "{info.examples[0]}"' if info.examples else sentence
