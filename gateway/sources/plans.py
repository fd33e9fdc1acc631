"""Which configured camera a reading is about, and what holds for what has no camera."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

from gateway.config import ResolvedCamera, Settings, Source, read_zone
from gateway.sources.arming import ArmingTerms
from gateway.sources.families import UnknownFamily, load_family, names
from gateway.sources.histories import can_be_asked, make_history
from gateway.sources.histories.shape import History
from gateway.sources.known import own_family
from gateway.sources.rows import Plan
from gateway.sources.rules import BadSource, CompiledSource, Family


@dataclass(frozen=True, slots=True)
class SitePlan:
    """For the recorder itself, or a panel: the defaults, and the source's or the site's camera_id, if any."""

    table: None
    camera_id: str | None
    recorder_id: str | None
    signal: bool
    snapshots: int
    short_mp4: bool
    event_mp4: bool
    hold_off: float | None
    send_restore: bool
    short_before: float
    short_after: float
    clip_before: float
    clip_after: float
    max_open: float
    trouble_delay: float
    dedupe_window: float
    arming: ArmingTerms | None = None


class Plans:
    """All plans of a configuration, looked up by what the equipment says."""

    def __init__(self, settings: Settings) -> None:
        self._of_source: dict[tuple[str, str], Plan] = {}
        self._of_any: dict[str, Plan] = {}
        for camera in settings.cameras_resolved().values():
            if camera.source is None:
                self._of_any[camera.name] = camera
            else:
                self._of_source[camera.source, camera.name] = camera
        shared = settings.defaults.model_dump()
        self._of_site: dict[str, Plan] = {
            table: SitePlan(
                table=None,
                camera_id=source.camera_id or settings.site.camera_id,
                recorder_id=source.recorder_id or settings.site.recorder_id,
                arming=_arming(settings, source),
                **{key: shared[key] for key in SitePlan.__dataclass_fields__ if key in shared},
            )
            for table, source in settings.sources.items()
        }

    def find(self, source: str, camera: str | None) -> Plan | None:
        """None: a camera that nobody configured."""
        if camera is None:
            return self._of_site.get(source)
        return self._of_source.get((source, camera)) or self._of_any.get(camera)


def _family(settings: Settings, name: str) -> Family:
    """Raises UnknownFamily."""
    own = settings.rules.get(name)
    return load_family(name) if own is None else own_family(name, own.model_dump(exclude_unset=True))


def _arming(settings: Settings, source: Source) -> ArmingTerms | None:
    if not settings.arming.enabled:
        return None

    def reported_as(one: Source) -> str | None:
        return settings.arming.camera_id or one.camera_id or settings.site.camera_id

    camera_id = reported_as(source)
    panels = frozenset(table for table, one in settings.sources.items() if reported_as(one) == camera_id)
    return ArmingTerms(camera_id, settings.arming.trust_retained, panels)


def compile_sources(settings: Settings) -> dict[str, CompiledSource]:
    """Every configured source, ready to read. Raises BadSource, whose key is the one in the file."""
    compiled = {}
    for table, source in settings.sources.items():
        try:
            compiled[table] = _family(settings, source.family).compile_source(table, source, _zone_of(settings, source))
        except BadSource as error:
            raise BadSource(f"sources.{table}.{error.key}", error.why) from None
        except UnknownFamily:
            raise BadSource(f"sources.{table}.family", f"unknown family; known are {', '.join(names())}") from None
    return compiled


def histories_of(settings: Settings) -> dict[str, History]:
    """How those sources are asked for what was missed that can be, and whose recorder has an address."""
    histories = {}
    for table, source in settings.sources.items():
        facts = _family(settings, source.family).facts
        dialect = source.dialect or facts.dialect
        if source.url is None or source.family in settings.rules or not can_be_asked(source.family, dialect):
            continue
        [prefix] = facts.topic_prefix or () if source.topic_prefix is None else (source.topic_prefix,)
        zone = _zone_of(settings, source)
        histories[table] = make_history(source.family, dialect, topic_prefix=prefix, zone=zone)
    return histories


def _zone_of(settings: Settings, source: Source) -> tzinfo:
    name = source.timezone or settings.site.timezone
    return read_zone(name) if name else _zone_of_machine()


def _zone_of_machine() -> tzinfo:
    # localtime(5): the file is the zone with its changes over the year; an offset taken now would not be.
    try:
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC


def filters_of(settings: Settings) -> list[tuple[str, int]]:
    """Topic filters of all sources with their MQTT 5 retain handling: exactly what the rules need."""
    watched = watched_cameras(settings)
    return [
        pair
        for table, source in settings.sources.items()
        for pair in _family(settings, source.family).filters(
            source, heartbeats=any(camera.source in (None, table) for camera in watched)
        )
    ]


def watched_cameras(settings: Settings) -> list[ResolvedCamera]:
    """Those whose silence is a trouble."""
    return [camera for camera in settings.cameras_resolved().values() if camera.silence_after is not None]
