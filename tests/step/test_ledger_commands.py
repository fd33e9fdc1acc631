"""`status`, `events`, `trace` and `retry` on a real outbox, with and without a running gateway that can be asked."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.cli.health import Reason, judge
from gateway.config import Settings
from gateway.host.control import ControlServer, socket_path
from gateway.model import UNBOUNDED_MS
from gateway.outbox.ledger import Filter, Ledger, Overview
from gateway.states import EventState, MediaState
from tests.fakes.configuration import contents
from tests.step.outbox_kit import CLIP, SNAPSHOT, Outbox, dead, deferred, delivered, open_outbox, slot

CONFIG = """
[site]
location_id = "L"
[cloud]
url = "http://127.0.0.1:1"
auth = "api_key"
api_key_file = "key"
event_header = "x-api-key"
[broker]
url = "mqtt://127.0.0.1:1883"
username = "gateway"
password_file = "key"
[outbox]
path = "{outbox}"
[sources.nvr]
family = "frigate"
[cameras.front]
camera_id = "c1"
{more}
"""


class Site:
    """A configuration, its outbox, and what was printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.outbox_path = folder / "outbox.db"
        self.config = folder / "gateway.toml"
        self.capsys = capsys
        (folder / "key").write_text("secret")
        (folder / "key").chmod(0o600)
        self.configure()

    def configure(self, more: str = "") -> None:
        self.config.write_text(CONFIG.format(outbox=self.outbox_path, more=more))

    @property
    def settings(self) -> Settings:
        return Settings.load(self.config, {})

    async def run(self, command: str, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command, run as a person would beside the gateway."""
        self.capsys.readouterr()
        code = await asyncio.to_thread(self._main, [command, "--config", str(self.config), *words])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    @staticmethod
    def _main(words: list[str]) -> int:
        try:
            return main(words)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    async def status(self) -> dict[str, Any]:
        code, out, _ = await self.run("status", "--json")
        shown: dict[str, Any] = json.loads(out.splitlines()[-1])  # a server of the test may have logged before
        assert code == {"ok": 0, "degraded": 1, "critical": 2}[shown["state"]]
        return shown


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


LIVE: dict[str, Any] = {
    "version": "9.9",
    "broker": {"connected": True, "url": "mqtt://127.0.0.1:1883", "since": 0},
    "cloud": {"reachable": True, "token_expires_at": 1_772_366_400_000, "clock_offset_ms": 20},
    "conditions": [],
    "store": {"refusal": None},
    "media": {"troubles": {}, "uploads_failing": 0},
    "troubles": [],
    "gaps": [],
    "stuck": [],
}


@asynccontextmanager
async def running(outbox: Outbox, **live: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """A gateway that answers; gives what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        match request["command"]:
            case "status":
                return LIVE | live
            case "looked_at":
                return {"seen": await outbox.store.looked_at(request["event_ids"])}
            case "retry":
                ids = None if request["all_dead"] else request["event_ids"]
                return (await outbox.store.revive(ids, signal=True if request["signal"] else None)).as_answer()
        raise AssertionError(request)

    server = ControlServer(socket_path(outbox.path), answer)
    await server.start()
    try:
        yield asked
    finally:
        await server.stop()


@asynccontextmanager
async def of_today(path: Path) -> AsyncIterator[Outbox]:
    """An outbox whose clock tells the real time, as the commands do."""
    async with open_outbox(path) as outbox:
        outbox.clock.wall = round(time.time() * 1000)
        yield outbox


async def die(outbox: Outbox, name: str) -> None:
    await outbox.add(outbox.alarm(name))
    claimed = await outbox.claim_one()
    await outbox.store.settle(claimed.event.seq, dead(), answer={"http_status": 400, "text": "no such thing"})


# status


async def test_a_site_that_is_well_is_ok(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("a", media=(SNAPSHOT,)), seen_cameras={"cam-c1": outbox.clock.wall})
        await outbox.settle_all()
        async with running(outbox):
            shown = await site.status()
            code, text, _ = await site.run("status")
    assert (shown["state"], shown["reasons"], shown["running"], shown["version"]) == ("ok", [], True, "9.9")
    assert shown["broker"]["connected"] is True
    assert shown["cloud"]["reachable"] is True
    assert shown["cloud"]["token_expires_at"] == "2026-03-01T12:00:00.000Z"
    assert shown["events"] == {state.value: int(state == "delivered") for state in EventState}
    assert shown["uploads"] == {state.value: int(state == "lost") for state in MediaState}
    assert shown["oldest_undelivered_seconds"] is None
    assert shown["cameras"]["cam-c1"]["last_message_at"] is not None
    assert shown["cameras"]["front"] == {"last_message_at": None, "last_event_at": None}, "configured and never heard"
    assert shown["messages"]["received"] == 1
    assert shown["disk_free_bytes"] > 0
    assert code == 0
    assert text.startswith("ok\n")


async def test_a_cloud_that_was_not_asked_yet_is_neither_here_nor_away(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox, running(outbox, cloud={"reachable": None}):
        shown = await site.status()
        _, text, _ = await site.run("status")
    assert shown["cloud"]["reachable"] is None
    assert shown["state"] == "ok"
    assert "cloud    not asked yet" in text


async def test_without_a_running_gateway_the_rest_is_still_answered(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("a"))
    shown = await site.status()
    assert (shown["state"], shown["running"]) == ("critical", False)
    assert "systemctl start chekt-gateway" in shown["reasons"][0]
    assert (shown["broker"], shown["cloud"]) == ({"connected": None}, {"reachable": None, "token_expires_at": None})
    assert shown["events"]["pending"] == 1
    assert 0 <= shown["oldest_undelivered_seconds"] < 60


async def test_before_the_first_start_there_is_a_sentence(site: Site) -> None:
    shown = await site.status()
    assert shown["state"] == "critical"
    assert any("made at the first start" in reason for reason in shown["reasons"])
    assert not site.outbox_path.exists()


async def test_a_gateway_that_does_not_answer_is_critical(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:

        async def fails(request: dict[str, Any]) -> dict[str, Any]:
            raise KeyError("a bug of ours")

        server = ControlServer(socket_path(outbox.path), fails)
        await server.start()
        try:
            shown = await site.status()
        finally:
            await server.stop()
    assert (shown["state"], shown["running"]) == ("critical", True)
    assert "could not answer" in shown["reasons"][0]


async def test_a_late_alarm_is_critical_and_a_late_trouble_is_not(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        long_ago = outbox.clock.wall - 301_000
        await outbox.add(outbox.alarm("trouble", event_type="trouble", received_at=long_ago))
        async with running(outbox):
            assert (await site.status())["state"] == "ok"
            await outbox.add(outbox.alarm("a", received_at=long_ago))
            shown = await site.status()
    assert shown["state"] == "critical"
    assert "undelivered for 5 min" in shown["reasons"][0]
    assert shown["oldest_undelivered_seconds"] >= 301


async def test_an_end_that_waits_for_its_beginning_is_no_debt_of_its_own(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "begin")
        await outbox.add(outbox.alarm("end", follows="begin", received_at=outbox.clock.wall - 999_000))
        with Ledger(outbox.path) as ledger:
            assert ledger.overview().oldest_undelivered_at is None


async def test_a_dead_alarm_is_critical_until_a_person_has_looked_at_it(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        async with running(outbox) as asked:
            shown = await site.status()
            assert shown["state"] == "critical"
            assert "nobody has looked at it" in shown["reasons"][0]
            assert (await site.run("trace", "a"))[0] == 0
            assert asked[-1] == {"command": "looked_at", "event_ids": ["a"]}
            shown = await site.status()
            assert shown["state"] == "degraded"
            assert "chekt-gateway retry" in shown["reasons"][0]


NONE: dict[str, int] = dict.fromkeys(EventState, 0)


def overview(**changes: Any) -> Overview:
    well = Overview(
        events=NONE,
        uploads={},
        counters={},
        media_bytes=0,
        oldest_undelivered_at=None,
        oldest_alarm_at=None,
        dead_unseen=0,
        newest_unreadable_at=None,
        cameras=(),
    )
    return replace(well, **changes)


def judged(
    site: Site, disk: Overview | None = None, live: Mapping[str, Any] | None = None, *, free: int = 1 << 40
) -> list[Reason]:
    return list(judge(site.settings, disk or overview(), live or LIVE, free=free, now=NOW))


NOW = 1_772_366_400.0
MS = round(NOW * 1000)
AWAY = {"connected": False, "url": "mqtt://b", "last_error": "refused"}


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({"store": {"refusal": "no room left"}}, "critical", "no room left"),
        ({"conditions": [{"level": "critical", "sentence": "the cloud refuses"}]}, "critical", "the cloud refuses"),
        ({"conditions": [{"level": "degraded", "sentence": "the cloud is away"}]}, "degraded", "the cloud is away"),
        ({"broker": AWAY | {"since": MS - 299_000}}, "degraded", "refused"),
        ({"broker": AWAY | {"since": MS - 301_000}}, "critical", "away for 5 min"),
        ({"broker": {"connected": True, "refused_filters": {"a/#": "not authorised"}}}, "degraded", "a/#"),
        ({"broker": {"connected": True, "filters_without_qos": ["b/#"]}}, "degraded", "QoS 0"),
        ({"stuck": ["intake"]}, "critical", "intake"),
        ({"clock": {"why": "this machine's clock is 90 s ahead"}}, "degraded", "timedatectl"),
        ({"catching_up": {"nvr": {"since_at": MS, "reason": "no answer"}}}, "degraded", "nvr has not told"),
        ({"media": {"troubles": {"nvr": "401"}}}, "degraded", "nvr: 401"),
        ({"media": {"uploads_failing": 3}}, "degraded", "3 uploads"),
        ({"gaps": [{"at": MS - 1_000, "reason": "no session"}]}, "degraded", "no session"),
        (
            {"troubles": [{"source": "nvr", "camera": "front", "kind": "silence", "since_at": MS, "local": False}]},
            "degraded",
            "camera front silent since",
        ),
        (
            {"troubles": [{"source": "nvr", "camera": None, "kind": "silence", "since_at": MS, "local": False}]},
            "degraded",
            "all cameras of nvr silent since",
        ),
        (
            {"troubles": [{"source": "nvr", "camera": None, "kind": "offline", "since_at": MS, "local": True}]},
            "degraded",
            "site.camera_id",
        ),
    ],
)
def test_what_the_running_gateway_knows_is_judged(site: Site, changes: dict[str, Any], level: str, word: str) -> None:
    ((found, sentence),) = judged(site, live=LIVE | changes)
    assert found == level
    assert word in sentence


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({"dead_unseen": 2, "events": NONE | {EventState.DEAD: 2}}, "critical", "nobody"),
        ({"events": NONE | {EventState.UNMAPPED: 3}}, "degraded", "not configured"),
        ({"newest_unreadable_at": MS - 3_600_000}, "degraded", "could not be understood"),
        ({"oldest_alarm_at": MS - 400_000}, "critical", "undelivered"),
    ],
)
def test_what_is_on_disk_is_judged(site: Site, changes: dict[str, Any], level: str, word: str) -> None:
    ((found, sentence),) = judged(site, overview(**changes))
    assert found == level
    assert word in sentence


def test_what_the_gateway_finds_at_itself_is_told_once(site: Site) -> None:
    own = {"source": "gateway", "camera": None, "kind": "broker", "since_at": MS, "local": True, "why": "refused"}
    ((_, sentence),) = judged(site, live=LIVE | {"broker": AWAY | {"since": MS - 299_000}, "troubles": [own]})
    assert "refused" in sentence


def test_a_broker_that_we_left_for_the_store_is_no_fault_of_the_broker(site: Site) -> None:
    ((level, sentence),) = judged(site, live=LIVE | {"store": {"refusal": "no room"}, "broker": AWAY | {"since": 0}})
    assert level == "critical"
    assert "no room" in sentence


def test_a_site_with_many_faults_is_told_in_a_few_lines(site: Site) -> None:
    troubles = [{"source": "nvr", "camera": f"cam{n}", "kind": "offline", "since_at": MS} for n in range(50)]
    sentences = [sentence for _, sentence in judged(site, live=LIVE | {"troubles": troubles})]
    assert len(sentences) <= 10
    assert "45 more" in sentences[-1]


def test_a_certificate_that_runs_out_is_degraded(site: Site) -> None:
    for name, content in contents().items():
        (site.folder / name).write_bytes(content)
        (site.folder / name).chmod(0o600)
    old = 'url = "mqtt://127.0.0.1:1883"\n'
    text = site.config.read_text().replace(old, 'url = "mqtts://127.0.0.1:8883"\nca_file = "soon.pem"\n')
    site.config.write_text(text)
    sentences = [sentence for _, sentence in judged(site)]
    assert len(sentences) == 1
    assert "broker.ca_file expires on" in sentences[0]


def test_what_is_over_is_not_told_for_ever(site: Site) -> None:
    old = MS - 2 * 86_400_000
    live = LIVE | {"gaps": [{"at": old, "reason": "no session"}]}
    assert judged(site, overview(newest_unreadable_at=old), live) == []


@pytest.mark.parametrize(
    ("more", "word"),
    [("[delivery]\nnever_signal = true", "never_signal"), ("signal = false", "signal = false for front")],
)
def test_a_configuration_that_keeps_the_station_in_the_dark_is_degraded(site: Site, more: str, word: str) -> None:
    site.configure(more)
    ((level, sentence),) = judged(site)
    assert level == "degraded"
    assert word in sentence


def test_a_full_disk_and_a_broker_without_password_are_degraded(site: Site) -> None:
    site.config.write_text(
        "\n".join(x for x in site.config.read_text().splitlines() if not x.startswith(("username", "password_file")))
    )
    sentences = [sentence for _, sentence in judged(site, free=1 << 20)]
    assert len(sentences) == 2
    assert "make room" in sentences[0]
    assert "no password" in sentences[1]


async def test_watching_ends_with_the_last_state(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([None, KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        end = next(rounds)
        if end is not None:
            raise end

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, _ = await site.run("status", "--watch", "--json")
    assert code == 2
    assert len(out.splitlines()) == 2


# events


async def test_events_are_listed_the_newest_first(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("a", "c1"), outbox.alarm("b", "c2"), outbox.alarm("c", "c1"))
        await outbox.settle_all(2)
        await outbox.add(outbox.alarm("odd", state="unmapped", camera=None, camera_id=None, source_camera="cam9"))
        code, out, _ = await site.run("events", "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert (code, [row["event_id"] for row in rows]) == (0, ["odd", "c", "b", "a"])
        wanted = {
            "event_id", "state", "event_type", "event_status", "camera", "camera_id", "event_time", "received_at",
            "delivered_at", "attempts", "chekt_event_id", "reason",
        }  # fmt: skip
        assert wanted <= rows[-1].keys()
        assert (rows[-1]["state"], rows[-1]["chekt_event_id"], rows[-1]["attempts"]) == ("delivered", "CE", 1)
        for words, names in {
            ("--state", "delivered"): ["b", "a"],
            ("--state", "unmapped"): ["odd"],
            ("--camera", "cam-c1"): ["c", "a"],
            ("--camera", "cam9"): ["odd"],
            ("--limit", "2"): ["odd", "c"],
            ("--since", "1h", "--state", "pending"): ["c"],
        }.items():
            _, out, _ = await site.run("events", "--json", *words)
            assert [json.loads(line)["event_id"] for line in out.splitlines()] == names, words
        _, text, _ = await site.run("events")
        head, *lines = text.splitlines()
        column = head.index("EVENT")
        assert [line[column:].split()[0] for line in lines] == ["odd", "c", "b", "a"]


async def test_since_leaves_out_what_is_older(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("old", received_at=outbox.clock.wall - 7_200_000), outbox.alarm("new"))
        _, out, _ = await site.run("events", "--json", "--since", "1h")
        assert [json.loads(line)["event_id"] for line in out.splitlines()] == ["new"]


async def test_no_events_are_no_error(site: Site) -> None:
    async with open_outbox(site.outbox_path):
        assert await site.run("events") == (0, "", "no events\n")
        assert await site.run("events", "--json") == (0, "", "")


@pytest.mark.parametrize(
    "words", [("--since", "1 hour"), ("--since", "off"), ("--limit", "0"), ("--limit", "x"), ("--state", "gone")]
)
async def test_what_cannot_be_meant_is_a_usage_error(site: Site, words: tuple[str, ...]) -> None:
    code, _, err = await site.run("events", *words)
    assert code == 64
    assert words[0] in err


@pytest.mark.parametrize("command", [("events",), ("trace", "a"), ("retry", "a"), ("status",)])
async def test_a_wrong_configuration_is_told_with_its_place(site: Site, command: tuple[str, ...]) -> None:
    site.configure('colour = "red"')
    code, out, err = await site.run(*command)
    assert (code, out) == (78, "")
    assert "gateway.toml:" in err


async def test_a_long_list_is_read_in_pages(site: Site) -> None:
    """A slow reader of a pipe must not keep the journal from being carried over."""
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(*(outbox.alarm(f"e{n}") for n in range(1_234)))
        with Ledger(outbox.path) as ledger:
            rows = ledger.events(Filter())
            names = [next(rows)["event_id"]]
            await outbox.add(outbox.alarm("later"))
            names += [row["event_id"] for row in rows]
            assert names == [f"e{n}" for n in reversed(range(1_234))]
            assert [row["event_id"] for row in ledger.export(0)] == [f"e{n}" for n in range(1_234)] + ["later"]


# trace


async def test_a_trace_tells_every_hop_with_both_times(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        received = outbox.alarm("a", media=(SNAPSHOT, CLIP), details={"label": "person"})
        outbox.clock.advance(0.02)
        await outbox.add(received)
        outbox.clock.advance(0.003)
        outbox.store.acknowledged(["a"], [], outbox.clock.wall)
        outbox.clock.advance(0.007)  # the note of it is written later, with another commit
        first = await outbox.claim_one()
        outbox.clock.advance(0.5)
        answer = {"http_status": 503, "text": "later"}
        await outbox.store.settle(first.event.seq, deferred(1_000), answer=answer)
        outbox.clock.advance(1)
        again = await outbox.claim_one()
        outbox.clock.advance(0.25)
        await outbox.store.settle(again.event.seq, delivered(slot()), answer={"http_status": 201})
        (picture, _) = await outbox.store.media_of(again.event.seq)
        await outbox.store.media_fetched(picture.id, "a.jpg", 77, "aa")
        for state in (MediaState.UPLOADED, MediaState.DONE):
            outbox.clock.advance(1)
            await outbox.store.media_noted(picture.id, state)
        code, out, _ = await site.run("trace", "a", "--json")
        _, text, _ = await site.run("trace", "a")
    assert code == 0
    shown = json.loads(out)
    began = outbox.clock.ticks - 3_780
    assert [(hop["what"], hop["ticks"] - began) for hop in shown["hops"]] == [
        ("received", 0),
        ("stored", 20),
        ("acknowledged", 23),
        ("attempt_started", 30),
        ("answered", 530),
        ("settled", 530),
        ("attempt_started", 1_530),
        ("answered", 1_780),
        ("settled", 1_780),
        ("media_fetched", 1_780),
        ("media_put", 2_780),
        ("media_confirmed", 3_780),
    ]
    # The fake clock moves both times alike: a hop whose wall time belongs to another moment would be seen.
    walls = [round(datetime.fromisoformat(hop["at"]).timestamp() * 1000) for hop in shown["hops"]]
    assert [wall - walls[0] for wall in walls] == [hop["ticks"] - began for hop in shown["hops"]]
    assert shown["hops"][4]["detail"] == {"attempt": 1, "http_status": 503, "text": "later"}
    assert shown["details"] == {"label": "person"}
    assert [(one["kind"], one["state"]) for one in shown["media"]] == [("snapshot", "done"), ("event_mp4", "lost")]
    assert "secret" not in out
    assert "no slot offered" in text
    assert "+0.020 s" in text and "+0.023 s" in text and "+1.780 s" in text


@pytest.mark.parametrize(
    ("at_most", "words"), [(5 * 3_600_000, "for at most 5 h"), (UNBOUNDED_MS, "nobody can tell how long")]
)
async def test_a_trace_says_that_the_age_is_unknown(site: Site, at_most: int, words: str) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("a", age_unknown_ms=at_most))
    assert words in (await site.run("trace", "a"))[1]
    assert json.loads((await site.run("trace", "a", "--json"))[1])["age_unknown_ms"] == at_most


async def test_a_trace_shows_the_attempt_in_hand_and_one_that_was_broken_off(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await outbox.add(outbox.alarm("a"))
        await outbox.claim_one()
        await outbox.store.recover()
        await outbox.claim_one()
        _, out, _ = await site.run("trace", "a", "--json")
    words = [hop["what"] for hop in json.loads(out)["hops"]]
    assert words == ["received", "stored", "attempt_started", "recovered", "attempt_started"]


async def test_an_unknown_event_is_exit_1(site: Site) -> None:
    async with open_outbox(site.outbox_path):
        code, out, err = await site.run("trace", "nobody")
    assert (code, out) == (1, "")
    assert "nobody" in err


async def test_commands_read_while_the_gateway_writes(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        writing = asyncio.gather(*(outbox.add(*(outbox.alarm(f"{n}-{k}") for k in range(20))) for n in range(30)))
        for _ in range(5):
            with Ledger(outbox.path) as ledger:
                seen = ledger.overview()
                assert seen.events["pending"] == seen.counters.get("events", 0)
                assert seen.events["pending"] % 20 == 0
            await asyncio.sleep(0)
        await writing


# retry


async def test_without_a_running_gateway_retry_opens_the_outbox_itself(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        await outbox.add(outbox.alarm("b", camera=None, camera_id=None, source_camera="front", state="unmapped"))
        await outbox.store.close()
        code, out, err = await site.run("retry", "a", "b")
        assert (code, err) == (0, "")
        assert out.splitlines() == ["a will be sent again", "b will be sent again"]
        await outbox.open()
        assert outbox.states() == {"a": "pending", "b": "pending"}
        assert outbox.look("SELECT camera, camera_id FROM event WHERE event_id = 'b'") == [("front", "c1")]


async def test_a_running_gateway_does_it(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        outbox.clock.advance(3_600)
        async with running(outbox) as asked:
            code, out, _ = await site.run("retry", "a")
            assert (code, asked[-1]["command"]) == (0, "retry")
            assert "does not signal the monitoring station" in out
            claimed = await outbox.claim_one()
            assert not claimed.event.signal
            await outbox.store.settle(claimed.event.seq, dead())
            code, out, _ = await site.run("retry", "a", "--signal", "--json")
            assert json.loads(out)["silent"] == []
        assert (await outbox.claim_one()).event.signal


async def test_what_cannot_come_back_is_named_and_is_exit_1(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        await outbox.add(
            outbox.alarm("delivered", "c2"),
            outbox.alarm("odd", state="unmapped", camera=None, camera_id=None, source_camera="cam9"),
        )
        await outbox.settle_all()
        async with running(outbox):
            code, out, err = await site.run("retry", "a", "delivered", "odd", "nobody")
    assert code == 1
    assert out == "a will be sent again\n"
    for words in ("nobody is not known", "delivered is delivered", "odd: its camera is not configured"):
        assert words in err


@pytest.mark.parametrize(("answer", "code", "state"), [("y\n", 0, "pending"), ("n\n", 1, "dead"), ("", 1, "dead")])
async def test_all_dead_shows_how_many_and_asks(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, state: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        await die(outbox, "b")
        async with running(outbox):
            found, _, err = await site.run("retry", "--all-dead")
        assert found == code
        assert "2 dead events" in err
        assert set(outbox.states().values()) == {state}


async def test_all_dead_does_not_ask_who_has_said_yes(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        async with running(outbox):
            assert (await site.run("retry", "--all-dead", "--yes"))[0] == 0
        assert outbox.states() == {"a": "pending"}


@pytest.mark.parametrize("words", [(), ("a", "--all-dead")])
async def test_retry_needs_to_know_what(site: Site, words: tuple[str, ...]) -> None:
    code, _, err = await site.run("retry", *words)
    assert code == 64
    assert "--all-dead" in err


async def test_an_outbox_in_use_by_a_gateway_that_cannot_be_asked_is_left_alone(site: Site) -> None:
    async with of_today(site.outbox_path) as outbox:
        await die(outbox, "a")
        code, _, err = await site.run("retry", "a")
        assert code == 1
        assert "in use" in err
        assert outbox.states() == {"a": "dead"}


@pytest.mark.parametrize("command", [("events",), ("trace", "a"), ("retry", "a"), ("retry", "--all-dead")])
async def test_without_an_outbox_nothing_is_made(site: Site, command: tuple[str, ...]) -> None:
    code, _, err = await site.run(*command)
    assert code == 1
    assert "no outbox" in err
    assert not site.outbox_path.exists()
    assert not site.outbox_path.with_name("outbox.db.lock").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (900_000, "10 d"), (None, "-")]
)
def test_ages_are_told_in_the_unit_that_says_something(seconds: float | None, text: str) -> None:
    from gateway.cli.asking import ago

    told: Callable[[float | None], str] = ago
    assert told(seconds) == text
