"""The families of equipment that we know: one data file each, `NAME.toml`.

They are written in the language of `gateway.sources.language`. This is the only place that opens those files;
everything that reads them is pure.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

from gateway.sources.rules import Family, parse_family

_SUFFIX = ".toml"


class UnknownFamily(KeyError):
    """There is no such family; `str()` is the name."""


@cache
def names() -> tuple[str, ...]:
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in files if f.name.endswith(_SUFFIX)))


@cache
def load_family(name: str) -> Family:
    """Raises UnknownFamily; BadFamily for a file that is wrong, which a test of ours would have found."""
    if name not in names():
        raise UnknownFamily(name)
    return parse_family(name, tomllib.loads(resources.files(__name__).joinpath(name + _SUFFIX).read_text("utf-8")))


def families() -> dict[str, Family]:
    """All of them, by name."""
    return {name: load_family(name) for name in names()}
