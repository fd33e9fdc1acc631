"""The sender as a whole: pauses, holds, rates, outages, and that none of them blocks what is not concerned."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.gate import FAILING, FIRST_PAUSE_MS, Gate, Outcome, Pauses
from gateway.model import Event
from gateway.retry import LONGEST_WAIT_MS, Answer, Policy, Rate, Verdict
from tests.unit.test_retry import an_event

MINUTE = 60_000
ACCEPTED = Answer(Verdict.ACCEPTED, http_status=201)
REFUSED = Answer(Verdict.REFUSED, http_status=400, own_error=True, text="Bad Request")
FORBIDDEN = Answer(Verdict.FORBIDDEN, http_status=403, own_error=True, text="Access denied")
UNKNOWN = Answer(Verdict.UNKNOWN, http_status=404, own_error=True, text="Resource does not exist")
UNAUTHORISED = Answer(Verdict.UNAUTHORISED, http_status=401, own_error=True, text="Invalid token")
TOKEN_REFUSED = Answer(Verdict.TOKEN_REFUSED, written=False, text="invalid_client")
NO_NETWORK = Answer(Verdict.UNREACHABLE, written=False, text="no connection")
PORTAL = Answer(Verdict.NOT_THE_API, http_status=200, text="hotel")
THROTTLED = Answer(Verdict.THROTTLED, http_status=429)


class Sender:
    """Drives a gate as the delivery step does, with a clock that only moves when told."""

    def __init__(self, **policy: Any) -> None:
        self.ticks = 1_000_000
        self.gate = Gate(Policy(**policy), ticks=self.ticks, jitter=0.0)
        self.count = 0

    def event(self, camera: str = "c1", location: str = "L", event_id: str = "") -> Event:
        self.count += 1
        event_id = event_id or f"e{self.count}"
        return an_event(event_id=event_id, camera_id=camera, location_id=location, received_ticks=self.ticks)

    def send(self, answer: Answer, camera: str = "c1", location: str = "L", event_id: str = "") -> Outcome:
        event = self.event(camera, location, event_id)
        self.gate.sent(event, self.ticks)
        return self.gate.answered(event, answer, ticks=self.ticks, jitter=0.5)

    def later(self, ms: int) -> None:
        self.ticks += ms

    def limit(self) -> int:
        return self.gate.allowance(self.ticks).limit

    def held(self) -> frozenset[str]:
        return self.gate.allowance(self.ticks).held

    def critical(self) -> bool:
        return any(condition.level == "critical" for condition in self.gate.conditions())


def names(outcome: Outcome) -> list[str]:
    return [notice.name for notice in outcome.notices]


def test_a_healthy_sender_takes_as_many_as_are_free() -> None:
    sender = Sender(parallel=8)
    assert sender.limit() == 8
    sender.gate.sent(sender.event(), sender.ticks)
    assert sender.limit() == 7
    assert names(sender.send(ACCEPTED)) == []
    assert sender.gate.conditions() == ()


# Credentials


@pytest.mark.parametrize("answer", [UNAUTHORISED, TOKEN_REFUSED])
def test_refused_credentials_pause_everything_and_one_probe_a_time_goes_on(answer: Answer) -> None:
    sender = Sender()
    assert names(sender.send(answer)) == ["cloud_paused"]
    assert sender.critical()
    waits = []
    for _ in range(7):
        allowance = sender.gate.allowance(sender.ticks)
        assert allowance.limit == 0
        assert allowance.next_change is not None
        waits.append(allowance.next_change - sender.ticks)
        sender.ticks = allowance.next_change
        assert sender.limit() == 1
        probe = sender.event()
        sender.gate.sent(probe, sender.ticks)
        assert sender.limit() == 0
        assert names(sender.gate.answered(probe, answer, ticks=sender.ticks, jitter=0.5)) == []
    assert waits == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, LONGEST_WAIT_MS, LONGEST_WAIT_MS, LONGEST_WAIT_MS]


def test_requests_that_were_under_way_do_not_prolong_the_pause() -> None:
    sender = Sender()
    for _ in range(5):
        sender.send(UNAUTHORISED)
    assert sender.gate.allowance(sender.ticks).next_change == sender.ticks + FIRST_PAUSE_MS


def test_a_pause_ends_with_the_first_answer_that_knows_us_and_wakes_the_rest() -> None:
    sender = Sender()
    sender.send(UNAUTHORISED)
    sender.later(MINUTE)
    outcome = sender.send(ACCEPTED)
    assert names(outcome) == ["cloud_resumed"]
    assert outcome.wake
    assert sender.limit() == 8
    assert not sender.critical()


def test_a_person_need_not_wait_for_the_slow_timer() -> None:
    sender = Sender()
    sender.send(UNKNOWN, "c2")
    sender.send(UNAUTHORISED)
    assert sender.limit() == 0
    sender.gate.try_now(sender.ticks)
    assert sender.limit() == 1
    assert sender.held() == frozenset()


def test_a_proxys_page_does_not_prove_that_the_credentials_are_good() -> None:
    sender = Sender()
    sender.send(UNAUTHORISED)
    sender.later(MINUTE)
    sender.send(Answer(Verdict.FORBIDDEN, http_status=403, text="blocked"))
    assert sender.critical()


def test_why_the_cloud_is_away_is_told() -> None:
    sender = Sender()
    for _ in range(FAILING):
        assert sender.gate.last_error is None
        sender.send(NO_NETWORK)
    assert sender.gate.last_error == "no connection"
    [condition] = sender.gate.conditions()
    assert "(no connection)" in condition.sentence
    sender.send(ACCEPTED)
    assert sender.gate.last_error is None


@pytest.mark.parametrize("answers", [(UNAUTHORISED,), (UNKNOWN,), (REFUSED, REFUSED, REFUSED)])
def test_what_a_person_must_mend_is_said_with_what_to_do(answers: tuple[Answer, ...]) -> None:
    sender = Sender()
    notices = [notice for answer in answers for notice in sender.send(answer).notices]
    assert [notice.level for notice in notices] == ["error"]
    assert notices[0].fields["remedy"]


# Cameras and sites


def test_an_unknown_camera_waits_and_no_other_does() -> None:
    sender = Sender()
    outcome = sender.send(UNKNOWN, "c1")
    assert names(outcome) == ["scope_held"]
    assert outcome.notices[0].level == "error"
    assert sender.held() == {"L/c1"}
    assert sender.limit() == 8
    assert not sender.critical()


def test_a_held_camera_may_ask_once_a_minute() -> None:
    sender = Sender()
    sender.send(UNKNOWN, "c1")
    for _ in range(3):
        sender.later(MINUTE - 1)
        assert sender.held() == {"L/c1"}
        sender.later(1)
        assert sender.held() == frozenset()
        probe = sender.event("c1")
        sender.gate.sent(probe, sender.ticks)
        assert sender.held() == {"L/c1"}
        assert names(sender.gate.answered(probe, UNKNOWN, ticks=sender.ticks, jitter=0.5)) == []
        assert sender.held() == {"L/c1"}
    outcome = sender.send(ACCEPTED, "c1")
    assert names(outcome) == ["scope_released"]
    assert outcome.wake
    assert sender.held() == frozenset()


def test_two_forbidden_cameras_of_a_site_ask_as_one_and_a_third_goes_on() -> None:
    sender = Sender()
    sender.send(FORBIDDEN, "c1")
    outcome = sender.send(FORBIDDEN, "c2")
    assert outcome.notices[0].fields["scope"] == "L"
    assert sender.held() == {"L/c1", "L/c2"}
    sender.later(MINUTE)
    allowance = sender.gate.allowance(sender.ticks)
    assert (allowance.held, allowance.limit) == (frozenset(), 1)  # one claim, so that one of them asks
    sender.gate.sent(sender.event("c1"), sender.ticks)
    allowance = sender.gate.allowance(sender.ticks)
    assert allowance.held == {"L/c1", "L/c2"}
    assert allowance.limit == 7


def test_an_accepted_camera_ends_the_hold_of_its_site_but_not_that_of_its_neighbours() -> None:
    sender = Sender()
    sender.send(FORBIDDEN, "c1")
    sender.send(FORBIDDEN, "c2")
    sender.send(ACCEPTED, "c3")
    assert sender.held() == {"L/c1", "L/c2"}
    sender.later(MINUTE)
    sender.send(ACCEPTED, "c1")
    assert sender.held() == frozenset()  # c2 may ask now, for itself
    assert sender.limit() == 8


def test_a_site_that_is_taken_again_does_not_wait_another_minute() -> None:
    sender = Sender()
    sender.send(FORBIDDEN, "c1")
    sender.send(FORBIDDEN, "c2")
    sender.later(MINUTE)
    outcome = sender.send(ACCEPTED, "c1")
    assert outcome.wake
    assert sender.held() == frozenset()  # c2 asks now, for itself
    sender.send(FORBIDDEN, "c2")
    assert sender.held() == {"L/c2"}


def test_a_camera_that_has_just_asked_waits_its_minute_when_its_site_is_taken_again() -> None:
    sender = Sender()
    sender.send(FORBIDDEN, "c1")
    sender.send(FORBIDDEN, "c2")
    sender.later(MINUTE)
    sender.send(FORBIDDEN, "c1")
    sender.later(MINUTE // 2)
    sender.send(ACCEPTED, "c3")
    assert sender.held() == {"L/c1"}
    sender.later(MINUTE // 2)
    assert sender.held() == frozenset()


def test_a_held_site_that_shall_wait_longer_does_so_camera_by_camera() -> None:
    sender = Sender()
    for camera in ("c1", "c2"):
        sender.send(Answer(Verdict.FORBIDDEN, http_status=403, own_error=True, retry_after_ms=10 * MINUTE), camera)
    sender.send(ACCEPTED, "c3")
    sender.later(10 * MINUTE - 1)
    assert sender.held() == {"L/c1", "L/c2"}
    sender.later(1)
    assert sender.held() == frozenset()


def test_the_hold_of_one_site_leaves_the_others_alone() -> None:
    sender = Sender()
    for camera in ("c1", "c2"):
        sender.send(FORBIDDEN, camera, "L")
    assert sender.held() == {"L/c1", "L/c2"}
    assert names(sender.send(ACCEPTED, "c1", "M")) == []
    assert sender.held() == {"L/c1", "L/c2"}


# Refusals


def test_a_single_refused_event_holds_nothing() -> None:
    sender = Sender()
    for _ in range(10):
        sender.send(REFUSED, event_id="same")
    assert sender.held() == frozenset()
    assert not sender.critical()


def test_if_everything_is_refused_the_sender_holds_and_asks_once_a_minute() -> None:
    sender = Sender()
    assert names(sender.send(REFUSED, "c1")) == []
    assert names(sender.send(REFUSED, "c2")) == []
    outcome = sender.send(REFUSED, "c2")
    assert names(outcome) == ["everything_refused"]
    assert sender.critical()
    assert sender.held() == {"L/c1", "L/c2"}
    sender.send(REFUSED, "c3")  # has not been asked before, so it goes on, once
    assert sender.held() == {"L/c1", "L/c2", "L/c3"}
    asked = 0
    for _ in range(600):
        sender.later(1_000)
        for lane in sorted({"L/c1", "L/c2", "L/c3"} - sender.held())[:1]:
            assert sender.limit() == 1
            sender.send(REFUSED, lane.removeprefix("L/"))
            asked += 1
    assert asked == 10
    outcome = sender.send(ACCEPTED, "c1")
    assert names(outcome) == ["scope_released"]
    assert outcome.wake
    assert sender.held() == frozenset()
    assert not sender.critical()


def test_who_is_refused_again_lets_the_others_ask_first() -> None:
    """The oldest event is always claimed first: were it the one at fault, the others would wait for ever."""
    sender = Sender()
    for number in range(3):
        sender.send(REFUSED, f"c{number}")
    asked = []
    for _ in range(6):
        sender.later(MINUTE)
        free = sorted({"L/c0", "L/c1", "L/c2"} - sender.held())
        asked.append(free[0])
        sender.send(REFUSED, free[0].removeprefix("L/"))
    assert asked == ["L/c0", "L/c1", "L/c2"] * 2
    # Where the others have nothing to send, it asks again all the same.
    sender.later(3 * MINUTE)
    assert sender.held() == frozenset()


def test_refusals_between_acceptances_hold_nothing() -> None:
    sender = Sender()
    for _ in range(20):
        sender.send(REFUSED)
        sender.send(REFUSED)
        sender.send(ACCEPTED, "c2")
    assert sender.held() == frozenset()


def refuse(sender: Sender, event: Event) -> bool:
    """Whether this refusal is proof against the event."""
    sender.gate.sent(event, sender.ticks)
    sender.gate.answered(event, REFUSED, ticks=sender.ticks, jitter=0.0)
    sender.later(1)
    return sender.gate.another_accepted(event)


def test_a_refusal_is_proven_by_others_that_were_accepted_between_each_of_three() -> None:
    sender = Sender()
    event = an_event(event_id="refused")
    proven = []
    for _ in range(4):
        proven.append(refuse(sender, event))
        sender.send(ACCEPTED, "c2")
        sender.later(1)
    assert proven == [False, False, True, True]
    assert refuse(sender, event)
    assert not refuse(sender, event), "nothing was accepted since the one before"
    assert not sender.gate.another_accepted(an_event(event_id="never refused"))


def test_refusals_of_everything_now_and_then_prove_nothing_against_one_event() -> None:
    """Bad hours with a good one between: at the third refusal others had been accepted since the first."""
    sender = Sender()
    event = an_event(event_id="unlucky")
    for _ in range(5):
        for _ in range(4):
            assert not refuse(sender, event)
        sender.send(ACCEPTED, "c2")
        sender.later(1)
        assert not refuse(sender, event)


def test_while_everything_is_refused_no_refusal_is_proven() -> None:
    sender = Sender()
    event = an_event(event_id="unlucky")
    for _ in range(2):
        refuse(sender, event)
        sender.send(ACCEPTED, "c2")
    for number in range(3):
        sender.send(REFUSED, f"c{number}")
    assert not refuse(sender, event)


def test_after_a_restart_refusals_are_counted_anew() -> None:
    sender = Sender()
    event = an_event(event_id="refused", refusals=2, first_refused_ticks=0)
    sender.send(ACCEPTED, "c2")
    sender.later(1)
    assert not refuse(sender, event)


# The path


def test_an_outage_is_said_once_and_its_end_once() -> None:
    sender = Sender()
    said = [name for _ in range(20) for name in names(sender.send(NO_NETWORK))]
    assert said == ["cloud_unreachable"]
    assert not sender.gate.reachable
    sender.later(MINUTE)
    outcome = sender.send(ACCEPTED)
    assert names(outcome) == ["cloud_reachable"]
    assert outcome.wake
    assert sender.gate.reachable


@pytest.mark.parametrize("answer", [ACCEPTED, NO_NETWORK], ids=["there", "away"])
def test_whether_the_cloud_is_there_is_unknown_before_it_was_asked(answer: Answer) -> None:
    sender = Sender()
    assert sender.gate.reachable is None
    for _ in range(5):
        sender.send(answer)
    assert sender.gate.reachable is (answer is ACCEPTED)


def test_a_captive_portal_is_a_broken_path() -> None:
    sender = Sender()
    assert names(sender.send(PORTAL)) == ["path_broken"]
    assert any("other than CHeKT" in condition.sentence for condition in sender.gate.conditions())
    assert names(sender.send(ACCEPTED)) == ["path_mended"]


def test_in_an_outage_the_backlog_asks_as_one_and_fresh_alarms_go_on() -> None:
    sender = Sender(parallel=8)
    requests = 0
    for _ in range(600_000 // 100):
        allowance = sender.gate.allowance(sender.ticks)
        if allowance.limit and not allowance.fresh_only:
            sender.send(NO_NETWORK)
            requests += 1
        assert allowance.limit > 0
        sender.later(100)
    assert 20 <= requests <= 60


def test_a_cloud_that_is_down_is_asked_by_few_at_a_time() -> None:
    sender = Sender(parallel=8)
    for _ in range(FAILING):
        sender.send(NO_NETWORK)
    assert sender.limit() == 2
    sender.send(ACCEPTED)
    assert sender.limit() == 8


def test_the_backlog_waits_a_little_after_an_outage_and_fresh_alarms_do_not() -> None:
    sender = Sender(drain_jitter_ms=5_000)
    sender.send(NO_NETWORK)
    sender.later(20_000)
    sender.send(ACCEPTED)
    allowance = sender.gate.allowance(sender.ticks)
    assert allowance.fresh_only
    assert allowance.limit == 8
    assert allowance.next_change == sender.ticks + 2_500
    sender.later(2_500)
    assert not sender.gate.allowance(sender.ticks).fresh_only


def test_a_start_spreads_the_backlog_too() -> None:
    gate = Gate(Policy(drain_jitter_ms=5_000), ticks=0, jitter=0.9)
    assert gate.allowance(0).fresh_only
    assert not gate.allowance(4_500).fresh_only


def test_every_success_of_a_flapping_cloud_does_not_wake_everything_again() -> None:
    sender = Sender()
    wakes = 0
    for _ in range(100):
        sender.send(NO_NETWORK)
        sender.later(100)
        wakes += sender.send(ACCEPTED).wake
    assert 1 <= wakes <= 3


# The rate


def test_a_429_stops_the_whole_sender_for_as_long_as_it_says() -> None:
    sender = Sender()
    outcome = sender.send(Answer(Verdict.THROTTLED, http_status=429, retry_after_ms=7_000))
    assert names(outcome) == ["cloud_throttled"]
    allowance = sender.gate.allowance(sender.ticks)
    assert (allowance.limit, allowance.next_change) == (0, sender.ticks + 7_000)
    sender.later(7_000)
    assert sender.limit() >= 1


def test_a_429_that_only_tells_when_there_is_more_waits_until_then() -> None:
    sender = Sender()
    rate = Rate(limit=60, remaining=0, reset_in_ms=8_000)
    sender.send(Answer(Verdict.THROTTLED, http_status=429, rate=rate))
    allowance = sender.gate.allowance(sender.ticks)
    assert (allowance.limit, allowance.next_change) == (0, sender.ticks + 8_000)


def test_a_429_without_a_word_waits_too_and_longer_each_time() -> None:
    sender = Sender()
    waits = []
    for _ in range(5):
        sender.send(THROTTLED)
        next_change = sender.gate.allowance(sender.ticks).next_change
        assert next_change is not None
        waits.append(next_change - sender.ticks)
        sender.ticks = next_change
    assert waits == sorted(waits)
    assert waits[0] >= 500
    assert waits[-1] <= MINUTE


def test_after_a_429_the_sender_goes_slower_and_recovers() -> None:
    sender = Sender()
    sender.send(THROTTLED)
    sender.later(2_000)
    sent = 0
    for _ in range(100):
        if sender.limit() > 0:
            sender.send(THROTTLED if sent == 0 else Answer(Verdict.BUSY, http_status=500, own_error=True))
            sent += 1
        sender.later(100)
    assert sent <= 12
    for _ in range(20_000):
        if sender.limit() > 0:
            sender.send(ACCEPTED)
        sender.later(100)
    assert sender.gate.conditions() == ()
    assert sender.limit() == 8


def test_a_quiet_site_is_not_slow_for_ever() -> None:
    sender = Sender()
    sender.send(THROTTLED)
    sender.later(LONGEST_WAIT_MS)
    assert sender.limit() == 8
    assert names(sender.send(ACCEPTED)) == ["cloud_unthrottled"]


@settings(max_examples=25, deadline=None)
@given(per_minute=st.integers(1, 1_000), gap=st.integers(50, 400))
def test_max_per_minute_is_kept_over_every_minute(per_minute: int, gap: int) -> None:
    sender = Sender(max_per_minute=per_minute, parallel=64)
    sent: list[int] = []
    while sender.ticks < 1_000_000 + 3 * MINUTE:
        for _ in range(sender.limit()):
            sender.send(ACCEPTED)
            sent.append(sender.ticks)
        sender.later(gap)
    for start in range(1_000_000, 1_000_000 + 2 * MINUTE, 10_000):
        burst = max(2.0, per_minute / 12)
        assert sum(1 for at in sent if start <= at < start + MINUTE) <= per_minute + burst + 1
    assert len(sent) >= per_minute * 3 * 0.6 - 2


def test_a_fifth_of_the_rate_is_left_to_fresh_alarms() -> None:
    sender = Sender(max_per_minute=60, parallel=64)
    while not sender.gate.allowance(sender.ticks).fresh_only:
        sender.send(ACCEPTED)
    allowance = sender.gate.allowance(sender.ticks)
    assert allowance.limit >= 1  # for a fresh alarm, at once
    assert allowance.next_change is not None
    sender.ticks = allowance.next_change
    assert not sender.gate.allowance(sender.ticks).fresh_only


def test_the_rest_of_the_clouds_own_count_is_left_to_fresh_alarms() -> None:
    sender = Sender()
    sender.send(Answer(Verdict.ACCEPTED, http_status=201, rate=Rate(60, 12, 20_000)))
    allowance = sender.gate.allowance(sender.ticks)
    assert (allowance.fresh_only, allowance.next_change) == (True, sender.ticks + 20_000)
    sender.send(Answer(Verdict.ACCEPTED, http_status=201, rate=Rate(60, 0, 20_000)))
    assert sender.limit() == 0
    sender.later(20_000)
    assert sender.limit() == 8


def test_callbacks_count_for_the_rate() -> None:
    sender = Sender(max_per_minute=60)
    for _ in range(5):
        sender.gate.spend(sender.ticks)
    assert sender.limit() == 0


def test_an_attempt_that_was_given_up_frees_its_place() -> None:
    sender = Sender(parallel=1)
    event = sender.event()
    sender.gate.sent(event, sender.ticks)
    assert sender.limit() == 0
    sender.gate.forget(event.event_id)
    assert sender.limit() == 1


# Giving up


def test_time_in_which_the_sender_was_paused_does_not_count() -> None:
    sender = Sender(give_up_after_ms=10 * MINUTE)
    start = sender.ticks
    sender.later(2 * MINUTE)
    sender.send(UNAUTHORISED)
    sender.later(60 * MINUTE)
    assert sender.gate.give_up_before(sender.ticks) == start - 8 * MINUTE
    sender.send(ACCEPTED)
    sender.later(8 * MINUTE)
    assert sender.gate.give_up_before(sender.ticks) == start
    again = Gate(sender.gate.policy, ticks=sender.ticks, jitter=0, pauses=sender.gate.pauses.as_of(sender.ticks))
    assert again.give_up_before(sender.ticks) == start  # also over a restart


def test_a_hold_of_everything_is_a_pause_and_a_hold_of_one_camera_is_not() -> None:
    sender = Sender()
    sender.send(UNKNOWN)
    assert sender.gate.pauses.as_of(sender.ticks) == []
    for _ in range(3):
        sender.send(REFUSED, "c2")
    assert sender.gate._holds.everything
    assert sender.gate.pauses.since == sender.ticks
    sender.send(ACCEPTED, "c2")
    assert sender.gate.pauses.since is None


@given(
    gaps=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=8),
    give_up=st.integers(0, 500),
    tail=st.integers(0, 100),
)
def test_give_up_counts_exactly_the_unpaused_time(gaps: list[tuple[int, int]], give_up: int, tail: int) -> None:
    at, spans, paused = 1_000, [], set()
    for before, length in gaps:
        at += before
        spans.append((at, at + length))
        paused |= set(range(at, at + length))
        at += length
    now = at + tail
    threshold = Pauses(spans).give_up_before(now, give_up)
    assert sum(1 for tick in range(threshold, now) if tick not in paused) == give_up


answers = st.builds(
    Answer,
    verdict=st.sampled_from(Verdict),
    http_status=st.none() | st.integers(200, 599),
    own_error=st.booleans(),
    written=st.booleans(),
    retry_after_ms=st.none() | st.integers(0, LONGEST_WAIT_MS),
    rate=st.none() | st.builds(Rate, st.integers(0, 100), st.integers(0, 100), st.integers(0, LONGEST_WAIT_MS)),
)


@given(
    script=st.lists(st.tuples(answers, st.integers(0, 5), st.integers(0, 3 * MINUTE)), max_size=60),
    per_minute=st.sampled_from([0, 1, 60]),
)
def test_whatever_happened_the_sender_never_waits_for_ever(
    script: list[tuple[Answer, int, int]], per_minute: int
) -> None:
    """After any history every lane has its turn again, and one success of each restores health."""
    sender = Sender(max_per_minute=per_minute, drain_jitter_ms=0)
    for answer, number, pause in script:
        sender.send(answer, f"c{number}", f"L{number % 2}")
        sender.later(pause)
    for camera in [f"c{number}" for number in range(6)]:
        lane = f"L{int(camera[1]) % 2}/{camera}"
        for _ in range(100):
            allowance = sender.gate.allowance(sender.ticks)
            if allowance.limit > 0 and lane not in allowance.held and not allowance.fresh_only:
                break
            assert allowance.next_change is not None
            assert allowance.next_change > sender.ticks
            assert allowance.next_change - sender.ticks <= LONGEST_WAIT_MS
            sender.ticks = allowance.next_change
        else:
            raise AssertionError(f"{lane} never has its turn")
        sender.send(ACCEPTED, camera, lane.partition("/")[0])
    assert not sender.critical()
    assert sender.gate.reachable
    assert sender.held() == frozenset()


# Discards


def discard(reason: str | None) -> Answer:
    return Answer(Verdict.DISCARDED, http_status=201, reason=reason)


@pytest.mark.parametrize(
    "reason", ["Event discarded: device is disarmed", "not armed", "Discarded while Arming", "partition is in STAY"]
)
def test_discards_about_arming_are_everyday_life(reason: str) -> None:
    sender = Sender()
    for _ in range(10):
        assert sender.send(discard(reason), "c1").notices == ()
    assert sender.gate.conditions() == ()


@pytest.mark.parametrize("reason", ["unknown subscription", None, "alarm quota exceeded"])
def test_several_other_discards_are_shown_until_the_camera_is_accepted_or_a_day_is_over(reason: str | None) -> None:
    for ends_by in ("acceptance", "a day"):
        sender = Sender()
        said = [notice.name for _ in range(4) for notice in sender.send(discard(reason), "c1").notices]
        assert said == ["discards_odd"]
        (condition,) = sender.gate.conditions()
        assert condition.level == "degraded"
        assert (reason or "no reason given") in condition.sentence
        assert "c1" in condition.sentence
        sender.send(ACCEPTED, "c2")
        assert sender.gate.conditions() == (condition,)
        if ends_by == "acceptance":
            outcome = sender.send(ACCEPTED, "c1")
        else:
            sender.ticks += 86_400_000
            outcome = sender.send(ACCEPTED, "c2")
        assert [notice.name for notice in outcome.notices] == ["discards_over"]
        assert sender.gate.conditions() == ()
