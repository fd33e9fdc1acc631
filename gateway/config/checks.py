"""Faults of meaning: what keys, tables and files say to each other. Offline, and all in one pass.

Works on what is left after faults of form (`gateway.config.reading`); concludes nothing from a key that is faulty
already. Dates of certificates are judged only where the caller gives the time: `run` gives none, because a box without
a battery may boot with a wrong clock, and must not refuse to guard a site for that.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path as FilePath
from typing import Final
from urllib.parse import urlsplit

from gateway.config import camera_checks, files
from gateway.config.draft import Draft, FamilyFacts, KnownFamilies
from gateway.config.faults import Findings
from gateway.config.file_checks import any_secret, check_certificates, check_secret
from gateway.config.tables import Broker, Cloud, Delivery, Outbox, Site
from gateway.config.values import is_loopback
from gateway.config.zones import check_zone
from gateway.toml_lines import Path

# Written by the token request itself: RFC 6749, 4.4.2; RFC 7523, 2.2.
_OWN_TOKEN_FIELDS: Final = ("grant_type", "client_assertion", "client_assertion_type", "client_secret", "audience")
_PLACEHOLDERS: Final = (".example.com", ".example.org", ".example.net", ".example", ".invalid")  # RFC 2606
_MIN_SESSION_SECONDS: Final = 3600.0


def check(
    draft: Draft, findings: Findings, *, known: Mapping[str, FamilyFacts] | None = None, now: datetime | None = None
) -> None:
    """Adds every fault and warning to `findings`. `known`: the families, None: not judged. `now`: see above."""
    if draft.site:
        _check_site(draft.site, findings)
    if draft.cloud:
        _check_cloud(draft.cloud, findings, now)
    if draft.broker:
        _check_broker(draft.broker, findings, now)
    if draft.outbox:
        _check_outbox(draft.outbox, findings)
    if draft.delivery:
        _check_delivery(draft.delivery, findings)
    _check_memory(draft, findings)
    _check_arming(draft, findings)
    camera_checks.check(draft, findings, _with_own(draft, findings, known))


def _check_site(site: Site, findings: Findings) -> None:
    check_zone(site.timezone, ("site", "timezone"), findings)


def _check_cloud(cloud: Cloud, findings: Findings, now: datetime | None) -> None:
    why: dict[str, str] = {}  # what is needed, and for the sake of what
    if not cloud.wants_token:
        why["api_key_file"] = 'auth = "api_key"' if cloud.auth == "api_key" else 'event_header = "x-api-key"'
    elif cloud.auth == "assertion":
        key = "client_secret_file" if cloud.algorithm == "HS256" else "private_key_file"
        reason = 'auth = "assertion"' + (' with algorithm = "HS256"' if cloud.algorithm == "HS256" else "")
        why |= dict.fromkeys(("token_url", "audience", "client_id", key), reason)
    else:
        why |= dict.fromkeys(("token_url", "client_id", "client_secret_file"), 'auth = "client_secret"')
    if cloud.event_header == "both":
        why.setdefault("api_key_file", 'event_header = "both"')
    for key, reason in why.items():
        if getattr(cloud, key) is None:
            findings.fault_once(("cloud", key), f"is missing; needed where {reason}")
    for key in ("private_key_file", "client_secret_file", "api_key_file"):
        if getattr(cloud, key) is not None and key not in why:
            with_these = f'auth = "{cloud.auth}", algorithm = "{cloud.algorithm}"'
            if cloud.event_header == "x-api-key":
                with_these = 'event_header = "x-api-key"'
            findings.warn(("cloud", key), f"has no effect with {with_these}")
    if cloud.algorithm == "HS256" and cloud.auth != "assertion":
        findings.fault(("cloud", "algorithm"), 'must not be "HS256" here; allowed only where auth = "assertion"')
    for key in sorted(set(cloud.extra_token_fields) & set(_OWN_TOKEN_FIELDS)):
        findings.fault(("cloud", "extra_token_fields", key), "is a field of the token request itself; leave it out")
    check_secret(cloud, ("cloud",), "private_key_file", findings, lambda key: _signing_key(key, cloud.algorithm))
    for key in ("url", "token_url"):
        host = urlsplit(getattr(cloud, key) or "").hostname or ""
        if f".{host}".endswith(_PLACEHOLDERS):
            findings.warn(("cloud", key), "is a placeholder: put in the address that CHeKT gave you")
    judge = _hmac_secret if cloud.algorithm == "HS256" and cloud.auth == "assertion" else _one_line
    check_secret(cloud, ("cloud",), "client_secret_file", findings, judge)
    check_secret(cloud, ("cloud",), "api_key_file", findings, lambda key: _api_key(key, cloud.url))
    check_certificates(cloud, "cloud", findings, now)


def _signing_key(content: bytes, algorithm: str) -> str | None:
    return None if algorithm == "HS256" else files.suits(files.private_key(content), algorithm)


def _one_line(content: bytes) -> str | None:
    files.text_of(content)
    return None


def _hmac_secret(content: bytes) -> str | None:
    files.text_of(content)
    if len(content) < files.MIN_HS256_BYTES:
        return f"is too short to sign with; allowed with HS256: at least {files.MIN_HS256_BYTES} bytes"
    return None


def _api_key(content: bytes, url: str) -> str | None:
    """CHeKT developer portal, "Authentication": the prefix of a key tells its environment."""
    text = files.text_of(content)
    host = f".{urlsplit(url).hostname}"
    if host.endswith(".chekt.com") and text.startswith("chekt_test_"):
        return "is a key for development, but cloud.url is production; allowed: a key that begins with chekt_live_"
    if host.endswith(".chektdev.com") and text.startswith("chekt_live_"):
        return "is a key for production, but cloud.url is development; allowed: a key that begins with chekt_test_"
    return None


def _check_broker(broker: Broker, findings: Findings, now: datetime | None) -> None:
    url = urlsplit(broker.url)
    is_tls = url.scheme in ("mqtts", "wss")
    if broker.password_file and broker.username is None:
        findings.fault_once(("broker", "username"), "is missing; needed where password_file is set")
    for key, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if getattr(broker, key) and getattr(broker, other) is None:
            findings.fault_once(("broker", other), f"is missing; needed where {key} is set")
    for key in ("ca_file", "cert_file", "key_file"):
        if getattr(broker, key) and not is_tls:
            findings.fault(("broker", key), f"needs TLS, but url begins with {url.scheme}://; allowed: mqtts or wss")
    if not is_loopback(url.hostname or "") and broker.username is None and broker.cert_file is None:
        findings.warn(
            ("broker", "url"),
            "neither username nor cert_file: anyone on this network may raise or suppress alarms",
        )
    if broker.session_expiry < _MIN_SESSION_SECONDS:
        findings.warn(("broker", "session_expiry"), "is short: alarms of a longer outage are lost; better: 7d")
    check_secret(broker, ("broker",), "password_file", findings, any_secret)
    key_pem = check_secret(broker, ("broker",), "key_file", findings, _any_key)
    own = check_certificates(broker, "broker", findings, now).get("cert_file")
    if own and key_pem and not files.belongs(files.private_key(key_pem), own[0]):
        # The handshake would fail without saying why.
        findings.fault(("broker", "key_file"), "does not belong to cert_file; allowed: that certificate's private key")


def _with_own(
    draft: Draft, findings: Findings, known: Mapping[str, FamilyFacts] | None
) -> Mapping[str, FamilyFacts] | None:
    """The families that a source may name: the built-in ones, and those of [rules]."""
    if not isinstance(known, KnownFamilies):
        return known
    own = {}
    for name, table in draft.rules.items():
        if not table.model_fields_set or findings.is_faulty(("rules", name)):
            continue
        if name in known:
            findings.fault(("rules", name), "is the name of a built-in family; allowed: a name of your own")
            continue
        own[name], mistakes = known.read_own(name, table.model_dump(exclude_unset=True))
        for place, why in mistakes:
            findings.fault_once(("rules", name, *place), why)
    return {**known, **own} if own else known


def _check_arming(draft: Draft, findings: Findings) -> None:
    """Whoever can publish on the broker can disarm: then nobody may do so without saying who he is."""
    if draft.arming is None or draft.broker is None or not draft.arming.enabled:
        return
    broker = draft.broker
    if broker.password_file is None and broker.cert_file is None:
        findings.fault(
            ("arming", "enabled"),
            "is refused on a broker without password, where anyone could disarm; "
            "allowed: with broker.username and password_file, or with broker.cert_file and key_file",
        )


def _any_key(content: bytes) -> str | None:
    files.private_key(content)
    return None


def _check_outbox(outbox: Outbox, findings: Findings) -> None:
    if outbox.path and _is(outbox.path, stat.S_ISDIR):
        findings.fault(("outbox", "path"), "is a folder; allowed: the path of a file, such as .../outbox.db")
    if outbox.media_path and _is(outbox.media_path, stat.S_ISREG):
        findings.fault(("outbox", "media_path"), "is a file; allowed: the path of a folder")


def _is(path: str, kind: Callable[[int], bool]) -> bool:
    """False where nobody can know: the state folder is often closed to the user who checks."""
    try:
        return kind(FilePath(path).stat().st_mode)
    except OSError:
        return False


def _check_delivery(delivery: Delivery, findings: Findings) -> None:
    if delivery.retry_first > delivery.retry_max:
        findings.fault(("delivery", "retry_first"), "is longer than retry_max; allowed: at most retry_max")
    if "stale_after" not in delivery.model_fields_set and not findings.is_faulty(("delivery", "stale_after")):
        findings.warn(
            ("delivery", "stale_after"),
            'is not set: late alarms signal the monitoring station however late; set a duration, or "off" to confirm',
        )
    if delivery.never_signal:
        findings.warn(("delivery", "never_signal"), "no alarm signals the monitoring station")


def _check_memory(draft: Draft, findings: Findings) -> None:
    if draft.outbox is None or draft.defaults is None:
        return
    keep = draft.outbox.keep_closed
    windows: dict[Path, float] = {}
    if "dedupe_window" in draft.defaults.model_fields_set:
        windows[("defaults", "dedupe_window")] = draft.defaults.dedupe_window
    elif draft.defaults.dedupe_window > keep:
        findings.fault_once(("outbox", "keep_closed"), "is shorter than defaults.dedupe_window; allowed: at least that")
    for table, camera in draft.cameras.items():
        if camera.dedupe_window is not None:
            windows[("cameras", table, "dedupe_window")] = camera.dedupe_window
    for path, window in windows.items():
        if window > keep:
            findings.fault(
                path, "is longer than outbox.keep_closed, after which nothing is known; allowed: at most that"
            )


def is_writable_by_others(path: FilePath) -> bool:
    """Whoever may write the configuration may send the alarms elsewhere."""
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False
