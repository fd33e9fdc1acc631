"""What can be set: `Settings.load(path, environ)` gives everything read, checked and filled in, or raises every fault.

`tables` says what can be set, `values` how a value is written, `reading` turns file and environment into tables,
`checks` and `files` find faults of meaning, `faults` says them with file, line and key, `settings` puts it together.
"""

from gateway.config.camera_checks import FAMILY_OPTIONS, PLACEHOLDER
from gateway.config.draft import FamilyFacts, KnownFamilies
from gateway.config.faults import ConfigError, Fault
from gateway.config.files import FileFault, certificate_dates, read_secret
from gateway.config.reading import CONFIG_VARIABLE, DEFAULT_PATH, config_path
from gateway.config.settings import Loaded, Settings
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
from gateway.config.values import (
    Duration,
    OptionalDuration,
    Size,
    is_loopback,
    is_of_the_site,
    parse_duration,
    parse_optional_duration,
    parse_size,
)
from gateway.config.zones import read_zone

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_PATH",
    "FAMILY_OPTIONS",
    "PLACEHOLDER",
    "Arming",
    "Broker",
    "Camera",
    "CameraDefaults",
    "Cloud",
    "ConfigError",
    "Delivery",
    "Duration",
    "FamilyFacts",
    "Fault",
    "FileFault",
    "KnownFamilies",
    "Loaded",
    "Log",
    "OptionalDuration",
    "Outbox",
    "OwnFamily",
    "ResolvedCamera",
    "Settings",
    "Site",
    "Size",
    "Source",
    "Table",
    "Uploads",
    "certificate_dates",
    "config_path",
    "is_loopback",
    "is_of_the_site",
    "parse_duration",
    "parse_optional_duration",
    "parse_size",
    "read_secret",
    "read_zone",
]
