"""A power cut at any moment: the short form of `tests/faults/test_power_cut.py`, which says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.forgetful_disk import build
from tests.faults.power_cut import KINDS, trials

pytestmark = [pytest.mark.needs("cc"), pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("kind", "life", "mode"),
    [("store", 0, "good"), ("store", 5, "failing"), ("intake", 0, "good"), ("intake", 5, "failing")],
)
def test_what_was_promised_survives_the_cut(tmp_path: Path, kind: str, life: int, mode: str) -> None:
    found = trials(build(tmp_path), tmp_path, KINDS[kind], life, mode, count=25)
    broken = [(seed, fault) for seed, fault in found if fault]
    assert not broken, f"again: POWER_SEED={broken[0][0]} scripts/test tests/faults/test_power_cut.py -k {kind}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["normal", "early"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_disk_is_no_friend(tmp_path: Path, kind: str, mode: str) -> None:
    """Controls: without a flush in each commit, and with an acknowledgement too early, something is lost."""
    faults = [fault for _, fault in trials(build(tmp_path), tmp_path, KINDS[kind], 0, mode, count=25) if fault]
    assert any("was acknowledged and is gone" in fault for fault in faults)
