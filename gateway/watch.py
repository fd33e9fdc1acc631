"""The gateway's own troubles: what was found -> which trouble begins, and which ends.

A trouble begins when its fault has lasted for the delay without 30 s of health in between, and ends after 30 s of
health; so a fault that comes and goes is one trouble, and what heals at once is none. Each has one beginning and one
end with different ids, which are derived from ticks: no two troubles share them, whatever the wall clock says. A
possible gap is an event and no state: it begins at once, closes by itself after five minutes, and further gaps
meanwhile belong to it. What is open is remembered, so that a restart neither repeats nor forgets it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.model import (
    CLOCKS_AGREE_MS,
    EARLIEST_AT,
    EventStatus,
    EventType,
    NewEvent,
    derive_event_id,
)
from gateway.states import EventState

HEALTHY_MS: Final = 30_000
GAP_MS: Final = 5 * 60_000
SOURCE: Final = "gateway"  # of our own events; no table of [sources] has to be called otherwise: ids differ
PREFIX: Final = "own/"  # of the keys in the memory

BROKER: Final = "broker"
STORE: Final = "store"
DISK: Final = "disk"
CLOCK: Final = "clock"
CREDENTIALS: Final = "credentials"
CLOUD: Final = "cloud"
UPLOADS: Final = "uploads"
MEDIA_DISK: Final = "media_disk"
RECORDER: Final = "recorder"  # one trouble for each: "recorder/nvr"
GAP: Final = "gap"

PERSON: Final = frozenset({STORE, DISK, CREDENTIALS, CLOCK})
"""A person must act; the others heal themselves."""

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """How the gateway is, at one moment. Each text says what is wrong; None: nothing."""

    broker: str | None = None
    store: str | None = None
    disk: str | None = None
    clock: str | None = None
    credentials: str | None = None
    cloud: str | None = None
    uploads: str | None = None
    media_disk: str | None = None
    recorders: Mapping[str, str] = field(default_factory=dict)  # source -> why its pictures cannot be had
    reported: frozenset[str] = frozenset()  # sources whose own trouble the equipment's messages tell already
    gap: tuple[int, str] | None = None  # ticks and reason of the newest possible gap


@dataclass(frozen=True, slots=True)
class Under:
    """Under what the troubles are reported. Without a camera_id they stay local."""

    location_id: str
    recorder_id: str | None
    camera_id: str | None
    signal: bool


@dataclass(frozen=True, slots=True)
class Transition:
    """A trouble begins or ends: its row (None: it stays local), and what has to be remembered with it."""

    key: str
    begins: bool
    why: str
    row: NewEvent | None
    memory: Mapping[str, Entry | None]
    seconds: float = 0.0  # how long it lasted


@dataclass
class _State:
    bad_since: int
    why: str
    good_since: int | None = None
    open: Entry | None = None  # as remembered


def findings(facts: Facts, ticks: int) -> dict[str, str]:
    """Condition -> what is wrong."""
    found = {
        BROKER: facts.broker,
        STORE: facts.store,
        DISK: facts.disk,
        CLOCK: facts.clock,
        CREDENTIALS: facts.credentials,
        # Refused credentials say that the cloud is there.
        CLOUD: facts.cloud if facts.credentials is None else None,
        # While the cloud itself is away its storage is no news.
        UPLOADS: facts.uploads if facts.cloud is None else None,
        MEDIA_DISK: facts.media_disk if facts.disk is None else None,
    }
    for source, why in facts.recorders.items():
        if source not in facts.reported:
            found[f"{RECORDER}/{source}"] = why
    if facts.gap is not None and ticks - facts.gap[0] < GAP_MS:
        found[GAP] = facts.gap[1]
    return {key: why for key, why in found.items() if why is not None}


class Watch:
    def __init__(self, under: Under, *, delay_ms: int, remembered: Mapping[str, Entry], ticks: int) -> None:
        """`remembered`: the entries of the memory whose key begins with PREFIX."""
        self._under = under
        self._delay_ms = delay_ms
        self._began_ticks = ticks
        self._states = {
            key.removeprefix(PREFIX): _State(ticks, str(entry["why"]), open=entry)
            for key, entry in remembered.items()
            if key.startswith(PREFIX)
        }

    def see(self, bad: Mapping[str, str], *, ticks: int, wall: int) -> list[Transition]:
        """Call it every few seconds, and when something has changed."""
        transitions = []
        for key, why in bad.items():
            state = self._states.setdefault(key, _State(ticks, why))
            state.why, state.good_since = why, None
            delay = 0 if key == GAP else self._delay_ms
            if state.open is None and ticks - state.bad_since >= delay:
                transitions.append(self._begin(key, state, ticks, wall))
        for key in self._states.keys() - bad.keys():
            state = self._states[key]
            state.good_since = ticks if state.good_since is None else state.good_since
            if ticks - state.good_since >= HEALTHY_MS:
                del self._states[key]
                if state.open is not None:
                    transitions.append(_end(key, state.open, self._under.location_id, ticks, wall, state.good_since))
        return sorted(transitions, key=lambda one: (one.begins, one.key))

    def open_troubles(self, *, ticks: int, wall: int) -> list[dict[str, Any]]:
        """For `status`, in the same words as those of the equipment."""
        return [
            {
                "source": SOURCE,
                "camera": None,
                "kind": key,
                "since_at": self._began_at(state.open, ticks, wall),
                "local": state.open["camera_id"] is None,
                "why": state.why,
            }
            for key, state in sorted(self._states.items())
            if state.open is not None
        ]

    def dated_anew(self, *, ticks: int, wall: int) -> dict[str, Entry]:
        """What is remembered with another time than the right one: what to remember instead."""
        return {
            PREFIX + key: {**state.open, "at": at}
            for key, state in self._states.items()
            if state.open is not None
            and abs((at := self._began_at(state.open, ticks, wall)) - state.open["at"]) > CLOCKS_AGREE_MS
        }

    def remember(self, dated: Mapping[str, Entry]) -> None:
        """What `dated_anew` told is on disk."""
        for key, entry in dated.items():
            self._states[key.removeprefix(PREFIX)].open = entry

    def _began_at(self, entry: Entry, ticks: int, wall: int) -> int:
        """By ticks. Those of an earlier process stood still between the two: it gives the latest time possible, which
        is used only where the one remembered is impossible."""
        latest: int = wall - (ticks - entry["ticks"])
        possible = EARLIEST_AT <= entry["at"] <= latest + CLOCKS_AGREE_MS
        return entry["at"] if possible and entry["ticks"] < self._began_ticks else latest

    def _begin(self, key: str, state: _State, ticks: int, wall: int) -> Transition:
        under = self._under
        state.open = {
            "what": "own",
            "event_id": derive_event_id(under.location_id, SOURCE, key, str(ticks)),
            "at": wall - (ticks - state.bad_since),
            "ticks": state.bad_since,
            "why": state.why,
            "recorder_id": under.recorder_id,
            "camera_id": under.camera_id,
            "signal": under.signal,
        }
        row = _row(key, state.open, under.location_id, EventStatus.ACTIVE, state.open["at"], ticks, wall)
        return Transition(key, True, state.why, row, {PREFIX + key: state.open})


def _end(key: str, entry: Entry, location_id: str, ticks: int, wall: int, good_since: int) -> Transition:
    row = _row(key, entry, location_id, EventStatus.INACTIVE, wall - (ticks - good_since), ticks, wall)
    lasted = (good_since - entry["ticks"]) / 1000
    return Transition(key, False, entry["why"], row, {PREFIX + key: None}, max(lasted, 0.0))


def _row(
    key: str, entry: Entry, location_id: str, status: EventStatus, event_at: int, ticks: int, wall: int
) -> NewEvent | None:
    if entry["camera_id"] is None:
        return None
    begins = status is EventStatus.ACTIVE
    return NewEvent(
        event_id=entry["event_id"] if begins else derive_event_id(entry["event_id"], status),
        state=EventState.PENDING,
        event_type=EventType.TROUBLE,
        event_status=status,
        source=SOURCE,
        camera=None,
        source_camera=None,
        location_id=location_id,
        recorder_id=entry["recorder_id"],
        camera_id=entry["camera_id"],
        signal=entry["signal"],
        event_at=event_at,
        received_at=wall,
        received_ticks=ticks,
        state_key=key,
        kind=key,
        follows=None if begins else entry["event_id"],
        details={"trouble": key, "why": entry["why"]},
    )
