"""The clock that knows better than the machine's: who is believed, and what a jump does to it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.host import clock as clocks
from gateway.host import timesync
from gateway.host.clock import AGREE_MS, FRESH_MS, MachineView, SystemClock, Trust, Witness, judge
from gateway.model import EARLIEST_AT, iso_utc

HOUR, DAY, YEAR = 3_600_000, 86_400_000, 365 * 86_400_000
NOW = 1_772_366_400_000  # 2026-03-01T12:00:00Z
TICKS = 10 * DAY
RIGHT = NOW - TICKS  # wall time less ticks


@pytest.mark.parametrize(
    ("what", "system_at", "synchronised", "kernel", "cloud", "trust", "base"),
    [
        ("disciplined", NOW, True, None, None, Trust.TRUSTED, RIGHT),
        ("disciplined, and the cloud agrees", NOW, True, None, (RIGHT + 20_000, TICKS), Trust.TRUSTED, RIGHT),
        ("disciplined, the cloud says another time", NOW, True, None, (RIGHT + HOUR, TICKS), Trust.WRONG, RIGHT),
        ("disciplined by somebody in 1970", 5_000, True, None, None, Trust.WRONG, None),
        ("1970 at boot, nobody asked yet", 5_000, False, None, None, Trust.WRONG, None),
        ("1970 at boot, the cloud answered", 5_000, False, None, (RIGHT, TICKS), Trust.WRONG, RIGHT),
        ("a year ahead", NOW + YEAR, False, None, (RIGHT, TICKS), Trust.WRONG, RIGHT),
        ("back an hour", NOW - HOUR, False, None, (RIGHT, TICKS), Trust.WRONG, RIGHT),
        ("back an hour, the kernel knew", NOW - HOUR, False, (RIGHT, TICKS - 5_000), None, Trust.WRONG, RIGHT),
        ("set right after the kernel lost it", NOW, True, (RIGHT - HOUR, TICKS - 5_000), None, Trust.TRUSTED, RIGHT),
        ("no time server, nobody asked", NOW, False, None, None, Trust.UNSURE, None),
        ("nobody can tell", NOW, None, None, None, Trust.UNSURE, None),
        ("no time server, the cloud agrees", NOW, False, None, (RIGHT, TICKS), Trust.TRUSTED, RIGHT),
        ("the cloud agreed long ago", NOW, False, None, (RIGHT, TICKS - 2 * FRESH_MS), Trust.UNSURE, None),
        ("the later is believed", NOW, False, (RIGHT, TICKS - DAY), (RIGHT - HOUR, TICKS), Trust.WRONG, RIGHT - HOUR),
    ],
)  # fmt: skip
def test_who_is_believed(
    what: str,
    system_at: int,
    synchronised: bool | None,
    kernel: tuple[int, int] | None,
    cloud: tuple[int, int] | None,
    trust: Trust,
    base: int | None,
) -> None:
    found = judge(
        system_at,
        TICKS,
        synchronised=synchronised,
        kernel=None if kernel is None else Witness(*kernel),
        cloud=None if cloud is None else Witness(*cloud),
    )
    assert (found.trust, found.base) == (trust, base), what
    if trust is Trust.WRONG:
        assert found.why is not None and "clock" in found.why
    if trust is Trust.TRUSTED:
        assert found.why is None


def test_a_box_without_time_service_is_told_so() -> None:
    assert judge(NOW, TICKS, synchronised=False).why is not None
    assert judge(NOW, TICKS, synchronised=None).why is None  # nobody knows that anything is wrong


class Machine:
    """The machine's two clocks, to be set."""

    def __init__(self) -> None:
        self.wall_ns = NOW * 1_000_000
        self.boot_ns = 7_000_000_000

    def time_ns(self) -> int:
        return self.wall_ns

    def clock_gettime_ns(self, which: int) -> int:
        assert which == self.CLOCK_BOOTTIME
        return self.boot_ns

    CLOCK_BOOTTIME = 7

    def advance(self, ms: int) -> None:
        self.wall_ns += ms * 1_000_000
        self.boot_ns += ms * 1_000_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setattr(clocks, "time", machine)
    yield machine


def test_a_jump_does_not_reach_the_wall_time_once_the_right_one_is_known(machine: Machine) -> None:
    clock = SystemClock(500)
    clock.learn_date(NOW + 1_000)
    found = clock.judge(False)
    assert found.trust is Trust.TRUSTED
    assert found.base is not None
    clock.adopt(found.base)
    for jump in (YEAR, -HOUR, -NOW + 5_000):
        before, ticks = clock.wall_ms(), clock.ticks_ms()
        machine.wall_ns += jump * 1_000_000
        assert clock.wall_ms() == before
        assert clock.ticks_ms() == ticks
        machine.advance(60_000)
        assert clock.wall_ms() == before + 60_000
        assert MachineView(clock).wall_ms() - clock.wall_ms() == jump
        assert clock.judge(False).trust is Trust.WRONG
        machine.wall_ns -= jump * 1_000_000
        assert clock.judge(False).trust is Trust.TRUSTED


def test_a_step_by_the_time_service_is_followed(machine: Machine) -> None:
    clock = SystemClock()
    clock.adopt(clock.judge(True).base)
    machine.wall_ns += 40_000 * 1_000_000
    assert clock.wall_ms() == NOW  # not at once: the kernel has not said yes to it
    assert clock.judge(False).trust is Trust.WRONG
    clock.adopt(clock.judge(True).base)
    assert clock.wall_ms() == NOW + 40_000


def test_a_small_difference_is_no_difference(machine: Machine) -> None:
    clock = SystemClock()
    clock.learn_date(NOW - AGREE_MS + 1_000)
    clock.adopt(clock.judge(False).base)
    assert clock.wall_ms() == NOW


def test_a_cloud_of_1970_is_not_believed(machine: Machine) -> None:
    clock = SystemClock()
    clock.learn_date(EARLIEST_AT - 1)
    assert clock.cloud_heard_ticks is None
    assert clock.judge(False).trust is Trust.UNSURE


def test_whether_somebody_disciplines_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = int(datetime.now(UTC).timestamp())
    stamp = tmp_path / "synchronized"
    for answer, said in (((0x40, now), False), ((0x2001, now), True), ((0x2001, now - 4000), None), (None, None)):
        monkeypatch.setattr(timesync, "_adjtimex", lambda answer=answer: answer)
        assert timesync.synchronised(stamp=stamp) is said
    stamp.touch()
    assert timesync.synchronised(stamp=stamp) is True


def test_the_kernel_answers_in_the_shape_that_we_read() -> None:
    found = timesync._adjtimex()
    if found is not None:
        status, seconds = found
        assert abs(seconds - datetime.now(UTC).timestamp()) < 5
        assert 0 <= status < 0x10000


@given(st.integers())
def test_every_number_is_a_time_for_people(wall_ms: int) -> None:
    text = iso_utc(wall_ms)
    assert len(text) == 24 and text.endswith("Z")
    read = datetime.fromisoformat(text)
    if -62_135_596_800_000 <= wall_ms <= 253_402_300_799_999:
        assert round(read.replace(microsecond=0).timestamp()) * 1000 + read.microsecond // 1000 == wall_ms
