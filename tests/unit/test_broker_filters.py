"""Topic filters, and the judgement of retained messages."""

from __future__ import annotations

import pytest

from gateway.sources.broker_filters import QUIET_MS, REPLAY_MS, Filter, ReplayJudge, filter_fault, matches, unique


@pytest.mark.parametrize(
    "topic", ["a", "a/b", "/", "a//b", "+", "#", "+/a/#", "a/+/b", "$SYS/#", "$share/group/a/#", "frigate/reviews", "ü"]
)
def test_these_are_topic_filters(topic: str) -> None:
    assert filter_fault(topic) is None


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", "empty"),
        ("a\0b", "null"),
        ("a" * 65536, "longer"),
        ("ü" * 32768, "longer"),
        ("\ud800", "not text"),
        ("a/#/b", "'#'"),
        ("a#", "'#'"),
        ("#a", "'#'"),
        ("a+/b", "'+'"),
        ("a/b+", "'+'"),
        ("$share/group", "$share"),
        ("$share//a", "$share"),
        ("$share/g+/a", "$share"),
        ("$share/g/", "$share"),
        ("$share/g/a/#/b", "'#'"),
    ],
)
def test_these_are_none_and_why(topic: str, words: str) -> None:
    """MQTT 5.0, 4.7.1, 4.7.3 and 4.8.2."""
    assert words in str(filter_fault(topic))


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a/b/c", True),
        ("+", "a", True),
        ("+", "/a", False),
        ("/+", "/a", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_matching(topic_filter: str, topic: str, expected: bool) -> None:
    """MQTT 5.0, 4.7.1.2 (the level above `#`, too) and 4.7.2 ($ topics)."""
    assert matches(topic_filter, topic) is expected


def test_one_subscription_for_each_filter_and_the_handling_that_tells_most() -> None:
    assert unique([Filter("a", 2), Filter("b", 1), Filter("a", 0), Filter("a", 1)]) == (Filter("a", 0), Filter("b", 1))


def judge(*filters: str) -> ReplayJudge:
    return ReplayJudge(filters or ("a/#",))


def test_a_retained_message_soon_after_the_suback_is_a_replay() -> None:
    replays = judge()
    replays.subscribed(1000)
    assert replays.arrived("a/b", True, 1000 + REPLAY_MS, 0)


def test_also_before_the_suback_however_late_it_is() -> None:
    """MQTT 5.0, 3.8.4: the server may send matching messages before it."""
    replays = judge()
    assert replays.arrived("a/b", True, 1_000_000, 0)


def test_a_message_without_the_flag_is_live() -> None:
    replays = judge()
    replays.subscribed(0)
    assert not replays.arrived("a/b", False, 1, 0)


def test_the_second_one_of_a_topic_is_live() -> None:
    """A broker that sets the flag on live messages (NanoMQ): only the first after a connect is doubtful."""
    replays = judge()
    replays.subscribed(0)
    assert replays.arrived("a/b", True, 1, 0)
    assert not replays.arrived("a/b", True, 2, 0)
    assert replays.arrived("a/c", True, 3, 0)


def test_overlapping_filters_bring_a_copy_each() -> None:
    """Shared subscriptions bring none."""
    replays = judge("a/#", "a/b", "a/c", "$share/g/a/b")
    replays.subscribed(0)
    assert [replays.arrived("a/b", True, 1, 0) for _ in range(3)] == [True, True, False]


def test_a_retained_message_later_is_live() -> None:
    replays = judge()
    replays.subscribed(0)
    assert not replays.arrived("a/b", True, REPLAY_MS + QUIET_MS + 1, 0)
    assert not replays.arrived("a/c", True, REPLAY_MS + QUIET_MS + 2, 5)


def test_what_comes_behind_a_backlog_is_a_replay_however_late() -> None:
    """The broker sends what waited first, as fast as we acknowledge."""
    replays = judge()
    replays.subscribed(0)
    now = 0
    for _ in range(100):
        now += QUIET_MS - 1
        assert not replays.arrived("a/b", False, now, 0)
        now += 60_000
        assert not replays.arrived("a/b", False, now, 3)  # we were slow, not the broker
        now += 60_000
        replays.acknowledged(now)
    assert replays.arrived("a/b", True, now + QUIET_MS - 1, 0)


def test_the_backlog_ends_with_a_silence() -> None:
    replays = judge()
    replays.subscribed(0)
    replays.arrived("a/b", False, 10, 0)
    replays.arrived("a/b", False, 10 + QUIET_MS + 1, 0)
    assert not replays.arrived("a/b", True, REPLAY_MS + 1, 9)
