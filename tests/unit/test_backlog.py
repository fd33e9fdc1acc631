"""For how long a message may have waited in the broker: by ticks within one process, by wall time over a restart."""

from __future__ import annotations

import pytest

from gateway.model import UNBOUNDED_MS, Message, bound_age
from gateway.sources.backlog import LONGEST_RUN_MS, PAUSE_MS, BacklogJudge, Waited
from tests.fakes.clock import FakeClock

MINUTE, HOUR, YEAR = 60_000, 3_600_000, 365 * 86_400_000
NOW = 1_772_366_400_000  # 2026-03-01T12:00:00Z
BOOT = 7_000  # of a machine that starts in 1970


@pytest.mark.parametrize(
    ("what", "received_at", "since_at", "at_most"),
    [
        ("an hour", NOW, NOW - HOUR, HOUR),
        ("nothing at all", NOW, NOW, 0),
        ("two clocks that agree", NOW, NOW + 10_000, 30_000),
        ("1970 at boot, heard in right time before", BOOT, NOW, UNBOUNDED_MS),
        ("1970 at boot, as before", BOOT, 5_000, UNBOUNDED_MS),
        ("heard in 1970, right now", NOW, BOOT, UNBOUNDED_MS),
        ("heard a year ahead", NOW, NOW + YEAR, UNBOUNDED_MS),
        ("set back by an hour since", NOW - HOUR, NOW, UNBOUNDED_MS),
    ],
)
def test_over_a_restart_there_is_only_wall_time(what: str, received_at: int, since_at: int, at_most: int) -> None:
    assert bound_age(received_at, since_at) == at_most, what


class Machine:
    def __init__(self, heard_before_at: int | None = None) -> None:
        self.clock = FakeClock(wall=NOW, ticks=5_000)
        self.judge = BacklogJudge(heard_before_at)

    def connect(self, *, session_present: bool = True) -> None:
        self.judge.connected(session_present=session_present, ticks=self.clock.ticks)

    def hear(self, qos: int = 1) -> Waited | None:
        """It is committed at once."""
        message = Message("a/b", b"x", qos, False, False, False, self.clock.wall, self.clock.ticks)
        waited = self.judge.waited(message)
        self.judge.committed(message.received_ticks, self.clock.ticks)
        return waited


@pytest.mark.parametrize("jump", [0, YEAR, -YEAR, -HOUR, BOOT - NOW], ids=["none", "ahead", "back", "hour", "1970"])
def test_within_one_process_a_jump_of_the_clock_changes_nothing(jump: int) -> None:
    one = Machine()
    one.connect()
    assert one.hear() is None  # the first ever: nothing was kept for us
    one.clock.advance(600)
    one.clock.wall += jump
    one.connect()
    assert one.hear() == Waited(600_000)
    one.clock.wall -= jump
    one.clock.advance(0.5)
    assert one.hear() == Waited(600_500)


def test_the_first_connection_goes_back_to_what_an_earlier_process_heard() -> None:
    one = Machine(NOW - HOUR)
    one.connect()
    assert one.hear() == Waited(HOUR, NOW - HOUR)
    one.clock.advance(PAUSE_MS / 1000 + 0.1)
    assert one.hear() is None
    one.clock.advance(60)
    one.connect()
    assert one.hear() == Waited(60_000)


def test_in_1970_the_age_is_unknown_and_says_by_what_it_can_be_known_later() -> None:
    one = Machine(NOW - HOUR)
    one.clock.wall = BOOT
    one.connect()
    assert one.hear() == Waited(UNBOUNDED_MS, NOW - HOUR)


def test_a_crash_within_a_run_hands_its_beginning_on() -> None:
    one = Machine()
    one.connect()
    one.hear()
    one.clock.advance(600)
    one.connect()
    one.hear()
    assert one.judge.since_at(one.clock) == NOW
    one.clock.wall += YEAR  # and corrected: the right time is handed on, not the one of the moment
    assert one.judge.since_at(one.clock) == NOW + YEAR
    next_one = Machine(NOW + 600_000)
    next_one.judge.resume(NOW)
    next_one.clock.advance(700)
    next_one.connect()
    assert next_one.hear() == Waited(700_000, NOW)
    assert next_one.judge.since_at(next_one.clock) == NOW


def test_a_run_ends_with_a_pause_and_with_a_minute_and_without_the_session() -> None:
    one = Machine(NOW - HOUR)
    one.connect()
    while one.judge.in_run:
        assert one.clock.ticks <= 5_000 + LONGEST_RUN_MS + 900
        one.clock.advance(0.9)
        one.hear()
    assert one.clock.ticks > 5_000 + LONGEST_RUN_MS
    one.clock.advance(60)
    one.connect(session_present=False)
    assert one.hear() is None and one.judge.since_at(one.clock) is None


@pytest.mark.parametrize(("seconds", "waits"), [(2.9, True), (3.1, False)])
def test_the_first_message_may_take_longer(seconds: float, waits: bool) -> None:
    one = Machine(NOW - HOUR)
    one.connect()
    one.clock.advance(seconds)
    assert (one.hear() is not None) is waits


def test_what_never_waits_is_live() -> None:
    one = Machine(NOW - HOUR)
    one.connect()
    assert one.hear(qos=0) is None
