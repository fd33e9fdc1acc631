"""What is wrong with a configuration, said to the person who can repair it: file, line, key, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.toml_lines import Path, lines

ENVIRONMENT: Final = "environment"  # stands where a file name would
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Fault:
    """`FILE:LINE: key: what is wrong; what is allowed`. For a variable `file` is "environment" and `key` its name."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(Exception):
    """The configuration is wrong. Carries every fault, not only the first, and the warnings found on the way."""

    def __init__(self, faults: Sequence[Fault], warnings: Sequence[Fault] = ()) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)
        self.warnings = tuple(warnings)


@dataclass
class Findings:
    """Collects faults and warnings, and knows where each key stands: its line, or its variable."""

    file: str
    text: str = ""
    variables: Mapping[Path, str] = field(default_factory=dict)
    with_files: bool = True  # whether to look into the files that are named

    def __post_init__(self) -> None:
        self._lines = lines(self.text)
        self._faults: list[tuple[Path, Fault]] = []
        self._warnings: list[Fault] = []

    def fault(self, path: Path, message: str) -> None:
        self._faults.append((path, self._at(path, message)))

    def fault_once(self, path: Path, message: str) -> None:
        """Unless this key has a fault already."""
        if not self.is_faulty(path):
            self.fault(path, message)

    def warn(self, path: Path, message: str) -> None:
        self._warnings.append(self._at(path, message))

    def add(self, fault: Fault) -> None:
        self._faults.append(((), fault))

    def is_faulty(self, path: Path) -> bool:
        """Whether this key already has a fault, so that nothing need be concluded from it."""
        return any(known == path for known, _ in self._faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return _in_order(fault for _, fault in self._faults)

    @property
    def warnings(self) -> tuple[Fault, ...]:
        return _in_order(self._warnings)

    def line(self, path: Path) -> int:
        """The line of a key; of a missing key that of its table; of a missing table 1."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return self._lines[path[:length]]
        return 1

    def _at(self, path: Path, message: str) -> Fault:
        for length in range(len(path), 0, -1):
            if path[:length] in self.variables:
                return Fault(ENVIRONMENT, None, self.variables[path[:length]], message)
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                break
            for there, variable in self.variables.items():
                if there[:length] == path[:length]:  # a table that only variables speak of
                    return Fault(ENVIRONMENT, None, variable, f"{written(path)} {message}")
        return Fault(self.file, self.line(path), written(path), message)


def written(path: Path) -> str:
    """A key as one writes it in TOML: `cameras."front door".camera_id`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = part if _BARE_KEY.fullmatch(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
        text += f".{name}" if text else name
    return text


def _in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """By line, the environment last; each once."""
    return tuple(sorted(dict.fromkeys(faults), key=lambda fault: (fault.file == ENVIRONMENT, fault.line or 0)))
