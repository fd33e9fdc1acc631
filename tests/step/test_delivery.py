"""Delivery with a real store, real HTTP and the strict practice cloud; only the clock is led by the test."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.bell import Bell
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.chekt.wire import Reply
from gateway.config import Cloud
from gateway.delivery import Delivery
from gateway.gate import Gate, Outcome
from gateway.model import ClaimedEvent, EventStatus, EventType
from gateway.outbox.store import StoreError
from gateway.retry import Answer, Policy
from gateway.simulator.cloud import Cloud as PracticeCloud
from gateway.simulator.faults import CutOff, Delay, Discard, DropBeforeAnswer, Html, Status
from gateway.simulator.terms import RegisteredKey, Terms, practice_private_key, public_half
from tests.fakes.waiting import until
from tests.step.outbox_kit import SNAPSHOT, Outbox, open_outbox

ES256_KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
SECRET = "a-client-secret-of-more-than-32-bytes"
API_KEY = "chekt_test_0123456789abcdef0123456789abcdef"


class WatchedClient(Client):
    """The real client; knows how many requests are open at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.open = 0
        self.most_open = 0
        self.broken: Exception | None = None  # raised once instead of posting
        self.bodies: list[bytes] = []

    async def post_event(self, body: bytes, idempotency_key: str, token: str) -> Reply:
        if self.broken is not None:
            broken, self.broken = self.broken, None
            raise broken
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.bodies.append(body)
        try:
            return await super().post_event(body, idempotency_key, token)
        finally:
            self.open -= 1


@dataclass
class Sender:
    outbox: Outbox
    cloud: PracticeCloud
    client: WatchedClient
    tokens: TokenSource
    delivery: Delivery
    bell: Bell
    lock: sqlite3.Connection

    @property
    def gate(self) -> Gate:
        return self.delivery.gate

    def refuse(self, refusing: bool) -> None:
        """The real store, locked by another connection for longer than it waits."""
        if refusing:
            self.outbox.store._writer._db.execute("PRAGMA busy_timeout = 20")
            self.lock.execute("BEGIN IMMEDIATE")
        else:
            self.lock.rollback()

    async def alarm(self, name: str, where: str = "c1", **changes: Any) -> None:
        await self.outbox.add(self.outbox.alarm(name, where, **changes))

    async def later(self, seconds: float) -> bool:
        """So much later: everything that may go then goes, and is settled."""
        self.outbox.clock.advance(seconds)
        return await self.delivery.run_once()

    async def until_quiet(self, rounds: int = 200) -> None:
        for _ in range(rounds):
            if not await self.delivery.run_once():
                return

    @property
    def order(self) -> list[str]:
        return [event.event_id for event in self.cloud.events]

    def state(self, name: str) -> Any:
        [row] = self.outbox.look("SELECT state FROM event WHERE event_id = ?", name)
        return row


@asynccontextmanager
async def sender(
    tmp_path: Path,
    *,
    terms: Terms | None = None,
    policy: Policy = Policy(drain_jitter_ms=0),  # noqa: B008  frozen
    options: wire.Options | None = None,
    jitter: float = 0.5,
    **changes: Any,
) -> AsyncIterator[Sender]:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        clock = outbox.clock
        cloud = PracticeCloud(terms, now=lambda: clock.wall_ms() / 1000)
        await cloud.start()
        (tmp_path / "private_key_file").write_bytes(practice_private_key())
        (tmp_path / "es256_file").write_bytes(ES256_KEY)
        (tmp_path / "client_secret_file").write_text(SECRET)
        (tmp_path / "api_key_file").write_text(API_KEY)
        values: dict[str, Any] = {
            "url": cloud.url,
            "token_url": cloud.token_url,
            "audience": cloud.terms.audience,
            "client_id": cloud.terms.client_id,
            "key_id": "practice-key",
            "private_key_file": "private_key_file",
        }
        values |= changes
        settings = Cloud.model_validate(
            {key: str(tmp_path / value) if key.endswith("_file") else value for key, value in values.items()}
        )
        secrets = read_secrets(settings)
        outbox.store.compose = lambda event, media, sent_at: wire.compose(
            event, media, sent_at=sent_at, ticks=clock.ticks_ms(), options=options or wire.Options()
        )
        bell = Bell()
        lock = sqlite3.connect(outbox.path, isolation_level=None)
        client = WatchedClient(settings, version="test", api_key=secrets.api_key)
        tokens = TokenSource(settings, secrets, client.post_form, clock)
        delivery = Delivery(
            store=outbox.store,
            client=client,
            tokens=tokens,
            gate=Gate(policy, ticks=clock.ticks_ms(), jitter=jitter),
            policy=policy,
            cloud_url=cloud.url,
            jitter=lambda: jitter,
            bell=bell,
            delivered=lambda: None,
            refused=(StoreError,),
        )
        try:
            yield Sender(outbox, cloud, client, tokens, delivery, bell, lock)
        finally:
            lock.close()
            await tokens.close()
            await client.close()
            await cloud.stop()


# Who we are


RSA_TERMS = {
    algorithm: Terms(keys=(RegisteredKey(public_half(practice_private_key()), algorithm, "practice-key"),))
    for algorithm in ("RS256", "RS384", "PS256")
}
ES_TERMS = Terms(keys=(RegisteredKey(public_half(ES256_KEY), "ES256", "practice-key"),))
CREDENTIALS: dict[str, tuple[Terms, dict[str, Any]]] = {
    **{name: (terms, {"algorithm": name}) for name, terms in RSA_TERMS.items()},
    "ES256": (ES_TERMS, {"algorithm": "ES256", "private_key_file": "es256_file"}),
    "HS256": (Terms(shared_secret=SECRET), {"algorithm": "HS256", "client_secret_file": "client_secret_file"}),
    "client_secret": (
        Terms(auth="client_secret", client_secret=SECRET),
        {"auth": "client_secret", "client_secret_file": "client_secret_file"},
    ),
    "api_key": (Terms(auth="api_key", api_key=API_KEY), {"auth": "api_key", "api_key_file": "api_key_file"}),
}


@pytest.mark.parametrize("header", ["bearer", "x-api-key", "both"])
@pytest.mark.parametrize("credentials", CREDENTIALS)
async def test_every_way_to_prove_who_we_are_is_taken_by_a_cloud_that_knows_no_other(
    tmp_path: Path, credentials: str, header: Any
) -> None:
    terms, changes = CREDENTIALS[credentials]
    terms = Terms(**{**vars(terms), "event_header": header, "api_key": API_KEY})
    changes = {**changes, "event_header": header, **({} if header == "bearer" else {"api_key_file": "api_key_file"})}
    async with sender(tmp_path, terms=terms, **changes) as one:
        await one.alarm("a")
        await one.delivery.run_once()
        assert one.state("a") == "delivered", one.cloud.summary()
        sent = one.cloud.events[0].headers
        assert ("authorization" in sent) == (header != "x-api-key")
        assert ("x-api-key" in sent) == (header != "bearer")
        assert one.cloud.refusals == []


async def test_a_revoked_token_costs_one_new_token_and_one_repeat(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        await one.alarm("a")
        await one.delivery.run_once()
        one.cloud.revoke_tokens()
        await one.alarm("b")
        await one.delivery.run_once()
        assert one.state("b") == "delivered"
        assert len(one.cloud.token_requests) == 2
        assert [r.status for r in one.cloud.requests if r.kind == "event"] == [201, 401, 201]


async def test_refused_credentials_pause_the_sender_and_lose_nothing(tmp_path: Path) -> None:
    """At most one request asks while it lasts; a new key is found out by itself."""
    async with sender(tmp_path) as one:
        one.cloud.always("token", Status(401))
        for number in range(5):
            await one.alarm(f"a{number}", f"c{number}")
        for _ in range(60):
            await one.later(10)
        assert set(one.outbox.states().values()) == {"pending"}
        assert len(one.cloud.token_requests) + sum(r.kind == "token" for r in one.cloud.requests) <= 8
        one.cloud.clear()
        for _ in range(12):
            await one.later(120)
        assert set(one.outbox.states().values()) == {"delivered"}
        assert one.cloud.duplicates == one.cloud.repeats == 0


# What order


async def test_a_camera_has_one_request_in_flight_and_the_cameras_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        for number in range(12):
            await one.alarm(f"a{number:02}", f"c{number % 3}")
        one.cloud.always("event", Delay(0.05))
        stop = asyncio.Event()
        running = asyncio.create_task(one.delivery.run(stop))
        await one.cloud.wait_for(events=12, timeout=20)
        await until(lambda: set(one.outbox.states().values()) == {"delivered"})
        stop.set()
        await running
        assert one.client.most_open == 3
        for lane in range(3):
            mine = [name for name in one.order if int(name[1:]) % 3 == lane]
            assert mine == sorted(mine)


async def test_fresh_alarms_go_first_and_the_backlog_gets_one_attempt_in_four(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(parallel=1, drain_jitter_ms=0)) as one:
        for number in range(4):
            await one.alarm(f"old{number}", f"c{number}")
        one.outbox.clock.advance(60)
        for number in range(8):
            await one.alarm(f"new{number}", f"c{number}")
        await one.until_quiet()
        kinds = "".join(name[0] for name in one.order)
        assert kinds == "nnnonnnonnoo"
        assert [name for name in one.order if name[0] == "n"] == [f"new{n}" for n in range(8)]
        assert [name for name in one.order if name[0] == "o"] == [f"old{n}" for n in range(4)]


async def test_in_the_backlog_alarms_go_before_troubles(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(parallel=1, drain_jitter_ms=0)) as one:
        await one.alarm("trouble", "c1", event_type=EventType.TROUBLE)
        await one.alarm("alarm", "c1")
        one.outbox.clock.advance(60)
        await one.until_quiet()
        assert one.order == ["alarm", "trouble"]


async def test_an_end_is_sent_after_its_beginning_was_delivered(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        one.cloud.script([Status(503)])
        await one.alarm("begin")
        await one.alarm("end", event_status=EventStatus.INACTIVE, follows="begin")
        await one.delivery.run_once()
        assert one.order == []
        await one.later(2)
        await one.until_quiet()
        assert one.order == ["begin", "end"]


async def test_an_end_of_what_the_cloud_discarded_is_not_sent(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        one.cloud.script([Discard()])
        await one.alarm("begin")
        await one.alarm("end", event_status=EventStatus.INACTIVE, follows="begin")
        await one.until_quiet()
        assert one.order == ["begin"]
        assert one.outbox.states() == {"begin": "discarded", "end": "discarded"}


async def test_a_refused_camera_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """404 for a camera: it is asked for once a minute; the others go on; later it resumes by itself."""
    async with sender(tmp_path) as one:
        one.cloud.always("event", Status(404), camera_id="bad")
        for number in range(6):
            await one.alarm(f"bad{number}", "bad")
            await one.alarm(f"good{number}", f"good{number}")
        for _ in range(5):
            await one.later(1)
        assert sorted(one.order) == [f"good{number}" for number in range(6)]
        assert sum(r.status == 404 for r in one.cloud.requests) <= 2
        one.cloud.clear()
        for _ in range(12):
            await one.later(60)
            await one.until_quiet()
        assert set(one.outbox.states().values()) == {"delivered"}


# How much


async def test_the_rate_of_the_site_is_kept(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(max_per_minute=60, drain_jitter_ms=0)) as one:
        for number in range(100):
            await one.alarm(f"a{number:03}", f"c{number}")
        for _ in range(300):
            await one.later(0.1)
        assert 25 <= len(one.order) <= 40  # half a minute, and a small burst


async def test_429_is_obeyed_by_the_sender_as_a_whole(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(parallel=1, drain_jitter_ms=0)) as one:
        one.cloud.script([Status(429, retry_after="20")])
        await one.alarm("a", "c1")
        await one.alarm("b", "c2")
        await one.delivery.run_once()
        for _ in range(19):
            await one.later(1)
        assert len(one.cloud.requests) - len(one.cloud.token_requests) == 1
        for _ in range(20):
            await one.later(2)
        assert sorted(one.order) == ["a", "b"]


async def test_a_start_spreads_the_backlog_and_not_the_fresh(tmp_path: Path) -> None:
    """A region that had a power cut must not come back in one instant."""
    async with sender(tmp_path, policy=Policy(drain_jitter_ms=30_000), jitter=0.5) as one:
        await one.alarm("old", "c1")
        assert not await one.later(11)  # jitter 0.5 of 30 s
        await one.alarm("new", "c2")
        assert await one.delivery.run_once()
        assert one.order == ["new"]
        assert await one.later(5)
        assert one.order == ["new", "old"]


# What is said


@pytest.mark.parametrize(
    ("options", "age_seconds", "signal"),
    [
        (wire.Options(), 0, True),
        (wire.Options(never_signal=True), 0, False),
        (wire.Options(stale_after_ms=60_000), 59, True),
        (wire.Options(stale_after_ms=60_000), 61, False),
    ],
    ids=["fresh", "never_signal", "not-yet-stale", "stale"],
)
async def test_whether_the_station_is_signalled_is_decided_at_the_first_attempt(
    tmp_path: Path, options: wire.Options, age_seconds: int, signal: bool
) -> None:
    async with sender(tmp_path, options=options) as one:
        await one.alarm("a")
        one.outbox.clock.advance(age_seconds)
        one.cloud.script([DropBeforeAnswer()])
        await one.delivery.run_once()
        assert one.cloud.events[0].request["should_signal_to_monitoring_center"] is signal
        await one.later(120)
        assert one.client.bodies[0] == one.client.bodies[1]
        assert one.state("a") == "delivered"


async def test_a_lost_answer_is_asked_for_again_with_the_same_bytes_and_the_same_key(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        await one.alarm("a", media=(SNAPSHOT,))
        one.cloud.script([DropBeforeAnswer(), CutOff()])
        await one.delivery.run_once()
        await one.later(31)
        await one.later(31)
        assert one.state("a") == "delivered"
        assert one.outbox.look("SELECT unclear FROM event") == [2]
        assert (len(one.cloud.events), one.cloud.repeats, one.cloud.duplicates) == (1, 2, 0)
        assert len(set(one.client.bodies)) == 1
        assert one.outbox.look("SELECT put_url IS NOT NULL FROM media") == [1]


@pytest.mark.parametrize("fault", [Html(), Html(302), Html(407), Status(200, body="{}"), Status(201, body="")])
async def test_who_is_not_the_cloud_delivers_nothing(tmp_path: Path, fault: Any) -> None:
    """Captive portals and proxies; with the way free again the event arrives once."""
    async with sender(tmp_path) as one:
        one.cloud.always("event", fault)
        await one.alarm("a")
        for _ in range(5):
            await one.later(31)
        assert one.state("a") == "pending"
        one.cloud.clear()
        await one.later(60)
        await one.later(60)
        assert one.state("a") == "delivered"
        assert len(one.cloud.events) == 1


# When things go wrong here


async def test_an_answer_is_held_in_hand_until_the_store_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cloud would be asked a second time for what it has taken."""
    monkeypatch.setattr("gateway.delivery.STORE_RETRY_SECONDS", 0.05)
    async with sender(tmp_path) as one:
        await one.alarm("a")
        one.cloud.script([Delay(0.2)])
        sending = asyncio.create_task(one.delivery.run_once())
        await until(lambda: one.client.open)
        one.refuse(True)
        await one.cloud.wait_for(events=1)
        await until(lambda: one.outbox.store.refusal is not None)
        one.refuse(False)
        await sending
        assert one.state("a") == "delivered"
        assert one.cloud.repeats == 0


async def test_a_store_that_cannot_wake_the_deferred_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sender(tmp_path) as one:
        one.cloud.script([Status(503)])
        await one.alarm("a", "c1")
        await one.delivery.run_once()

        async def refuse(**_: Any) -> int:
            raise StoreError("the disk is full")

        monkeypatch.setattr(one.outbox.store, "wake", refuse)
        await one.later(30)
        assert one.state("a") == "delivered"


async def test_an_exception_inside_one_event_defers_that_event_and_no_other(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(parallel=1, drain_jitter_ms=0)) as one:
        one.client.broken = ValueError("a bug")
        await one.alarm("a", "c1")
        await one.alarm("b", "c2")
        await one.until_quiet()
        assert one.outbox.states() == {"a": "pending", "b": "delivered"}
        [reason] = one.outbox.look("SELECT reason FROM event WHERE event_id = 'a'")
        assert "ValueError" in reason
        await one.later(3)
        assert one.state("a") == "delivered"


async def test_an_answer_that_we_cannot_digest_is_that_events_fault_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one poisonous row would end the process at every start, and no alarm would ever leave."""
    async with sender(tmp_path) as one:
        answered = one.gate.answered

        def poisoned(event: Any, answer: Answer, **when: Any) -> Outcome:
            if event.event_id == "a" and answer.verdict == "accepted":
                raise KeyError("a bug")
            return answered(event, answer, **when)

        monkeypatch.setattr(one.gate, "answered", poisoned)
        await one.alarm("a", "c1")
        await one.alarm("b", "c2")
        await one.until_quiet()
        assert one.outbox.states() == {"a": "pending", "b": "delivered"}
        assert one.outbox.look("SELECT faults FROM event WHERE event_id = 'a'") == [1]
        assert one.gate.allowance(one.outbox.clock.ticks_ms()).limit == Policy().parallel


async def test_cancelled_at_the_end_of_the_grace_the_row_keeps_its_bytes(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        await one.alarm("a")
        one.cloud.script([Delay(60, after=True)])
        running = asyncio.create_task(one.delivery.run(asyncio.Event()))
        await until(lambda: one.cloud.events)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert one.state("a") == "sending"
        await one.outbox.store.recover()
        assert one.outbox.look("SELECT state, unclear FROM event") == [("pending", 1)]
        again: list[ClaimedEvent] = await one.outbox.store.claim(1)
        assert again[0].body == one.client.bodies[0]


async def test_told_to_stop_it_waits_for_the_answer_in_hand_and_claims_nothing_more(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        await one.alarm("a", "c1")
        await one.alarm("b", "c1")
        one.cloud.script([Delay(0.3)])
        stop = asyncio.Event()
        running = asyncio.create_task(one.delivery.run(stop))
        await until(lambda: one.client.open)
        stop.set()
        await running
        assert one.outbox.states() == {"a": "delivered", "b": "pending"}


async def test_what_is_older_than_give_up_after_is_dead(tmp_path: Path) -> None:
    async with sender(tmp_path, policy=Policy(give_up_after_ms=3_600_000, drain_jitter_ms=0)) as one:
        one.cloud.always("event", Status(503))
        await one.alarm("a")
        for age, state in ((3_500, "pending"), (3_601, "dead")):
            one.outbox.clock.advance(age - (one.outbox.clock.ticks_ms() - 1_000_000) / 1000)
            stop = asyncio.Event()
            running = asyncio.create_task(one.delivery.run(stop))
            await until(lambda: one.client.bodies)
            await until(lambda state=state: one.state("a") == state)  # type: ignore[misc]
            stop.set()
            await running
        [reason] = one.outbox.look("SELECT reason FROM event")
        assert reason.startswith("expired")


async def test_the_ledger_tells_each_attempt_without_secrets(tmp_path: Path) -> None:
    async with sender(tmp_path) as one:
        one.cloud.script([Status(503), None])
        await one.alarm("a", media=(SNAPSHOT,))
        await one.delivery.run_once()
        await one.later(30)
        hops = one.outbox.look("SELECT detail FROM hop WHERE what = 'attempt' ORDER BY id")
        assert len(hops) == 2
        assert '"http_status":503' in hops[0].replace(" ", "")
        assert not any("X-Amz" in hop or "token=" in hop for hop in hops)
        assert Counter(r.kind for r in one.cloud.requests) == {"token": 1, "event": 2}
