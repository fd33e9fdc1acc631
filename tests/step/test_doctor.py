"""`chekt-gateway doctor`: what it finds, with which remedy, and that it signals nothing and disturbs nobody."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.doctor import add_parser, run
from gateway.cli.examine import file_system, judge_syncs
from gateway.cli.examine_broker import is_this_machine
from gateway.simulator.cloud import Cloud
from gateway.simulator.site import Site
from gateway.sources.mosquitto_conf import Unreadable, ports, read_settings, upgrades_qos, weaknesses
from tests.fakes.mosquitto import Certificates, Mosquitto
from tests.fakes.remembering import PASSWORD, USER, ZoneMinderServer
from tests.fakes.session import Running
from tests.system.gateway_process import CONFIG

GOOD = "persistence true\nautosave_interval 5\nmax_queued_messages 200000\nmax_inflight_messages 200\n"


# --- mosquitto.conf -------------------------------------------------------------------------------------------------


def lines_for(text: str) -> list[tuple[bool, str]]:
    known = read_settings("m.conf", lambda _: text, lambda _: [])
    return [(one.fatal, one.line) for one in weaknesses(known)]


def test_a_configuration_that_keeps_everything_is_good() -> None:
    assert lines_for(GOOD) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            [
                (True, "persistence true"),
                (True, "max_queued_messages 200000"),
                (False, "max_inflight_messages 200"),
            ],
        ),
        (GOOD + "persistence false", [(True, "persistence true")]),
        (GOOD.replace("autosave_interval 5\n", ""), [(False, "autosave_interval 5")]),
        (GOOD + "autosave_interval 0", [(False, "autosave_interval 5")]),
        (GOOD + "max_queued_messages 1000", [(True, "max_queued_messages 200000")]),
        (GOOD + "max_queued_messages 0", []),
        (GOOD + "max_queued_bytes 1000000", [(True, "max_queued_bytes 0")]),
        (GOOD + "max_queued_bytes 200000000", [(False, "max_queued_bytes 0")]),
        (GOOD + "max_inflight_messages 20", [(False, "max_inflight_messages 200")]),
        (GOOD + "persistent_client_expiration 12h", [(True, "persistent_client_expiration 2m")]),
        (GOOD + "persistent_client_expiration 2m", []),
        (GOOD + "message_size_limit 1000", [(False, "message_size_limit 0")]),
        ("# persistence false\n  \n" + GOOD, []),
    ],
)
def test_what_would_be_lost_is_found_with_the_line_that_mends_it(text: str, expected: list[tuple[bool, str]]) -> None:
    assert lines_for(text) == expected


def test_included_files_count_in_their_order_and_are_named() -> None:
    files = {
        "m.conf": "max_queued_messages 9\ninclude_dir /d",
        "/d/b.conf": "max_queued_messages 500",
        "/d/a.conf": "max_queued_messages 7",
        "/d/c.txt": "max_queued_messages 8",
    }
    known = read_settings("m.conf", files.__getitem__, lambda folder: [file for file in files if folder in file])
    assert known["max_queued_messages"].where == "/d/b.conf:1"
    assert "500 (/d/b.conf:1)" in " ".join(one.sentence for one in weaknesses(known))


def test_a_folder_that_includes_itself_ends() -> None:
    with pytest.raises(Unreadable):
        read_settings("m.conf", lambda _: "include_dir /d", lambda _: ["/d/m.conf"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", {1883}), ("port 1884", {1884}), ("listener 1 127.0.0.1\nlistener 8883", {1, 8883}), ("listener 0 /s", {0})],
)
def test_it_is_known_where_a_broker_of_these_settings_listens(text: str, expected: set[int]) -> None:
    """Another broker on this machine is not judged by them."""
    assert ports(read_settings("m.conf", lambda _: text, lambda _: [])) == expected


def test_qos_0_that_is_kept_is_recognised() -> None:
    assert upgrades_qos(read_settings("m.conf", lambda _: "upgrade_outgoing_qos true", lambda _: []))
    assert not upgrades_qos({})


# --- small things ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("milliseconds", "level"), [(0.001, "FAIL"), (0.2, "ok"), (30, "ok"), (900, "warn")])
def test_a_disk_that_is_too_fast_lies(milliseconds: float, level: str) -> None:
    assert judge_syncs([milliseconds / 1000] * 20).level == level


def test_the_file_system_is_the_one_that_is_mounted_nearest(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n/dev/b {tmp_path}x xfs rw 0 0\n")
    assert file_system(tmp_path / "below", mounts) == "tmpfs"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") is None


def test_our_own_addresses_are_recognised() -> None:
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("localhost")
    assert not is_this_machine("192.0.2.1")
    assert not is_this_machine("no.such.host.invalid")


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Premises:
    folder: Path
    broker: Mosquitto
    cloud: Cloud
    site: Site

    def write(self, *, broker_url: str | None = None, source: str | None = None, cameras: str = "front_door") -> Path:
        key = self.folder / "key.pem"
        key.write_bytes(self.cloud.practice_key)
        key.chmod(0o600)
        file = self.folder / "gateway.toml"
        terms = self.cloud.terms
        file.write_text(
            CONFIG.format(
                folder=self.folder,
                cloud_url=self.cloud.url,
                token_url=self.cloud.url + "/oauth/token",
                audience=terms.audience,
                client_id=terms.client_id,
                key_id="practice-key",
                key_file=key,
                broker_url=broker_url or self.broker.url,
                delivery="",
                defaults="",
                source=f'url = "{self.site.url}"' if source is None else source,
                cameras=f'[cameras.{cameras}]\ncamera_id = "c"',
            )
        )
        return file

    def conf(self, text: str) -> str:
        file = self.folder / "mosquitto.conf"
        file.write_text(text)
        return str(file)


@pytest.fixture
async def premises(tmp_path: Path) -> AsyncIterator[Premises]:
    (tmp_path / "broker").mkdir()
    cloud, site = Cloud(), Site(heartbeat_seconds=0.2)
    async with Mosquitto(tmp_path / "broker") as broker:
        await cloud.start()
        await site.start(broker.port)
        try:
            yield Premises(tmp_path, broker, cloud, site)
        finally:
            await site.stop()
            await cloud.stop()


def parse(*words: str) -> argparse.Namespace:
    return add_parser(argparse.ArgumentParser().add_subparsers()).parse_args(words)


async def examine(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the findings by check."""
    args = parse("--json", "--for", "1", *map(str, words))
    code = await asyncio.to_thread(run, args, environ={})
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["ok"] is (code == 0)
    found: dict[str, list[dict[str, Any]]] = {}
    for one in answer["checks"]:
        assert one["level"] == "ok" or one["remedy"] or one["check"] == "configuration", one
        found.setdefault(one["check"], []).append(one)
    return code, found


def levels(found: dict[str, list[dict[str, Any]]], check: str) -> list[str]:
    return [one["level"] for one in found.get(check, [])]


@pytest.mark.needs("mosquitto")
async def test_a_good_site_passes_and_nothing_is_signalled(
    premises: Premises, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the running gateway, whose session it does not touch, and without a word on the state topic."""
    async with Running(premises.broker.url) as gateway:
        code, found = await examine(capsys, "-c", premises.write(), "--mosquitto-conf", premises.conf(GOOD))
        assert gateway.facts["connections"] == 1
    quiet = {"FAIL", "warn"}
    for check in ("broker", "broker keeps", "cloud", "clock", "token", "camera front_door"):
        assert levels(found, check) == ["ok"], (check, found.get(check))
    failed = [one for each in found.values() for one in each if one["level"] == "FAIL" and one["check"] != "disk"]
    assert failed == []  # what the machine of a test has for a disk is its own affair
    assert code == int("FAIL" in levels(found, "disk"))
    assert set(levels(found, "space")) - quiet
    [heard, careless] = found["source nvr"]
    assert heard["level"] == "ok"
    assert "QoS 0 (frigate/front_door/status/detect" in careless["what"]
    assert "asked of the recorder afterwards" in careless["what"]
    assert "mqtt.qos: 1" in careless["remedy"]
    assert premises.cloud.events == []
    assert "chekt-gateway/doctor/state" not in premises.broker.log_text()
    assert not (premises.folder / "outbox.db").exists()


@pytest.mark.needs("mosquitto")
async def test_what_is_wrong_is_found_all_at_once(
    premises: Premises, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.examine_broker.CONNECT_SECONDS", 1.0)
    config = premises.write(broker_url="mqtt://127.0.0.1:1", cameras="nowhere")
    code, found = await examine(capsys, "-c", config, "--mosquitto-conf", premises.conf("max_queued_messages 1000\n"))
    assert code == 1
    assert "nothing listens" in found["broker"][0]["what"]
    assert [one["level"] for one in found["broker keeps"]] == ["FAIL", "FAIL", "warn"]
    assert "write `persistence true` into" in found["broker keeps"][0]["remedy"]
    assert levels(found, "camera nowhere") == ["FAIL"]
    assert levels(found, "token") == ["ok"]


@pytest.mark.needs("mosquitto")
async def test_recorders_that_give_no_pictures_are_asked_for_their_list(
    premises: Premises, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of an address that is missing, or is another's, it is said what that costs."""
    server = ZoneMinderServer()
    await server.start()
    password = premises.folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    login = f'username = "{USER}"\npassword_file = "{password}"\n'
    sources = {
        "good": f'family = "zoneminder"\nurl = "{server.url}"\n{login}',
        "bare": f'family = "zoneminder"\ntopic_prefix = "zm2"\nurl = "{server.url}"\n',
        "lost": f'family = "zoneminder"\ntopic_prefix = "zm3"\nurl = "{server.origin}"\n{login}',
        "without": 'family = "zoneminder"\ntopic_prefix = "zm4"\n',
        "nobody": 'family = "axis"\n',
    }
    config = premises.write()
    config.write_text(config.read_text() + "".join(f"[sources.{name}]\n{text}" for name, text in sources.items()))
    try:
        _, found = await examine(capsys, "-c", config)
    finally:
        await server.stop()
    said = {
        name: [one["what"] for one in found[f"source {name}"] if "heard within" not in one["what"]] for name in sources
    }
    assert said == {
        "good": ["tells what it remembers, so that nothing it says unheard is lost"],
        "bare": [
            "cannot be asked for what was missed: "
            "the recorder wants a login: set username and password_file of its source"
        ],
        "lost": [
            "cannot be asked for what was missed: "
            "the recorder answered 404: is the url of its source that of this kind of recorder?"
        ],
        "without": ["no url: what it says while we are away is lost"],
        "nobody": [],
    }


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(("conf", "level"), [((), "warn"), (("max_queued_messages 300",), "FAIL")])
async def test_a_broker_whose_configuration_cannot_be_read_is_tried(
    premises: Premises,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conf: tuple[str, ...],
    level: str,
) -> None:
    """With a client and a topic of its own, of which nothing remains."""
    monkeypatch.setattr("gateway.cli.examine_broker.MOSQUITTO_CONF", tmp_path / "none")
    (tmp_path / "other").mkdir()
    async with Mosquitto(tmp_path / "other", config=conf) as broker:
        _, found = await examine(capsys, "-c", premises.write(broker_url=broker.url))
        [kept] = found["broker keeps"]
        assert kept["level"] == level
        assert ("300 were kept" if conf else "1200 messages were kept") in kept["what"]
        await broker.save()
        assert b"chekt-doctor" not in (tmp_path / "other" / "mosquitto.db").read_bytes()


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_grants_too_little_is_found(
    premises: Premises, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "acl").write_text("topic read frigate/reviews\n")
    (tmp_path / "strict").mkdir()
    async with Mosquitto(tmp_path / "strict", config=[f"acl_file {tmp_path / 'acl'}", "max_qos 0"]) as broker:
        code, found = await examine(
            capsys, "-c", premises.write(broker_url=broker.url), "--mosquitto-conf", premises.conf(GOOD)
        )
    assert code == 1
    assert "grants only QoS 0 for frigate/reviews" in " ".join(one["what"] for one in found["topics"])
    assert levels(found, "source nvr") == ["warn"]


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(
    ("days", "level", "words"),
    [(25, "ok", "is good until"), (10, "warn", "is good until"), (-1, "FAIL", "certificate has expired")],
    ids=["long", "soon", "expired"],
)
async def test_certificates_that_run_out_are_found(
    premises: Premises, capsys: pytest.CaptureFixture[str], days: int, level: str, words: str
) -> None:
    """Of the broker, the cloud and the token endpoint, each as it shows it now."""
    ours = Certificates.create(premises.folder / "tls")
    cert, key = ours.issue("server", valid_from=timedelta(days=-5), valid_for=timedelta(days=5 + days, hours=1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    (premises.folder / "secure").mkdir()
    async with Mosquitto(premises.folder / "secure", config=[f"certfile {cert}", f"keyfile {key}"]) as broker:
        await premises.cloud.stop()
        await premises.cloud.start(ssl_context=context)
        config = premises.write(broker_url=f"mqtts://127.0.0.1:{broker.port}")
        text = config.read_text()
        for table in ("[cloud]", "[broker]"):
            text = text.replace(table, f'{table}\nca_file = "{ours.ca_file}"')
        config.write_text(text)
        code, found = await examine(capsys, "-c", config, "--mosquitto-conf", premises.conf(GOOD))
    shown = {one["what"].split(": " if level == "FAIL" else " is ")[0]: one for one in found["certificate"]}
    assert set(shown) == {"of the cloud", "of the token endpoint", "of the broker"}
    for one in shown.values():
        assert one["level"] == level and words in one["what"], one
        assert (one["remedy"] is None) is (level == "ok")
    if level == "FAIL":
        assert code == 1
        assert [levels(found, check) for check in ("broker", "cloud", "token")] == [["FAIL"]] * 3
        assert "expired" in found["broker"][0]["what"]
    else:
        assert [levels(found, check) for check in ("broker", "cloud", "token")] == [["ok"]] * 3


@pytest.mark.needs("mosquitto")
async def test_of_each_camera_it_is_said_whether_there_are_pictures(
    premises: Premises, capsys: pytest.CaptureFixture[str]
) -> None:
    config = premises.write()
    sources = '[sources.far]\nfamily = "frigate"\ntopic_prefix = "far"\n[sources.dome]\nfamily = "axis"\n'
    cameras = {
        "front_door": 'source = "nvr"',
        "barn": 'source = "far"',
        "yard": 'source = "dome"',
        "gate": 'source = "dome"\nsnapshots = 0',
    }
    tables = "".join(f'[cameras.{name}]\ncamera_id = "{name}"\n{text}\n' for name, text in cameras.items())
    config.write_text(config.read_text().partition("[cameras.")[0] + sources + tables)
    _, found = await examine(capsys, "-c", config, "--mosquitto-conf", premises.conf(GOOD))
    said = {name: (one["level"], one["what"], one["remedy"]) for name in cameras for one in found[f"camera {name}"]}
    assert said.pop("front_door")[0] == "ok"
    assert said == {
        "barn": ("warn", "its alarms go without pictures", "set sources.far.url"),
        "yard": (
            "warn",
            "its alarms go without pictures: axis gives none",
            "set cameras.yard.snapshots = 0 to say that it is meant so",
        ),
        "gate": ("ok", "its alarms go without pictures, as configured", None),
    }


async def test_a_wrong_configuration_is_all_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[site]\n")
    code, found = await examine(capsys, "-c", file)
    assert code == 1
    assert set(found) == {"configuration"}
    assert set(levels(found, "configuration")) == {"FAIL"}


async def test_people_get_one_line_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[site]\n")
    code = await asyncio.to_thread(run, parse("-c", str(file)), environ={})
    said = capsys.readouterr()
    assert code == 1
    assert all(line.startswith("FAIL  configuration: ") and "; " in line for line in said.out.splitlines())
    assert said.err.endswith("checks failed\n")
