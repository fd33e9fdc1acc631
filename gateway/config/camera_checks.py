"""Faults of meaning in sources and cameras: who is who, which must never be confused, and what cannot be had.

A camera under another camera's id shows the monitoring station the wrong door. So ids and names are unique, and a
camera says its source wherever two could mean it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

from gateway.config.draft import Draft, FamilyFacts
from gateway.config.faults import Findings
from gateway.config.file_checks import any_secret, check_secret
from gateway.config.tables import Camera, CameraDefaults, Source
from gateway.config.zones import check_zone
from gateway.toml_lines import Path

PLACEHOLDER: Final = "ID-FROM-CHEKT-"  # what `discover` writes where CHeKT's id belongs
_BEATS: Final = 3  # so many signs of life may fail to come before it is a silence
# Options that only some families know (`Source`, "Where the family knows them").
FAMILY_OPTIONS: Final = ("labels", "zones", "min_score", "time_format")
_TABLE_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_MAX_SHORT_SECONDS: Final = 60.0  # longer would not be a short clip, and it is fetched first
_MAX_CLIP_SECONDS: Final = 120.0  # some 60 MB of a 4K camera, which a narrow uplink must carry within an hour


def check(draft: Draft, findings: Findings, known: Mapping[str, FamilyFacts] | None) -> None:
    for name, source in draft.sources.items():
        _check_source(name, source, findings, known)
    _check_hearing(draft, findings, known)
    _check_cameras(draft, findings)
    _check_windows(draft, findings)
    _check_pictures(draft, findings, known)
    _check_silence(draft, findings, known)


def _check_source(name: str, source: Source, findings: Findings, known: Mapping[str, FamilyFacts] | None) -> None:
    here: Path = ("sources", name)
    _check_table_name(here, findings)
    check_zone(source.timezone, (*here, "timezone"), findings)
    _check_placeholder(source.camera_id, (*here, "camera_id"), findings)
    if source.password_file and source.username is None:
        findings.fault_once((*here, "username"), "is missing; needed where password_file is set")
    check_secret(source, here, "password_file", findings, any_secret)
    if known is None or not source.family:
        return
    facts = known.get(source.family)
    if facts is None:
        findings.fault((*here, "family"), f"unknown family; {_suggested(source.family, known)}")
        return
    if source.dialect and source.dialect not in facts.dialects:
        allowed = _suggested(source.dialect, facts.dialects) if facts.dialects else "this family has none, leave it out"
        findings.fault((*here, "dialect"), f"unknown dialect of {source.family}; {allowed}")
        return
    options = facts.options_of(source.dialect)
    spoken = "/".join(filter(None, (source.family, source.dialect or facts.default)))
    for option in FAMILY_OPTIONS:
        if option in source.model_fields_set and option not in options:
            allowed = ", ".join(name for name in FAMILY_OPTIONS if name in options) or "none"
            findings.fault((*here, option), f"is no option of {spoken}; allowed: {allowed}")


def _check_placeholder(camera_id: str | None, path: Path, findings: Findings) -> None:
    if camera_id is not None and (camera_id == "…" or camera_id.startswith(PLACEHOLDER)):  # … of an unmapped event
        findings.warn(path, "is still a placeholder; put the camera's id in CHeKT there")


def _check_hearing(draft: Draft, findings: Findings, known: Mapping[str, FamilyFacts] | None) -> None:
    """Two sources that hear the same messages would make two alarms of each."""
    heard: dict[tuple[str, str], str] = {}
    for name, source in draft.sources.items():
        facts = known.get(source.family) if known is not None and source.family else None
        facts = facts or FamilyFacts()
        below = sorted(facts.prefixes_of(source)) or [""]
        other = next((heard[source.family, prefix] for prefix in below if (source.family, prefix) in heard), None)
        heard |= {(source.family, prefix): name for prefix in below}
        if not source.family or other is None:
            continue
        spoken = {draft.sources[table].dialect or facts.default for table in (name, other)}
        if len(spoken) == 1:
            findings.fault(
                ("sources", name, "topic_prefix"),
                f"hears the same topics as sources.{other}; allowed: a topic_prefix of its own for each",
            )
        else:
            findings.warn(
                ("sources", name, "dialect"),
                f"speaks of the same equipment as sources.{other}: one occurrence may become two alarms",
            )


def _check_cameras(draft: Draft, findings: Findings) -> None:
    ids: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for table, camera in draft.cameras.items():
        here: Path = ("cameras", table)
        _check_table_name(here, findings)
        if camera.camera_id and camera.camera_id in ids:
            findings.fault(
                (*here, "camera_id"),
                f"is also the id of cameras.{ids[camera.camera_id]}; allowed: an id of its own for each camera",
            )
        ids.setdefault(camera.camera_id, table)
        _check_placeholder(camera.camera_id, (*here, "camera_id"), findings)
        if camera.source is not None and camera.source not in draft.source_names:
            findings.fault((*here, "source"), f"unknown source; {_suggested(camera.source, draft.source_names)}")
        names.setdefault(camera.name or table, []).append(table)
        _check_belonging(table, camera, draft, findings)
    for tables in names.values():
        _check_same_name(tables, draft, findings)
    if not draft.source_names:
        findings.warn(("sources",), "no source is configured: nothing will be heard")
    if not draft.camera_names:
        findings.warn(("cameras",), "no camera is configured: every alarm will be kept as unmapped, and none is sent")


def _check_belonging(table: str, camera: Camera, draft: Draft, findings: Findings) -> None:
    here: Path = ("cameras", table)
    several = len(draft.source_names) > 1
    if several and camera.source is None and not findings.is_faulty((*here, "source")):
        if camera.recorder_id is None and any(source.recorder_id for source in draft.sources.values()):
            findings.fault(
                (*here, "source"), "is missing; needed where a source has its own recorder_id and the camera has none"
            )
        else:
            findings.warn(
                (*here, "source"), "is not set: this name means this camera in every source; set it to be safe"
            )
    for name, source in draft.sources.items():
        if camera.source in (None, name) and (camera.name or table) in source.ignore:
            findings.fault(("sources", name, "ignore"), f"names cameras.{table}, too; allowed: one of both")


def _check_same_name(tables: list[str], draft: Draft, findings: Findings) -> None:
    """Two cameras may share the equipment's name only in different sources, and then each must name its own."""
    seen: dict[str, str] = {}
    for table in tables:
        source = draft.source_of(draft.cameras[table])
        if source is None:
            others = [other for other in tables if other != table]
            if others:
                why = f"is missing; needed because cameras.{others[0]} has the same name"
                findings.fault_once(("cameras", table, "source"), why)
        elif seen.setdefault(source, table) != table:
            findings.fault(
                ("cameras", table, "name"),
                f"the equipment's name is the same as that of cameras.{seen[source]}; "
                "allowed: one camera for each name in a source",
            )


def _check_windows(draft: Draft, findings: Findings) -> None:
    if draft.defaults is None:
        return
    tables: dict[Path, Camera | CameraDefaults] = {("defaults",): draft.defaults}
    tables |= {("cameras", table): camera for table, camera in draft.cameras.items()}
    for here, table in tables.items():
        for before, after, most in (
            ("short_before", "short_after", _MAX_SHORT_SECONDS),
            ("clip_before", "clip_after", _MAX_CLIP_SECONDS),
        ):
            own = [key for key in (before, after) if key in table.model_fields_set]
            if not own:
                continue  # what it inherits is judged where it stands
            length = sum(getattr(table if key in own else draft.defaults, key) for key in (before, after))
            if not 0 < length <= most:
                allowed = f'allowed: {before} and {after} together more than "0s" and at most "{most:.0f}s"'
                findings.fault((*here, own[0]), f"the clip would be {length:g} s long; {allowed}")


def _check_pictures(draft: Draft, findings: Findings, known: Mapping[str, FamilyFacts] | None) -> None:
    """Pictures that are asked for and cannot be had: one warning for each source. What an address is of no use for."""
    if draft.defaults is None:
        return
    for name, source in draft.sources.items():
        facts = known.get(source.family) if known is not None else None
        has_pictures = facts is None or facts.pictures
        is_asked = facts is None or facts.is_asked(source.dialect)
        without = [
            table
            for table, camera in draft.cameras.items()
            if draft.source_of(camera) == name and _wants_media(camera, draft.defaults)
        ]
        here: Path = ("sources", name, "url")
        if without and not has_pictures:
            findings.warn(
                ("sources", name, "family"),
                f"{source.family} gives no pictures or clips: none for {_listed(without)}; set snapshots = 0",
            )
        if source.url is None and not findings.is_faulty(here):
            if without and has_pictures:
                why = f"is not set: no pictures or clips for {_listed(without)}; set it, or snapshots = 0"
                findings.warn(here, why)
            elif is_asked and not has_pictures:
                findings.warn(here, "is not set: what it says while nobody listens is not asked for afterwards")
        elif source.url is not None and not has_pictures and not is_asked:
            dialect = source.dialect or (facts.default if facts is not None else None)
            spoken = source.family if dialect is None else f"{source.family}/{dialect}"
            findings.warn(here, f"has no use: recorders of {spoken} are not asked for anything; leave it out")
    silent = [table for table, camera in draft.cameras.items() if camera.signal is False]
    if not draft.defaults.signal:
        findings.warn(("defaults", "signal"), "is false: alarms do not signal the monitoring station")
    for table in silent:
        findings.warn(("cameras", table, "signal"), "is false: alarms do not signal the monitoring station")


def _check_silence(draft: Draft, findings: Findings, known: Mapping[str, FamilyFacts] | None) -> None:
    if draft.defaults is None:
        return
    for name, source in draft.sources.items():
        watched: dict[str, tuple[Path, float]] = {}
        for table, camera in draft.cameras.items():
            own = "silence_after" in camera.model_fields_set
            after = (camera if own else draft.defaults).silence_after
            if draft.source_of(camera) == name and after is not None:
                watched[table] = (("cameras", table) if own else ("defaults",)), after
        facts = known.get(source.family) if known is not None else None
        if facts is not None and (not source.dialect or source.dialect in facts.dialects):
            _judge_silence(name, dict(watched.values()), facts.heartbeat_of(source.dialect), findings)
        if len(watched) > 1 and draft.site is not None and not (source.camera_id or draft.site.camera_id):
            findings.warn(
                ("sources", name, "camera_id"),
                "is not set, nor is site.camera_id: if all cameras of this source are silent at once, that is a "
                "trouble of the recorder, and without an id it is not reported",
            )


def _judge_silence(name: str, watched: Mapping[Path, float], beat: float | None, findings: Findings) -> None:
    for path, after in watched.items():
        if beat is None:
            findings.warn(
                (*path, "silence_after"),
                f"is a guess: cameras of sources.{name} say nothing between events, so a quiet time that is longer is "
                'told as a trouble; set it longer than any, or "off"',
            )
        elif after < _BEATS * beat:
            findings.warn(
                (*path, "silence_after"),
                f"is short: cameras of sources.{name} give a sign of life every {beat:g} s; better: at least "
                f'"{_BEATS * beat:.0f}s"',
            )


def _wants_media(camera: Camera, defaults: CameraDefaults) -> bool:
    return any(
        getattr(camera if key in camera.model_fields_set else defaults, key)
        for key in ("snapshots", "short_mp4", "event_mp4")
    )


def _check_table_name(path: Path, findings: Findings) -> None:
    if not _TABLE_NAME.fullmatch(str(path[-1])):
        findings.fault(
            path, 'is no name for a table here; allowed: letters, digits, "_" and "-" (name = "…" may be any)'
        )


def _suggested(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"allowed: {', '.join(sorted(known))}" if known else "there is none"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
