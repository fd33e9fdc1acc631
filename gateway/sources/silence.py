"""Silence: a camera of which nothing at all is heard for its `silence_after` -> one trouble, and its end.

Any live message that names a camera is a sign of its life, also one that means nothing; a retained value is not, nor
the word that it is gone. What counts is time in which we listened. We are deaf while the broker or the recorder is
away, while nobody looks, and while the process is down: that time does not count, and once it comes to a tenth of
`silence_after` the camera gets its whole time again, for it may have spoken meanwhile. After any deafness it has at
least its `trouble_delay`. One cause is one trouble: a camera that is known to be gone is not silent, too; if two or
more are due, and no camera of their source was heard for as long, it is the recorder. A message costs one entry of a
dictionary; what has been counted is kept now and then, with other commits. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.model import EventStatus, EventType, NewEvent, derive_event_id, iso_utc
from gateway.sources.memory import Changes, Entry
from gateway.sources.rows import Decision, Plan, milliseconds, remembered, restore_row
from gateway.sources.troubles import postponed, silence_key
from gateway.states import EventState

LOOK_MS: Final = 5_000
LATE_MS: Final = 30_000  # between two looks: nobody listened meanwhile (a suspend, a disk that hung)
SAVE_MS: Final = 60_000  # at most so often, with what is committed anyway
SAVE_ALONE_MS: Final = 600_000  # and without company
DEAF_SHARE: Final = 10
KEPT: Final = "quiet"  # the memory's key for what has been counted
WHAT: Final = "silence"
KIND: Final = "silence"


class Watched(Protocol):
    """`gateway.config.ResolvedCamera`."""

    @property
    def table(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str | None: ...
    @property
    def camera_id(self) -> str: ...
    @property
    def recorder_id(self) -> str | None: ...
    @property
    def signal(self) -> bool: ...
    @property
    def trouble_delay(self) -> float: ...
    @property
    def silence_after(self) -> float | None: ...


@dataclass(slots=True)
class _Quiet:
    """How long nothing has been heard of a camera, or of all cameras of a source."""

    after: int
    delay: int
    ms: int = 0  # in which we listened
    deaf: int = 0  # in which we did not, since the last sign of life
    is_alive: bool = False  # heard since its trouble began

    def hear(self, ago: int) -> None:
        self.ms, self.deaf, self.is_alive = ago, 0, True

    def miss(self, passed: int) -> None:
        self.deaf += passed
        if self.deaf * DEAF_SHARE >= self.after:
            self.begin_anew()
        self.ms = min(self.ms, max(0, self.after - self.delay))

    def begin_anew(self) -> None:
        self.ms = self.deaf = 0

    @property
    def is_worth_keeping(self) -> bool:
        return self.ms >= max(SAVE_MS, self.after // 4)


class Silence:
    def __init__(
        self,
        cameras: Sequence[Watched],
        sources: Collection[str],
        *,
        find_plan: Callable[[str, str | None], Plan | None],
        location_id: str,
    ) -> None:
        """`cameras`: those with a `silence_after`. `sources`: all that are configured. `find_plan(source, None)` gives
        under what the silence of a whole recorder is reported."""
        self._cameras = {camera.table: camera for camera in cameras}
        self._quiet = {
            camera.table: _Quiet(milliseconds(camera.silence_after or 0), milliseconds(camera.trouble_delay))
            for camera in cameras
        }
        longest = max((quiet.after for quiet in self._quiet.values()), default=0)
        delay = max((quiet.delay for quiet in self._quiet.values()), default=0)
        self._of_source = {source: _Quiet(longest, delay) for source in sources}
        self._tables = {(camera.source, camera.name): camera.table for camera in cameras}
        self._learned: dict[str, str] = {}  # of a camera without a source: by which it was heard
        self._find_plan = find_plan
        self._location_id = location_id
        self._save_alone = min([SAVE_ALONE_MS, *(max(SAVE_MS, quiet.after // 4) for quiet in self._quiet.values())])
        self._news: dict[tuple[str, str], int] = {}  # (source, equipment's name) -> ticks, since the last look
        self._open: set[str] = set()  # keys of the memory
        self._urgent: set[object] = set()  # what ends a trouble, or what is kept, as soon as it is heard
        self._is_urgent = False
        self._hearing = False
        self._looked = self._saved = 0

    @property
    def watches(self) -> bool:
        return bool(self._cameras)

    def load(self, memory: Mapping[str, Entry], *, ticks: int, wall: int) -> None:
        """What the last process knew. How long nobody ran only the wall clock can tell; where it cannot, for long."""
        self._looked = self._saved = ticks
        self._open = {key for key, entry in memory.items() if entry["what"] == WHAT}
        kept = memory.get(KEPT)
        if kept is not None:
            down = wall - kept["at"] - (ticks - kept["ticks"])
            for table, (ms, deaf) in kept["of"].items():
                if (quiet := self._quiet.get(table)) is not None:
                    quiet.ms, quiet.deaf = ms, deaf
                    quiet.miss(down if down >= -LATE_MS else quiet.after)
        for source, of_all in self._of_source.items():
            theirs = [self._quiet[table].ms for table in self._cameras if self._source(table) == source]
            of_all.ms = min(theirs, default=0)
        self._watch_for(memory)

    def hear(self, source: str, name: str, ticks: int) -> None:
        """A sign of life, of a camera that need not be configured: it shows that its recorder lives."""
        self._news[source, name] = ticks
        if self._urgent and (source in self._urgent or (source, name) in self._urgent or name in self._urgent):
            self._is_urgent = True

    def reconnected(self) -> None:
        """The connection was gone, however shortly."""
        self._hearing = False

    def look(
        self, memory: Mapping[str, Entry], *, ticks: int, wall: int, hearing: bool, in_company: bool
    ) -> list[Decision]:
        """To be called with every group of messages, and every few seconds; apply each decision.

        `in_company`: something is committed in any case.
        """
        passed = ticks - self._looked
        if not (self._cameras or self._open):
            return []
        if passed < LOOK_MS and not self._is_urgent and hearing == self._hearing:
            return []
        listened = hearing and self._hearing and passed <= LATE_MS
        self._looked, self._hearing, self._is_urgent = ticks, hearing, False
        self._open = {key for key in self._open if key in memory}
        gone = _gone(memory)
        self._count(passed, gone if listened else None)
        self._take_news(ticks)
        decisions = [*self._ended(memory, ticks, wall)]
        if listened:
            decisions += self._begun(gone, ticks, wall)
        if (changes := self._to_keep(memory, ticks, wall, in_company or bool(decisions))) is not None:
            decisions.append(Decision("ignored", memory=changes))
        after = dict(memory.get(KEPT, {"of": {}})["of"])
        for decision in decisions:
            after |= (decision.memory.get(KEPT) or {"of": {}})["of"]
        self._watch_for({KEPT: {"of": after}})
        return decisions

    # What has been heard

    def _source(self, table: str) -> str:
        return self._cameras[table].source or self._learned.get(table) or next(iter(self._of_source), "")

    def _take_news(self, ticks: int) -> None:
        news, self._news = self._news, {}
        for (source, name), at in news.items():
            ago = max(0, ticks - at)
            if (of_all := self._of_source.get(source)) is not None:
                of_all.hear(min(ago, of_all.ms))
            table = self._tables.get((source, name)) or self._tables.get((None, name))
            if table is not None:
                self._quiet[table].hear(min(ago, self._quiet[table].ms))
                self._learned[table] = source

    def _count(self, passed: int, gone: frozenset[str | tuple[str]] | None) -> None:
        """`gone` None: nothing could be heard."""
        for source, of_all in self._of_source.items():
            if silence_key(source, None) not in self._open:
                self._pass(of_all, passed, can_hear=gone is not None and source not in gone)
        for table, quiet in self._quiet.items():
            source = self._source(table)
            if silence_key(source, table) in self._open:
                continue
            explained = silence_key(source, None) in self._open
            can_hear = gone is not None and not explained and source not in gone and (table,) not in gone
            self._pass(quiet, passed, can_hear=can_hear)

    @staticmethod
    def _pass(quiet: _Quiet, passed: int, *, can_hear: bool) -> None:
        if can_hear:
            quiet.ms += passed
        else:
            quiet.miss(passed)

    # What begins and ends

    def _ended(self, memory: Mapping[str, Entry], ticks: int, wall: int) -> Iterator[Decision]:
        # What is open is what the memory says at the next look: the commit may be refused.
        for key in sorted(self._open):
            entry = memory[key]
            of_camera = entry["camera"] is not None
            quiet = self._quiet.get(entry["camera"]) if of_camera else self._watched_source(entry["source"])
            if quiet is not None and not quiet.is_alive:
                continue
            changes: Changes = {key: None}
            if not of_camera:
                changes |= postponed(memory, ticks, entry["source"])
                self._all_anew(entry["source"])
            ended_by = {} if quiet is not None and quiet.is_alive else {"ended_by": "configuration"}
            if entry["camera_id"] is None:
                yield Decision("closing", "a local trouble is over", memory=changes)
                continue
            at = wall - quiet.ms if quiet is not None and quiet.is_alive else wall
            restore = restore_row(
                entry,
                location_id=self._location_id,
                event_at=at,
                received_at=wall,
                received_ticks=ticks,
                details=ended_by,
            )
            yield Decision("stored", None, (restore,), changes)

    def _watched_source(self, source: str) -> _Quiet | None:
        watched = any(camera.source in (None, source) for camera in self._cameras.values())
        return self._of_source.get(source) if watched else None

    def _all_anew(self, source: str) -> None:
        """The recorder is back: those of its cameras that have not spoken yet get their whole time."""
        for table, quiet in self._quiet.items():
            if self._source(table) == source and silence_key(source, table) not in self._open and quiet.ms > LOOK_MS:
                quiet.begin_anew()

    def _begun(self, gone: frozenset[str | tuple[str]], ticks: int, wall: int) -> Iterator[Decision]:
        due: dict[str, list[str]] = {}
        for table, quiet in self._quiet.items():
            source = self._source(table)
            known = {silence_key(source, table), silence_key(source, None)} & self._open
            if quiet.ms >= quiet.after and not known and source not in gone and (table,) not in gone:
                due.setdefault(source, []).append(table)
        for source, tables in due.items():
            together = []
            for table in tables:
                judged = self._whose(source, table)
                if judged is None:
                    continue  # too early to tell
                together.append(table)
                if judged == table:
                    together.pop()
                    yield self._of_camera(table, source, ticks, wall)
            if len(together) == 1:
                yield self._of_camera(together[0], source, ticks, wall)
            elif together:
                yield from self._of_recorder(together, source, ticks, wall)

    def _whose(self, source: str, table: str) -> str | None:
        """The camera's own silence if another one was heard in the second half of its time; the source's if none was
        heard in all of it; None: not known yet."""
        after = self._quiet[table].after
        of_all = self._of_source.get(source)
        alone = sum(self._source(other) == source for other in self._cameras) == 1
        if of_all is None or alone or of_all.ms < after // 2:
            return table
        return source if of_all.ms >= after else None

    def _of_camera(self, table: str, source: str, ticks: int, wall: int) -> Decision:
        camera, quiet = self._cameras[table], self._quiet[table]
        row = self._row(source, camera, quiet, ticks, wall, {"silence_after": camera.silence_after})
        return self._begin(silence_key(source, table), row, quiet, ticks, wall)

    def _of_recorder(self, tables: Sequence[str], source: str, ticks: int, wall: int) -> Iterator[Decision]:
        plan = self._find_plan(source, None)
        if plan is None:
            for table in tables:
                yield self._of_camera(table, source, ticks, wall)
            return
        quiet = self._of_source[source]
        row = self._row(source, plan, quiet, ticks, wall, {"cameras": sorted(tables)[:20], "count": len(tables)})
        yield self._begin(silence_key(source, None), row, quiet, ticks, wall)

    def _row(
        self, source: str, plan: Plan | Watched, quiet: _Quiet, ticks: int, wall: int, details: Mapping[str, Any]
    ) -> NewEvent:
        key = silence_key(source, plan.table)
        return NewEvent(
            event_id=derive_event_id(self._location_id, "silence", key, str(ticks)),
            state=EventState.PENDING,
            event_type=EventType.TROUBLE,
            event_status=EventStatus.ACTIVE,
            source=source,
            camera=plan.table,
            source_camera=None if plan.table is None else self._cameras[plan.table].name,
            location_id=self._location_id,
            recorder_id=plan.recorder_id,
            camera_id=plan.camera_id,
            signal=plan.signal,
            event_at=wall,
            received_at=wall,
            received_ticks=ticks,
            state_key=key,
            kind=KIND,
            details={"silent_since": iso_utc(wall - quiet.ms - quiet.deaf), **details},
        )

    def _begin(self, key: str, row: NewEvent, quiet: _Quiet, ticks: int, wall: int) -> Decision:
        quiet.is_alive = False
        self._open.add(key)
        since_at = wall - quiet.ms - quiet.deaf
        entry = {**remembered(row), "what": WHAT, "open": True, "since_at": since_at}
        if row.camera_id is None:
            reason = f"local only: no camera_id configured for {row.source}"
            return Decision("ignored", reason, memory={key: entry})
        return Decision("stored", None, (row,), {key: entry})

    # Over a restart

    def _to_keep(self, memory: Mapping[str, Entry], ticks: int, wall: int, in_company: bool) -> Changes | None:
        """What has been counted, so that a process that is restarted every night does not begin anew each time."""
        known: Mapping[str, Any] = memory.get(KEPT, {"of": {}})["of"]
        current = {
            table: [quiet.ms, quiet.deaf]
            for table, quiet in self._quiet.items()
            if quiet.is_worth_keeping and silence_key(self._source(table), table) not in self._open
        }
        if not (known or current):
            return None
        # Counted too high after a crash it would be a false silence: what was heard is kept at once.
        untrue = any(table not in current or current[table][0] < ms for table, (ms, _) in known.items())
        if not untrue and ticks - self._saved < (SAVE_MS if in_company else self._save_alone):
            return None
        self._saved = ticks
        return {KEPT: {"what": KEPT, "at": wall, "ticks": ticks, "of": current} if current else None}

    def _watch_for(self, memory: Mapping[str, Entry]) -> None:
        tables = {*memory.get(KEPT, {"of": {}})["of"]}
        tables |= {table for table in self._cameras if silence_key(self._source(table), table) in self._open}
        urgent: set[object] = {source for source in self._of_source if silence_key(source, None) in self._open}
        for table in tables & self._cameras.keys():
            camera = self._cameras[table]
            urgent.add(camera.name if camera.source is None else (camera.source, camera.name))
        self._urgent = urgent


def _gone(memory: Mapping[str, Entry]) -> frozenset[str | tuple[str]]:
    """Recorders, by the name of their source, and cameras, by (table,), that are known to be gone: not silent, too."""
    return frozenset(
        entry["source"] if entry["source_camera"] is None else (entry["camera"],)
        for entry in memory.values()
        if entry["what"] == "trouble" and entry.get("away")
    )
