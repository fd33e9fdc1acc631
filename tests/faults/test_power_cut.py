"""The power goes away at any moment, on a disk that keeps only what was flushed (`forgetful_disk.py`).

Each seed is one cut of one recorded life, of the store (`life.py`) or of intake behind a broker that sends again what
was not acknowledged (`intake_life.py`): the file is opened from what the cut left, and everything that had been
promised is looked for (`power_cut.py`). A failing seed is played again with POWER_SEED=NUMBER, other ones with
POWER_FIRST=NUMBER and POWER_LIVES=NUMBER.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.faults.forgetful_disk import build
from tests.faults.power_cut import CUTS, KINDS, trials

pytestmark = [pytest.mark.needs("cc"), pytest.mark.timeout(600)]

_SEED: Final = os.environ.get("POWER_SEED")
_ONLY: Final = None if _SEED is None else int(_SEED)
_FIRST: Final = int(os.environ.get("POWER_FIRST", "0")) // CUTS
_LIVES: Final = (
    [_ONLY // CUTS] if _ONLY is not None else range(_FIRST, _FIRST + int(os.environ.get("POWER_LIVES", "12")))
)


@pytest.mark.parametrize("mode", ["good", "failing"])
@pytest.mark.parametrize("life", _LIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_promised_survives_any_cut(tmp_path: Path, kind: str, life: int, mode: str) -> None:
    """`failing`: before the cut, flushes fail now and then, and what they had in hand may be gone."""
    found = trials(build(tmp_path), tmp_path, KINDS[kind], life, mode, only=_ONLY)
    broken = [(seed, fault) for seed, fault in found if fault]
    assert not broken, f"again: POWER_SEED={broken[0][0]} scripts/test '{__file__}' -k '{kind} and {mode}'"


@pytest.mark.parametrize("mode", ["normal", "early"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_life_finds_the_faults_that_it_is_for(tmp_path: Path, kind: str, mode: str) -> None:
    """Controls: a commit without a flush, an acknowledgement before the commit. Every life must notice both."""
    for life in range(3):
        faults = [fault for _, fault in trials(build(tmp_path), tmp_path, KINDS[kind], life, mode) if fault]
        assert any("was acknowledged and is gone" in fault for fault in faults), f"life {life}"
