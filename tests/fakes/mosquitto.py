"""A real Mosquitto on a free port of the loopback, to be stopped, killed and started again; and certificates for it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.fakes.waiting import until

BINARY: Final = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
START_SECONDS: Final = 10.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Mosquitto:
    """`config` are lines for the file, inside the first listener; more listeners may follow.

    "allow_anonymous true" unless they say otherwise.
    """

    def __init__(
        self, folder: Path, *, config: Sequence[str] = (), persistence: bool = True, port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self.folder = folder
        self.log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", "max_queued_messages 200000"]
        if not any(line.startswith("allow_anonymous") for line in config):
            lines.append("allow_anonymous true")
        if os.geteuid() == 0:
            lines.append("user root")  # else it would drop its rights, and with them our folder
        if persistence:
            lines += ["persistence true", f"persistence_location {folder}/", "autosave_interval 1800"]
        self._config.write_text("\n".join([*lines, *config]) + "\n")
        self._ports = [self.port, *(int(line.split()[1]) for line in config if line.startswith("listener "))]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> Mosquitto:
        """Returns when it accepts connections."""
        if BINARY is None:
            raise FileNotFoundError("mosquitto")
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                BINARY, "-c", str(self._config), "-v", stdout=out, stderr=out
            )
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        for port in self._ports:
            await self._accepts(port, self._process, deadline)
        return self

    async def _accepts(self, port: int, process: asyncio.subprocess.Process, deadline: float) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                    raise RuntimeError(f"mosquitto does not start: {self.log_text()[-2000:]}") from None
                await asyncio.sleep(0.01)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(how)
        await process.wait()

    async def stop(self) -> None:
        """SIGTERM: it writes what it knows to disk, if it may."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL: what it has not written is gone."""
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def save(self) -> None:
        """SIGUSR1: it writes its sessions and queues to disk, as it does every `autosave_interval`."""
        database = self.folder / "mosquitto.db"
        database.unlink(missing_ok=True)
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
        await until(database.exists, what="mosquitto's database")  # written under another name, then renamed

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def forget(self) -> None:
        """While it is down: its disk is gone, and with it every session."""
        (self.folder / "mosquitto.db").unlink(missing_ok=True)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    async def __aenter__(self) -> Mosquitto:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self.thaw()
        await self.stop()


@dataclass(frozen=True)
class Certificates:
    """A little authority of our own and what it signed."""

    folder: Path
    _authority: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path) -> Certificates:
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        now = datetime.datetime.now(datetime.UTC)
        authority = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        made = cls(folder, authority, key)
        made.ca_file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = ("localhost", "127.0.0.1"),
        valid_from: datetime.timedelta = datetime.timedelta(days=-1),
        valid_for: datetime.timedelta = datetime.timedelta(days=2),
    ) -> tuple[Path, Path]:
        """Certificate and key, as files. For a client `hosts` mean nothing."""
        key = ec.generate_private_key(ec.SECP256R1())
        begin = datetime.datetime.now(datetime.UTC) + valid_from
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + valid_for)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        cert_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
