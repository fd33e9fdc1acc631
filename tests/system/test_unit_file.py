"""What is in systemd/ is accepted by systemd, is hardened, and says what the gateway keeps to."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "chekt-gateway.service"
INSTALLED = "/opt/chekt-gateway/bin/chekt-gateway"
MOST_EXPOSURE = 2.0  # of 10; systemd-analyze(1), security


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there: systemd-analyze looks for it."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert f"ExecStart={INSTALLED} run\n" in text
    copy.write_text(text.replace(INSTALLED, sys.executable))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(["systemd-analyze", *arguments], text=True, capture_output=True, env=environ, check=False)


@pytest.mark.needs("systemd-analyze")
def test_systemd_accepts_the_unit_without_a_word(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
def test_systemd_accepts_the_place_for_a_failure(unit: Path, tmp_path: Path) -> None:
    """As the comment in the unit tells an operator to do it."""
    for name in ["chekt-gateway-failed@.service"]:
        shutil.copy(SYSTEMD / name, tmp_path / name)
    unit.write_text(unit.read_text().replace("[Service]", "OnFailure=chekt-gateway-failed@%N.service\n[Service]", 1))
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--json=short", unit)
    assert done.returncode == 0, done.stderr
    assert sum(float(check["exposure"] or 0) for check in json.loads(done.stdout)) <= MOST_EXPOSURE
    overall = analyze("security", "--offline=true", f"--threshold={round(MOST_EXPOSURE * 10)}", unit)
    assert overall.returncode == 0, overall.stdout


def test_the_unit_restarts_for_ever_but_not_after_a_fault_of_the_configuration() -> None:
    said = settings(UNIT)
    assert said["Restart"] == ["always"]
    assert said["RestartSec"] == ["5s"]
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["RestartPreventExitStatus"] == ["64 78"]


def test_the_unit_speaks_the_protocol_of_the_gateway() -> None:
    said = settings(UNIT)
    assert (said["Type"], said["NotifyAccess"], said["WatchdogSec"]) == (["notify"], ["main"], ["60s"])


def test_the_gateway_has_its_grace_before_it_is_killed() -> None:
    """House: 40 s of grace after SIGTERM, then it cancels and closes."""
    (seconds,) = settings(UNIT)["TimeoutStopSec"]
    assert int(seconds.removesuffix("s")) >= 50


def test_the_unit_does_not_wait_for_the_network() -> None:
    said = settings(UNIT)
    assert said["After"] == ["network.target mosquitto.service"]
    assert not said.keys() & {"Requires", "BindsTo", "Requisite"}


def test_secrets_come_as_credentials() -> None:
    assert settings(UNIT)["LoadCredential"] == ["chekt-private-key:/etc/chekt-gateway/chekt-private-key"]
    assert not settings(UNIT).keys() & {"Environment", "EnvironmentFile"}


@pytest.mark.needs("systemd-sysusers")
def test_the_user_of_the_unit_is_made(tmp_path: Path) -> None:
    (user,) = settings(UNIT)["User"]
    (tmp_path / "etc").mkdir()
    made = ["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "chekt-gateway.sysusers")]
    subprocess.run(made, check=True, capture_output=True)
    (entry,) = [line for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if line.startswith(f"{user}:")]
    assert entry.split(":")[5] == "/var/lib/chekt-gateway"
    assert entry.endswith("nologin")
    if os.geteuid() != 0:
        return  # only root may give the folders away
    folder = tmp_path / "etc" / "chekt-gateway"
    folder.mkdir(mode=0o777)
    for name in ("gateway.toml", "chekt-private-key", "mqtt-password"):
        (folder / name).touch(mode=0o666)
    made = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(SYSTEMD / "chekt-gateway.tmpfiles")]
    subprocess.run(made, check=True, capture_output=True)
    uid, gid = (int(number) for number in entry.split(":")[2:4])
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]} == {
        "chekt-gateway": 0o750,
        "gateway.toml": 0o640,
        "chekt-private-key": 0o600,
        "mqtt-password": 0o600,
    }
    assert (folder.stat().st_uid, folder.stat().st_gid) == (0, gid)
    assert uid != 0
