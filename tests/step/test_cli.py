"""The command line itself: help, versions, wrong usage, and whose the exit codes are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from gateway.cli import COMMANDS, build_parser, main
from gateway.cli.asking import local_time, table
from gateway.host import journal


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = main(words)
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_a_command_the_commands_are_shown_as_talk(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (64, "")
    assert all(f"\n    {name}" in err for name in COMMANDS)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_everything_has_help_and_a_version(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: chekt-gateway")
    code, out, _ = run(capsys, *command, "--version")
    assert code == 0
    assert out.startswith("chekt-gateway ")
    code, out, _ = run(capsys, *command, "--version", "--json")
    known = json.loads(out)
    assert {"chekt-gateway", "python", "sqlite", "openssl", "aiohttp", "paho-mqtt"} <= known.keys()


def test_every_option_says_what_it_is_for() -> None:
    (commands,) = [each for each in build_parser([])._actions if isinstance(each, argparse._SubParsersAction)]
    parsers: dict[str, argparse.ArgumentParser] = commands.choices
    assert parsers.keys() == set(COMMANDS)
    for name, parser in parsers.items():
        assert parser.description, name
        assert [action.dest for action in parser._actions if not action.help] == [], name


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("nonsense",), "'nonsense'"),
        (("run", "--bogus"), "chekt-gateway run: unrecognized arguments: --bogus"),
        (("status", "--config"), "expected one argument"),
        (("retry", "--all"), "--all"),  # what an option only begins like is not taken for it
        (("trace",), "EVENT_ID"),
        (("events", "--limit", "many"), "'many' is not a number"),
    ],
)
def test_wrong_usage_is_64_with_a_way_on(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], wanted: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (64, "")
    assert wanted in err
    assert "--help" in err


@pytest.mark.parametrize("command", ["run", "check", "status", "events"])
def test_a_missing_configuration_is_78(capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path) -> None:
    code, out, err = run(capsys, command, "--config", str(tmp_path / "none.toml"))
    assert (code, out) == (78, "")
    assert "there is no such file" in err


def test_in_the_journal_a_wrong_configuration_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`journalctl -p err` is where a person looks; what is only printed would be there as information."""
    stands_for_the_journal = sys.stderr
    monkeypatch.setattr(journal, "is_journal", lambda stream, environ: stream is stands_for_the_journal)
    monkeypatch.setattr(journal, "JournalWriter", lambda stream, path: journal.LineWriter(stream, coloured=False))
    code, _, err = run(capsys, "run", "--config", str(tmp_path / "none.toml"))
    assert code == 78
    assert " error " in err
    assert "configuration_wrong why=" in err


def test_a_table_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason may be a stanza to paste, of several lines."""
    assert table([("a", "one\ntwo"), ("bcd", "")], ("X", "Y")).splitlines() == ["X    Y", "a    one two", "bcd"]


def test_people_read_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    with monkeypatch.context() as zone:
        zone.setenv("TZ", "America/Chicago")
        time.tzset()
        assert local_time("2026-03-01T12:00:00.250Z") == "2026-03-01 06:00:00"
        assert local_time(1_772_366_400_250, milliseconds=True) == "2026-03-01 06:00:00.250"
    time.tzset()
