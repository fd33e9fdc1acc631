"""What every answer of the cloud, and every missing one, does to the alarms: the real sender against the strict cloud.

Together with `test_simulation.py` this is the evidence for the rows "cloud" of `docs/evidence.md`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.chekt import client as client_module
from gateway.chekt.wire import Options
from gateway.model import MediaKind, MediaWanted
from gateway.retry import LONGEST_WAIT_MS, Policy
from gateway.simulator.faults import (
    CutOff,
    Delay,
    Discard,
    Drop,
    DropBeforeAnswer,
    Fault,
    Html,
    NoUploads,
    RefuseCredentials,
    Slots,
    Status,
    Trickle,
)
from gateway.simulator.terms import Terms
from tests.fakes.sender import Sender, open_sender

HOUR = 3_600.0


@pytest.fixture
async def sender(tmp_path: Path) -> AsyncIterator[Sender]:
    async with open_sender(tmp_path) as sender:
        yield sender


def said(logs: list[Any], *levels: str) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] in levels]


# Somebody else answers


@pytest.mark.parametrize(
    "page",
    [Html(200), Html(302), Html(511), Html(403), Status(200, body='{"ok": true}'), Status(403, body="Forbidden")],
)
@pytest.mark.slow
async def test_a_captive_portal_delivers_nothing_and_loses_nothing(sender: Sender, page: Fault) -> None:
    sender.cloud.always("event", page)
    alarms = [await sender.alarm(camera) for camera in ("door", "yard", "hall")]
    with structlog.testing.capture_logs() as logs:
        await sender.pass_time(600)
        assert set(sender.states.values()) == {"pending"}
        assert "somebody other than CHeKT" in sender.sentences
        assert not sender.delivery.gate.reachable
        sender.cloud.clear()
        await sender.pass_time(200)
    assert [sender.state(alarm) for alarm in alarms] == ["delivered"] * 3
    assert sender.cloud.duplicates == 0
    assert said(logs, "error", "warning").count("path_broken") == 1
    assert said(logs, "info").count("path_mended") == 1
    assert sender.levels == []


async def test_a_portal_before_the_token_endpoint_loses_nothing(sender: Sender) -> None:
    sender.cloud.always("token", Html(200))
    alarm = await sender.alarm()
    await sender.pass_time(600, step=5)
    assert (sender.state(alarm), sender.asked("event")) == ("pending", 0)
    sender.cloud.clear()
    await sender.pass_time(60)
    assert sender.state(alarm) == "delivered"


# The answer is lost


@pytest.mark.parametrize("fault", [DropBeforeAnswer(), CutOff(), Status(504), Status(502)])
async def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_bytes(sender: Sender, fault: Fault) -> None:
    sender.cloud.script([fault])
    alarm = await sender.alarm()
    await sender.pass_time(10)
    assert sender.state(alarm) == "delivered"
    assert [event.event_id for event in sender.cloud.events] == [alarm]
    assert sender.cloud.duplicates == 0
    [(unclear, attempts)] = sender.rows("SELECT unclear, attempts FROM event")
    assert (unclear, attempts) == (1, 2)


async def test_a_connection_that_breaks_before_acceptance_loses_nothing(sender: Sender) -> None:
    sender.cloud.script([Drop(), Drop()])
    alarm = await sender.alarm()
    await sender.pass_time(20)
    assert sender.state(alarm) == "delivered"
    assert len(sender.cloud.events) == 1


async def test_a_cloud_that_hangs_or_trickles_is_given_up_and_asked_again(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_S", 0.2)
    monkeypatch.setattr(client_module, "TOTAL_S", 0.4)
    sender.cloud.script([Delay(20.0), Delay(20.0, after=True), Trickle(seconds=60.0, drops=600)])
    async with open_client(sender):
        alarm = await sender.alarm()
        await sender.pass_time(30)
    assert sender.state(alarm) == "delivered"
    assert sender.cloud.duplicates == 0
    assert sender.rows("SELECT unclear FROM event") == [(3,)]


async def test_one_camera_that_hangs_holds_up_no_other(sender: Sender) -> None:
    sender.cloud.always("event", Delay(60.0), camera_id="id-door")
    stop = asyncio.Event()
    running = asyncio.create_task(sender.delivery.run(stop))
    await sender.alarm("door")
    others = [await sender.alarm(f"camera{number}") for number in range(20)]
    sender.delivery._bell.ring()
    await sender.cloud.wait_for(events=20)
    assert sorted(event.event_id for event in sender.cloud.events) == sorted(others)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# Credentials


async def test_a_token_that_was_revoked_costs_one_request_more(sender: Sender) -> None:
    await sender.alarm()
    await sender.send()
    sender.cloud.revoke_tokens()
    alarm = await sender.alarm()
    with structlog.testing.capture_logs() as logs:
        await sender.send()
    assert sender.state(alarm) == "delivered"
    assert len(sender.cloud.token_requests) == 2
    assert said(logs, "error", "warning") == []


@pytest.mark.parametrize("where", ["event", "token"])
@pytest.mark.slow
async def test_refused_for_a_day_loses_nothing_is_loud_and_asks_seldom(sender: Sender, where: str) -> None:
    """401 to every event, or a revoked key at the token endpoint: at most 8 token requests in any 10 minutes."""
    sender.cloud.always(where, RefuseCredentials())
    alarms = [await sender.alarm(f"camera{number}") for number in range(5)]
    with structlog.testing.capture_logs() as logs:
        for _ in range(24):
            await sender.pass_time(HOUR, step=10)
            alarms.append(await sender.alarm("door"))
        asked_at = [request.received_at for request in sender.cloud.requests if request.kind == "token"]
        assert all(late - early > 600_000 for early, late in zip(asked_at, asked_at[8:], strict=False))
        assert 24 <= len(asked_at) <= 24 * 8
        assert {sender.state(alarm) for alarm in alarms} == {"pending"}
        assert sender.levels == ["critical"]
        assert said(logs, "error").count("cloud_paused") == 1
        sender.cloud.clear()
        await sender.pass_time(LONGEST_WAIT_MS / 1000 + 60)
    assert {sender.state(alarm) for alarm in alarms} == {"delivered"}
    assert said(logs, "info").count("cloud_resumed") == 1
    assert sender.levels == []
    assert sender.cloud.duplicates == 0


@pytest.mark.slow
async def test_a_day_of_refusal_does_not_count_towards_giving_up(tmp_path: Path) -> None:
    policy = Policy(drain_jitter_ms=0, give_up_after_ms=round(2 * HOUR * 1000))
    async with open_sender(tmp_path, policy=policy) as sender:
        sender.cloud.always("event", RefuseCredentials())
        alarm = await sender.alarm()
        for _ in range(24):
            await sender.pass_time(HOUR, step=30)
            assert await sender.store.expire(sender.delivery.gate.give_up_before(sender.clock.ticks)) == 0
        sender.cloud.clear()
        await sender.pass_time(LONGEST_WAIT_MS / 1000 + 60)
        assert sender.state(alarm) == "delivered"


@pytest.mark.slow
async def test_a_token_endpoint_that_is_down_loses_nothing(sender: Sender) -> None:
    sender.cloud.always("token", Status(503))
    alarm = await sender.alarm()
    with structlog.testing.capture_logs() as logs:
        await sender.pass_time(HOUR, step=5)
        assert sender.state(alarm) == "pending"
        assert sender.asked("event") == 0
        sender.cloud.clear()
        await sender.pass_time(60)
    assert sender.state(alarm) == "delivered"
    assert said(logs, "warning").count("token_unreachable") == 1
    # Nothing was shown: the bytes are of the moment when they were sent, not of the first try.
    [(body,)] = sender.rows("SELECT body FROM event")
    sent_at = json.loads(body)["sent_at"]
    assert sent_at > json.loads(body)["event_time"]


# Refused


@pytest.mark.slow
async def test_one_unknown_camera_waits_others_go_on_and_it_resumes_by_itself(sender: Sender) -> None:
    for status in (404, 403):
        sender.cloud.always("event", Status(status), camera_id="id-door")
        held = [await sender.alarm("door") for _ in range(3)]
        before = sender.asked("event")
        with structlog.testing.capture_logs() as logs:
            for _ in range(10):
                other = await sender.alarm("yard")
                await sender.pass_time(60)
                assert sender.state(other) == "delivered"
        assert {sender.state(alarm) for alarm in held} == {"pending"}
        assert sender.asked("event") - before - 10 <= 11, "an unknown camera is asked at most once a minute"
        assert sender.levels == ["degraded"]
        assert said(logs, "error") == ["scope_held"]
        sender.cloud.clear()
        await sender.pass_time(130)
        assert {sender.state(alarm) for alarm in held} == {"delivered"}
        assert sender.levels == []


@pytest.mark.slow
async def test_refused_everything_holds_everything_and_nothing_dies(sender: Sender) -> None:
    """A cloud that refuses all is wrong, or we are: not the events."""
    sender.cloud.always("event", Status(400))
    alarms = [await sender.alarm(f"camera{number}") for number in range(6)]
    with structlog.testing.capture_logs() as logs:
        await sender.pass_time(6 * HOUR, step=30)
        assert {sender.state(alarm) for alarm in alarms} == {"pending"}
        assert "critical" in sender.levels
        assert said(logs, "error").count("everything_refused") == 1
        sender.cloud.clear()
        await sender.pass_time(1_000)
    assert {sender.state(alarm) for alarm in alarms} == {"delivered"}
    assert sender.levels == []


async def test_one_refused_event_dies_by_the_clouds_own_word_after_three_tries_over_ten_minutes(sender: Sender) -> None:
    sender.cloud.always("event", Status(400), camera_id="id-door")
    alarm = await sender.alarm("door")
    with structlog.testing.capture_logs() as logs:
        for _ in range(9):
            await sender.alarm("yard")
            await sender.pass_time(60)
            assert sender.state(alarm) == "pending"
        for _ in range(11):
            await sender.alarm("yard")
            await sender.pass_time(60)
    assert sender.state(alarm) == "dead"
    assert sender.reason(alarm).startswith("refused for good (400): Bad Request")
    assert sender.posts_of(alarm) >= 3
    assert said(logs, "error") == ["event_dead"]
    # A person may bring it back.
    sender.cloud.clear()
    await sender.store.revive([alarm])
    await sender.send()
    assert sender.state(alarm) == "delivered"


@pytest.mark.slow
async def test_one_refused_event_lives_while_no_other_is_accepted(sender: Sender) -> None:
    sender.cloud.always("event", Status(400), camera_id="id-door")
    alarm = await sender.alarm("door")
    await sender.pass_time(6 * HOUR, step=60)
    assert sender.state(alarm) == "pending"


@pytest.mark.parametrize(
    "page", [Html(400), Status(400, body='{"message": "Forbidden"}'), Status(413, body="too large")]
)
@pytest.mark.slow
async def test_a_refusal_by_a_proxy_never_kills(sender: Sender, page: Fault) -> None:
    sender.cloud.always("event", page, camera_id="id-door")
    alarm = await sender.alarm("door")
    for _ in range(60):
        await sender.alarm("yard")
        await sender.pass_time(60, step=10)
    assert sender.state(alarm) == "pending"
    assert set(sender.states.values()) == {"pending", "delivered"}


async def test_a_conflict_after_a_clear_attempt_is_a_matter_for_a_person(sender: Sender) -> None:
    sender.cloud.script([Status(409)])
    alarm = await sender.alarm()
    await sender.send()
    assert sender.state(alarm) == "dead"
    assert sender.reason(alarm).startswith("conflict though no earlier attempt was unclear")


async def test_a_conflict_after_an_unclear_attempt_says_that_it_had_arrived(sender: Sender) -> None:
    sender.cloud.script([DropBeforeAnswer(), Status(409)])
    alarm = await sender.alarm()
    await sender.pass_time(10)
    assert sender.state(alarm) == "delivered"
    assert len(sender.cloud.events) == 1


# Too fast


@pytest.mark.parametrize("form", ["seconds", "date", "nonsense"])
async def test_retry_after_is_obeyed_by_the_sender_as_a_whole(sender: Sender, form: str) -> None:
    words = {
        "seconds": "90",
        "date": formatdate(sender.clock.wall / 1000 + 90, usegmt=True),
        "nonsense": "soon",
    }
    sender.cloud.script([Status(429, retry_after=words[form])])
    first = await sender.alarm("door")
    await sender.send()
    others = [await sender.alarm(f"camera{number}") for number in range(3)]
    with structlog.testing.capture_logs() as logs:
        if form != "nonsense":
            await sender.pass_time(88)
            assert sender.asked("event") == 1
        await sender.pass_time(200)
    assert {sender.state(alarm) for alarm in (first, *others)} == {"delivered"}
    assert said(logs, "error") == []


@pytest.mark.slow
async def test_a_rate_limit_slows_and_loses_nothing(tmp_path: Path) -> None:
    async with open_sender(tmp_path, Terms(per_minute=60, burst=5)) as sender:
        alarms = [await sender.alarm(f"camera{number}") for number in range(100)]
        await sender.pass_time(300)
        assert {sender.state(alarm) for alarm in alarms} == {"delivered"}
        assert sender.asked("event") < 200


# Odd successes


@pytest.mark.parametrize(
    ("fault", "states"),
    [
        (NoUploads("null"), ["lost", "lost"]),
        (NoUploads("empty"), ["lost", "lost"]),
        (NoUploads("absent"), ["lost", "lost"]),
        (Slots(snapshots=1), ["waiting", "lost"]),
        (Slots(snapshots=4, short=True, event=True), ["waiting", "waiting"]),
    ],
)
async def test_fewer_or_more_slots_than_asked_for_never_change_the_event(
    sender: Sender, fault: Fault, states: list[str]
) -> None:
    sender.cloud.script([fault])
    now = sender.clock.wall
    wanted = tuple(MediaWanted(MediaKind.SNAPSHOT, seq, now, now, {}) for seq in range(2))
    alarm = await sender.alarm(media=wanted)
    await sender.send()
    assert sender.state(alarm) == "delivered"
    assert [state for (state,) in sender.rows("SELECT state FROM media ORDER BY seq")] == states


async def test_discarded_is_the_clouds_word_and_final(sender: Sender) -> None:
    sender.cloud.script([Discard("Event discarded: device is disarmed")])
    alarm = await sender.alarm()
    await sender.pass_time(HOUR, step=60)
    assert (sender.state(alarm), sender.asked("event")) == ("discarded", 1)
    assert sender.levels == []


async def test_many_discards_that_are_not_about_arming_are_shown(sender: Sender) -> None:
    sender.cloud.always("event", Discard("Event discarded: unknown subscription"))
    with structlog.testing.capture_logs() as logs:
        for number in range(4):
            await sender.alarm(f"camera{number}")
            await sender.pass_time(10)
    assert sender.levels == ["degraded"]
    assert "unknown subscription" in sender.sentences
    assert said(logs, "warning") == ["discards_odd"]
    sender.cloud.clear()
    for number in range(4):
        await sender.alarm(f"camera{number}")
    await sender.send()
    assert sender.levels == []


# The way there


async def test_a_name_that_is_gone_loses_nothing(tmp_path: Path) -> None:
    async with open_sender(tmp_path, url="https://api.chekt.invalid") as sender:
        alarm = await sender.alarm()
        await sender.pass_time(120, step=10)
        assert sender.state(alarm) == "pending"
        assert "cannot be resolved" in sender.reason(alarm)


@pytest.mark.slow
async def test_a_cloud_that_is_gone_is_said_once_and_everything_goes_when_it_is_back(sender: Sender) -> None:
    await sender.alarm()
    await sender.send()
    await sender.cloud.go_dark()
    with structlog.testing.capture_logs() as logs:
        alarms = [await sender.alarm(f"camera{number}") for number in range(30)]
        await sender.pass_time(HOUR, step=5)
        assert {sender.state(alarm) for alarm in alarms} == {"pending"}
        await sender.cloud.come_back()
        await sender.pass_time(60)
    assert {sender.state(alarm) for alarm in alarms} == {"delivered"}
    assert sorted(said(logs, "warning")) == ["cloud_unreachable", "token_unreachable"]
    assert said(logs, "info").count("cloud_reachable") == 1
    assert sender.cloud.duplicates == 0


async def test_an_expired_certificate_is_never_accepted_and_loses_nothing(tmp_path: Path) -> None:
    context, ca = expired_server(tmp_path)
    async with open_sender(tmp_path) as sender:
        port = sender.cloud.port
        await sender.cloud.stop()
        await sender.cloud.start(port, ssl_context=context)
        async with open_client(sender, url=f"https://127.0.0.1:{port}", ca_file=str(ca)):
            alarm = await sender.alarm()
            await sender.pass_time(120, step=10)
            assert sender.state(alarm) == "pending"
            assert "certificate" in sender.reason(alarm)
            assert "expired" in sender.reason(alarm)
            assert sender.cloud.events == []


# Late alarms


async def test_a_late_alarm_is_sent_without_a_signal_decided_before_the_first_attempt_only(tmp_path: Path) -> None:
    async with open_sender(tmp_path, options=Options(stale_after_ms=15 * 60_000)) as sender:
        sender.cloud.script([DropBeforeAnswer()])
        shown = await sender.alarm("door")
        await sender.send()
        await sender.cloud.go_dark()
        waits = await sender.alarm("yard")
        await sender.pass_time(20 * 60, step=10)
        await sender.cloud.come_back()
        await sender.pass_time(60)
        fresh = await sender.alarm("hall")
        await sender.send()
        signals = {event.event_id: event.request["should_signal_to_monitoring_center"] for event in sender.cloud.events}
        # The first was shown to the cloud while it was fresh: the same bytes go again, whatever its age.
        assert signals == {shown: True, waits: False, fresh: True}
        assert dict(sender.rows("SELECT event_id, signalled FROM event")) == {shown: 1, waits: 0, fresh: 1}


async def test_an_old_alarm_that_a_person_revives_signals_only_by_an_explicit_wish(sender: Sender) -> None:
    sender.cloud.script([Status(409)] * 2)
    quiet, loud = await sender.alarm("door"), await sender.alarm("yard")
    await sender.send()
    assert {sender.state(quiet), sender.state(loud)} == {"dead"}
    await sender.pass_time(HOUR, step=60)
    await sender.store.revive([quiet])
    await sender.store.revive([loud], signal=True)
    await sender.send()
    signals = {event.event_id: event.request["should_signal_to_monitoring_center"] for event in sender.cloud.events}
    assert signals == {quiet: False, loud: True}


async def test_never_signal_signals_never(tmp_path: Path) -> None:
    async with open_sender(tmp_path, options=Options(never_signal=True)) as sender:
        alarm = await sender.alarm()
        await sender.send()
        assert sender.cloud.event(alarm).request["should_signal_to_monitoring_center"] is False


@pytest.mark.slow
async def test_an_alarm_is_given_up_only_after_its_time_and_stays_for_a_person(tmp_path: Path) -> None:
    policy = Policy(drain_jitter_ms=0, give_up_after_ms=round(2 * HOUR * 1000))
    async with open_sender(tmp_path, policy=policy) as sender:
        await sender.cloud.go_dark()
        alarm = await sender.alarm()
        gate = sender.delivery.gate
        await sender.pass_time(1.9 * HOUR, step=30)
        assert await sender.store.expire(gate.give_up_before(sender.clock.ticks)) == 0
        await sender.pass_time(0.2 * HOUR, step=30)
        assert await sender.store.expire(gate.give_up_before(sender.clock.ticks)) == 1
        assert sender.state(alarm) == "dead"
        assert sender.reason(alarm).startswith("expired")
        await sender.cloud.come_back()
        await sender.store.revive([alarm])
        await sender.pass_time(60)
        assert sender.state(alarm) == "delivered"


# Tools of these tests


class open_client:
    """For a while the sender speaks through a new client (after a change of its limits, or of the address)."""

    def __init__(self, sender: Sender, **changes: Any) -> None:
        self._sender = sender
        self._changes = changes

    async def __aenter__(self) -> None:
        sender = self._sender
        table = sender.client._cloud.model_copy(update=self._changes)
        if "url" in self._changes:
            table = table.model_copy(update={"token_url": self._changes["url"] + "/oauth/token"})
        self._client = client_module.Client(table, version="test")
        sender.delivery._client = self._client
        sender.tokens._post_form = self._client.post_form
        sender.tokens._cloud = table

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


def expired_server(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "practice")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now - timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both = tmp_path / "server.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both.write_bytes(pem + ca.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, ca
