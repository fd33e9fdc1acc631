"""What `status` says about health: every reason, each one sentence with what to do about it.

`judge` is the list of them. What makes the gateway critical, and what only degraded, is the interface's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gateway.cli.asking import ago, local_time

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.outbox.ledger import Overview

LATE_SECONDS: Final = 300  # an alarm that is undelivered, or a broker that is away, for longer is critical
LOW_DISK_BYTES: Final = 512 << 20
RECENT_SECONDS: Final = 86_400  # an unreadable message or a gap is worth a sentence for a day
MANY_TROUBLES: Final = 5  # of one site are named, the others counted
SILENCE: Final = "silence"  # the kind of trouble of `gateway.sources.silence`

Reason = tuple[Literal["critical", "degraded"], str]


def judge(
    settings: Settings,
    overview: Overview | None,
    live: Mapping[str, Any] | None,
    *,
    free: int | None,
    now: float,
) -> Iterator[Reason]:
    """`live`: what the running gateway says."""
    if overview is not None:
        yield from _judge_events(overview, now)
    if live is not None:
        yield from _judge_store(live)
        yield from _judge_broker(live["broker"], refusing=bool(live.get("store", {}).get("refusal")), now=now)
        yield from _judge_cloud(live)
        yield from _judge_site(live, now)
    if free is not None and free < LOW_DISK_BYTES:
        yield "degraded", f"the disk of the outbox has {free >> 20} MiB left; make room, or set a smaller media_limit"
    yield from _judge_settings(settings)
    yield from _judge_certificates(settings, datetime.fromtimestamp(now, UTC))


def _judge_events(overview: Overview, now: float) -> Iterator[Reason]:
    late = age(overview.oldest_alarm_at, now)
    if late is not None and late > LATE_SECONDS:
        yield (
            "critical",
            f"an alarm has been undelivered for {ago(late)}; `chekt-gateway events --state pending`, then `trace "
            "EVENT_ID` shows what the cloud answers, or that it does not",
        )
    dead, unseen = overview.events["dead"], overview.dead_unseen
    if unseen:
        words = (
            "1 event is dead and nobody has looked at it"
            if unseen == 1
            else f"{unseen} events are dead and nobody has looked at them"
        )
        yield (
            "critical",
            f"{words}; `chekt-gateway events --state dead`, `trace EVENT_ID`, then `retry EVENT_ID`",
        )
    if dead > unseen:
        yield (
            "degraded",
            f"{_events(dead - unseen)} dead though looked at; `chekt-gateway retry EVENT_ID` sends again what still "
            "matters",
        )
    if overview.events["unmapped"]:
        yield (
            "degraded",
            f"{_events(overview.events['unmapped'])} of a camera that is not configured; `chekt-gateway events --state "
            "unmapped`, add its [cameras] table or `ignore` it, restart, then `retry EVENT_ID`",
        )
    unreadable = age(overview.newest_unreadable_at, now)
    if unreadable is not None and unreadable < RECENT_SECONDS:
        yield (
            "degraded",
            f"a message could not be understood {ago(unreadable)} ago; `chekt-gateway events --state unreadable` says "
            "why; is the source's `dialect` right?",
        )


def _judge_store(live: Mapping[str, Any]) -> Iterator[Reason]:
    refusal = live.get("store", {}).get("refusal")
    if refusal:
        yield (
            "critical",
            f"the store refuses, so no alarm is acknowledged and the broker keeps them: {refusal}; make room or repair "
            "the disk, it goes on by itself",
        )
    if live.get("stuck"):
        yield (
            "critical",
            f"no progress in {', '.join(live['stuck'])}; systemd will restart the gateway; keep its journal for us",
        )


def _judge_broker(broker: Mapping[str, Any], *, refusing: bool, now: float) -> Iterator[Reason]:
    # Where the store refuses, we have left the broker ourselves, and that has its own sentence.
    if not broker.get("connected") and not refusing:
        away = age(broker.get("since"), now) or 0
        error = f" ({broker['last_error']})" if broker.get("last_error") else ""
        yield (
            "critical" if away > LATE_SECONDS else "degraded",
            f"the broker {broker.get('url', '')} has been away for {ago(away)}{error}; does it run? is [broker] right?",
        )
    for topic, why in broker.get("refused_filters", {}).items():
        yield "degraded", f"the broker refuses the subscription {topic} ({why}); check its access rules"
    if broker.get("filters_without_qos"):
        topics = ", ".join(broker["filters_without_qos"])
        yield (
            "degraded",
            f"the broker gives only QoS 0 for {topics}: what comes while we are away is lost; check its access rules",
        )


def _judge_cloud(live: Mapping[str, Any]) -> Iterator[Reason]:
    for condition in live.get("conditions", ()):
        yield condition["level"], condition["sentence"]
    clock = live.get("clock", {}).get("why")
    if clock:
        yield "degraded", f"{clock} (timedatectl)"
    failing = live.get("media", {}).get("uploads_failing")
    if failing:
        yield (
            "degraded",
            f"{failing} uploads in a row have failed; alarms arrive without pictures; check the line and firewall to "
            "the cloud's storage",
        )


def _judge_site(live: Mapping[str, Any], now: float) -> Iterator[Reason]:
    for source, why in live.get("media", {}).get("troubles", {}).items():
        if source:
            yield "degraded", f"no pictures of {source}: {why}; check sources.{source}.url and the recorder"
        else:
            yield "degraded", f"no pictures are written: {why}; make room on the disk"
    # The gateway's own have their sentences above and below.
    troubles = [trouble for trouble in live.get("troubles", ()) if trouble.get("source") != "gateway"]
    for trouble in troubles[:MANY_TROUBLES]:
        what = trouble.get("camera") or trouble.get("source")
        local = " (only told here: site.camera_id is not set)" if trouble.get("local") else ""
        since = local_time(trouble["since_at"])
        kind = trouble.get("kind") or "a fault"
        sentence = f"{what} reports {kind} since {since}{local}; look at the device"
        yield "degraded", _silent(trouble, since, local) if kind == SILENCE else sentence
    if len(troubles) > MANY_TROUBLES:
        yield "degraded", f"{len(troubles) - MANY_TROUBLES} more devices report a fault; see status --json"
    for source, gap in live.get("catching_up", {}).items():
        if gap.get("reason"):
            yield (
                "degraded",
                f"{source} has not told yet what it saw while we did not hear it ({gap['reason']}); it is asked on; is "
                f"sources.{source}.url right?",
            )
    recent = [gap for gap in live.get("gaps", ()) if now - gap["at"] / 1000 < RECENT_SECONDS]
    if recent:
        last = recent[-1]
        times = "" if len(recent) == 1 else f" ({len(recent)} times in a day)"
        yield (
            "degraded",
            f"alarms may be missing from before {local_time(last['at'])}{times}: {last['reason']}; compare with the "
            "recorder's own list",
        )


def _silent(trouble: Mapping[str, Any], since: str, local: str) -> str:
    if trouble.get("camera"):
        return (
            f"camera {trouble['camera']} silent since {since}{local}; has it power and network, does it still publish "
            "to the broker? If it only says little, set a longer silence_after"
        )
    return (
        f"all cameras of {trouble.get('source')} silent since {since}{local}; does the recorder run, does it reach the "
        "broker?"
    )


def _judge_settings(settings: Settings) -> Iterator[Reason]:
    if settings.delivery.never_signal:
        yield (
            "degraded",
            "delivery.never_signal is on: no alarm reaches the monitoring station; remove it after commissioning",
        )
    silent = sorted(name for name, camera in settings.cameras_resolved().items() if not camera.signal)
    if silent:
        names = ", ".join(silent[:10]) + (f" and {len(silent) - 10} more" if len(silent) > 10 else "")
        yield (
            "degraded",
            f"signal = false for {names}: their alarms do not reach the monitoring station; remove it unless an alarm "
            "panel signals them",
        )
    if settings.broker.username is None and settings.broker.cert_file is None:
        yield (
            "degraded",
            "no password is used at the broker, so whoever reaches it can raise or suppress alarms; give it one, and "
            "set broker.username and password_file",
        )


def _judge_certificates(settings: Settings, now: datetime) -> Iterator[Reason]:
    """Those that we may read; a file that is wrong altogether is for `check`."""
    from gateway.config import FileFault, certificate_dates

    for key, name in (
        ("broker.cert_file", settings.broker.cert_file),
        ("broker.ca_file", settings.broker.ca_file),
        ("cloud.ca_file", settings.cloud.ca_file),
    ):
        if name is None:
            continue
        try:
            fault, warning = certificate_dates(Path(name), now, is_ours=key == "broker.cert_file")
        except FileFault:
            continue
        if fault or warning:
            yield "degraded", f"the certificate of {key} {fault or warning}"


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count} events are"


def age(at_ms: int | None, now: float) -> float | None:
    return None if at_ms is None else round(max(0.0, now - at_ms / 1000), 3)
