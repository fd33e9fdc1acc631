"""A camera of which nothing is heard: told once, ended once, never for our own deafness, never fifty times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.frigate import review
from tests.step.live_site import LiveSite, live_site

MINUTE, HOUR = 60.0, 3600.0
FRIGATE = """
[defaults]
silence_after = "10m"
[sources.nvr]
family = "frigate"
[cameras.front]
camera_id = "id-front"
[cameras.back]
camera_id = "id-back"
"""
BEGAN, ENDED = ("front", "silence", "active"), ("front", "silence", "inactive")
ALL_BEGAN, ALL_ENDED = ("id-site", "silence", "active"), ("id-site", "silence", "inactive")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[LiveSite]:
    async with live_site(tmp_path, FRIGATE) as site:
        yield site


async def lives(site: LiveSite, camera: str) -> None:
    await site.hear(f"frigate/{camera}/status/detect", "online")


async def only(site: LiveSite, camera: str, seconds: float, every: float = 10.0) -> None:
    """The others say nothing."""
    for _ in range(round(seconds / every)):
        await lives(site, camera)
        await site.passes(every)


async def test_a_silent_camera_is_told_once_and_ended_once(site: LiveSite) -> None:
    await lives(site, "front")
    await only(site, "back", 10 * MINUTE - 10)
    assert site.events() == []
    await only(site, "back", 20)
    assert site.events() == [BEGAN]
    await only(site, "back", 3 * HOUR)
    assert site.events() == [BEGAN]
    assert site.open() == [("front", "silence")]
    await lives(site, "front")
    assert site.events() == [BEGAN, ENDED], "at the sign of life, not at the next look"
    await only(site, "back", MINUTE)
    assert site.open() == []
    [(kind, details, signal, camera_id, source)] = site.outbox.look(
        "SELECT event_type, details, signal, camera_id, source FROM event WHERE event_status = 'active'"
    )
    assert (kind, signal, camera_id, source) == ("trouble", 1, "id-front", "nvr")
    assert '"silent_since":"2026-03-01T12:00:00.000Z"' in details.replace(" ", "")


async def test_a_second_silence_is_another_trouble(site: LiveSite) -> None:
    for _ in range(2):
        await only(site, "back", 11 * MINUTE)
        await lives(site, "front")
    assert site.events() == [BEGAN, ENDED, BEGAN, ENDED]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("frigate/reviews", review("front", severity="alert")),
        ("frigate/reviews", review("front", severity="detection")),
        ("frigate/reviews", review("front", phase="update")),
        ("frigate/front/status/record", "online"),
        ("frigate/front/status/detect", "disabled"),
        ("frigate/stats", {"cameras": {"front": {"camera_fps": 5.0}, "back": {"camera_fps": 0}}}),
    ],
)
async def test_whatever_names_it_is_a_sign_of_life(tmp_path: Path, topic: str, payload: object) -> None:
    async with live_site(tmp_path, FRIGATE) as site:
        for _ in range(4):
            await only(site, "back", 5 * MINUTE)
            await site.hear(topic, payload)
        assert not [event for event in site.events() if event[1] == "silence"]


async def test_a_retained_value_and_the_word_that_it_is_gone_are_none(site: LiveSite) -> None:
    for _ in range(4):
        await only(site, "back", 3 * MINUTE)
        await site.hear("frigate/front/status/detect", "online", replay=True)
        await site.hear("frigate/stats", {"cameras": {"front": {"camera_fps": 0}}})
    assert site.events() == [BEGAN]


async def test_a_camera_that_was_never_heard_is_silent_too(site: LiveSite) -> None:
    await only(site, "back", 11 * MINUTE)
    assert site.events() == [BEGAN]


async def test_off_is_off_and_a_camera_has_its_own(tmp_path: Path) -> None:
    text = FRIGATE.replace('silence_after = "10m"', "").replace(
        'camera_id = "id-front"', 'camera_id = "id-front"\nsilence_after = "2h"'
    )
    async with live_site(tmp_path, text) as site:
        await only(site, "elsewhere", HOUR, every=30)
        assert site.events() == []
        await only(site, "elsewhere", 1.1 * HOUR, every=30)
        assert site.events() == [BEGAN]


async def test_without_it_nothing_is_watched_nor_subscribed(tmp_path: Path) -> None:
    async with live_site(tmp_path, FRIGATE.replace('"10m"', '"off"')) as site:
        assert "frigate/stats" not in site.filters
        await site.passes(2 * HOUR, every=60)
        assert (site.events(), site.open()) == ([], [])


async def test_the_sign_of_life_is_subscribed_where_it_is_needed(tmp_path: Path) -> None:
    two = FRIGATE + '[sources.other]\nfamily = "hanwha"\n'
    two = two.replace('camera_id = "id-', 'source = "nvr"\ncamera_id = "id-')
    async with live_site(tmp_path, two) as site:
        assert "frigate/stats" in site.filters
        assert not [topic for topic in site.filters if "heartbeat" in topic]


# One cause is one trouble


async def test_all_cameras_at_once_are_one_trouble_of_the_recorder(site: LiveSite) -> None:
    for camera in ("front", "back"):
        await lives(site, camera)
        await site.passes(7)
    await site.passes(HOUR)
    assert site.events() == [ALL_BEGAN]
    assert site.open() == [("nvr", "silence")]
    await lives(site, "back")
    assert site.events() == [ALL_BEGAN, ALL_ENDED]
    await only(site, "back", 9 * MINUTE)
    assert site.events() == [ALL_BEGAN, ALL_ENDED], "the other one has its whole time again"
    await only(site, "back", 2 * MINUTE)
    assert site.events() == [ALL_BEGAN, ALL_ENDED, BEGAN]


async def test_a_recorder_that_is_back_at_once_leaves_its_cameras_their_whole_time(site: LiveSite) -> None:
    await site.passes(10 * MINUTE + 10)
    assert site.events() == [ALL_BEGAN]
    await only(site, "back", 9 * MINUTE)
    assert site.events() == [ALL_BEGAN, ALL_ENDED]
    await only(site, "back", 2 * MINUTE)
    assert site.events() == [ALL_BEGAN, ALL_ENDED, BEGAN]


async def test_troubles_of_cameras_wait_while_the_whole_recorder_is_silent(site: LiveSite) -> None:
    await site.passes(11 * MINUTE)
    await site.hear("frigate/front/status/detect", "offline")
    await site.passes(5 * MINUTE + 50)
    assert site.events() == [ALL_BEGAN]
    await lives(site, "back")
    await only(site, "back", 50)
    assert site.events() == [ALL_BEGAN, ALL_ENDED], "it has its delay anew"
    await only(site, "back", 20)
    assert site.events() == [ALL_BEGAN, ALL_ENDED, ("front", "detect", "active")]


async def test_a_lost_recorder_of_fifty_cameras_is_one_trouble(tmp_path: Path) -> None:
    cameras = "".join(f'[cameras.cam{n}]\ncamera_id = "id{n}"\n' for n in range(50))
    text = '[defaults]\nsilence_after = "5m"\n[sources.nvr]\nfamily = "frigate"\n' + cameras
    async with live_site(tmp_path, text) as site:
        for _ in range(3):
            for n in range(50):
                await lives(site, f"cam{n}")
            await site.passes(10)
        await site.passes(HOUR)
        assert site.events() == [ALL_BEGAN]
        for n in range(50):
            await lives(site, f"cam{n}")
        await site.passes(MINUTE)
        assert site.events() == [ALL_BEGAN, ALL_ENDED]


async def test_alarms_hours_apart_before_the_loss_are_one_trouble_too(tmp_path: Path) -> None:
    """Cameras that only tell alarms fall due one by one; nobody was heard in the second half of the time."""
    text = FRIGATE.replace('"10m"', '"12h"')
    async with live_site(tmp_path, text) as site:
        await lives(site, "front")
        await site.passes(3 * HOUR, every=30)
        await lives(site, "back")
        await site.passes(24 * HOUR, every=30)
        assert site.events() == [ALL_BEGAN]


async def test_without_an_id_for_the_recorder_its_silence_stays_here(tmp_path: Path) -> None:
    text = '[site]\nlocation_id = "L"\n[cloud]\nurl = "https://api.chektdev.com"\n' + FRIGATE
    async with live_site(tmp_path, text) as site:
        await site.passes(HOUR)
        assert (site.events(), site.open()) == ([], [("nvr", "silence")])
        await lives(site, "front")
        assert (site.events(), site.open()) == ([], [])


async def test_the_last_will_of_the_recorder_explains_it(site: LiveSite) -> None:
    await lives(site, "front")
    await site.hear("frigate/available", "offline")
    await site.passes(3 * HOUR)
    assert [event[1] for event in site.events()] == ["recorder"]
    await site.hear("frigate/available", "online")
    await only(site, "back", 9 * MINUTE)
    assert len(site.events()) == 2, "the trouble of the recorder is over, and the camera has its whole time"
    await only(site, "back", 2 * MINUTE)
    assert site.events()[2:] == [BEGAN]


async def test_a_last_will_that_comes_after_the_silence_is_not_told_twice(site: LiveSite) -> None:
    await site.passes(11 * MINUTE)
    await site.hear("frigate/available", "offline")
    await site.passes(HOUR)
    assert site.events() == [ALL_BEGAN]
    await site.hear("frigate/available", "online")
    await lives(site, "front")
    await only(site, "back", 2 * MINUTE)
    assert site.events() == [ALL_BEGAN, ALL_ENDED]


async def test_a_camera_that_is_known_to_be_gone_is_not_silent_too(site: LiveSite) -> None:
    await site.hear("frigate/front/status/detect", "offline")
    await only(site, "back", HOUR)
    assert [(event[1], event[2]) for event in site.events()] == [("detect", "active")]


async def test_a_camera_that_is_silent_is_not_told_to_be_gone_too(site: LiveSite) -> None:
    await only(site, "back", 11 * MINUTE)
    await site.hear("frigate/front/status/detect", "offline")
    await only(site, "back", HOUR)
    assert site.events() == [BEGAN]
    await lives(site, "front")
    await only(site, "back", 2 * MINUTE)
    assert site.events() == [BEGAN, ENDED]


# Deafness is not silence


async def test_the_broker_away_is_no_silence(site: LiveSite) -> None:
    await lives(site, "front")
    await lives(site, "back")
    await site.passes(9 * MINUTE)
    await site.connection(False)
    await site.passes(5 * HOUR)
    await site.connection(True)
    await only(site, "back", 9 * MINUTE)
    assert site.events() == []
    await only(site, "back", 2 * MINUTE)
    assert site.events() == [BEGAN], "its whole time has passed again"


async def test_a_moment_of_deafness_takes_nothing_away(site: LiveSite) -> None:
    await only(site, "back", 6 * MINUTE)
    await site.connection(False)
    await site.passes(20)
    await site.connection(True)
    await only(site, "back", 3 * MINUTE)
    assert site.events() == []
    await only(site, "back", 90)
    assert site.events() == [BEGAN]


async def test_after_deafness_a_camera_has_the_trouble_delay_at_least(site: LiveSite) -> None:
    await only(site, "back", 10 * MINUTE - 10)
    await site.connection(False)
    await site.passes(20)
    await site.connection(True)
    await only(site, "back", 50)
    assert site.events() == []
    await only(site, "back", 20)
    assert site.events() == [BEGAN]


async def test_a_connection_that_broke_between_two_looks_is_deafness(site: LiveSite) -> None:
    await only(site, "back", 10 * MINUTE - 10)
    site.intake.reconnected(session_present=False)
    await only(site, "back", 50)
    assert site.events() == []
    await only(site, "back", 20)
    assert site.events() == [BEGAN]


async def test_a_machine_that_slept_has_not_listened(site: LiveSite) -> None:
    await only(site, "back", MINUTE)
    site.clock.advance(8 * HOUR)
    await only(site, "back", 9 * MINUTE)
    assert site.events() == []


# Over restarts


async def test_what_has_been_counted_survives_a_restart(tmp_path: Path) -> None:
    """Else a machine that is restarted each night would never tell a silence of a day."""
    async with live_site(tmp_path, FRIGATE.replace('"10m"', '"24h"')) as site:
        await only(site, "back", 15 * HOUR, every=30)
        await site.crash(down=30)
        await only(site, "back", 8.5 * HOUR, every=30)
        assert site.events() == []
        await only(site, "back", HOUR, every=30)
        assert site.events() == [BEGAN]


async def test_a_long_time_down_gives_the_whole_time_again(site: LiveSite) -> None:
    await only(site, "back", 9 * MINUTE)
    await site.crash(down=5 * HOUR)
    await only(site, "back", 9 * MINUTE)
    assert site.events() == []


async def test_a_clock_set_back_gives_the_whole_time_again(site: LiveSite) -> None:
    await only(site, "back", 9 * MINUTE)
    await site.crash(down=-40 * 365 * 86_400)
    await only(site, "back", 9 * MINUTE)
    assert site.events() == []


async def test_a_restart_neither_repeats_nor_forgets_it(site: LiveSite) -> None:
    await only(site, "back", 11 * MINUTE)
    await site.crash(down=60)
    await only(site, "back", HOUR)
    assert site.events() == [BEGAN]
    assert site.open() == [("front", "silence")]
    await site.crash(down=60)
    await lives(site, "front")
    assert site.events() == [BEGAN, ENDED]
    await site.crash()
    await only(site, "back", 5 * MINUTE)
    assert (site.events(), site.open()) == ([BEGAN, ENDED], [])


async def test_a_sign_of_life_just_before_a_crash_counts(tmp_path: Path) -> None:
    """What is kept must never claim more silence than there was."""
    async with live_site(tmp_path, FRIGATE) as site:
        await only(site, "back", 9 * MINUTE)
        await lives(site, "front")
        await site.crash()
        await only(site, "back", 9 * MINUTE)
        assert site.events() == []


async def test_a_camera_that_is_not_watched_any_more_leaves_no_trouble_behind(site: LiveSite) -> None:
    await only(site, "back", 11 * MINUTE)
    site.configure(FRIGATE.replace('camera_id = "id-front"', 'camera_id = "id-front"\nsilence_after = "off"'))
    await site.crash()
    await site.passes(10)
    assert (site.events(), site.open()) == ([BEGAN, ENDED], [])


async def test_nothing_watched_any_more_leaves_no_trouble_behind(site: LiveSite) -> None:
    await site.passes(11 * MINUTE)
    site.configure(FRIGATE.replace('"10m"', '"off"'))
    await site.crash()
    await site.passes(10)
    assert (site.events(), site.open()) == ([ALL_BEGAN, ALL_ENDED], [])
