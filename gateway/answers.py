"""What the running gateway tells of itself: to `status` and `retry`, to systemd, to its own supervision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gateway.config import Settings
from gateway.host.disk import free_bytes
from gateway.outbox.store import Mapped, StoreError
from gateway.parts import Parts
from gateway.sources.plans import Plans
from gateway.sources.troubles import is_recorder_gone, open_troubles
from gateway.watch import Facts

SUMMARY_SECONDS: Final = 1.0


async def answer(parts: Parts, request: dict[str, Any]) -> dict[str, Any]:
    """The control channel. Raises for the client's sake; the server tells it."""
    match request.get("command"):
        case "status":
            return status(parts)
        case "retry":
            return await _retry(parts, request)
        case "looked_at":
            event_ids = [str(event_id) for event_id in request.get("event_ids", [])]
            return {"looked_at": await parts.store.looked_at(event_ids)}
        case other:
            return {"error": f"unknown command {other!r}"}


def status(parts: Parts) -> dict[str, Any]:
    gate = parts.delivery.gate
    conditions = [{"level": each.level, "sentence": each.sentence} for each in gate.conditions()]
    judgement = parts.supervision.judgement
    now, ticks = parts.store.clock.wall_ms(), parts.store.clock.ticks_ms()
    return {
        "version": parts.version,
        "broker": parts.session.facts(),
        "cloud": {
            "reachable": gate.reachable,
            "token_expires_at": parts.tokens.expires_at,
            "last_error": parts.tokens.last_error or gate.last_error,
            "clock_offset_ms": parts.tokens.clock_offset_ms,
        },
        "conditions": conditions,
        "store": {"refusal": parts.store.refusal},
        "media": {"troubles": parts.capture.troubles, "uploads_failing": parts.uploads.failing},
        "now": now,
        "clock": {
            "trust": str(judgement.trust),
            "offset_ms": judgement.offset_ms,
            "why": judgement.why,
        },
        "troubles": [*open_troubles(parts.intake.memory), *parts.supervision.open_troubles()],
        "gaps": [{"at": now - (ticks - gap["ticks"]), "reason": gap["reason"]} for gap in parts.gaps[-10:]],
        "catching_up": parts.catch_up.facts(),
        "stuck": parts.beats.stuck(),
    }


async def _retry(parts: Parts, request: dict[str, Any]) -> dict[str, Any]:
    revived = await parts.store.revive(
        None if request.get("all_dead") else [str(event_id) for event_id in request.get("event_ids", [])],
        signal=True if request.get("signal") else None,
        find_camera=find_camera(parts.settings),
    )
    parts.tokens.try_now()
    parts.delivery.gate.try_now(parts.store.clock.ticks_ms())
    parts.bells["delivery"].ring()
    return revived.as_answer()


async def summary(parts: Parts) -> str:
    if parts.store.refusal is not None:
        return f"the store refuses: {parts.store.refusal}; nothing is acknowledged"
    try:
        # A disk that hangs must not keep the watchdog from being fed: whether it is, the steps decide.
        async with asyncio.timeout(SUMMARY_SECONDS):
            counts = await parts.store.counters()
    except TimeoutError:
        return "the disk does not answer; nothing is acknowledged"
    except StoreError as fault:
        return f"the store refuses: {fault}; nothing is acknowledged"
    waiting = counts.get("state_pending", 0) + counts.get("state_sending", 0)
    broker = "connected" if parts.session.connected else "away"
    cloud = {True: "reachable", False: "away", None: "not asked yet"}[parts.delivery.gate.reachable]
    time = "" if parts.supervision.may_compose else "the time is unknown: nothing is sent, "
    return f"{time}broker {broker}, cloud {cloud}, {waiting} waiting, {counts.get('state_delivered', 0)} delivered"


def gather_facts(parts: Parts) -> Facts:
    """For `gateway.watch`: what of the gateway itself is wrong now. The clock is judged elsewhere."""
    broker, gate = parts.session.facts(), parts.delivery.gate
    refused = next((each.sentence for each in gate.conditions() if each.level == "critical"), None)
    pictures = dict(parts.capture.troubles)
    failing = parts.uploads.failing
    gap = parts.gaps[-1] if parts.gaps else None
    return Facts(
        broker=None if broker["connected"] else f"the broker is away: {broker['last_error'] or 'no connection'}",
        store=parts.store.refusal,
        disk=_disk_fault(parts),
        credentials=refused,
        cloud="the cloud does not answer, or somebody else answers at its address" if gate.reachable is False else None,
        uploads=f"{failing} uploads in a row have failed" if failing else None,
        media_disk=pictures.pop("", None),
        recorders=pictures,
        reported=frozenset(entry["source"] for entry in parts.intake.memory.values() if is_recorder_gone(entry)),
        gap=None if gap is None else (gap["ticks"], gap["reason"]),
    )


def _disk_fault(parts: Parts) -> str | None:
    outbox = parts.settings.outbox
    if parts.store.reserve_missing:
        return "the disk of the outbox is full: alarms live on the reserve, or there is no room for one"
    for what, place in (("outbox", outbox.path), ("pictures", outbox.media_path)):
        try:
            free = free_bytes(Path(str(place)))
        except OSError as fault:
            return f"the disk of the {what} cannot be asked: {fault.strerror}"
        if free < 2 * outbox.reserve:
            return f"the disk of the {what} is nearly full: {free >> 20} MiB left"
    return None


def find_camera(settings: Settings) -> Callable[[str, str | None], Mapped | None]:
    """For `retry`: the camera that has been configured since an unmapped event came."""
    plans = Plans(settings)

    def find(source: str, source_camera: str | None) -> Mapped | None:
        plan = plans.find(source, source_camera)
        if plan is None or plan.camera_id is None:
            return None
        return Mapped(plan.table or source, plan.camera_id, plan.recorder_id, plan.signal)

    return find
