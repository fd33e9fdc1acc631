"""The whole configuration: read, checked, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.config import checks, files, reading
from gateway.config.draft import Draft, FamilyFacts, source_of
from gateway.config.faults import ConfigError, Fault, Findings
from gateway.config.tables import (
    Arming,
    Broker,
    Camera,
    CameraDefaults,
    Cloud,
    Delivery,
    Log,
    Outbox,
    OwnFamily,
    ResolvedCamera,
    Site,
    Source,
    Table,
    Uploads,
)

STATE_DIRECTORY: Final = Path("/var/lib/chekt-gateway")  # where systemd's StateDirectory= puts it (systemd.exec(5))


class Settings(BaseSettings):
    """Every table of the file. Take it from `load`; a test may build one from tables."""

    model_config = SettingsConfigDict(
        env_prefix=reading.PREFIX,
        env_nested_delimiter=reading.DELIMITER,
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
    )

    site: Site
    """The protected premises."""
    cloud: Cloud
    """How to reach CHeKT."""
    broker: Broker = Broker()
    """The MQTT broker."""
    outbox: Outbox = Outbox()
    """What is remembered on disk."""
    delivery: Delivery = Delivery()
    """How events go to the cloud."""
    uploads: Uploads = Uploads()
    """How pictures go to the cloud."""
    defaults: CameraDefaults = CameraDefaults()
    """What holds for every camera that does not say otherwise."""
    sources: dict[str, Source] = {}
    """Recorders, families of cameras and panels, by the gateway's own names."""
    cameras: dict[str, Camera] = {}
    """Cameras, by the gateway's own names."""
    rules: dict[str, OwnFamily] = {}
    """Families of equipment that this site describes itself."""
    arming: Arming = Arming()
    """Whether the arming of alarm panels is told."""
    log: Log = Log()
    """What is said in the journal."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Only what it is given: `load` has merged file and environment already and knows where each value stands.
        return (init_settings,)

    @classmethod
    def load(
        cls,
        path: Path | None,
        environ: Mapping[str, str],
        *,
        known: Mapping[str, FamilyFacts] | None = None,
        with_files: bool = True,
    ) -> Settings:
        """The settings, complete and usable. Raises ConfigError with every fault."""
        return cls.load_with_warnings(path, environ, known=known, with_files=with_files).settings

    @classmethod
    def load_with_warnings(
        cls,
        path: Path | None,
        environ: Mapping[str, str],
        *,
        known: Mapping[str, FamilyFacts] | None = None,
        now: datetime | None = None,
        with_files: bool = True,
    ) -> Loaded:
        """As `load`, with what is not wrong but worth a sentence.

        `known`: the families; None: not judged. `now`: to judge the dates of certificates; given by `check` only.
        `with_files`: look into keys and certificates; not for commands that only ask the store, whose user may not
        read them.
        """
        file = reading.config_path(path, environ)
        text, of_file = reading.read_file(file)
        values, variables, faults, warnings = reading.read_environment(cls, environ, of_file)
        findings = Findings(str(file), text, variables, with_files)
        for fault in faults:
            findings.add(fault)
        values = reading.merged(of_file, values)
        tables = reading.read_tables(cls, values, findings)
        tables = _filled(tables, file.absolute().parent, environ)
        draft = Draft(
            **{name: table for name, table in tables.items() if name in Draft.__dataclass_fields__},
            source_names=_names_of("sources", values),
            camera_names=_names_of("cameras", values),
        )
        checks.check(draft, findings, known=known, now=now)
        if checks.is_writable_by_others(file):
            findings.warn((), "can be written by every user; better: chmod 644")
        said = (*findings.warnings, *warnings)
        if findings.faults:
            raise ConfigError(findings.faults, said)
        return Loaded(cls(**tables), file, said)

    def cameras_resolved(self) -> dict[str, ResolvedCamera]:
        """Every camera by the name of its table, complete."""
        return {table: self._resolved(table, camera) for table, camera in self.cameras.items()}

    def _resolved(self, table: str, camera: Camera) -> ResolvedCamera:
        source = source_of(camera, self.sources)
        of_source = self.sources[source].recorder_id if source in self.sources else None
        # By "was it set": hold_off = "off" is None, too, and must not become the default.
        shared = {
            key: getattr(camera if key in camera.model_fields_set else self.defaults, key)
            for key in CameraDefaults.model_fields
        }
        return ResolvedCamera(
            table=table,
            name=camera.name or table,
            source=source,
            camera_id=camera.camera_id,
            recorder_id=camera.recorder_id or of_source or self.site.recorder_id,
            **shared,
        )

    def secret(self, path: str) -> bytes:
        """What a `_file` key of loaded settings names, without the newline at the end. Raises files.FileFault."""
        return files.read_secret(Path(path))


@dataclass(frozen=True)
class Loaded:
    """Good settings, the file they came from, and what is worth a sentence."""

    settings: Settings
    file: Path
    warnings: tuple[Fault, ...]


def _filled(tables: Mapping[str, Any], base: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """File names made absolute, and the defaults that depend on the machine or the site."""
    filled: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            filled[name] = {key: _with_places(table, base, environ) for key, table in value.items()}
        else:
            filled[name] = _with_places(value, base, environ)
    if "outbox" in filled:
        filled["outbox"] = _with_state(filled["outbox"], environ)
    if "broker" in filled and "site" in filled and filled["broker"].client_id is None:
        client_id = f"chekt-gateway-{filled['site'].location_id}"
        filled["broker"] = filled["broker"].model_copy(update={"client_id": client_id})
    return filled


def _names_of(section: str, values: Mapping[str, Any]) -> frozenset[str]:
    tables = values.get(section)
    return frozenset(tables) if isinstance(tables, dict) else frozenset()


def _with_places(table: Table, base: Path, environ: Mapping[str, str]) -> Table:
    named = {key: getattr(table, key) for key in type(table).model_fields if key.endswith("_file")}
    places = {key: str(files.place(name, base, environ)) for key, name in named.items() if name is not None}
    return table.model_copy(update=places)


def _with_state(outbox: Outbox, environ: Mapping[str, str]) -> Outbox:
    # systemd separates several directories with colons (systemd.exec(5), StateDirectory=); ours is the first.
    state = Path((environ.get("STATE_DIRECTORY") or "").split(":")[0] or STATE_DIRECTORY)
    path = outbox.path or str(state / "outbox.db")
    media_path = outbox.media_path or str(Path(path).parent / "media")
    return outbox.model_copy(update={"path": path, "media_path": media_path})
