"""Arming: what a panel says of its partitions -> whether the site is armed, told when that changes.

CHeKT discards alarms of a site that is disarmed, so a wrong "disarmed" silences everything, while a wrong "armed" only
lets alarms through. Hence: off unless configured; a site is armed while any partition of any of its panels is; a
retained `armed` is sent, a retained `disarmed` (which may be older than the last arming) only remembered until the
panel says it live; after a lost session the state is told again. ASSUMED: Q15 (CHeKT Event API v0.8 names the type, not
its form): active is armed, inactive disarmed. `triggered`, delays and words that nobody knows change nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gateway.model import EventStatus, Message, NewEvent, Reading
from gateway.sources.memory import Changes, Entry
from gateway.sources.rows import Decision, Plan, identify, milliseconds
from gateway.sources.times import Judged
from gateway.states import EventState


@dataclass(frozen=True, slots=True)
class ArmingTerms:
    """What is configured ([arming], and the panel's source)."""

    camera_id: str | None
    trust_retained: bool
    panels: frozenset[str] = frozenset()
    """The sources that are told under this camera_id: together they are one site."""


def decide_arming(
    reading: Reading,
    message: Message,
    plan: Plan | None,
    memory: Mapping[str, Entry],
    judged: Judged,
    *,
    location_id: str,
) -> Decision:
    terms: ArmingTerms | None = getattr(plan, "arming", None)
    if plan is None or terms is None:
        return Decision("ignored", "arming is not told: [arming] is not enabled")
    key = f"arming/{reading.source}/{reading.state_key}"
    panels = terms.panels | {reading.source}
    changes: Changes = {key: {"what": "partition", "source": reading.source, "state": str(reading.event_status)}}
    if message.replay and reading.event_status is EventStatus.INACTIVE and not terms.trust_retained:
        return Decision("ignored", "a retained disarmed: remembered until the panel says it live", memory=changes)
    told_key = f"armed/{terms.camera_id or ''}"
    told = memory.get(told_key, {"state": None})["state"]
    status = _of_site({**memory, **changes}, panels)
    if status == told:
        return Decision("ignored", f"{_word(status)}, as told before", memory=changes)
    event_id, remembered = identify(reading, message, milliseconds(plan.dedupe_window), memory, location_id)
    changes |= remembered
    changes[told_key] = {"what": "armed", "source": reading.source, "state": str(status)}
    row = NewEvent(
        event_id=event_id,
        state=EventState.PENDING,
        event_type=reading.event_type,
        event_status=status,
        source=reading.source,
        camera=None,
        source_camera=None,
        location_id=location_id,
        recorder_id=None,  # CHeKT Event API v0.8: none for arming
        camera_id=terms.camera_id,
        signal=False,
        event_at=judged.event_at,
        received_at=message.received_at,
        received_ticks=message.received_ticks,
        source_id=reading.source_id,
        state_key=reading.state_key,
        kind=reading.kind,
        topic=message.topic,
        age_unknown_ms=judged.age_unknown_ms,
        details=dict(reading.details),
    )
    return Decision("stored", None, (row,), changes)


def told_again(memory: Mapping[str, Entry]) -> Changes:
    """After a lost session: the next word of a panel is told, though it may be the one told before."""
    return {key: None for key, entry in memory.items() if entry["what"] == "armed"}


def _of_site(memory: Mapping[str, Entry | None], panels: Collection[str]) -> EventStatus:
    partitions = [e for e in memory.values() if e is not None and e["what"] == "partition" and e["source"] in panels]
    armed = any(partition["state"] == EventStatus.ACTIVE for partition in partitions)
    return EventStatus.ACTIVE if armed else EventStatus.INACTIVE


def _word(status: EventStatus) -> str:
    return "armed" if status is EventStatus.ACTIVE else "disarmed"
