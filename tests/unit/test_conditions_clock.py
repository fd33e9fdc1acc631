"""Conditions while our own clock is wrong, or has just been set: no alarm is taken for an older one."""

from __future__ import annotations

from gateway.model import EARLIEST_AT, EventStatus, EventType, Reading
from gateway.sources.rows import identify, restore_row
from tests.unit.frigate_messages import NOW, compiled, message, review
from tests.unit.frigate_messages import reading as read
from tests.unit.test_conditions import HOUR, MINUTE, SECOND, AnyPlan, Site

DAY_MS = 24 * HOUR


def hear(site: Site, number: int) -> str:
    """An alarm of now, by both the recorder's clock and ours."""
    decision = site.hear(review(id=f"{site.at / 1000}-{number}", start=site.at / 1000))
    return decision.events[0].state


def test_a_clock_that_is_set_back_does_not_fold_alarms_when_the_old_time_is_reached_again() -> None:
    site = Site(plan=AnyPlan(hold_off=10.0))
    assert hear(site, 1) == "pending"
    site.at -= HOUR
    for number in range(12):  # each five minutes, until just before the time of the first
        site.wait(5 * MINUTE - (3 * SECOND if number == 11 else 0))
        assert hear(site, number + 2) == "pending", number
    site.wait(5 * SECOND)
    assert hear(site, 99) == "folded"  # by the one five seconds ago, as it should be


def counted() -> Reading:
    """Equipment that counts its events from 1 whenever it is switched on."""
    return read(review(), source=compiled("reviews"))._replace(source_id="1", started=None)


def event_id(*, at: int, ticks: int) -> str:
    heard = message(review(), "frigate/reviews", at=at, ticks=ticks)
    return identify(counted(), heard, DAY_MS, {}, "L")[0]


def test_two_power_cuts_into_1970_are_not_one_day() -> None:
    first = event_id(at=60 * SECOND, ticks=60 * SECOND)
    same_life = event_id(at=90 * SECOND, ticks=90 * SECOND)
    after_the_cut = event_id(at=60 * SECOND, ticks=2 * HOUR)
    assert first == same_life
    assert first != after_the_cut


def test_with_a_plausible_clock_an_id_counts_for_its_window() -> None:
    at = (NOW // DAY_MS) * DAY_MS + HOUR
    assert at > EARLIEST_AT
    assert event_id(at=at, ticks=5 * HOUR) == event_id(at=at + HOUR, ticks=1 * HOUR)


def test_an_end_is_not_dated_by_a_beginning_in_the_future() -> None:
    """It began while our clock was a year ahead."""
    site = Site(plan=AnyPlan(send_restore=True))
    site.at += 365 * DAY_MS
    first = review(id="1.5-a", start=site.at / 1000)
    assert site.hear(first).events[0].event_at == site.at
    site.at -= 365 * DAY_MS
    site.wait(10 * SECOND)
    [opened] = [entry for entry in site.memory.values() if entry["what"] == "open"]
    row = restore_row(
        opened, location_id="L", event_at=site.at, received_at=site.at, received_ticks=site.ticks, details={}
    )
    assert (row.event_type, row.event_status, row.event_at) == (EventType.ALARM, EventStatus.INACTIVE, site.at)
