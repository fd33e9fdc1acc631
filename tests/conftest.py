"""What cannot run on a machine is named at the end; where `CI` is set it fails, unless it stands in `CANNOT_RUN`.

A test says what it needs: `@pytest.mark.needs("mosquitto")`, or asks for a fixture that `FIXTURES_NEED` knows. One that
is marked `small_disk` is run in another process where this one may not mount (tests/faults/small_disk.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from typing import Final

import pytest
from hypothesis import settings

from tests.faults import small_disk

CANNOT_RUN: Final = {
    "systemd-analyze": "a container or chroot without systemd has nothing that could read a unit",
    "systemd-sysusers": "comes with systemd, as above",
}
"""Programs that even a machine of the CI may lack, each with the reason why no script installs it."""

FIXTURES_NEED: Final = {"premises": "mosquitto"}

# How long an example takes says more about the machine than about the code; pytest-timeout ends what hangs.
settings.register_profile("gateway", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)  # of `scripts/test unit step`
settings.load_profile("gateway")

_UNDER_CI: Final = os.environ.get("CI", "").lower() not in ("", "0", "false")
_not_run = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_not_run] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in FIXTURES_NEED:
                item.add_marker(pytest.mark.needs(FIXTURES_NEED[fixture]))


def _missing(item: pytest.Item) -> list[str]:
    return [name for mark in item.iter_markers("needs") for name in mark.args if shutil.which(name) is None]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if _missing(item) or not small_disk.runs_elsewhere(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    item.ihook.pytest_runtest_logreport(report=small_disk.run_elsewhere(item))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what the test before has left for this one
    return True


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = _missing(item)
    if missing:
        excused = all(name in CANNOT_RUN for name in missing)
        reason = f"needs {', '.join(missing)}" + (f": {CANNOT_RUN[missing[0]]}" if excused else "")
        item.config.stash[_not_run][item.nodeid] = reason
        if _UNDER_CI and not excused:
            pytest.fail(f"{reason}, and this is a CI", pytrace=False)
        pytest.skip(reason)
    if item.get_closest_marker("small_disk") is not None and small_disk.way() is None:
        item.config.stash[_not_run][item.nodeid] = small_disk.WHY_NOT
        pytest.skip(small_disk.WHY_NOT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip of any other kind is no way around the list."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.nodeid not in item.config.stash[_not_run]:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        item.config.stash[_not_run][item.nodeid] = reason
        if _UNDER_CI:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nSkipped, and this is a CI: mark it with needs(...), see tests/conftest.py"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Nor is a whole file that skips itself."""
    report = yield
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        collector.config.stash[_not_run][collector.nodeid] = reason
        if _UNDER_CI:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nA whole file was skipped, and this is a CI"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not_run := config.stash[_not_run]:
        terminalreporter.section("could not run on this machine")
        for test, reason in not_run.items():
            terminalreporter.line(f"{test}: {reason}")
