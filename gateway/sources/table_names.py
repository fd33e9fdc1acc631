"""Names of tables for what equipment calls otherwise: `Hof/Tür 1` -> `Hof_Tur_1`, and one that nobody has yet. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import Final

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")


def free_table(name: str, taken: Collection[str], *, otherwise: str | None = None) -> str:
    """`otherwise`: what to try before numbers, where the name itself is taken."""
    if otherwise is not None and plain_table(name) in taken:
        name = otherwise
    plain = plain_table(name)
    free, number = plain, 2
    while free in taken:
        free, number = f"{plain}_{number}", number + 1
    return free


def plain_table(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    return _NOT_IN_A_NAME.sub("_", "".join(c for c in letters if not unicodedata.combining(c))).strip("_") or "camera"
