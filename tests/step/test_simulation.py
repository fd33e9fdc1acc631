"""Thousands of alarms, hours of bad weather, crashes: the real decisions on virtual time, the same in every run.

Real: outbox, intake, rules, conditions, delivery, gate, pace, retry, wire, token source. Doubles: the broker's session
and the cloud with the network before it (`tests/fakes/simulated_*.py`), which fail by chance from a seed. Each run ends
with fine weather, and then nothing may be missing. A seed that fails is run again, alone, by its number:
`SIMULATION_SEED=17 scripts/test tests/step/test_simulation.py`; `SIMULATION_RUNS=200` runs so many.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.bell import Bell
from gateway.chekt import wire
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.config import Settings
from gateway.deciding import Decider
from gateway.delivery import PAUSES, Delivery
from gateway.gate import Gate
from gateway.intake import Intake
from gateway.outbox.store import Store, StoreError
from gateway.retry import Policy
from gateway.sources.backlog import BacklogJudge
from gateway.sources.plans import Plans, compile_sources
from tests.fakes.frigate import encode, review
from tests.fakes.simulated_broker import SimulatedSession
from tests.fakes.simulated_cloud import UNCLEAR, WEATHER, Attempt, SimulatedCloud
from tests.fakes.virtual_time import Patient, VirtualClock, VirtualLoop, outside, virtual_time

ALARMS = 400
CAMERAS = 24
BAD_WEATHER_S = 2 * 3600.0
CALM_S = 3600.0  # fine weather at the end: longer than every wait together
POISONED = "cam-0"  # its events are refused for good, while everything else is accepted
START = 1_772_366_400_000
CONFIG = """
[site]
location_id = "L"
timezone = "UTC"
[cloud]
url = "https://api.invalid"
token_url = "https://login.invalid/oauth/token"
audience = "a"
client_id = "c"
auth = "client_secret"
client_secret_file = "{folder}/secret"
[broker]
url = "mqtt://127.0.0.1:1"
[outbox]
path = "{folder}/outbox.db"
[delivery]
stale_after = "off"
[defaults]
snapshots = 0
hold_off = "off"
send_restore = true
[sources.nvr]
family = "frigate"
"""

SEEDS = (
    [int(os.environ["SIMULATION_SEED"])]
    if "SIMULATION_SEED" in os.environ
    else list(range(int(os.environ.get("SIMULATION_RUNS", "4"))))
)


@dataclass
class Life:
    """One process of the gateway, from start to end."""

    store: Store
    delivery: Delivery
    intake: Intake
    tokens: TokenSource
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


COMMITS = ("add", "claim", "settle", "recover", "wake")


class Outbox(Patient):
    """The real store, which on a bad day refuses, and whose process may end right after any of its commits."""

    def __init__(self, store: Store, simulation: Simulation) -> None:
        super().__init__(store, simulation.loop)
        self._simulation = simulation

    def __getattr__(self, name: str) -> Any:
        real = super().__getattr__(name)
        if name not in COMMITS:
            return real

        async def call(*arguments: Any, **named: Any) -> Any:
            simulation = self._simulation
            if simulation.disk_full and name != "recover":
                raise StoreError("disk full")
            result = await real(*arguments, **named)
            if name == "settle":
                simulation.settled.append((arguments[0], str(arguments[1].target), simulation.loop.now))
            if simulation.crash_behind == name:
                simulation.crash_behind = None
                simulation.crashed.set()
                await asyncio.get_running_loop().create_future()  # the caller never learns of it
            return result

        return call


class Simulation:
    def __init__(self, seed: int, folder: Path, loop: VirtualLoop, bad_weather_s: float = BAD_WEATHER_S) -> None:
        self.dice = random.Random(f"scenario {seed}")
        self.loop = loop
        self.bad_weather_s = bad_weather_s
        (folder / "secret").write_text("0123456789abcdef0123456789abcdef\n")
        (folder / "secret").chmod(0o600)
        cameras = "".join(f'[cameras.c{n}]\nname = "c{n}"\ncamera_id = "cam-{n}"\n' for n in range(CAMERAS))
        (folder / "gateway.toml").write_text(CONFIG.format(folder=folder) + cameras)
        self.settings = Settings.load(folder / "gateway.toml", {})
        self.path = folder / "outbox.db"
        self.clock = VirtualClock(loop, 0, START)
        refused = frozenset(f"cam-{n}" for n in self.dice.sample(range(1, CAMERAS), 3))
        self.cloud = SimulatedCloud(
            self.clock, random.Random(f"cloud {seed}"), self.dice.random() < 0.7, refused_cameras=refused
        )
        self.session = SimulatedSession(self.clock)
        self.jitter = random.Random(f"jitter {seed}").random
        self.published = 0
        self.alarms: list[tuple[float, str]] = []
        self.restarts: list[float] = []
        self.weather: list[tuple[float, str]] = [(0.0, "fine")]
        self.life: Life | None = None
        self.disk_full = False
        self.crash_behind: str | None = None  # an operation of the store
        self.crashed = asyncio.Event()
        self.settled: list[tuple[int, str, float]] = []  # seq, state, when: committed, whoever may have learnt of it

    # The gateway's process

    async def start(self) -> None:
        def make_clock(base: int) -> VirtualClock:
            self.clock = self.cloud.clock = self.session.clock = VirtualClock(self.loop, base, self.clock.wall_offset)
            return self.clock

        settings, cloud = self.settings, self.cloud
        store = await outside(self.loop, Store.open(self.path, make_clock=make_clock))
        store.compose = lambda event, media, sent_at: wire.compose(
            event, media, sent_at=sent_at, ticks=self.clock.ticks_ms(), options=wire.Options()
        )
        patient: Any = Outbox(store, self)
        await patient.recover()
        tokens = TokenSource(
            settings.cloud, read_secrets(settings.cloud), cloud.post_form, self.clock, jitter=self.jitter
        )
        policy = Policy(parallel=8)
        bell = Bell()
        delivery = Delivery(
            store=patient,
            client=cloud,  # type: ignore[arg-type]
            tokens=tokens,
            gate=Gate(
                policy,
                ticks=self.clock.ticks_ms(),
                jitter=self.jitter(),
                pauses=[(begin, end) for begin, end in json.loads(await patient.get_meta(PAUSES) or "[]")],
            ),
            policy=policy,
            cloud_url=settings.cloud.url,
            jitter=self.jitter,
            bell=bell,
            delivered=lambda: None,
            refused=(StoreError,),
        )
        plans = Plans(settings)
        backlog = BacklogJudge(await patient.last_heard_at())
        decider = Decider(
            sources=list(compile_sources(settings).values()),
            find_plan=plans.find,
            location_id=settings.site.location_id,
            backlog=backlog,
            clock=self.clock,
        )
        intake = Intake(session=self.session, store=patient, decider=decider, backlog=backlog, on_stored=bell.ring)
        await intake.load()
        intake.reconnected(session_present=True)
        life = Life(store, delivery, intake, tokens)
        never = asyncio.Event()
        life.tasks = [asyncio.create_task(delivery.run(never)), asyncio.create_task(intake.run(never))]
        self.cloud.life += 1
        self.life = life

    async def crash(self) -> None:
        """As kill -9, as far as the steps can tell: requests are broken off, nothing more is settled."""
        life = self.life
        assert life is not None
        for task in life.tasks:
            task.cancel()
        results = await asyncio.gather(*life.tasks, return_exceptions=True)
        failed = [result for result in results if not isinstance(result, asyncio.CancelledError | None)]
        assert not failed, failed
        await life.tokens.close()
        await outside(self.loop, life.store.close())
        self.session.break_off()
        self.restarts.append(self.loop.now)
        self.life = None

    # The world

    async def run(self) -> None:
        await self.start()
        publishing = asyncio.create_task(self._publish())
        weather = asyncio.create_task(self._change_weather())
        accidents = asyncio.create_task(self._have_accidents())
        await asyncio.sleep(self.bad_weather_s / 2)
        self.cloud.poisoned = {POISONED}
        await asyncio.sleep(self.bad_weather_s / 2)
        for task in (publishing, weather, accidents):
            task.cancel()
        for result in await asyncio.gather(publishing, weather, accidents, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError | None), result
        if self.crashed.is_set() and self.life is not None:
            await self.crash()
        self.disk_full, self.crash_behind = False, None
        if self.life is None:  # the accident happened in this very moment
            await self.start()
        self._set_weather("fine")
        await asyncio.sleep(CALM_S)
        await self.crash()

    async def _publish(self) -> None:
        """Alarms of many cameras, alone and in bursts, most with an end."""
        while True:
            for _ in range(self.dice.choice((1, 1, 1, 2, 6))):
                camera = self.dice.randrange(CAMERAS)
                begin = round(self.clock.wall_ms() / 1000, 3)
                self.published += 1
                name = f"{begin}-n{self.published}"
                objects = (self.dice.choice(("person", "car")),)
                first = review(f"c{camera}", start=begin, review_id=name, objects=objects)
                self.session.publish("frigate/reviews", encode(first))
                self.alarms.append((self.loop.now, f"cam-{camera}"))
                if self.dice.random() < 0.3:
                    self.session.publish("frigate/reviews", encode({**first, "type": "update"}))
                if self.dice.random() < 0.7:
                    end = review(f"c{camera}", phase="end", start=begin, end=begin + 5, review_id=name, objects=objects)
                    self.loop.call_later(5.0, self.session.publish, "frigate/reviews", encode(end))
            await asyncio.sleep(self.dice.expovariate(ALARMS / 2.2 / BAD_WEATHER_S))

    async def _change_weather(self) -> None:
        while True:
            await asyncio.sleep(self.dice.choice((20.0, 90.0, 300.0, 900.0)))
            self._set_weather(self.dice.choice(list(WEATHER)))

    def _set_weather(self, name: str) -> None:
        self.cloud.weather = name
        self.weather.append((self.loop.now, name))

    async def _have_accidents(self) -> None:
        while True:
            await asyncio.sleep(self.dice.expovariate(1 / 400))
            assert self.life is not None
            match self.dice.choice(("connection", "disk", "crash", "crash", "crash")):
                case "connection":
                    self.session.break_off()
                    self.life.intake.reconnected(session_present=True)
                case "disk":
                    self.disk_full = True
                    await asyncio.sleep(self.dice.choice((0.5, 5.0, 60.0)))
                    self.disk_full = False
                case "crash":
                    self.crash_behind = self.dice.choice((None, "add", "add", "claim", "settle", "settle", "wake"))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0 if self.crash_behind is None else 300):
                            await self.crashed.wait()
                    self.crash_behind = None
                    self.crashed.clear()
                    await self.crash()
                    await self.start()

    # What must hold

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    def journal(self) -> str:
        """Everything that the cloud saw, in its order: what two runs of a seed have in common."""
        lines = [f"{a.began:.3f} {a.event_id} {a.outcome} {a.arrived} {a.ended}" for a in self.cloud.attempts]
        lines += [f"token {at:.3f}" for at in self.cloud.token_requests]
        lines += [f"{row}" for row in self.rows("SELECT event_id, state, attempts, unclear FROM event ORDER BY seq")]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self) -> None:
        self._check_nothing_is_lost()
        self._check_doubles()
        self._check_bytes()
        self._check_order()
        self._check_patience()
        self._check_conservation()

    def _check_nothing_is_lost(self) -> None:
        assert self.session.left == 0, "messages were not acknowledged"
        rows = self.rows("SELECT event_id, state, camera_id, event_status, reason FROM event")
        begun = [row for row in rows if row[3] == "active"]
        assert len(begun) == self.published, f"{self.published} alarms were published, {len(begun)} are stored"
        for event_id, state, camera_id, status, reason in rows:
            final = self.cloud.final.get(event_id)
            if final is not None:
                # Taken, without our learning it, and refused when it was sent again: dead, and known to the cloud.
                known = "delivered" if final == "accepted" else "discarded"
                ends = (known, "dead", "pending") if camera_id == POISONED else (known,)
                assert state in ends, (event_id, state, reason)
            elif status == "inactive" and state == "discarded":
                pass  # with its beginning
            else:
                # An end also waits where its beginning is dead: a person may bring both back. And nothing dies while
                # no others are accepted, as it may be at the end.
                assert state in ("dead", "pending"), (event_id, state, reason)
                assert camera_id == POISONED, (event_id, state, reason)

    def _attempts(self) -> dict[str, list[Attempt]]:
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.cloud.attempts:
            attempts[attempt.event_id].append(attempt)
        return attempts

    def _check_doubles(self) -> None:
        """A second POST of what has arrived: only where nobody could know that it had."""
        names = dict(self.rows("SELECT seq, event_id FROM event"))
        closed = {names[seq]: at for seq, state, at in self.settled if state in ("delivered", "discarded")}
        for event_id, attempts in self._attempts().items():
            for earlier, later in itertools.pairwise(attempts):
                if earlier.arrived and later.life == earlier.life:
                    assert earlier.outcome in UNCLEAR, f"{event_id} was sent again after {earlier.outcome}"
                assert closed.get(event_id, 1e9) > later.began, f"{event_id} was sent again after it was closed"
            if self.cloud.honours_keys:
                assert self.cloud.taken[event_id] <= 1, f"{event_id} is two alarms though the cloud honours keys"

    def _check_bytes(self) -> None:
        for event_id, attempts in self._attempts().items():
            shown = [attempt for attempt in attempts if attempt.outcome not in ("unreachable", "broken_off")]
            assert len({(attempt.body, attempt.key) for attempt in shown}) <= 1, f"{event_id} changed its bytes"

    def _check_order(self) -> None:
        assert self.cloud.overlaps == [], "two requests of one camera at the same time"
        accepted: dict[str, float] = {}
        for attempt in self.cloud.attempts:
            if attempt.outcome == "accepted" or attempt.arrived:
                accepted.setdefault(attempt.event_id, attempt.began)
        follows = dict(self.rows("SELECT event_id, follows FROM event WHERE follows IS NOT NULL"))
        assert follows
        for attempt in self.cloud.attempts:
            beginning = follows.get(attempt.event_id)
            if beginning is not None:
                assert accepted.get(beginning, 1e9) < attempt.began, f"{attempt.event_id} before its beginning"

    def _check_patience(self) -> None:
        """What the gateway owes the cloud: it does not hammer."""
        at = self.cloud.token_requests
        lives = [0.0, *self.restarts, 1e9]
        for begin, end in itertools.pairwise(lives):
            in_vain = [t for t in at if begin <= t < end and self._weather_at(t) == "revoked"]
            for index in range(len(in_vain) - 9):
                assert in_vain[index + 9] - in_vain[index] > 600, "more than 8 token requests in 10 minutes"
        throttled = [(a.ended, a.retry_after, a.life) for a in self.cloud.attempts if a.retry_after is not None]
        for answered, seconds, life in throttled:
            assert answered is not None
            for attempt in self.cloud.attempts:
                early = answered < attempt.began < answered + (seconds or 0)
                assert not (early and attempt.life == life), f"a request at {attempt.began} in spite of Retry-After"
        probes = Counter(
            (a.lane, a.life, int(a.began // 60)) for a in self.cloud.attempts if a.outcome == "camera_refused"
        )
        assert not probes or max(probes.values()) <= 2, probes.most_common(3)

    def _weather_at(self, moment: float) -> str:
        return next(name for at, name in reversed(self.weather) if at <= moment)

    def _check_conservation(self) -> None:
        count = dict(self.rows("SELECT name, value FROM counter"))
        ends = ("stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")
        assert count["received"] == sum(count.get(end, 0) for end in ends), count
        states = dict(self.rows("SELECT 'state_' || state, count(*) FROM event GROUP BY state"))
        assert states == {name: n for name, n in count.items() if name.startswith("state_") and n}
        assert count["events"] == sum(states.values())


def simulate(seed: int, folder: Path, bad_weather_s: float = BAD_WEATHER_S) -> Simulation:
    folder.mkdir()
    with virtual_time() as loop, structlog.testing.capture_logs() as logs:
        simulation = Simulation(seed, folder, loop, bad_weather_s)
        loop.run_until_complete(simulation.run())
    inside = [line for line in logs if line["event"].endswith(("failed_inside", "compose_failed", "thread_failed"))]
    assert inside == []
    return simulation


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_and_nothing_doubled_without_cause(seed: int, tmp_path: Path) -> None:
    simulation = simulate(seed, tmp_path / "run")
    simulation.check()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_seed_is_the_same_run_every_time(tmp_path: Path) -> None:
    first, second = (simulate(4711, tmp_path / name, 1_800.0) for name in ("first", "second"))
    assert first.journal() == second.journal()
    assert first.restarts
    assert simulate(4712, tmp_path / "other", 1_800.0).journal() != first.journal()
