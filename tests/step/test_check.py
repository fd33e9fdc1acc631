"""`chekt-gateway check` as an installer and a script meet it: what it prints where, and its exit code."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import check
from tests.fakes.configuration import GOOD, NOW, Place, spoiled


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def run(*arguments: str, environ: dict[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers(required=True))
    return check.run(parser.parse_args(["check", *arguments]), environ=environ or {}, now=NOW)


def test_a_good_configuration_is_called_good_and_summed_up(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = spoiled(
        ('location_id = "L"', 'location_id = "Z6RSOG"\nrecorder_id = "Z6RANV"'),
        ('url = "http://127.0.0.1:1"', 'url = "https://api.chekt.com"'),
        ('camera_id = "id-back"', 'camera_id = "id-back"\nname = "Hof 1"\nevent_mp4 = true\nsignal = false'),
    )
    assert run("--config", str(place.write(text))) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"configuration is good: {place.file}\n"
        "\n"
        "  site    Z6RSOG, recorder Z6RANV\n"
        "  cloud   https://api.chekt.com, production, signed assertion (RS256), token from 127.0.0.1, header bearer\n"
        "  broker  mqtt://127.0.0.1:1, MQTT 5, user u, chekt-gateway-Z6RSOG\n"
        "  outbox  /nowhere/outbox.db\n"
        "  source  s, frigate, http://127.0.0.1:5000\n"
        "  2 cameras\n"
        "    front  s front  -> id-front  signals          1 snapshot\n"
        "    back   s Hof 1  -> id-back   does not signal  1 snapshot + event clip\n"
    )
    assert err == (
        f"warning: {place.file}:28: cameras.back.signal: is false: alarms do not signal the monitoring station\n"
    )


def test_without_a_token_the_summary_names_the_key_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    key = 'api_key_file = "test-key"\nevent_header = "x-api-key"'
    text = spoiled(('private_key_file = "rsa.pem"', key), ('token_url = "http://127.0.0.1:1/oauth/token"', ""))
    assert run("--config", str(place.write(text))) == 0
    assert "  cloud   http://127.0.0.1:1, API key, header x-api-key\n" in capsys.readouterr().out


def test_faults_go_to_stderr_with_78(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """sysexits.h, EX_CONFIG: the unit does not restart on it."""
    text = spoiled(('location_id = "L"', "location_id = 1"), ('stale_after = "off"', ""))
    assert run("-c", str(place.write(text))) == 78
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"{place.file}:2: site.location_id: must be text; allowed: ")
    assert second.startswith(f"warning: {place.file}:16: delivery.stale_after: ")


def test_a_missing_file_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-c", str(tmp_path / "none.toml")) == 78
    assert capsys.readouterr().err == f"{tmp_path}/none.toml: there is no such file; name another with --config FILE\n"


def test_the_variable_says_which_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(GOOD)
    assert run(environ={"CHEKT_GATEWAY_CONFIG": str(place.file)}) == 0
    assert str(place.file) in capsys.readouterr().out


def test_a_script_gets_one_object_where_it_is_good(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "-c", str(place.write(GOOD))) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": True, "config": str(place.file), "faults": [], "warnings": []}
    assert (out.count("\n"), err) == (1, "")


def test_a_script_gets_one_object_where_it_is_wrong(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = spoiled(('location_id = "L"', 'location = "ü"'), ('stale_after = "off"', ""))
    assert run("--json", "-c", str(place.write(text)), environ={"CHEKT_GATEWAY_LOG__LEVEL": "all"}) == 78
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [(fault["file"], fault["line"], fault["key"]) for fault in answer["faults"]] == [
        (str(place.file), 1, "site.location_id"),
        (str(place.file), 2, "site.location"),
        ("environment", None, "CHEKT_GATEWAY_LOG__LEVEL"),
    ]
    assert answer["faults"][1]["message"] == 'unknown key; did you mean "location_id"?'
    assert [warning["key"] for warning in answer["warnings"]] == ["delivery.stale_after"]


def test_the_families_are_the_true_ones(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = spoiled(('family = "frigate"', 'family = "frigatte"'))
    assert run("-c", str(place.write(text))) == 78
    assert 'unknown family; did you mean "frigate"?' in capsys.readouterr().err
    text = spoiled(('family = "frigate"', 'family = "frigate"\ndialect = "events"\nmin_score = 0.7'))
    assert run("-c", str(place.write(text))) == 0


def test_many_cameras_still_fit_on_a_screen(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    more = "".join(f'[cameras.c{number}]\ncamera_id = "id{number}"\n' for number in range(98))
    assert run("-c", str(place.write(GOOD + more))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert "  100 cameras" in lines
    assert lines[-1] == "    and 85 more"


def test_no_camera_is_good_with_a_warning(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-c", str(place.write(GOOD[: GOOD.index("[cameras.front]")]))) == 0
    out, err = capsys.readouterr()
    assert out.endswith("  0 cameras\n")
    assert "no camera is configured" in err


def test_the_configuration_of_a_dry_run_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cloud and broker that are not there, camera names of any characters: enough for `explain`."""
    place = Place(tmp_path)
    place.write("")
    folder = place.folder
    text = (
        f'[site]\nlocation_id = "L"\ntimezone = "America/New_York"\n[cloud]\nurl = "http://127.0.0.1:1"\n'
        f'token_url = "http://127.0.0.1:1/oauth/token"\naudience = "a"\nclient_id = "c"\n'
        f'private_key_file = "{folder}/rsa.pem"\n[broker]\nurl = "mqtt://127.0.0.1:1"\nusername = "u"\n'
        f'password_file = "{folder}/password"\n[outbox]\npath = "{folder}/outbox.db"\n'
        f'[sources.s]\nfamily = "frigate"\ncamera_id = "site"\n'
    )
    names = ["front_door", 'Cam 1/é "x" \\', "00:11:22:33:44:55", "axis/B8A44F000000", "#+", "\u2028", "名"]
    text += "".join(
        f'[cameras.cam{place}]\ncamera_id = "id{place}"\nname = {json.dumps(name)}\n'
        for place, name in enumerate(names)
    )
    assert run("-c", str(place.write(text))) == 0
    assert f"{len(names)} cameras" in capsys.readouterr().out


def test_the_real_command_checks(place: Place) -> None:
    """One process, from the command line to the exit code."""
    place.write(spoiled(('location_id = "L"', "")))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "gateway", "check", "--config", str(place.file)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.startswith(f"{place.file}:1: site.location_id: is missing; needed: CHeKT's id of this site")
