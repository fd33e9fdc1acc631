"""Both clocks of the gateway, from this machine (`gateway.model.Clock`), and how far the wall clock can be believed.

Ticks come from CLOCK_BOOTTIME: it never jumps when somebody sets the time, and it goes on while the machine sleeps
(clock_gettime(2)), so that a deadline of the cloud is also over after a suspend. The outbox persists the base, so that
ticks never run backwards over a restart; time in which no gateway ran is not counted.

The wall clock of a small machine may say 1970 at boot, jump, or drift for weeks. Two witnesses know better: the kernel,
which knows whether somebody disciplines its clock, and the `Date` of the cloud. What they said is kept against ticks,
so a jump cannot carry it along; where the machine's clock contradicts it, `wall_ms` goes on from there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.model import EARLIEST_AT, iso_utc

AGREE_MS: Final = 30_000  # `Date` counts whole seconds and travels: less than this says nothing
FRESH_MS: Final = 24 * 60 * 60_000  # a quartz of 50 ppm drifts 4 s in a day
_NS_PER_MS: Final = 1_000_000


class Trust(StrEnum):
    TRUSTED = "trusted"
    UNSURE = "unsure"  # nobody disciplines it, and nobody has contradicted it either
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Witness:
    """What wall time less ticks is, according to somebody who should know."""

    base: int
    ticks: int  # when it was heard


@dataclass(frozen=True, slots=True)
class Judgement:
    trust: Trust
    base: int | None  # wall time less ticks, to be believed from now on; None: there is only the machine's clock
    offset_ms: int | None  # the right time less the machine's; None: unknown
    why: str | None  # for people, with the remedy; None: there is nothing to say


def judge(
    system_at: int,
    ticks: int,
    *,
    synchronised: bool | None,
    kernel: Witness | None = None,
    cloud: Witness | None = None,
) -> Judgement:
    """`synchronised`: what the kernel says now, None if it may not be asked; `kernel`: when it last said yes."""
    base = system_at - ticks
    plausible = system_at >= EARLIEST_AT
    if synchronised and plausible:
        off = 0 if cloud is None else cloud.base - base
        if cloud is None or abs(off) <= AGREE_MS or ticks - cloud.ticks > FRESH_MS:
            return Judgement(Trust.TRUSTED, base, off, None)
        why = f"this machine's clock is synchronised, yet {_words(off)} off the cloud's; check its time server"
        return Judgement(Trust.WRONG, base, off, why)
    heard = max((one for one in (kernel, cloud) if one is not None), key=lambda one: one.ticks, default=None)
    if heard is not None:
        off = heard.base - base
        if abs(off) > AGREE_MS:
            direction = "behind" if off > 0 else "ahead"
            why = f"this machine's clock is {_words(off)} {direction}; the right time is used, check its time sync"
            return Judgement(Trust.WRONG, heard.base, off, why)
        if ticks - heard.ticks <= FRESH_MS:
            return Judgement(Trust.TRUSTED, base, off, None)
    if not plausible:
        why = f"this machine's clock says {iso_utc(system_at)}; nothing is sent before the time is known, check it"
        return Judgement(Trust.WRONG, None, None, why)
    if synchronised is None:
        return Judgement(Trust.UNSURE, None, None, None)
    return Judgement(Trust.UNSURE, None, None, "nothing sets this machine's clock; set up time synchronisation")


def _words(offset_ms: int) -> str:
    seconds = abs(offset_ms) // 1000
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class SystemClock:
    def __init__(self, base_ticks: int = 0) -> None:
        self.began_ticks = base_ticks  # of this life; earlier ticks belong to earlier processes
        self._began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._base: int | None = None
        self._cloud: Witness | None = None
        self._kernel: Witness | None = None

    def wall_ms(self) -> int:
        """The machine's clock, unless it contradicts what `adopt` was told."""
        system, base = self.system_ms(), self._base
        if base is None:
            return system
        steady = base + self.ticks_ms()
        return system if abs(system - steady) <= AGREE_MS else steady

    def ticks_ms(self) -> int:
        return self.began_ticks + (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._began_ns) // _NS_PER_MS

    def system_ms(self) -> int:
        """What the machine's own clock says, right or wrong."""
        return time.time_ns() // _NS_PER_MS

    def learn_date(self, date_at: int) -> None:
        """`Date` of an answer of the cloud that has just come."""
        if date_at >= EARLIEST_AT:
            self._cloud = Witness(date_at - self.ticks_ms(), self.ticks_ms())

    @property
    def cloud_heard_ticks(self) -> int | None:
        """When the cloud last told its time; None: not in this life."""
        return None if self._cloud is None else self._cloud.ticks

    def judge(self, synchronised: bool | None) -> Judgement:
        system, ticks = self.system_ms(), self.ticks_ms()
        found = judge(system, ticks, synchronised=synchronised, kernel=self._kernel, cloud=self._cloud)
        if synchronised and system >= EARLIEST_AT:
            self._kernel = Witness(system - ticks, ticks)
        return found

    def adopt(self, base: int | None) -> None:
        """From now on wall time is believed to be ticks plus this. May be called in any thread."""
        self._base = base


class MachineView:
    """The machine's wall clock as it is, for what measures how wrong it is."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock

    def wall_ms(self) -> int:
        return self._clock.system_ms()

    def ticks_ms(self) -> int:
        return self._clock.ticks_ms()
