"""Which recorders are asked afterwards: code, data and documents say the same of every family."""

from __future__ import annotations

import re
from datetime import UTC
from pathlib import Path

import pytest

from gateway.sources.families import families
from gateway.sources.histories import can_be_asked, make_history
from gateway.sources.known import known_families

ASKED = {("frigate", "reviews"), ("frigate", "events"), ("zoneminder", None), ("unifi", "pakerfeldt")}
SPOKEN = [(name, dialect) for name, family in families().items() for dialect in family.dialects or (None,)]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "families.md").read_text()


@pytest.mark.parametrize(("family", "dialect"), SPOKEN)
def test_a_family_is_asked_or_not(family: str, dialect: str | None) -> None:
    is_asked = (family, dialect) in ASKED
    assert can_be_asked(family, dialect) is is_asked
    assert known_families()[family].is_asked(dialect) is is_asked
    if is_asked:
        history = make_history(family, dialect, topic_prefix="p", zone=UTC)
        assert all(question.startswith("/") for question in history.questions(1.0, 2.0))


def test_a_family_that_is_not_known_is_not_asked() -> None:
    with pytest.raises(ValueError, match="axis"):
        make_history("axis", None, topic_prefix="p", zone=UTC)


def test_only_frigate_gives_pictures() -> None:
    assert {name for name in families() if known_families()[name].pictures} == {"frigate"}


def test_the_document_says_of_every_family_whether_it_is_asked() -> None:
    section = DOCUMENT.partition("## What nobody heard")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| [^|]{10,} \|$", section, re.MULTILINE)
    said = {name: "yes" in answer for names, answer in rows for name in re.findall(r"`([^`]+)`", names)}
    assert said == {name: any(asked == name for asked, _ in ASKED) for name in families()}
