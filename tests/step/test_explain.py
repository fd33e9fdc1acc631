"""`explain` and `families` as a person meets them: lines in, lines out."""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.cli import explain, families
from tests.unit.frigate_messages import review, tracked

RECEIVED = "2026-03-01T12:00:00.000Z"


@pytest.fixture(scope="session")
def private_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def config(tmp_path: Path, private_key: bytes) -> Path:
    (tmp_path / "key.pem").write_bytes(private_key)
    (tmp_path / "key.pem").chmod(0o600)
    path = tmp_path / "gateway.toml"
    path.write_text(f"""
[site]
location_id = "L"
camera_id = "site"
[cloud]
url = "http://127.0.0.1:1"
token_url = "http://127.0.0.1:1/oauth/token"
audience = "a"
client_id = "c"
private_key_file = "key.pem"
[outbox]
path = "{tmp_path}/outbox.db"
[defaults]
send_restore = true
[sources.nvr]
family = "frigate"
[cameras.door]
camera_id = "id-of-door"
name = "front_door"
""")
    return path


def told(
    config: Path, lines: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> list[dict[str, Any]]:
    raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    stdin = io.TextIOWrapper(io.BytesIO(raw))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("explain", "--config", str(config), *more) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    explain.add_parser(subparsers)
    families.add_parser(subparsers)
    args = parser.parse_args(arguments)
    result: int = args.run(args)
    return result


def line(payload: Any, topic: str = "frigate/reviews", **more: Any) -> dict[str, Any]:
    return {"topic": topic, "payload": payload, "received_at": RECEIVED, **more}


def test_each_message_has_its_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = told(
        config,
        [
            line(review()),
            line(review("update")),
            line(review(camera="shed"), retain=False, qos=1),
            line(review("end", end=1772366405.5), received_at="2026-03-01T12:01:00Z"),
            line("offline", "frigate/available", retain=True),
            line(review(), retain=True),
            line(review(), retain=True, seconds_since_subscribe=7200),
            line("{", "frigate/reviews"),
            line("{}", "elsewhere"),
            line(base64.b64encode(b"\xff\xd8").decode(), encoding="base64"),
            line(json.dumps(review()), encoding="text"),
        ],
        monkeypatch,
        capsys,
    )
    kinds = [next(iter(answer)) for answer in answers]
    assert kinds == [
        *("event", "ignored", "event", "event", "event", "ignored", "event"),
        *("unreadable", "ignored", "unreadable", "event"),
    ]
    assert answers[0]["event"] == {
        "event_type": "alarm",
        "event_status": "active",
        "camera": "door",
        "source_event_id": "1772366399.308396-abc123",
        "state_key": "1772366399.308396-abc123",
        "event_time": "2026-03-01T11:59:59.308Z",
        "pulse": False,
        "source": "nvr",
        "kind": "person",
    }
    assert answers[2]["event"]["camera"] == "shed", "one that is not configured keeps the equipment's name"
    assert (answers[3]["event"]["event_status"], answers[3]["event"]["event_time"][:19]) == (
        "inactive",
        "2026-03-01T12:00:05",
    )
    assert "no camera of the configuration is called 'shed'" in answers[2]["event"]["unmapped"]
    trouble = answers[4]["event"]
    assert (trouble["camera"], trouble["source_event_id"], trouble["event_time"]) == (None, None, RECEIVED)


def test_a_camera_called_like_the_table_of_another_is_not_that_one_and_its_stanza_works(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text() + '[sources.other]\nfamily = "frigate"\ntopic_prefix = "f2"\n')
    messages = [line(review(camera="door"), f"{prefix}/reviews") for prefix in ("frigate", "f2")]
    answers: list[dict[str, Any]] = []
    for tables in (["nvr_door", "other_door"], ["other_door"], []):
        answers = [answer["event"] for answer in told(config, messages, monkeypatch, capsys)]
        stanzas = [answer["unmapped"].partition("\n")[2] for answer in answers if "unmapped" in answer]
        assert [stanza.partition("\n")[0] for stanza in stanzas] == [f"[cameras.{table}]" for table in tables]
        assert all("source = " in stanza for stanza in stanzas)
        if stanzas:
            stanza = stanzas[0].replace("…", f"id-{len(tables)}")
            config.write_text(config.read_text() + f"{stanza}\n")
    assert [answer["camera"] for answer in answers] == ["nvr_door", "other_door"]


def test_the_trouble_of_a_device_is_the_recorders_where_no_camera_is_called_so(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the running gateway has it."""
    config.write_text(config.read_text().replace('"frigate"', '"dahua"'))
    disk = {"Action": "Start", "serialNumber": "6F01", "Data": {}}
    [answer] = told(config, [line(disk, "DahuaVTO/StorageFailure/Event")], monkeypatch, capsys)
    assert (answer["event"]["camera"], answer["event"].get("unmapped")) == (None, None)


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        {"payload": "x"},
        {"topic": 7},
        {"topic": ""},
        {"topic": "a", "qos": 3},
        {"topic": "a", "qos": True},
        {"topic": "a", "retain": "yes"},
        {"topic": "a", "received_at": "yesterday"},
        {"topic": "a", "received_at": "0001-01-01T00:00:00+14:00"},
        {"topic": "a", "received_at": 7},
        {"topic": "a", "payload": "!", "encoding": "base64"},
        {"topic": "a", "payload": {}, "encoding": "text"},
        {"topic": "a", "encoding": "xml"},
        {"topic": "a", "seconds_since_subscribe": "soon"},
        {"topic": "a", "colour": "red"},
    ],
)
def test_a_line_that_is_no_message_is_unreadable_and_the_next_is_read(
    bad: Any, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = told(config, [bad, b"", line(review())], monkeypatch, capsys)
    assert "line 1" in answers[0]["unreadable"]
    assert "event" in answers[1]
    assert len(answers) == 2


def test_lines_of_mosquitto_sub_can_be_explained(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = {"tst": "2026-03-01T12:00:00.000000Z", "topic": "frigate/available", "qos": 1, "retain": 1, "payloadlen": 7}
    (answer,) = told(config, [{**heard, "payload": "offline"}], monkeypatch, capsys)
    assert answer["event"]["event_type"] == "trouble"


def test_with_memory_the_messages_follow_each_other(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = told(
        config,
        [
            line(review("update")),
            line(review("update")),
            line(review(id="b")),
            line("offline", "frigate/available"),
            line(review("end", end=1772366405.5), received_at="2026-03-01T12:02:00Z"),
            line("online", "frigate/available", received_at="2026-03-01T12:30:00Z"),
        ],
        monkeypatch,
        capsys,
        "--stateful",
    )
    said = [
        (a["event"]["event_type"], a["event"]["event_status"], a["event"]["state"], a.get("after_waiting", False))
        if "event" in a
        else "ignored"
        for a in answers
    ]
    assert said == [
        ("alarm", "active", "pending", False),
        "ignored",
        ("alarm", "active", "folded", False),
        "ignored",
        ("trouble", "active", "pending", True),
        ("alarm", "inactive", "pending", False),
        ("trouble", "inactive", "pending", False),
    ]
    assert answers[5]["event"]["follows"] == answers[0]["event"]["event_id"]


def test_a_missed_beginning_is_told_with_its_end(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (answer,) = told(config, [line(review("end", end=1772366399.9))], monkeypatch, capsys, "--stateful")
    assert answer["event"]["event_status"] == "active"
    assert [row["event_status"] for row in answer["then"]] == ["inactive"]


def test_a_file_can_be_read_and_a_missing_one_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = tmp_path / "messages.jsonl"
    messages.write_text(json.dumps(line(review())) + "\n\n")
    assert run("explain", "-c", str(config), str(messages)) == 0
    assert json.loads(capsys.readouterr().out)["event"]["camera"] == "door"
    assert run("explain", "-c", str(config), str(tmp_path / "none")) == 1
    assert "none" in capsys.readouterr().err


def test_a_wrong_configuration_is_78(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "colour = 1\n")
    assert run("explain", "-c", str(config)) == 78
    captured = capsys.readouterr()
    assert "colour" in captured.err
    assert captured.out == ""


def test_the_other_dialect_is_a_setting(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace('"frigate"\n', '"frigate"\ndialect = "events"\nmin_score = 0.5\n'))
    answers = told(config, [line(review()), line(tracked(), "frigate/events")], monkeypatch, capsys)
    assert [next(iter(a)) for a in answers] == ["ignored", "event"]


def test_families_are_listed_with_what_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("families") == 0
    words = capsys.readouterr().out
    assert 'dialect = "reviews" (the default)' in words
    assert run("families", "--json") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    frigate = next(f for f in told if f["family"] == "frigate")
    assert frigate["default_dialect"] == "reviews"
    assert {d["dialect"]: d["options"] for d in frigate["dialects"]} == {
        "reviews": ["labels", "zones"],
        "events": ["labels", "zones", "min_score"],
    }
