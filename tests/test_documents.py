"""What is written twice is compared: the design document, the README, the schema, the locks, and the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.cli import COMMANDS
from gateway.states import ENTRANCES, EVENT_TRANSITIONS, MEDIA_TRANSITIONS, EventState, MediaState

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gateway"
DESIGN = (PACKAGE / "DESIGN.md").read_text()
README = (ROOT / "README.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def section(document: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its kind."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", document, re.DOTALL | re.MULTILINE)
    assert found, f"there is no section {heading!r}"
    return found[1]


# --- states ---


def diagrams() -> list[str]:
    return re.findall(r"```mermaid\n(.*?)```", section(DESIGN, "States"), re.DOTALL)


@pytest.mark.parametrize(
    ("diagram", "transitions", "entrances"),
    [(0, EVENT_TRANSITIONS, ENTRANCES), (1, MEDIA_TRANSITIONS, frozenset({MediaState.WAITING}))],
    ids=["events", "media"],
)
def test_the_diagrams_of_the_design_are_the_tables_of_the_code(
    diagram: int, transitions: Mapping[StrEnum, Mapping[StrEnum, str]], entrances: frozenset[StrEnum]
) -> None:
    drawn = re.findall(r"^ *(\S+) --> (\w+)(?:: (.*))?$", diagrams()[diagram], re.MULTILINE)
    assert {target for source, target, _ in drawn if source == "[*]"} == {str(state) for state in entrances}
    assert {(source, target): why for source, target, why in drawn if source != "[*]"} == {
        (str(source), str(target)): why for source, targets in transitions.items() for target, why in targets.items()
    }


@pytest.mark.parametrize("states", [EventState, MediaState])
def test_the_schema_knows_the_states_of_the_code_and_no_other(states: type[StrEnum]) -> None:
    schema = (PACKAGE / "outbox" / "schema.sql").read_text()
    checked = [set(re.findall(r"'(\w+)'", words)) for words in re.findall(r"CHECK \(state IN \(([^)]*)\)\)", schema)]
    assert {str(state) for state in states} in checked


# --- the log ---


def parsed_sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")


def log_names() -> set[str]:
    """Every name that the code can log: the argument of a logger's call, and both of `Repeated`."""
    names: set[str] = set()
    for path, module in parsed_sources():
        if path.name == "repeated.py":
            continue
        for function in ast.walk(module):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            assigned: dict[str, list[ast.expr]] = {}
            for there in ast.walk(function):
                if isinstance(there, ast.Assign) and isinstance(there.targets[0], ast.Name):
                    assigned.setdefault(there.targets[0].id, []).append(there.value)
            for call in ast.walk(function):
                if isinstance(call, ast.Call):
                    for argument in name_arguments(call, assigned):
                        names |= set(said(argument, assigned))
    return names


def name_arguments(call: ast.Call, assigned: Mapping[str, list[ast.expr]]) -> list[ast.expr]:
    """Those arguments of a call that are names of log lines: of a logger, of `Repeated`, of `Notice`."""
    match call.func:
        case ast.Name(id="Repeated"):
            return call.args[:2]
        case ast.Name(id="Notice"):
            return call.args[:1]
        case ast.Name(id=alias) if any(is_logger(value) for value in assigned.get(alias, [])):
            return call.args[:1]
        case ast.Attribute(attr="log") if is_logger(call.func):
            return call.args[1:2]
        case ast.Attribute() if is_logger(call.func):
            return call.args[:1]
    return []


def is_logger(expression: ast.expr) -> bool:
    """`log.info`, `self._log.info`, or one of two such."""
    if isinstance(expression, ast.IfExp):
        return is_logger(expression.body) and is_logger(expression.orelse)
    if not isinstance(expression, ast.Attribute) or expression.attr not in LEVELS:
        return False
    return ast.unparse(expression.value).removeprefix("self.") in ("log", "_log")


def said(argument: ast.expr, assigned: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    match argument:
        case ast.Constant(value=str(name)):
            yield name
        case ast.IfExp(body=one, orelse=other):
            yield from said(one, assigned)
            yield from said(other, assigned)
        case ast.Name(id=variable) if variable in assigned:
            for value in assigned[variable]:
                yield from said(value, assigned)
        case _:
            raise AssertionError(f"the name of a log line must stand where it is logged: {ast.unparse(argument)}")


def test_the_log_speaks_in_past_tense_facts() -> None:
    assert {name for name in log_names() if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name)} == set()


def test_every_line_of_the_log_is_explained_in_the_design_and_no_other() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", section(DESIGN, "What the log says"), re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == log_names()


# --- assumptions ---


def test_the_runbook_says_what_to_do_about_every_error() -> None:
    """An ERROR wants a person, and a person who is called at night wants to know what for."""
    table = section(DESIGN, "What the log says")
    errors = set(re.findall(r"^\| `(\w+)` \| error \|", table, re.MULTILINE))
    assert errors
    assert errors - set(re.findall(r"`(\w+)`", RUNBOOK)) == set()


def test_every_assumption_is_a_question_of_the_design() -> None:
    """`ASSUMED: Q7`: what the vendor has not said, and what we take until he does."""
    asked = {int(number) for number in re.findall(r"\bQ(\d+)\b", section(DESIGN, "Questions to the vendor"))}
    assumed = {int(number) for path in PACKAGE.rglob("*.py") for number in re.findall(r"\bQ(\d+)\b", path.read_text())}
    assert assumed - asked == set()


# --- the README ---


def test_every_command_that_the_readme_shows_exists() -> None:
    shown = set(re.findall(r"\bchekt-gateway ([a-z][a-z-]*)", README + RUNBOOK)) - {"COMMAND"}
    assert shown <= {*COMMANDS, *subjects_of_other_programs()}
    assert {"check", "status", "events", "trace", "retry", "explain", "families"} <= shown


def subjects_of_other_programs() -> set[str]:
    """Words that follow our name where it is the unit's, not the command's: `journalctl -u chekt-gateway …`."""
    return set(re.findall(r"(?:journalctl -u|systemctl \S+(?: --now)?) chekt-gateway ([a-z-]+)", README))


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"(?<![\w/-])(?:scripts|systemd|requirements|config|gateway)/[\w.@-]+", README)
    linked = re.findall(r"\]\(([\w/.]+)\)", README)
    assert [name for name in {*named, *linked} if not (ROOT / name).exists()] == []


# --- dependencies ---


def direct_dependencies() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for texts in [project["dependencies"], *extras] for text in texts]


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_every_dependency_has_its_reason_in_the_design() -> None:
    reasons = {canonicalize_name(name) for name in re.findall(r"^\| `([\w-]+)` \|", DESIGN, re.MULTILINE)}
    assert {wanted.name for wanted in direct_dependencies() if canonicalize_name(wanted.name) not in reasons} == set()


def test_the_locks_hold_what_the_project_asks_for() -> None:
    """Changed pyproject.toml? Run scripts/lock."""
    pinned = pins("develop.txt")
    for wanted in direct_dependencies():
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted
    for lock in ("run.txt", "demo.txt"):
        assert pins(lock).items() <= pinned.items()
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]} <= pins(
        "run.txt"
    ).keys()


def test_the_locks_name_no_place_of_the_machine_that_made_them() -> None:
    for lock in ("run.txt", "demo.txt", "develop.txt"):
        text = (ROOT / "requirements" / lock).read_text()
        assert "://" not in text
        assert not re.search(r"(?m)^--|\s/\w", text)
        unhashed = re.findall(r"^[\w.-]+==\S+ \\\n(?!    --hash=sha256:)", text, re.MULTILINE)
        assert unhashed == []


# --- purity ---


def test_a_file_that_says_it_is_pure_is_held_to_it() -> None:
    """The contract of import-linter names them; this finds one that was forgotten."""
    claimed = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, module in parsed_sources()
        if re.search(r"\bPure\b", ast.get_docstring(module) or "")
    }
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (held,) = [set(contract["source_modules"]) for contract in contracts if contract["name"].startswith("Pure files")]
    assert claimed - held == set()


# --- the evidence ---


def names_of_tests(path: Path) -> set[str]:
    module = ast.parse(path.read_text())
    found = {node.name for node in ast.walk(module) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    # A state machine of Hypothesis is a test by its name in the module.
    found |= {
        node.targets[0].id
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return {name for name in found if name.lower().startswith("test")}


def evidence() -> list[list[str]]:
    """The rows of all tables of docs/evidence.md, without their heads."""
    lines = (ROOT / "docs" / "evidence.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[-1] != "shown by"]


def test_every_row_of_the_evidence_names_tests_that_exist() -> None:
    rows = evidence()
    assert rows
    for row in rows:
        assert len(row) == 4, row
        assert all(row), row
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", row[-1])
        assert named, f"{row[0]}: no test is named"
        for path, name in named:
            assert (ROOT / path).is_file(), path
            assert not name or name in names_of_tests(ROOT / path), f"{path} has no {name}"


def test_every_file_of_the_longer_programme_is_evidence() -> None:
    named = set(re.findall(r"tests/faults/test_\w+\.py", (ROOT / "docs" / "evidence.md").read_text()))
    assert {f"tests/faults/{path.name}" for path in (ROOT / "tests" / "faults").glob("test_*.py")} == named
