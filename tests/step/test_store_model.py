"""The store against a small model of it: the same random life, crashes included, must lead to the same states.

Promises: no event vanishes, none is in two states, final and dead ones never move by themselves, every message is
counted as one end, and a claim takes exactly what may go, in its order.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gateway.model import EventType
from gateway.outbox.choosing import FRESH_MS
from gateway.outbox.store import IntakeGroup
from gateway.states import EventState
from tests.step.outbox_kit import Outbox, dead, deferred, delivered, discarded
from tests.step.test_store_intake import assert_conserved

RANKS = {EventType.ALARM: 0, EventType.TROUBLE: 1}
LANES = ("a", "b", "c")
STEPS = {"delivered": delivered, "discarded": discarded, "dead": dead}


@dataclass
class Row:
    """What the model knows of an event."""

    seq: int  # order of arrival
    state: str
    lane: str
    rank: int
    received: int
    since: int
    due: int | None  # None: never by itself
    follows: str | None = None
    unclear: int = 0
    bytes: bytes | None = None
    fixed: bool = False
    closed: int = 0

    def is_fresh(self, now: int) -> bool:
        return self.rank == 0 and self.received > now - FRESH_MS


class StoreAndModel(RuleBasedStateMachine):
    known = Bundle("known")
    sending = Bundle("sending")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.runner = asyncio.Runner()
        self.lives = 0
        self.outbox = Outbox(self.folder / "0.db")
        self.old: list[Outbox] = []
        self.run(self.outbox.open())
        self.model: dict[str, Row] = {}
        self.pruned: set[str] = set()
        self.seq = 0
        self.received = 0

    def number_of(self, name: str) -> int:
        """A repetition that was recognised uses a number up, too: the rows need not be without gaps."""
        [seq] = self.outbox.look("SELECT seq FROM event WHERE event_id = ?", name)
        return int(seq)

    def run(self, action: Any) -> Any:
        return self.runner.run(action)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for outbox in [self.outbox, *self.old]:
                self.run(outbox.store.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    @property
    def now(self) -> int:
        return self.outbox.clock.ticks

    # Rules

    @rule(
        target=known,
        lanes=st.lists(st.sampled_from(LANES), min_size=1, max_size=4),
        kind=st.sampled_from(list(RANKS)),
        state=st.sampled_from(["pending"] * 6 + ["folded", "unmapped", "unreadable"]),
        age_ms=st.sampled_from([0, 0, 0, 20_000]),
    )
    def add(self, lanes: list[str], kind: EventType, state: str, age_ms: int) -> Any:
        events = []
        for lane in lanes:
            name = f"e{self.seq}"
            self.seq += 1
            received = self.now - age_ms
            changes: dict[str, Any] = {"state": state, "event_type": kind, "received_ticks": received}
            if state == "unmapped":
                changes |= {"camera_id": None}
            events.append(self.outbox.alarm(name, lane, **changes))
            due = received if state == "pending" else None
            closed = self.now if state in ("folded", "unreadable") else 0
            self.model[name] = Row(self.seq, state, lane, RANKS[kind], received, received, due, closed=closed)
        self.run(self.outbox.add(*events))
        self.received += len(events)
        return multiple(*(event.event_id for event in events))

    @rule(target=known, begin=known)
    def add_its_end(self, begin: str) -> Any:
        if begin in self.pruned:
            return multiple()
        name, row = f"e{self.seq}", self.model[begin]
        self.seq += 1
        self.run(self.outbox.add(self.outbox.alarm(name, row.lane, follows=begin)))
        self.received += 1
        state, due = "pending", None
        if row.state == "delivered":
            due = self.now
        elif row.state in ("discarded", "folded", "unreadable"):
            state = "discarded"
        closed = self.now if state == "discarded" else 0
        self.model[name] = Row(self.seq, state, row.lane, 0, self.now, self.now, due, follows=begin, closed=closed)
        return name

    @rule(name=known)
    def add_again(self, name: str) -> None:
        """A redelivery, whatever became of the first."""
        if name in self.pruned:
            return
        group = IntakeGroup(events=(self.outbox.alarm(name),), counts={"received": 1})
        assert self.run(self.outbox.store.add(group)).duplicates == {name}
        self.received += 1

    @rule(
        target=sending,
        limit=st.integers(1, 4),
        busy=st.sets(st.sampled_from(LANES), max_size=1),
        held=st.sets(st.sampled_from(LANES), max_size=1),
        fresh_only=st.booleans(),
    )
    def claim(self, limit: int, busy: set[str], held: set[str], fresh_only: bool) -> Any:
        wish: dict[str, Any] = {"busy_lanes": {f"L/{x}" for x in busy}, "held": {f"L/{x}" for x in held}}
        claimed = self.run(self.outbox.store.claim(limit, fresh_only=fresh_only, **wish))
        blocked = busy | held | {row.lane for row in self.model.values() if row.state == "sending"}
        may_go = {
            name: row
            for name, row in self.model.items()
            if row.state == "pending" and row.due is not None and row.due <= self.now and row.lane not in blocked
        }
        if fresh_only:
            may_go = {name: row for name, row in may_go.items() if row.is_fresh(self.now)}
        names = [one.event.event_id for one in claimed]
        lanes = [self.model[name].lane for name in names]
        assert set(names) <= set(may_go)
        assert len(lanes) == len(set(lanes))
        assert len(names) == min(limit, len({row.lane for row in may_go.values()})), "what may go goes"
        for name, row in ((name, self.model[name]) for name in names):
            alike = [
                x for x in may_go.values() if x.lane == row.lane and x.is_fresh(self.now) == row.is_fresh(self.now)
            ]
            order = (lambda x: (x.received, x.seq)) if row.is_fresh(self.now) else (lambda x: (x.rank, x.seq))
            assert row is min(alike, key=order), f"{name} is not the first of its lane"
        for one in claimed:
            row = self.model[one.event.event_id]
            row.state, row.due = "sending", None
            assert one.event.unclear == row.unclear
            if row.bytes is not None:
                assert one.body == row.bytes, "bytes that may have been seen never change"
            row.bytes = one.body
        return multiple(*names)

    @rule(
        name=consumes(sending),
        outcome=st.sampled_from(["delivered", "discarded", "dead", "deferred", "deferred", "unclear", "unreachable"]),
        wait_ms=st.sampled_from([0, 1_000, 30_000]),
    )
    def settle(self, name: str, outcome: str, wait_ms: int) -> None:
        row = self.model[name]
        if row.state != "sending":
            return  # a crash came in between
        if outcome in STEPS:
            self.run(self.outbox.store.settle(self.number_of(name), STEPS[outcome]()))
            row.state = outcome
            row.fixed = True
            row.closed = self.now if outcome in ("delivered", "discarded") else 0
            for end in self.model.values():
                if end.follows == name and end.state == "pending" and outcome == "delivered" and end.due is None:
                    end.due = self.now
                if end.follows == name and end.state == "pending" and outcome == "discarded":
                    end.state, end.due, end.closed = "discarded", None, self.now
            return
        step = deferred(wait_ms, unclear=outcome == "unclear", clear_bytes=outcome == "unreachable")
        self.run(self.outbox.store.settle(self.number_of(name), step))
        row.state, row.due = "pending", self.now + wait_ms
        row.unclear += outcome == "unclear"
        row.fixed = row.fixed or outcome != "unreachable"
        if not row.fixed:
            row.bytes = None

    @rule(name=known, outcome=st.sampled_from(sorted(STEPS)))
    def settle_what_is_not_being_sent(self, name: str, outcome: str) -> None:
        if name not in self.pruned and self.model[name].state != "sending":
            try:
                self.run(self.outbox.store.settle(self.number_of(name), STEPS[outcome]()))
            except Exception as error:
                assert type(error).__name__ == "IllegalTransition"
            else:
                raise AssertionError("an illegal transition went through")

    @rule(seconds=st.sampled_from([0.5, 5, 11, 60]))
    def time_passes(self, seconds: float) -> None:
        self.outbox.clock.advance(seconds)

    @rule()
    def wake(self) -> None:
        self.run(self.outbox.store.wake())
        for row in self.model.values():
            if row.state == "pending" and row.due is not None:
                row.due = min(row.due, self.now)

    @rule(age_ms=st.sampled_from([0, 15_000]))
    def expire(self, age_ms: int) -> None:
        before = self.now - age_ms
        gone = [row for row in self.model.values() if row.state == "pending" and max(row.received, row.since) < before]
        assert self.run(self.outbox.store.expire(before)) == len(gone)
        for row in gone:
            row.state, row.due = "dead", None

    @rule(name=known)
    def revive(self, name: str) -> None:
        row = self.model[name]
        revived = self.run(self.outbox.store.revive([name]))
        if row.state != "dead" or name in self.pruned:
            assert revived.revived == ()
            return
        assert revived.revived == (name,)
        begin = self.model.get(row.follows) if row.follows and row.follows not in self.pruned else None
        row.state, row.since = "pending", self.now
        row.due = None if begin is not None and begin.state != "delivered" else self.now
        if not row.unclear:
            row.bytes, row.fixed = None, False

    @rule(age_ms=st.sampled_from([0, 15_000]))
    def prune(self, age_ms: int) -> None:
        before = self.now - age_ms
        final = ("delivered", "discarded", "folded", "unreadable")
        self.run(self.outbox.store.prune(before))
        for name, row in self.model.items():
            if row.state in final and row.closed < before:
                self.pruned.add(name)

    @rule()
    def restart(self) -> None:
        self.run(self.outbox.again())
        self._recover()

    @rule()
    def crash(self) -> None:
        """What kill -9 leaves: the files as they are, the journal not carried over, nobody said goodbye."""
        self.lives += 1
        path = self.folder / f"{self.lives}.db"
        for suffix in ("", "-wal"):
            source = self.outbox.path.with_name(self.outbox.path.name + suffix)
            if source.exists():
                shutil.copy(source, path.with_name(path.name + suffix))
        self.old.append(self.outbox)
        clock = self.outbox.clock
        self.outbox = Outbox(path)
        self.outbox.clock = clock
        self.run(self.outbox.open())
        self._recover()

    def _recover(self) -> None:
        lost = [row for row in self.model.values() if row.state == "sending"]
        assert self.run(self.outbox.store.recover()) == len(lost)
        for row in lost:
            row.state, row.due, row.fixed = "pending", row.received, True
            row.unclear += 1

    # Invariants

    @invariant()
    def every_event_is_in_exactly_the_state_it_should_be(self) -> None:
        if hasattr(self, "outbox"):
            wanted = {name: row.state for name, row in self.model.items() if name not in self.pruned}
            assert self.outbox.states() == wanted

    @invariant()
    def every_message_and_every_event_is_counted(self) -> None:
        if hasattr(self, "outbox"):
            counters = self.run(self.outbox.store.counters())
            assert_conserved(counters)
            assert counters.get("received", 0) == self.received
            assert counters.get("events", 0) == len(self.model)
            for state in EventState:
                count = sum(row.state == state for name, row in self.model.items() if name not in self.pruned)
                assert counters.get(f"state_{state}", 0) == count, state


TestStoreModel = StoreAndModel.TestCase
TestStoreModel.settings = settings(
    max_examples=min(60, (settings.default or settings()).max_examples),  # fewer under the quick profile
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
