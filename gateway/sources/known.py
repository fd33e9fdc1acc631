"""What the configuration needs to know of the families, in its own words: it must not import them (layers)."""

from __future__ import annotations

from gateway.config import FamilyFacts
from gateway.sources.families import families


def known_families() -> dict[str, FamilyFacts]:
    """For `Settings.load(…, known=known_families())`."""
    return {
        name: FamilyFacts(
            dialects={dialect: family.options(dialect) for dialect in family.dialects},
            default=family.facts.dialect,
            options=frozenset() if family.dialects else family.options(),
        )
        for name, family in families().items()
    }
