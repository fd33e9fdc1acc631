"""What the configuration needs to know of the families, in its own words: it must not import them (layers)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.config import FamilyFacts, KnownFamilies
from gateway.sources.families import UnknownFamily, load_family, names
from gateway.sources.histories import can_be_asked
from gateway.sources.rules import BadFamily, Family, parse_family


class _Known(KnownFamilies):
    """Only the families that a site names are read: all of them cost a slow machine seconds of its start."""

    def __getitem__(self, name: str) -> FamilyFacts:
        try:
            family = load_family(name)
        except UnknownFamily:
            raise KeyError(name) from None
        asked = frozenset(dialect for dialect in family.dialects or (None,) if can_be_asked(name, dialect))
        pictures = any(rule.media is not None for rule in family.facts.rule)
        return replace(_facts(family), pictures=pictures, remembers=asked)

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())

    def read_own(
        self, name: str, document: Mapping[str, Any]
    ) -> tuple[FamilyFacts, Sequence[tuple[tuple[str | int, ...], str]]]:
        try:
            return _facts(own_family(name, document)), ()
        except BadFamily as error:
            # What is wrong is said once; a source that names this family shall not be faulty, too.
            dialects = dict.fromkeys(document.get("dialects", {}), frozenset[str](document.get("options", ())))
            facts = FamilyFacts(dialects, document.get("dialect"), frozenset(document.get("options", ())))
            return facts, [(mistake.place, mistake.why) for mistake in error.mistakes]


def own_family(name: str, document: Mapping[str, Any]) -> Family:
    """A table of [rules] as a family. Raises BadFamily."""
    return parse_family(name, {"title": name, "needs": "", **document})


def known_families() -> KnownFamilies:
    """For `Settings.load(…, known=known_families())`."""
    return _Known()


def _facts(family: Family) -> FamilyFacts:
    return FamilyFacts(
        dialects={dialect: family.options(dialect) for dialect in family.dialects},
        default=family.facts.dialect,
        options=frozenset() if family.dialects else family.options(),
        prefixes={dialect: family.prefixes(dialect) for dialect in family.dialects or (None,)},
        heartbeats={
            dialect: heartbeat
            for dialect in family.dialects or (None,)
            if (heartbeat := family.heartbeat(dialect)) is not None
        },
    )
