"""What the checks work on: the sections as far as they could be built, and what the caller knows of the families."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.config.tables import (
    Arming,
    Broker,
    Camera,
    CameraDefaults,
    Cloud,
    Delivery,
    Outbox,
    OwnFamily,
    Site,
    Source,
)
from gateway.toml_lines import Path


@dataclass(frozen=True)
class FamilyFacts:
    """What the configuration needs to know of a family of equipment; given by the caller, from the family files."""

    dialects: Mapping[str, frozenset[str]] = field(default_factory=dict)  # each with the options that it knows
    default: str | None = None  # the dialect where a source names none
    options: frozenset[str] = frozenset()  # of a family without dialects
    heartbeats: Mapping[str | None, float] = field(default_factory=dict)  # dialect -> seconds, where there are any
    prefixes: Mapping[str | None, tuple[str, ...]] = field(default_factory=dict)  # dialect -> topic_prefix of its own

    pictures: bool = False  # its recorder is asked for pictures
    remembers: frozenset[str | None] = frozenset()  # dialects whose recorder is asked for what it said unheard

    def is_asked(self, dialect: str | None) -> bool:
        """Whether the recorder is asked afterwards for what nobody heard."""
        return (dialect or self.default) in self.remembers

    def prefixes_of(self, source: Source) -> frozenset[str]:
        """Below which topics a source hears."""
        own = self.prefixes.get(source.dialect or self.default, ())
        return frozenset(own if source.topic_prefix is None else (source.topic_prefix,))

    def heartbeat_of(self, dialect: str | None) -> float | None:
        """About every so many seconds its cameras give a sign of life; None: they say nothing between events."""
        return self.heartbeats.get(dialect or self.default)

    def options_of(self, dialect: str | None) -> frozenset[str]:
        return self.dialects.get(dialect or self.default or "", self.options)


class KnownFamilies(Mapping[str, FamilyFacts]):
    """The built-in families, each read when it is asked for, and who can read a family of the site's own."""

    @abstractmethod
    def read_own(self, name: str, document: Mapping[str, Any]) -> tuple[FamilyFacts, Sequence[tuple[Path, str]]]:
        """Its facts, and what is wrong with it: where in the document, and what."""


@dataclass(frozen=True)
class Draft:
    """The sections as far as they could be built. A required key that is missing or faulty is empty."""

    site: Site | None = None
    cloud: Cloud | None = None
    broker: Broker | None = None
    outbox: Outbox | None = None
    delivery: Delivery | None = None
    defaults: CameraDefaults | None = None
    arming: Arming | None = None
    rules: Mapping[str, OwnFamily] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    source_names: frozenset[str] = frozenset()  # also of sources that could not be built
    camera_names: frozenset[str] = frozenset()

    def source_of(self, camera: Camera) -> str | None:
        """The source of a camera: its own word, else the only one there is."""
        return source_of(camera, self.source_names)


def source_of(camera: Camera, sources: Collection[str]) -> str | None:
    return camera.source or (next(iter(sources)) if len(sources) == 1 else None)
