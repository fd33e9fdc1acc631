"""Messages in Frigate's form (docs.frigate.video, "MQTT"), written here for the tests."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

_numbers = itertools.count(1)


def review(
    camera: str,
    *,
    phase: str = "new",
    start: float | None = None,
    end: float | None = None,
    review_id: str | None = None,
    severity: str = "alert",
    objects: tuple[str, ...] = ("person",),
) -> dict[str, Any]:
    start = round(time.time(), 6) if start is None else start
    review_id = review_id or f"{start}-t{next(_numbers):05d}"
    body = {
        "id": review_id,
        "camera": camera,
        "start_time": start,
        "end_time": end,
        "severity": severity,
        "thumb_path": f"/media/frigate/clips/review/thumb-{camera}-{review_id}.webp",
        "data": {
            "detections": [f"{round(start - 1.9, 6)}-d{next(_numbers):05d}"],
            "objects": list(objects),
            "sub_labels": [],
            "zones": [],
            "audio": [],
        },
    }
    return {"type": phase, "before": body, "after": body}


def tracked(
    camera: str,
    *,
    phase: str = "new",
    start: float,
    end: float | None = None,
    object_id: str,
    frame: float | None = None,
) -> dict[str, Any]:
    """A tracked object, with all that Frigate says of one."""

    def at(false_positive: bool, ended: float | None) -> dict[str, Any]:
        return {
            "id": object_id,
            "camera": camera,
            "frame_time": start if frame is None else frame,
            "snapshot": {
                "frame_time": start,
                "box": [415, 489, 528, 700],
                "area": 12728,
                "region": [260, 446, 660, 846],
                "score": 0.77546,
                "attributes": [],
            },
            "label": "person",
            "sub_label": None,
            "top_score": 0.958984375,
            "false_positive": false_positive,
            "start_time": start,
            "end_time": ended,
            "score": 0.87890625,
            "box": [424, 500, 536, 712],
            "area": 23744,
            "ratio": 1.25,
            "region": [218, 440, 693, 915],
            "active": True,
            "stationary": False,
            "motionless_count": 0,
            "position_changes": 2,
            "current_zones": ["yard", "driveway"],
            "entered_zones": ["yard", "driveway"],
            "has_clip": False,
            "has_snapshot": True,
            "attributes": {},
            "current_attributes": [],
            "max_severity": None,
        }

    return {"type": phase, "before": at(phase == "new", None), "after": at(False, end)}


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()
