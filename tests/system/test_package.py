"""The wheel that an installer gets has everything that the gateway reads, and runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "gateway", folder / "gateway", ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    build = [
        *PIP,
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        f"{folder}/dist",
        str(folder),
    ]
    subprocess.run(build, check=True)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    there = [path.relative_to(ROOT) for path in (ROOT / "gateway").rglob("*") if path.is_file()]
    caches = ("__pycache__", ".mypy_cache", ".ruff_cache")
    here = {str(path) for path in there if not any(part in caches for part in path.parts)} - {"gateway/DESIGN.md"}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == here


def test_the_wheel_runs_where_the_checkout_is_not(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    subprocess.run([*PIP, "install", "--no-index", "--no-deps", "--target", str(place), str(wheel)], check=True)
    environ = {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    where = [sys.executable, "-c", "import gateway; print(gateway.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True).stdout
    assert shown.startswith(str(place))
    families = [f"{place}/bin/chekt-gateway", "families", "--json"]
    done = subprocess.run(families, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True)
    assert '"frigate"' in done.stdout
