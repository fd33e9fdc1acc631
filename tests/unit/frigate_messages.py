"""Messages as Frigate writes them (docs.frigate.video/integrations/mqtt), with the values that a test cares about."""

from __future__ import annotations

import json
from typing import Any

from gateway.config import Source
from gateway.model import Message, Reading
from gateway.sources.families import load_family
from gateway.sources.rules import CompiledSource, Ignored, Unreadable

NOW = 1_772_366_400_000  # 2026-03-01T12:00:00Z
START = "1772366399.308396"  # 0.7 s before


def compiled(dialect: str | None = None, **settings: Any) -> CompiledSource:
    source = Source(family="frigate", dialect=dialect, **settings)
    return load_family("frigate").compile_source("nvr", source)


def message(
    payload: Any, topic: str = "frigate/reviews", *, at: int = NOW, ticks: int = 1_000_000, **flags: Any
) -> Message:
    raw = payload if isinstance(payload, bytes) else payload.encode() if isinstance(payload, str) else _dumped(payload)
    given: dict[str, Any] = {"qos": 0, "retain": False, "dup": False, "replay": False, **flags}
    return Message(topic=topic, payload=raw, received_at=at, received_ticks=ticks, **given)


def _dumped(payload: Any) -> bytes:
    return json.dumps(payload).encode()


def review(
    kind: str = "new",
    *,
    id: str = "1772366399.308396-abc123",  # noqa: A002, the name that Frigate gives it
    camera: str = "front_door",
    start: Any = float(START),
    end: Any = None,
    severity: str = "alert",
    before: str | None = None,
    objects: tuple[str, ...] = ("person",),
    zones: tuple[str, ...] = ("yard",),
    audio: tuple[str, ...] = (),
) -> dict[str, Any]:
    def half(severity: str, end: Any) -> dict[str, Any]:
        data = {
            "detections": ["1772366397.1-aaa", "1772366398.25-bbb"],
            "objects": list(objects),
            "sub_labels": [],
            "zones": list(zones),
            "audio": list(audio),
        }
        return {
            "id": id,
            "camera": camera,
            "start_time": start,
            "end_time": end,
            "severity": severity,
            "thumb_path": f"/media/frigate/clips/review/thumb-{camera}-{id}.webp",
            "data": data,
        }

    return {"type": kind, "before": half(before or severity, None), "after": half(severity, end)}


def tracked(kind: str = "new", **changed: Any) -> dict[str, Any]:
    after = {
        "id": "1772366399.308396-obj001",
        "camera": "front_door",
        "frame_time": 1772366399.9,
        "label": "person",
        "sub_label": None,
        "top_score": 0.91,
        "score": 0.75,
        "false_positive": False,
        "start_time": float(START),
        "end_time": None,
        "current_zones": [],
        "entered_zones": ["yard"],
        "stationary": False,
        "has_clip": False,
        "has_snapshot": True,
        **changed,
    }
    return {"type": kind, "before": {**after, "false_positive": kind == "new"}, "after": after}


def reading(
    payload: Any, topic: str = "frigate/reviews", source: CompiledSource | None = None, **given: Any
) -> Reading:
    answer = (source or compiled()).read(message(payload, topic, **given))
    assert isinstance(answer, list), answer
    assert len(answer) == 1
    return answer[0]


def reason(answer: list[Reading] | Ignored | Unreadable) -> str:
    assert isinstance(answer, (Ignored, Unreadable)), answer
    return answer.reason
