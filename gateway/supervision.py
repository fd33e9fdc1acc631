"""The gateway watches itself: own troubles through the same outbox, and the wall clock.

Promises: a trouble of the gateway's own is one row when it begins and one when it ends, or two lines of the journal
where no camera_id is configured for them; while the store refuses they wait here, in order; the clock is judged each
few seconds, and as soon as the right time is known, what was received under a wrong one is dated anew. Which trouble
begins or ends is decided in `watch.py` (pure); here the facts are gathered. Nobody waits for this step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from gateway.bell import Bell
from gateway.host.clock import AGREE_MS, Judgement, SystemClock, Trust
from gateway.model import EARLIEST_AT
from gateway.outbox.store import Added, Correction, IntakeGroup, StoreError
from gateway.sources.times import judge_again
from gateway.watch import PERSON, Facts, Transition, Under, Watch, findings

EVERY_SECONDS: Final = 5.0
BEHIND_MS: Final = 60_000
SETTLED_MS: Final = 15_000  # after a correction: what was on its way into the store then is looked at again
ASK_WRONG_MS: Final = 30_000  # how often the cloud is asked for the time while ours is known to be wrong
ASK_UNSURE_MS: Final = 60 * 60_000  # and while nobody can tell
FIRST_ANSWER_MS: Final = 5_000  # so long a start waits for the cloud's time, where nobody else can tell
HEARD_MS: Final = 6 * 60 * 60_000  # so long the last answer is enough
UNDATED: Final = "undated_since"  # the store's meta: ticks since when the clock has not been known to be right
UNSAVED_EACH: Final = 2  # transitions of one trouble that may wait for the store

log = structlog.get_logger()


class Outbox(Protocol):
    """What supervision needs of the store."""

    async def add(self, group: IntakeGroup) -> Added: ...
    async def memory(self) -> dict[str, str]: ...
    async def correct_times(self, correction: Correction) -> int: ...
    async def get_meta(self, key: str) -> str | None: ...
    async def set_meta(self, key: str, value: str | None) -> None: ...


class Supervision:
    def __init__(
        self,
        *,
        store: Outbox,
        clock: SystemClock,
        bell: Bell,
        facts: Callable[[], Facts],
        under: Under,
        delay_ms: int,
        synchronised: Callable[[], bool | None],
        ask_the_time: Callable[[], Awaitable[bool]],
        on_stored: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`facts` leaves the clock out. `ask_the_time`: any answer of the cloud, whose `Date` the clock learns; whether
        there was one. `on_stored`: there is a row to deliver."""
        self._store = store
        self._clock = clock
        self._bell = bell
        self._facts = facts
        self._under = under
        self._delay_ms = delay_ms
        self._synchronised = synchronised
        self._ask = ask_the_time
        self._on_stored = on_stored
        self._beat = beat
        self._watch: Watch | None = None
        self._unsaved: list[Transition] = []
        self._asking: asyncio.Task[bool] | None = None
        self._asked_ticks: int | None = None
        self._timeless = False  # the cloud answers, and does not say what time it is
        self._good_ticks = clock.began_ticks  # when the clock was last known to be right
        self._corrected_base: int | None = None
        self._settled_ticks = -1
        self._undated = False  # whether the store says UNDATED
        self._suspect_ticks = clock.began_ticks
        self.judgement: Judgement = clock.judge(synchronised())
        self._dated = False
        self._expects_answer = True

    @property
    def may_compose(self) -> bool:
        """Whether the times that a request tells would be believable: no alarm of 1970 goes out."""
        return self._dated and self._is_plausible() and not self._expects_answer

    def open_troubles(self) -> list[dict[str, object]]:
        if self._watch is None:
            return []
        return self._watch.open_troubles(ticks=self._clock.ticks_ms(), wall=self._clock.wall_ms())

    async def load(self) -> None:
        """To be awaited once before anything is sent: what was open when the last process ended, and its times."""
        texts = await self._store.memory()
        remembered = {key: json.loads(text) for key, text in texts.items()}
        self._watch = Watch(self._under, delay_ms=self._delay_ms, remembered=remembered, ticks=self._clock.ticks_ms())
        undated = await self._store.get_meta(UNDATED)
        if undated is not None:
            self._undated, self._suspect_ticks = True, int(undated)
        elif self._is_plausible():
            self._dated = True  # nothing is there to be dated anew
        await self._look_at_the_clock()

    async def run(self, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                self._beat()
                await self.run_once()
                await self._bell.wait(stop, EVERY_SECONDS)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def run_once(self) -> bool:
        """One look. Whether something began or ended."""
        await self._look_at_the_clock()
        return await self._look_at_the_rest()

    # The clock

    async def _look_at_the_clock(self) -> None:
        self.judgement = judgement = self._clock.judge(self._synchronised())
        ticks = self._clock.ticks_ms()
        self._ask_if_needed(judgement, ticks)
        base = judgement.base
        if base is None and not self._dated and judgement.trust is Trust.UNSURE:
            base = self._clock.system_ms() - ticks  # set, and nobody can confirm it: better than 1970
        if base is None:
            self._clock.adopt(None)
        elif not await self._date_by(base, ticks, sure=judgement.base is not None):
            return
        elif ticks > self._settled_ticks and judgement.trust is Trust.TRUSTED:
            self._good_ticks = ticks
        self._become_dated()
        self._end_expecting(judgement, ticks)
        await self._remember_whether_dated(judgement, ticks)

    async def _remember_whether_dated(self, judgement: Judgement, ticks: int) -> None:
        """So that another life knows from where on it must look; normally nowhere, however much waits."""
        undated = judgement.trust is not Trust.TRUSTED or (self._undated and ticks <= self._settled_ticks)
        if undated is not self._undated:
            try:
                await self._store.set_meta(UNDATED, str(self._good_ticks) if undated else None)
            except StoreError:
                return
            self._undated = undated

    async def _date_by(self, base: int, ticks: int, *, sure: bool) -> bool:
        """What was received under another time is dated anew. False: the store refuses."""
        known = self._clock.wall_ms() - ticks if self._corrected_base is None else self._corrected_base
        if not self._dated or abs(base - known) > AGREE_MS or (self._corrected_base is None and self._undated):
            self._settled_ticks = ticks + SETTLED_MS
        if ticks <= self._settled_ticks:
            try:
                count = await self._correct(base, sure)
            except StoreError:
                return False  # told by those who need it for alarms
            if sure:  # all that there was; what is on its way now comes in later passes
                self._good_ticks = max(self._good_ticks, ticks - BEHIND_MS)
                self._suspect_ticks = self._clock.began_ticks
            if count:
                log.warning("times_corrected", count=count, why="they were received while the clock was wrong")
        else:
            self._clock.adopt(base)
        self._corrected_base = base
        return True

    async def _correct(self, base: int, sure: bool) -> int:
        """The clock goes on from `base` with the same commit: no row is composed of an old and a new time."""
        life = self._clock.began_ticks
        correction = Correction(base, self._good_ticks, life, self._suspect_ticks, judge_again, sure, self._clock.adopt)
        return await self._store.correct_times(correction)

    def _become_dated(self) -> None:
        dated = self._is_plausible() and (self._dated or self._timeless or self._corrected_base is not None)
        if dated and not self._dated:
            self._on_stored()  # what waited for the time
        self._dated = dated

    def _end_expecting(self, judgement: Judgement, ticks: int) -> None:
        """A machine that starts hours behind looks plausible: a cloud that is there is heard before it is told."""
        waits = judgement.trust is Trust.UNSURE and self._asking is not None
        if self._expects_answer and not (waits and ticks - self._clock.began_ticks < FIRST_ANSWER_MS):
            self._expects_answer = False
            self._on_stored()

    def _is_plausible(self) -> bool:
        return self._timeless or self._clock.wall_ms() >= EARLIEST_AT

    def _ask_if_needed(self, judgement: Judgement, ticks: int) -> None:
        """On a quiet site no answer of the cloud comes by itself."""
        if self._asking is not None and self._asking.done():
            answered = not self._asking.cancelled() and self._asking.exception() is None and self._asking.result()
            self._timeless = bool(answered) and self._clock.cloud_heard_ticks is None
            self._asking = None
        if self._asking is not None or judgement.trust is Trust.TRUSTED:
            return
        heard = self._clock.cloud_heard_ticks
        urgent = judgement.trust is Trust.WRONG and (heard is None or judgement.base is None)
        if not urgent and heard is not None and ticks - heard < HEARD_MS:
            return
        pause = ASK_WRONG_MS if urgent else ASK_UNSURE_MS
        if self._asked_ticks is None or ticks - self._asked_ticks >= pause:
            self._asked_ticks = ticks
            self._asking = asyncio.create_task(_as_bool(self._ask()), name="ask-the-time")
            self._asking.add_done_callback(lambda _: self._bell.ring())

    # Everything else

    async def _look_at_the_rest(self) -> bool:
        if self._watch is None:
            raise RuntimeError("load() was not awaited")
        ticks = self._clock.ticks_ms()
        bad = findings(self._facts(), ticks)
        if self.judgement.trust is Trust.WRONG and self.judgement.why is not None:
            bad["clock"] = self.judgement.why
        transitions = self._watch.see(bad, ticks=ticks, wall=self._clock.wall_ms())
        for transition in transitions:
            _say(transition)
            self._keep(transition)
        await self._save()
        await self._date_what_is_open()
        return bool(transitions)

    async def _date_what_is_open(self) -> None:
        """For `status`, also after a restart. Not in the rows: these are dated with all others."""
        if self._watch is None or self._unsaved or not self._is_plausible():
            return
        dated = self._watch.dated_anew(ticks=self._clock.ticks_ms(), wall=self._clock.wall_ms())
        if dated:
            try:
                await self._store.add(IntakeGroup(memory={key: json.dumps(entry) for key, entry in dated.items()}))
            except StoreError:
                return
            self._watch.remember(dated)

    def _keep(self, transition: Transition) -> None:
        """A store that refuses for days makes no queue of what comes and goes meanwhile: the first pair stays."""
        waiting = [one for one in self._unsaved if one.key == transition.key]
        if len(waiting) >= UNSAVED_EACH and waiting[-1].begins and not transition.begins:
            self._unsaved.remove(waiting[-1])
            return
        self._unsaved.append(transition)

    async def _save(self) -> None:
        while self._unsaved:
            first = self._unsaved[0]
            row = first.row
            group = IntakeGroup(
                events=() if row is None else (row,),
                memory={key: None if entry is None else json.dumps(entry) for key, entry in first.memory.items()},
                uncounted=frozenset() if row is None else frozenset({row.event_id}),
            )
            try:
                await self._store.add(group)
            except StoreError:
                return  # said by intake; this waits with it
            self._unsaved.remove(first)
            if row is not None:
                facts = {"event_id": row.event_id, "camera": None, "state": str(row.state)}
                status = str(row.event_status)
                log.info("event_stored", event_type=str(row.event_type), event_status=status, **facts)
                self._on_stored()


async def _as_bool(answer: Awaitable[bool]) -> bool:
    return await answer


def _say(transition: Transition) -> None:
    facts = {"trouble": transition.key, "why": transition.why, "local": transition.row is None}
    if not transition.begins:
        log.info("trouble_ended", seconds=round(transition.seconds), **facts)
    elif transition.key in PERSON:
        log.error("trouble_began", **facts)
    else:
        log.warning("trouble_began", **facts)
