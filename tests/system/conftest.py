"""One site for each test: a real broker, a strict practice cloud, a recorder, and the real gateway process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.simulator.cloud import Cloud
from tests.fakes.mosquitto import Mosquitto
from tests.system.gateway_process import CONFIG, GatewayProcess

CAMERAS = ("front_door", "driveway", "warehouse")


@dataclass
class Premises:
    folder: Path
    broker: Mosquitto
    cloud: Cloud
    gateway: GatewayProcess
    written: dict[str, str] = field(default_factory=dict)

    def configure(
        self,
        *,
        broker_url: str | None = None,
        cloud_url: str | None = None,
        delivery: str = "",
        defaults: str = "snapshots = 0",
        source: str = "",
        cameras: tuple[str, ...] = CAMERAS,
        extra: str = "",
    ) -> None:
        """Writes gateway.toml; to be called before `gateway.start()`."""
        key = self.folder / "key.pem"
        key.write_bytes(self.cloud.practice_key)
        key.chmod(0o600)
        self.gateway.config.write_text(
            CONFIG.format(
                folder=self.folder,
                cloud_url=cloud_url or self.cloud.url,
                token_url=(cloud_url or self.cloud.url) + "/oauth/token",
                audience=self.cloud.terms.audience,
                client_id=self.cloud.terms.client_id,
                key_id="practice-key",
                key_file=key,
                broker_url=broker_url or f"mqtt://127.0.0.1:{self.broker.port}",
                delivery=delivery,
                defaults=defaults,
                source=source,
                cameras="\n".join(f'[cameras.{name}]\ncamera_id = "cam-{name}"\n' for name in cameras),
            )
            + extra
        )


@pytest.fixture
async def premises(tmp_path: Path) -> AsyncIterator[Premises]:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path / "broker")
    await broker.start()
    cloud = Cloud()
    await cloud.start()
    folder = tmp_path / "gateway"
    folder.mkdir()
    gateway = GatewayProcess(
        folder, folder / "gateway.toml", {"PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error", "NO_COLOR": "1"}
    )
    if os.environ.get("COVERAGE_PROCESS_START"):
        gateway.environment["COVERAGE_PROCESS_START"] = os.environ["COVERAGE_PROCESS_START"]
    place = Premises(folder, broker, cloud, gateway)
    place.configure()
    try:
        yield place
    finally:
        await gateway.end()
        await cloud.stop()
        await broker.stop()
    gateway.check_conservation()
