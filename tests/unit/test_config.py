"""Wrong configurations and exactly what is said about them: place, key, what is wrong, what is allowed; all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError, Fault, Settings, config_path
from gateway.sources.known import known_families
from tests.fakes.configuration import GOOD, Place, spoiled


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_good_configuration_has_neither_faults_nor_warnings(place: Place) -> None:
    assert place.faults(GOOD) == []
    assert place.warnings(GOOD) == []


# (what is changed in the good configuration, what is said)
FORM = {
    "unknown key, nearly right": (
        spoiled(('client_id = "c"', 'client_id = "c"\nkeyid = "k"')),
        ['gateway.toml:9: cloud.keyid: unknown key; did you mean "key_id"?'],
    ),
    "unknown key of another table": (
        spoiled(('username = "u"', 'username = "u"\nlocation_id = "L"')),
        ["gateway.toml:13: broker.location_id: unknown key here; it belongs to [site]"],
    ),
    "unknown key, like nothing": (
        spoiled(more="[log]\nxyzzy = 1\n"),
        ["gateway.toml:26: log.xyzzy: unknown key; allowed: level"],
    ),
    "a feature that is not built": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "/nowhere/outbox.db"\nmirror = "/elsewhere"')),
        [
            "gateway.toml:16: outbox.mirror: unknown key; allowed: "
            "path, media_path, media_limit, keep_closed, give_up_after, reserve, max_message"
        ],
    ),
    "unknown table, nearly right": (
        spoiled(more="[camera.gate]\ncamera_id = 'x'\n"),
        ['gateway.toml:25: camera: unknown table; did you mean "cameras"?'],
    ),
    "unknown table, like nothing": (
        spoiled(more="[weather]\nenabled = true\n"),
        [
            "gateway.toml:25: weather: unknown table; allowed: "
            "site, cloud, broker, outbox, delivery, uploads, defaults, sources, cameras, rules, arming, log"
        ],
    ),
    "missing key: the line of its table": (
        spoiled(('url = "http://127.0.0.1:1"', "")),
        [
            'gateway.toml:4: cloud.url: is missing; needed: base address of the Event API, such as "https://api.chekt.com"'
        ],
    ),
    "missing table: line 1": (
        spoiled(("[site]", "[sit]")),
        [
            'gateway.toml:1: sit: unknown table; did you mean "site"?',
            "gateway.toml:1: site: the table [site] is missing; it needs at least location_id",
        ],
    ),
    "text for a number": (
        spoiled(more='[uploads]\nparallel = "2"\n'),
        ["gateway.toml:26: uploads.parallel: must be a whole number; allowed: digits without quotation marks"],
    ),
    "a fraction for a whole number": (
        spoiled(more="[uploads]\nparallel = 2.0\n"),
        ["gateway.toml:26: uploads.parallel: must be a whole number; allowed: digits without quotation marks"],
    ),
    "a boolean for a number": (
        spoiled(more="[uploads]\nparallel = true\n"),
        ["gateway.toml:26: uploads.parallel: must be a whole number; allowed: digits without quotation marks"],
    ),
    "a number for a boolean": (
        spoiled(more="[defaults]\nsignal = 1\n"),
        ["gateway.toml:26: defaults.signal: must be true or false; allowed: true or false, without quotation marks"],
    ),
    "a number for text": (
        spoiled(('location_id = "L"', "location_id = 12")),
        ['gateway.toml:2: site.location_id: must be text; allowed: a string in quotation marks, such as "text"'],
    ),
    "text for a list": (
        spoiled(('family = "frigate"', 'family = "frigate"\nignore = "cam7"')),
        ['gateway.toml:20: sources.s.ignore: must be a list; allowed: such as ["one", "two"]'],
    ),
    "one wrong element: its own line": (
        spoiled(('family = "frigate"', 'family = "frigate"\nignore = [\n  "cam7",\n  7,\n]')),
        ['gateway.toml:22: sources.s.ignore[1]: must be text; allowed: a string in quotation marks, such as "text"'],
    ),
    "too small": (
        spoiled(more="[uploads]\nparallel = 0\n"),
        ["gateway.toml:26: uploads.parallel: is too small; allowed: 1 or more"],
    ),
    "too large": (
        spoiled(more="[defaults]\nsnapshots = 11\n"),
        ["gateway.toml:26: defaults.snapshots: is too large; allowed: 10 or less"],
    ),
    "a duration out of bounds": (
        spoiled(more='[defaults]\nmax_open = "0s"\n'),
        ['gateway.toml:26: defaults.max_open: is out of bounds; allowed: "1s" to "24h"'],
    ),
    "a size out of bounds": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "/nowhere/outbox.db"\nmax_message = "256MiB"')),
        ['gateway.toml:16: outbox.max_message: is out of bounds; allowed: "1KiB" to "255MiB"'],
    ),
    "off where it has no meaning": (
        spoiled(('camera_id = "id-front"', 'camera_id = "id-front"\nshort_before = "off"')),
        [
            "gateway.toml:23: cameras.front.short_before: "
            'is not a duration; allowed: such as "200ms", "10s", "5m", "2h", "7d"'
        ],
    ),
    "a word that is not allowed": (
        spoiled(('client_id = "c"', 'client_id = "c"\nalgorithm = "RS512"')),
        [
            "gateway.toml:9: cloud.algorithm: is not one of the allowed words; "
            'allowed: "RS256", "RS384", "PS256", "ES256" or "HS256"'
        ],
    ),
    "no number at all": (
        spoiled(('family = "frigate"', 'family = "frigate"\ndialect = "events"\nmin_score = nan')),
        ["gateway.toml:21: sources.s.min_score: must be a finite number; allowed: a number such as 0.7"],
    ),
    "a value where a table belongs": (
        "site = 5\n" + spoiled(("[site]", ""), ('location_id = "L"', ""), ('timezone = "UTC"', "")),
        ["gateway.toml:1: site: must be a table; allowed: [site] with its keys below it"],
    ),
    "a list where tables belong": (
        spoiled(("[cameras.front]", "[[cameras]]"), ('camera_id = "id-back"', ""), ("[cameras.back]", "")),
        ["gateway.toml:21: cameras: must be tables; allowed: one table [cameras.NAME] for each"],
    ),
    "a value where one of the tables belongs": (
        spoiled(more="[cameras]\ngate = 'id-gate'\n"),
        ["gateway.toml:26: cameras.gate: must be a table; allowed: [cameras.gate] with its keys below it"],
    ),
    "a name that is none": (
        spoiled(("[cameras.back]", '[cameras."back door"]')),
        [
            'gateway.toml:23: cameras."back door": is no name for a table here; '
            'allowed: letters, digits, "_" and "-" (name = "…" may be any)'
        ],
    ),
    "a relative path": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "outbox.db"')),
        ['gateway.toml:15: outbox.path: is not a full path; allowed: a path that begins with "/"'],
    ),
}
MEANING = {
    "unknown time zone": (
        spoiled(('timezone = "UTC"', 'timezone = "America/Chikago"')),
        ['gateway.toml:3: site.timezone: unknown time zone; did you mean "America/Chicago"?'],
    ),
    "a time zone that is a folder": (
        spoiled(('timezone = "UTC"', 'timezone = "../etc"')),
        [
            "gateway.toml:3: site.timezone: unknown time zone; "
            'allowed: an IANA name such as "America/Chicago", or a distance such as "+07:00"'
        ],
    ),
    "assertion needs": (
        spoiled(
            ('token_url = "http://127.0.0.1:1/oauth/token"', ""),
            ('audience = "a"', ""),
            ('client_id = "c"', ""),
            ('private_key_file = "rsa.pem"', ""),
        ),
        [
            'gateway.toml:4: cloud.token_url: is missing; needed where auth = "assertion"',
            'gateway.toml:4: cloud.audience: is missing; needed where auth = "assertion"',
            'gateway.toml:4: cloud.client_id: is missing; needed where auth = "assertion"',
            'gateway.toml:4: cloud.private_key_file: is missing; needed where auth = "assertion"',
        ],
    ),
    "HS256 signs with the secret": (
        spoiled(('private_key_file = "rsa.pem"', 'algorithm = "HS256"')),
        [
            "gateway.toml:4: cloud.client_secret_file: is missing; "
            'needed where auth = "assertion" with algorithm = "HS256"'
        ],
    ),
    "client_secret needs": (
        spoiled(
            ('token_url = "http://127.0.0.1:1/oauth/token"', 'auth = "client_secret"'),
            ('audience = "a"', ""),
            ('client_id = "c"', ""),
            ('private_key_file = "rsa.pem"', ""),
        ),
        [
            'gateway.toml:4: cloud.token_url: is missing; needed where auth = "client_secret"',
            'gateway.toml:4: cloud.client_id: is missing; needed where auth = "client_secret"',
            'gateway.toml:4: cloud.client_secret_file: is missing; needed where auth = "client_secret"',
        ],
    ),
    "HS256 belongs to assertion": (
        spoiled(
            (
                'private_key_file = "rsa.pem"',
                'algorithm = "HS256"\nauth = "client_secret"\nclient_secret_file = "long-secret"',
            )
        ),
        ['gateway.toml:9: cloud.algorithm: must not be "HS256" here; allowed only where auth = "assertion"'],
    ),
    "api_key needs": (
        spoiled(('private_key_file = "rsa.pem"', 'auth = "api_key"')),
        ['gateway.toml:4: cloud.api_key_file: is missing; needed where auth = "api_key"'],
    ),
    "x-api-key needs": (
        spoiled(('client_id = "c"', 'client_id = "c"\nevent_header = "x-api-key"')),
        ['gateway.toml:4: cloud.api_key_file: is missing; needed where event_header = "x-api-key"'],
    ),
    "both needs": (
        spoiled(('client_id = "c"', 'client_id = "c"\nevent_header = "both"')),
        ['gateway.toml:4: cloud.api_key_file: is missing; needed where event_header = "both"'],
    ),
    "a field of the token request itself": (
        spoiled(('client_id = "c"', 'client_id = "c"\nextra_token_fields = { grant_type = "x", ok = "y" }')),
        ["gateway.toml:9: cloud.extra_token_fields.grant_type: is a field of the token request itself; leave it out"],
    ),
    "arming on an open broker": (
        spoiled(('username = "u"', ""), ('password_file = "password"', ""), more="[arming]\nenabled = true\n"),
        [
            "gateway.toml:24: arming.enabled: is refused on a broker without password, where anyone could disarm; "
            "allowed: with broker.username and password_file, or with broker.cert_file and key_file"
        ],
    ),
    "arming on a broker with a name for a password": (
        spoiled(('password_file = "password"', ""), more="[arming]\nenabled = true\n"),
        [
            "gateway.toml:25: arming.enabled: is refused on a broker without password, where anyone could disarm; "
            "allowed: with broker.username and password_file, or with broker.cert_file and key_file"
        ],
    ),
    "password without user": (
        spoiled(('username = "u"', "")),
        ["gateway.toml:10: broker.username: is missing; needed where password_file is set"],
    ),
    "certificate without key": (
        spoiled(('url = "mqtt://127.0.0.1:1"', 'url = "mqtts://127.0.0.1:1"\ncert_file = "certificate.pem"')),
        ["gateway.toml:10: broker.key_file: is missing; needed where cert_file is set"],
    ),
    "authorities without TLS": (
        spoiled(('url = "mqtt://127.0.0.1:1"', 'url = "mqtt://127.0.0.1:1"\nca_file = "certificate.pem"')),
        ["gateway.toml:12: broker.ca_file: needs TLS, but url begins with mqtt://; allowed: mqtts or wss"],
    ),
    "retry_first above retry_max": (
        spoiled(('stale_after = "off"', 'stale_after = "off"\nretry_first = "40s"')),
        ["gateway.toml:18: delivery.retry_first: is longer than retry_max; allowed: at most retry_max"],
    ),
    "memory shorter than it must be": (
        spoiled(
            ('path = "/nowhere/outbox.db"', 'path = "/nowhere/outbox.db"\nkeep_closed = "2d"'),
            ('camera_id = "id-back"', 'camera_id = "id-back"\ndedupe_window = "3d"'),
        ),
        [
            "gateway.toml:26: cameras.back.dedupe_window: "
            "is longer than outbox.keep_closed, after which nothing is known; allowed: at most that"
        ],
    ),
    "memory shorter than a default": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "/nowhere/outbox.db"\nkeep_closed = "2h"')),
        ["gateway.toml:16: outbox.keep_closed: is shorter than defaults.dedupe_window; allowed: at least that"],
    ),
    "a folder for the database": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "/etc"')),
        ["gateway.toml:15: outbox.path: is a folder; allowed: the path of a file, such as .../outbox.db"],
    ),
    "a file for the media": (
        spoiled(('path = "/nowhere/outbox.db"', 'path = "/nowhere/outbox.db"\nmedia_path = "/etc/passwd"')),
        ["gateway.toml:16: outbox.media_path: is a file; allowed: the path of a folder"],
    ),
    "a recorder's password without user": (
        spoiled(('family = "frigate"', 'family = "frigate"\npassword_file = "password"')),
        ["gateway.toml:18: sources.s.username: is missing; needed where password_file is set"],
    ),
    "unknown family": (
        spoiled(('family = "frigate"', 'family = "frigatte"')),
        ['gateway.toml:19: sources.s.family: unknown family; did you mean "frigate"?'],
    ),
    "unknown dialect": (
        spoiled(('family = "frigate"', 'family = "frigate"\ndialect = "review"')),
        ['gateway.toml:20: sources.s.dialect: unknown dialect of frigate; did you mean "reviews"?'],
    ),
    "a dialect where there is none": (
        spoiled(('family = "frigate"', 'family = "axis"\ndialect = "json"')),
        ["gateway.toml:20: sources.s.dialect: unknown dialect of axis; this family has none, leave it out"],
    ),
    "an option of another dialect": (
        spoiled(('family = "frigate"', 'family = "frigate"\nmin_score = 0.7')),
        ["gateway.toml:20: sources.s.min_score: is no option of frigate/reviews; allowed: labels, zones"],
    ),
    "an option of another family": (
        spoiled(('family = "frigate"', 'family = "axis"\nlabels = ["person"]')),
        ["gateway.toml:20: sources.s.labels: is no option of axis; allowed: none"],
    ),
    "two sources that hear the same": (
        spoiled(
            ('camera_id = "id-front"', 'camera_id = "id-front"\nsource = "s"'),
            ('camera_id = "id-back"', 'camera_id = "id-back"\nsource = "s"'),
            more='[sources.t]\nfamily = "frigate"\n',
        ),
        [
            "gateway.toml:27: sources.t.topic_prefix: hears the same topics as sources.s; "
            "allowed: a topic_prefix of its own for each"
        ],
    ),
    "unknown source": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-back"\nsource = "t"')),
        ["gateway.toml:25: cameras.back.source: unknown source; allowed: s"],
    ),
    "one id for two cameras": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-front"')),
        [
            "gateway.toml:24: cameras.back.camera_id: is also the id of cameras.front; "
            "allowed: an id of its own for each camera"
        ],
    ),
    "one name for two cameras": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-back"\nname = "front"')),
        [
            "gateway.toml:25: cameras.back.name: the equipment's name is the same as that of cameras.front; "
            "allowed: one camera for each name in a source"
        ],
    ),
    "one name for two cameras, once with what copying brings along": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-back"\nname = " \u200bfront "')),
        [
            "gateway.toml:25: cameras.back.name: the equipment's name is the same as that of cameras.front; "
            "allowed: one camera for each name in a source"
        ],
    ),
    "one name in two sources, one camera without": (
        spoiled(
            ('camera_id = "id-front"', 'camera_id = "id-front"\nname = "x"'),
            ('camera_id = "id-back"', 'camera_id = "id-back"\nname = "x"\nsource = "t"'),
            more='[sources.t]\nfamily = "axis"\nurl = "http://10.0.0.1"\n',
        ),
        ["gateway.toml:21: cameras.front.source: is missing; needed because cameras.back has the same name"],
    ),
    "whose recorder?": (
        spoiled(
            ('camera_id = "id-back"', 'camera_id = "id-back"\nsource = "t"'),
            more='[sources.t]\nfamily = "axis"\nrecorder_id = "R2"\nurl = "http://10.0.0.1"\n',
        ),
        [
            "gateway.toml:21: cameras.front.source: is missing; "
            "needed where a source has its own recorder_id and the camera has none"
        ],
    ),
    "configured and ignored": (
        spoiled(('family = "frigate"', 'family = "frigate"\nignore = ["front"]')),
        ["gateway.toml:20: sources.s.ignore: names cameras.front, too; allowed: one of both"],
    ),
    "a clip of no length": (
        spoiled(more='[defaults]\nshort_before = "0s"\nshort_after = "0s"\n'),
        [
            "gateway.toml:26: defaults.short_before: the clip would be 0 s long; "
            'allowed: short_before and short_after together more than "0s" and at most "60s"'
        ],
    ),
    "a clip that is too long": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-back"\nclip_after = "115s"')),
        [
            "gateway.toml:25: cameras.back.clip_after: the clip would be 125 s long; "
            'allowed: clip_before and clip_after together more than "0s" and at most "120s"'
        ],
    ),
}


@pytest.mark.parametrize("case", [*FORM, *MEANING])
def test_a_fault_is_said_with_its_place_and_what_is_allowed(place: Place, case: str) -> None:
    text, expected = (FORM | MEANING)[case]
    assert place.faults(text) == expected


def test_all_faults_are_said_at_once_those_of_form_and_those_of_meaning(place: Place) -> None:
    """Also those of a table whose required key is missing, and of a camera whose source is faulty."""
    text = spoiled(
        ('location_id = "L"', 'location = "L"'),
        ('timezone = "UTC"', 'timezone = "Mars/Base"'),
        ('url = "http://127.0.0.1:1"', 'url = "http://api.chekt.com"'),
        ('client_id = "c"', ""),
        ('private_key_file = "rsa.pem"', 'private_key_file = "not-a-key"'),
        ('family = "frigate"', "family = 1"),
        ('camera_id = "id-back"', 'camera_id = "id-front"\nsource = "s"'),
    )
    assert place.faults(text) == [
        'gateway.toml:1: site.location_id: is missing; needed: CHeKT\'s id of this site, such as "Z6RSOG"',
        'gateway.toml:2: site.location: unknown key; did you mean "location_id"?',
        "gateway.toml:3: site.timezone: unknown time zone; "
        'allowed: an IANA name such as "America/Chicago", or a distance such as "+07:00"',
        'gateway.toml:4: cloud.client_id: is missing; needed where auth = "assertion"',
        "gateway.toml:5: cloud.url: must begin with https://; "
        "allowed: https, and http only to this machine (127.0.0.1)",
        "gateway.toml:8: cloud.private_key_file: is no private key; "
        "allowed: PEM, beginning with -----BEGIN PRIVATE KEY-----",
        'gateway.toml:18: sources.s.family: must be text; allowed: a string in quotation marks, such as "text"',
        "gateway.toml:23: cameras.back.camera_id: is also the id of cameras.front; "
        "allowed: an id of its own for each camera",
    ]


WITHOUT_PICTURES = [
    (f'camera_id = "{name}"', f'camera_id = "{name}"\nsnapshots = 0') for name in ("id-front", "id-back")
]
WARNINGS = {
    "stale_after not set": (
        spoiled(('stale_after = "off"', "")),
        [
            "gateway.toml:16: delivery.stale_after: "
            "is not set: late alarms signal the monitoring station however late; "
            'set a duration, or "off" to confirm'
        ],
    ),
    "no table for it either": (
        spoiled(("[delivery]", ""), ('stale_after = "off"', "")),
        [
            "gateway.toml:1: delivery.stale_after: is not set: late alarms signal the monitoring station however late; "
            'set a duration, or "off" to confirm'
        ],
    ),
    "never_signal": (
        spoiled(('stale_after = "off"', 'stale_after = "off"\nnever_signal = true')),
        ["gateway.toml:18: delivery.never_signal: no alarm signals the monitoring station"],
    ),
    "no signal by default": (
        spoiled(more="[defaults]\nsignal = false\n"),
        ["gateway.toml:26: defaults.signal: is false: alarms do not signal the monitoring station"],
    ),
    "no signal of one camera": (
        spoiled(('camera_id = "id-back"', 'camera_id = "id-back"\nsignal = false')),
        ["gateway.toml:25: cameras.back.signal: is false: alarms do not signal the monitoring station"],
    ),
    "a broker for anyone": (
        spoiled(
            ('url = "mqtt://127.0.0.1:1"', 'url = "mqtt://192.168.1.5:1"'),
            ('username = "u"', ""),
            ('password_file = "password"', ""),
        ),
        [
            "gateway.toml:11: broker.url: neither username nor cert_file: "
            "anyone on this network may raise or suppress alarms"
        ],
    ),
    "a short session": (
        spoiled(('username = "u"', 'username = "u"\nsession_expiry = "10m"')),
        ["gateway.toml:13: broker.session_expiry: is short: alarms of a longer outage are lost; better: 7d"],
    ),
    "no camera": (
        GOOD[: GOOD.index("[cameras.front]")],
        ["gateway.toml:1: cameras: no camera is configured: every alarm will be kept as unmapped, and none is sent"],
    ),
    "no source": (
        spoiled(("[sources.s]", ""), ('family = "frigate"', ""), ('url = "http://127.0.0.1:5000"', "")),
        ["gateway.toml:1: sources: no source is configured: nothing will be heard"],
    ),
    "pictures that cannot be had": (
        spoiled(
            ('url = "http://127.0.0.1:5000"', ""), ('camera_id = "id-back"', 'camera_id = "id-back"\nsnapshots = 0')
        ),
        ["gateway.toml:18: sources.s.url: is not set: no pictures or clips for front; set it, or snapshots = 0"],
    ),
    "a credential without effect": (
        spoiled(('private_key_file = "rsa.pem"', 'private_key_file = "rsa.pem"\nclient_secret_file = "password"')),
        ['gateway.toml:10: cloud.client_secret_file: has no effect with auth = "assertion", algorithm = "RS256"'],
    ),
    "a placeholder": (
        spoiled(('token_url = "http://127.0.0.1:1/oauth/token"', 'token_url = "https://auth.example.com/oauth/token"')),
        ["gateway.toml:6: cloud.token_url: is a placeholder: put in the address that CHeKT gave you"],
    ),
    "a camera without source where there are two": (
        spoiled(
            ('camera_id = "id-back"', 'camera_id = "id-back"\nsource = "t"'),
            more='[sources.t]\nfamily = "axis"\nurl = "http://10.0.0.1"\n',
        ),
        [
            "gateway.toml:21: cameras.front.source: is not set: "
            "this name means this camera in every source; set it to be safe"
        ],
    ),
    "pictures of a family that has none": (
        spoiled(('family = "frigate"', 'family = "zoneminder"')),
        [
            "gateway.toml:19: sources.s.family: zoneminder gives no pictures or clips: none for front, back; "
            "set snapshots = 0"
        ],
    ),
    "nobody to ask afterwards": (
        spoiled(
            ('family = "frigate"', 'family = "zoneminder"'), ('url = "http://127.0.0.1:5000"', ""), *WITHOUT_PICTURES
        ),
        ["gateway.toml:18: sources.s.url: is not set: what it says while nobody listens is not asked for afterwards"],
    ),
    "an address that is of no use": (
        spoiled(('family = "frigate"', 'family = "unifi"'), *WITHOUT_PICTURES),
        [
            "gateway.toml:20: sources.s.url: has no use: recorders of unifi/homebridge are not asked for anything; "
            "leave it out"
        ],
    ),
    "an address of use": (
        spoiled(('family = "frigate"', 'family = "unifi"\ndialect = "pakerfeldt"'), *WITHOUT_PICTURES),
        [],
    ),
    "a placeholder that was pasted": (
        spoiled(('camera_id = "id-front"', 'camera_id = "ID-FROM-CHEKT-front"')),
        ["gateway.toml:22: cameras.front.camera_id: is still a placeholder; put the camera's id in CHeKT there"],
    ),
    "a placeholder of a panel": (
        spoiled(('family = "frigate"', 'family = "frigate"\ncamera_id = "ID-FROM-CHEKT-s"')),
        ["gateway.toml:20: sources.s.camera_id: is still a placeholder; put the camera's id in CHeKT there"],
    ),
    "one equipment in two dialects": (
        spoiled(
            ('camera_id = "id-front"', 'camera_id = "id-front"\nsource = "s"'),
            ('camera_id = "id-back"', 'camera_id = "id-back"\nsource = "s"'),
            more='[sources.t]\nfamily = "frigate"\ndialect = "events"\n',
        ),
        [
            "gateway.toml:29: sources.t.dialect: speaks of the same equipment as sources.s: "
            "one occurrence may become two alarms"
        ],
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_a_warning_does_not_make_it_wrong(place: Place, case: str) -> None:
    text, expected = WARNINGS[case]
    assert place.warnings(text) == expected


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("", 'dialect = "dsc"', ""),  # other panels, below other topics
        ('topic_prefix = "a"', 'topic_prefix = "b"', ""),
        ("", 'topic_prefix = "alarmo"', "hears the same topics"),
        ("", 'dialect = "ha"', "hears the same topics"),
        ('topic_prefix = "dsc"', 'dialect = "dsc"', "speaks of the same equipment"),
    ],
)
def test_two_sources_that_hear_the_same_are_told_from_those_that_do_not(
    place: Place, first: str, second: str, says: str
) -> None:
    text = spoiled(more=f'[sources.p]\nfamily = "panel"\n{first}\n[sources.q]\nfamily = "panel"\n{second}\n')
    try:
        said = [str(warning) for warning in place.load(text, known=known_families()).warnings]
    except ConfigError as error:
        said = [str(fault) for fault in error.faults]
    assert [line for line in said if "sources.q" in line and says in line] if says else True
    assert ("sources.p" in " ".join(said)) is bool(says)


def test_two_cameras_may_have_one_name_in_two_sources(place: Place) -> None:
    text = spoiled(
        ('camera_id = "id-front"', 'camera_id = "id-front"\nname = "x"\nsource = "s"'),
        ('camera_id = "id-back"', 'camera_id = "id-back"\nname = "x"\nsource = "t"'),
        more='[sources.t]\nfamily = "axis"\nurl = "http://10.0.0.1"\n',
    )
    assert place.faults(text) == []


def test_stale_after_off_is_a_decision_and_not_set_is_none(place: Place) -> None:
    assert place.load(GOOD).settings.delivery.stale_after is None
    assert place.warnings(GOOD) == []
    assert place.load(spoiled(('stale_after = "off"', 'stale_after = "15m"'))).settings.delivery.stale_after == 900


def test_a_faulty_stale_after_is_not_also_called_missing(place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(spoiled(('stale_after = "off"', 'stale_after = "soon"')))
    assert len(caught.value.faults) == 1
    assert caught.value.warnings == ()


def test_a_machine_without_time_zones_is_told_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    assert place.faults(spoiled(('timezone = "UTC"', 'timezone = "Mars/Base"'))) == [
        "gateway.toml:3: site.timezone: unknown time zone; "
        "this machine has no time zones at all: install the package tzdata"
    ]


# The file itself


def test_a_syntax_error_has_its_line(place: Place) -> None:
    assert place.faults(spoiled(('client_id = "c"', 'client_id = "c'))) == [
        "gateway.toml:8: is not TOML: illegal character '\\n'"
    ]


def test_a_syntax_error_at_the_end_has_the_last_line(place: Place) -> None:
    assert place.faults(GOOD + 'name = """\nnever closed\n') == ["gateway.toml:26: is not TOML: unterminated string"]


def test_a_file_that_is_not_utf8_has_the_line_of_the_first_wrong_byte(place: Place) -> None:
    place.file.write_bytes(b'[site]\nlocation_id = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r":2: is not UTF-8; allowed: plain text in UTF-8$"):
        Settings.load(place.file, {})


def test_a_byte_order_mark_is_forgiven(place: Place) -> None:
    assert place.faults("\ufeff" + GOOD) == []


def test_windows_line_ends_do_not_move_the_lines(place: Place) -> None:
    text = spoiled(('timezone = "UTC"', 'timezone = "UCT+1"')).replace("\n", "\r\n")
    assert [fault.split(": ")[0] for fault in place.faults(text)] == ["gateway.toml:3"]


@pytest.mark.parametrize("depth", [100_000])
def test_a_file_that_is_nested_too_deeply_is_a_fault(place: Place, depth: int) -> None:
    assert place.faults("a = " + "[" * depth + "]" * depth) == ["gateway.toml: is nested too deeply"]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file; name another with --config FILE"):
        Settings.load(tmp_path / "none.toml", {})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        Settings.load(tmp_path, {})


def test_an_empty_file_names_what_is_needed(place: Place) -> None:
    assert place.faults("") == [
        "gateway.toml:1: site: the table [site] is missing; it needs at least location_id",
        "gateway.toml:1: cloud: the table [cloud] is missing; it needs at least url",
    ]


def test_a_configuration_that_everyone_can_change_is_a_warning(place: Place) -> None:
    place.write(GOOD).chmod(0o666)
    loaded = Settings.load_with_warnings(place.file, {})
    assert [warning.message for warning in loaded.warnings] == ["can be written by every user; better: chmod 644"]


def test_which_file_it_is() -> None:
    environ = {"CHEKT_GATEWAY_CONFIG": "/b"}
    assert config_path("/a", environ) == Path("/a")
    assert config_path(None, environ) == Path("/b")
    assert config_path(None, {}) == Path("/etc/chekt-gateway/gateway.toml")


def test_a_fault_is_one_line() -> None:
    assert str(Fault("f.toml", 3, "a.b", "is wrong; allowed: c")) == "f.toml:3: a.b: is wrong; allowed: c"
    assert str(Fault("environment", None, "CHEKT_GATEWAY_X", "is wrong")) == "environment: CHEKT_GATEWAY_X: is wrong"


SECRET = "hunter2-sk-1234"
KEYS_FOR_SECRETS = [
    'location_id = "L"\nkey = "{}"',
    'location_id = "L"\ncamera_id = "{}\\n"',
    'location_id = "L"\ntimezone = "{}"',
]


@pytest.mark.parametrize("line", KEYS_FOR_SECRETS)
def test_no_message_repeats_a_value(place: Place, line: str) -> None:
    """It may be a secret in the wrong place."""
    text = spoiled(('location_id = "L"', line.format(SECRET)), ('timezone = "UTC"', ""))
    [fault] = place.faults(text)
    assert SECRET not in fault


@pytest.mark.parametrize(
    "key", ["url", "token_url", "private_key_file", "algorithm", "auth", "proxy", "password", "ca_file"]
)
def test_no_message_about_the_cloud_repeats_a_value(place: Place, key: str) -> None:
    cloud = GOOD[GOOD.index("[cloud]") : GOOD.index("[broker]")]
    lines = [line for line in cloud.splitlines() if not line.startswith(f"{key} =")]
    changed = "\n".join([*lines, f'{key} = "{SECRET}/{SECRET}"', ""])
    faults = place.faults(GOOD.replace(cloud, changed))
    assert faults
    assert SECRET not in "\n".join(faults)
